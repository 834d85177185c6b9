"""The layer over a mesh of 8 virtual devices: by the helper, and inside a `shard_map` of the user's own."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from sqs_jax import sharded_gated_linear
from tests.helpers import on_devices

_ON_DEVICES = """
    import functools, itertools, json
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, PartitionSpec as P
    from sqs_jax import gated_linear, kernels, sharded_gated_linear

    rng = np.random.default_rng(0)
    x, w, v, b = (jnp.asarray(rng.normal(size=s) / 3, jnp.float32) for s in ((8, 3, 32), (32, 48), (32, 48), (48,)))
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def reference(x, w, v, b):  # in float64, with numpy
        x, w, v, b = (np.asarray(z, np.float64) for z in (x, w, v, b))
        a, u = x @ w + b, x @ v
        h = a * (u - 0.01 * np.sign(u)) / (1 + 0.5 * abs(u))
        g = np.cos(h)
        da, du = g * (u - 0.01 * np.sign(u)) / (1 + 0.5 * abs(u)), g * a * 1.005 / (1 + 0.5 * abs(u)) ** 2
        rows = lambda z: z.reshape(-1, z.shape[-1])
        return h, da @ w.T + du @ v.T, rows(x).T @ rows(da), rows(x).T @ rows(du), rows(da).sum(0)

    def by_helper(x, w, v, b, **settings):
        return sharded_gated_linear(x, w, v, mesh=mesh, w_bias=b, **settings)

    def by_hand(x, w, v, b, **settings):
        layer = lambda x, w, v, b: gated_linear(x, w, v, w_bias=b, **settings)
        specs = (P("data"), P(None, "model"), P(None, "model"), P("model"))
        return jax.shard_map(layer, mesh=mesh, in_specs=specs, out_specs=P("data", None, "model"))(x, w, v, b)

    def by_parts(x, w, v, b, **settings):
        return by_helper(x, w, v, b, fsdp="data", **settings)

    expected = reference(x, w, v, b)
    worst, specs = {}, {}
    cases = [
        (by_helper, "xla", "tpu"), (by_helper, "pallas", "tpu"), (by_helper, "pallas", "triton"),
        (by_hand, "xla", "tpu"), (by_hand, "pallas", "tpu"), (by_parts, "xla", "tpu"), (by_parts, "pallas", "tpu"),
    ]
    for (layer, implementation, backend), residuals in itertools.product(cases, ("save", "recompute")):
        with kernels.interpreted(backend):
            f = functools.partial(layer, implementation=implementation, residuals=residuals)
            both = jax.jit(lambda *z: (f(*z), jax.grad(lambda *z: jnp.sin(f(*z)).sum(), (0, 1, 2, 3))(*z)))
            h, gradients = both(x, w, v, b)
        name = f"{layer.__name__} {implementation} {backend} {residuals}"
        pairs = zip((h, *gradients), expected, strict=True)
        worst[name] = max(float(np.abs(found - want).max() / np.abs(want).max()) for found, want in pairs)
        specs[name] = list(h.sharding.spec)
    try:
        by_helper(x[:6], w, v, b)
    except ValueError as error:
        assert "6 do not divide over the 4 devices" in str(error)
    else:
        raise AssertionError("rows that do not divide")
    # Of w and v, in the forward and again in the backward pass: whole weights are not kept.
    gradient = jax.grad(lambda *z: by_parts(*z).sum(), (0, 1, 2))
    assert str(jax.make_jaxpr(gradient)(x, w, v, b)).count("= all_gather[") == 4
    print(json.dumps([jax.device_count(), worst, specs]))
"""


def test_value_and_gradient_on_8_devices():
    command = [sys.executable, "-c", textwrap.dedent(_ON_DEVICES)]
    done = subprocess.run(command, env=on_devices(8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, worst, specs = json.loads(done.stdout)
    assert count == 8
    assert len(worst) == 14
    assert max(worst.values()) < 2e-6, worst
    assert all(spec == ["data", None, "model"] for spec in specs.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "batch"}, "`data` is 'batch': one of the mesh's axes"),
        ({"x": jnp.ones(4)}, r"`x` has shape \(4,\)"),
        ({"x": jnp.ones(())}, r"`x` has shape \(\)"),
        (
            {"mesh": jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)},
            "`mesh` has explicit",
        ),
        ({"fsdp": "model"}, "`fsdp` is 'model': one of the axes of `data`, 'data', or None is needed"),
        ({"w": jnp.ones((4, 5))}, r"`v` has shape \(4, 6\): that of `w`, \(4, 5\)"),
    ],
)
def test_mistakes_are_named(change, message):
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    arguments = {"mesh": mesh, "x": jnp.ones((8, 4)), "w": jnp.ones((4, 6)), "v": jnp.ones((4, 6))} | change
    with pytest.raises(ValueError, match=message):
        sharded_gated_linear(**arguments)
