"""Every kernel in Pallas' interpreters, against float64, with edge shapes; and the derivative rules around them."""

import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from benchmarks import memory
from sqs_jax import GATES, GLU, SQS, gated, gated_linear, kernels, sqs
from sqs_jax.kernels import epilogues

REFERENCE = {  # σ and σ', in float64
    "sqs": (lambda u: (u - 0.01 * np.sign(u)) / (1 + 0.5 * abs(u)), lambda u: 1.005 / (1 + 0.5 * abs(u)) ** 2),
    "bilinear": (lambda u: u, np.ones_like),
    "relu": (lambda u: np.maximum(u, 0), lambda u: np.where(u > 0, 1.0, 0.0)),
    "gelu": (
        lambda u: u * special.ndtr(u),
        lambda u: special.ndtr(u) + u * np.exp(-u * u / 2) / np.sqrt(2 * np.pi),
    ),
    "silu": (
        lambda u: u * special.expit(u),
        lambda u: special.expit(u) * (1 + u * special.expit(-u)),
    ),
}
BACKENDS = [(backend, dtype) for backend, dtypes in kernels.DTYPES.items() for dtype in dtypes]
EDGES = [(1, 1, 1), (7, 127, 129), (130, 600, 260)]


def draw(*shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def wide(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def assert_rounded(result, expected, dtype, scale=0.0):
    """Equal but for one rounding to the dtype, and what float32 arithmetic may lose: 2e-6, of the result or `scale`."""
    assert result.dtype == dtype
    rounding = float(jnp.finfo(dtype).eps) / 2 if dtype != "float32" else 0.0
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    bound = (rounding + 2e-6) * np.abs(expected) + 2e-6 * np.asarray(scale) + smallest
    np.testing.assert_array_less(np.abs(np.asarray(result, np.float64) - expected), bound)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_each_product_kernel_gate_and_dtype_matches_float64(backend, dtype, gate):
    value, slope = REFERENCE[gate]
    run = functools.partial(importlib.import_module(f"sqs_jax.kernels.{backend}").dual_product, interpret=True)
    for m, k, n in EDGES if gate == "sqs" else EDGES[-1:]:  # what is masked at an edge no gate knows of
        x, w, v, g = draw((m, k), (k, n), (k, n), (m, n), dtype=dtype)
        w, v = w / np.sqrt(k), v / np.sqrt(k)
        h, a, u = run(epilogues.output_and_branches, GATES[gate], x, w, v, (), (), "highest")
        (alone,) = run(epilogues.output, GATES[gate], x, w, v, (), (), "highest")
        da, du = run(epilogues.gradients, GATES[gate], x, w, v, (), (g,), "highest")
        x64, w64, v64, g64 = wide(x, w, v, g)
        for result, weights in ((a, w64), (u, v64)):
            assert_rounded(result, x64 @ weights, dtype, scale=abs(x64) @ abs(weights))
        # σ is told from the u that the kernel itself has rounded: u on the other side of a jump is no error of σ.
        a64, u64 = wide(a, u)
        assert_rounded(h, a64 * value(u64), dtype, scale=1e-1 * abs(a64 * u64))
        assert_rounded(da, g64 * value(u64), dtype, scale=1e-1 * abs(g64 * u64))
        assert_rounded(du, g64 * a64 * slope(u64), dtype, scale=abs(g64 * a64))
        np.testing.assert_array_equal(alone, h)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_each_elementwise_kernel_gate_and_dtype_matches_float64(backend, dtype, gate):
    value, slope = REFERENCE[gate]
    run = functools.partial(importlib.import_module(f"sqs_jax.kernels.{backend}").elementwise, interpret=True)
    for shape in ((1, 1), (300, 700))[gate != "sqs" :]:
        a, u, g = draw(shape, shape, shape, dtype=dtype)
        u = 3 * u
        a64, u64, g64 = wide(a, u, g)
        expected = {
            epilogues.output: (a64 * value(u64),),
            epilogues.gradients: (g64 * value(u64), g64 * a64 * slope(u64)),
            epilogues.activation: (value(u64),),
            epilogues.activation_gradient: (g64 * slope(u64),),
        }
        arrays = {2: (a, u), 3: (a, u, g), 1: (u,)}
        for epilogue, results in expected.items():
            operands = (u, g) if epilogue is epilogues.activation_gradient else arrays[_inputs(epilogue)]
            scale = max(abs(a64).max() * abs(g64).max(), 1) * 0.2
            for found, result in zip(run(epilogue, GATES[gate], operands), results, strict=True):
                assert_rounded(found, result, dtype, scale=scale)


def _inputs(epilogue):
    return epilogue.__code__.co_argcount - 1


@pytest.mark.parametrize("backend", kernels.DTYPES)
@pytest.mark.parametrize("gate", [SQS(0.3, 0.0, 1), SQS(0.0, 2.0, 2), SQS(0.02, 0.7, 3)])
def test_other_parameters_of_sqs(backend, gate):
    (x, g) = draw((9, 40), (9, 40))
    x = x.at[0, :4].set(jnp.array([jnp.inf, -jnp.inf, 0.0, jnp.nan]))
    settings = {"c": gate.c, "lam": gate.lam, "p": gate.p}
    with kernels.interpreted(backend):
        value, pullback = jax.vjp(lambda x: sqs(x, **settings, implementation="pallas"), x)
        (slope,) = pullback(g)
    by_xla, pullback = jax.vjp(lambda x: sqs(x, **settings, implementation="xla"), x)
    np.testing.assert_allclose(value, by_xla, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(slope, pullback(g)[0], rtol=2e-6, atol=1e-6)  # the terms of the slope cancel near its 0


def gradients_in_float64(x, w, v, biases, g):
    """Of Σ g·h, for SQS, by hand."""
    x, w, v, g = wide(x, w, v, g)
    b, d = wide(*biases) if biases else (0.0, 0.0)
    value, slope = REFERENCE["sqs"]
    a, u = x @ w + b, x @ v + d
    da, du = g * value(u), g * a * slope(u)
    return a * value(u), (da @ w.T + du @ v.T, x.T @ da, x.T @ du, da.sum(0), du.sum(0))


@pytest.mark.parametrize("backend", ["xla", *kernels.DTYPES])
@pytest.mark.parametrize("residuals", ["save", "recompute"])
@pytest.mark.parametrize("with_biases", [False, True])
def test_the_layer_and_its_gradients_match_float64(backend, residuals, with_biases):
    x, w, v, b, d, g = draw((3, 5, 40), (40, 33), (40, 33), (33,), (33,), (3, 5, 33))
    biases = {"w_bias": b, "v_bias": d} if with_biases else {}

    def layer(x, w, v, biases):
        implementation = "xla" if backend == "xla" else "pallas"
        return gated_linear(x, w, v, **biases, implementation=implementation, residuals=residuals)

    with kernels.interpreted("tpu" if backend == "xla" else backend):
        h, pullback = jax.vjp(layer, x, w, v, biases)
        dx, dw, dv, d_biases = pullback(g)
    flat = [z.reshape(15, -1) for z in (x, g)]
    expected, gradients = gradients_in_float64(flat[0], w, v, (b, d) if with_biases else (), flat[1])
    np.testing.assert_allclose(h.reshape(15, 33), expected, rtol=1e-5, atol=1e-5)
    result = (dx.reshape(15, 40), dw, dv, *(d_biases[name] for name in biases))
    for one, other in zip(result, gradients[: len(result)], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("backend", kernels.DTYPES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_save_and_recompute_are_the_same_numbers(backend, dtype):
    x, w, v, g = draw((17, 40), (40, 33), (40, 33), (17, 33), dtype=dtype)
    result = {}
    for implementation, residuals in itertools.product(("xla", "pallas"), ("save", "recompute")):
        layer = functools.partial(gated_linear, implementation=implementation, residuals=residuals)
        with kernels.interpreted(backend):
            h, pullback = jax.vjp(layer, x, w, v)
            result[implementation, residuals] = (h, *pullback(g))
    for implementation in ("xla", "pallas"):
        for saved, rebuilt in zip(result[implementation, "save"], result[implementation, "recompute"], strict=True):
            np.testing.assert_array_equal(saved, rebuilt)


@pytest.mark.parametrize("backend", ["xla", *kernels.DTYPES])
def test_what_reverse_mode_keeps(backend):
    x, w, v = draw((16, 8), (8, 24), (8, 24), dtype="bfloat16")
    implementation = "xla" if backend == "xla" else "pallas"
    kept = {}
    for residuals in ("save", "recompute"):
        layer = functools.partial(gated_linear, implementation=implementation, residuals=residuals)
        with kernels.interpreted("tpu" if backend == "xla" else backend):
            kept[residuals] = jax.tree.leaves(jax.vjp(layer, x, w, v)[1])
    shapes = {way: sorted(leaf.shape for leaf in leaves if leaf.size > 1) for way, leaves in kept.items()}
    arguments = [(8, 24), (8, 24), (16, 8)]
    assert shapes == {"save": sorted([*arguments, (16, 24), (16, 24)]), "recompute": arguments}
    assert {leaf.dtype for leaf in kept["save"] if leaf.size > 1} == {jnp.dtype("bfloat16")}


def test_a_scan_of_layers_keeps_half_of_what_plain_autodiff_keeps():
    result = {}
    for residuals in ("save", "recompute"):
        result["xla", residuals] = memory.arrays_a_layer(functools.partial(gated_linear, residuals=residuals))
        with kernels.interpreted("triton"):
            kernel = functools.partial(gated_linear, residuals=residuals, implementation="pallas")
            result["pallas", residuals] = memory.arrays_a_layer(kernel)
    for (_, residuals), arrays in result.items():
        assert arrays <= {"save": 3, "recompute": 1}[residuals] * 1.01  # a, u and x; or x alone
    assert result["xla", "save"] <= 0.55 * memory.arrays_a_layer(memory.plain)


@pytest.mark.parametrize("backend", kernels.DTYPES)
def test_vmap_and_scan_over_a_kernel(backend):
    xs, w, v, ws = draw((3, 5, 8), (8, 8), (8, 8), (3, 8, 8))
    layer = functools.partial(gated_linear, implementation="pallas")
    with kernels.interpreted(backend):
        shared = jax.vmap(layer, (0, None, None))(xs, w, v)
        own = jax.vmap(layer, (0, 0, None))(xs, ws, v)
        nested = jax.vmap(jax.vmap(layer, (0, None, None)), (0, 0, None))(xs, ws, v)
        each = jax.vmap(jax.grad(lambda x, w: layer(x, w, v).sum(), (0, 1)), (0, None))(xs, w)
        gates = jax.vmap(functools.partial(gated, implementation="pallas"), (0, None))(xs, xs[0])
        carried, _ = jax.lax.scan(lambda x, w: (layer(x, w, v), None), xs[0], ws)
    plain = functools.partial(gated_linear, implementation="xla")
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    close(shared, plain(xs, w, v))
    close(own, jnp.stack([plain(xs[i], ws[i], v) for i in range(3)]))
    close(nested, own)
    gradients = [jax.grad(lambda x, w: plain(x, w, v).sum(), (0, 1))(x, w) for x in xs]
    for i in range(2):
        close(each[i], jnp.stack([g[i] for g in gradients]))
    close(gates, jnp.stack([gated(x, xs[0]) for x in xs]))
    x = xs[0]
    for w in ws:
        x = plain(x, w, v)
    close(carried, x)


@pytest.mark.parametrize("backend", kernels.DTYPES)
def test_reverse_of_reverse_mode_by_xla_and_no_forward_mode(backend):
    x, w, v, direction = draw((6, 8), (8, 5), (8, 5), (6, 8))

    def curvature(implementation):
        def loss(x):
            return jnp.sin(gated_linear(x, w, v, gate="silu", implementation=implementation)).sum()

        return jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), direction))(x), loss

    with kernels.interpreted(backend):
        result, loss = curvature("pallas")
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(loss, (x,), (direction,))
    np.testing.assert_allclose(result, curvature("xla")[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        result, jax.jvp(jax.grad(curvature("xla")[1]), (x,), (direction,))[1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("backend", kernels.DTYPES)
def test_reverse_of_reverse_mode_where_a_row_is_0(backend):
    x, w, v = draw((4, 8), (8, 5), (8, 5))
    x = x.at[1].set(0)

    def penalty(x, implementation):
        gradient = jax.grad(lambda x: gated_linear(x, w, v, implementation=implementation).sum())(x)
        return jnp.sum(gradient**2)

    with kernels.interpreted(backend):
        result = jax.grad(penalty)(x, "pallas")
    np.testing.assert_allclose(result, jax.grad(penalty)(x, "xla"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", kernels.DTYPES)
def test_vmap_over_nothing(backend):
    w, v = draw((8, 6), (8, 6))
    with kernels.interpreted(backend):
        layer = jax.vmap(lambda x: gated_linear(x, w, v, implementation="pallas"))
        assert layer(jnp.ones((0, 5, 8))).shape == (0, 5, 6)
        assert jax.vmap(lambda x: sqs(x, implementation="pallas"))(jnp.ones((0, 5))).shape == (0, 5)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_remat_policies_know_the_branches(implementation):
    x, w, v = draw((16, 8), (8, 24), (8, 24))

    def kept(*names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        layer = jax.checkpoint(lambda *z: gated_linear(*z, implementation=implementation), policy=policy)
        with kernels.interpreted("triton"):
            leaves = jax.tree.leaves(jax.vjp(lambda *z: jnp.sin(layer(*z)), x, w, v)[1])
        return sum(leaf.shape == (16, 24) for leaf in leaves)

    assert kept("glu_linear", "glu_gate") - kept() == 2
    assert kept("glu_gate") - kept() == 1


def test_modules_pass_the_choice_through():
    from flax import nnx

    x = draw((4, 8))[0]
    plain = GLU(8, 6, rngs=nnx.Rngs(0))
    with kernels.interpreted("tpu"):
        by_kernel = GLU(8, 6, bias=True, implementation="pallas", residuals="recompute", rngs=nnx.Rngs(0))
        np.testing.assert_allclose(by_kernel(x), plain(x), rtol=1e-5, atol=1e-6)
        assert "glu_output" in str(jax.make_jaxpr(lambda x: by_kernel(x))(x))
        learnt = GLU(8, 6, learnable=True, implementation="pallas", rngs=nnx.Rngs(0))
        with pytest.raises(NotImplementedError, match="numbers as parameters"):
            jax.jit(lambda x: learnt(x))(x)
        np.testing.assert_allclose(learnt(x), GLU(8, 6, learnable=True, rngs=nnx.Rngs(0))(x), rtol=1e-5, atol=1e-6)


# What each interpreter catches: a kernel that is broken on purpose.


def test_the_tpu_interpreter_catches_a_mask_that_is_missing(monkeypatch):
    from sqs_jax.kernels import tpu

    x, w, v = draw((8, 600), (600, 128), (600, 128))
    run = functools.partial(
        tpu.dual_product, epilogues.output, GATES["relu"], x, w, v, (), (), None, tile=(8, 512, 128)
    )
    assert np.all(np.isfinite(run(interpret=True)[0]))
    monkeypatch.setattr(tpu, "_inside", lambda block, valid, axis: block)
    assert not np.all(np.isfinite(run(interpret=True)[0]))


def test_the_triton_interpreter_catches_a_mask_that_is_missing(monkeypatch):
    from sqs_jax.kernels import triton

    x, w, v = draw((8, 20), (20, 16), (20, 16))
    run = functools.partial(triton.dual_product, epilogues.output, GATES["relu"], x, w, v, (), (), None)
    expected = gated_linear(x, w, v, gate="relu")
    np.testing.assert_allclose(run(interpret=True)[0], expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(triton, "_within", lambda index, tile, size: index * tile + jnp.arange(tile) < tile)
    assert not np.allclose(run(interpret=True)[0], expected, rtol=1e-3)


def test_the_tpu_kernel_has_no_races():
    from jax.experimental.pallas import tpu as pltpu

    from sqs_jax.kernels import tpu

    x, w, v = draw((16, 256), (256, 256), (256, 256))
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    original = pltpu.InterpretParams
    try:
        pltpu.InterpretParams = lambda: params
        h = tpu.dual_product(epilogues.output, GATES["sqs"], x, w, v, (), (), None, tile=(8, 128, 128), interpret=True)[
            0
        ]
        jax.block_until_ready(h)
    finally:
        pltpu.InterpretParams = original
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found
    np.testing.assert_allclose(h, gated_linear(x, w, v), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", kernels.DTYPES)
def test_vmap_over_inputs_runs_one_kernel_whose_weights_and_biases_are_shared(backend):
    xs, w, v, w_bias, v_bias = draw((3, 5, 8), (8, 8), (8, 8), (8,), (8,))

    def layer(x):
        return gated_linear(x, w, v, w_bias=w_bias, v_bias=v_bias, implementation="pallas")

    with kernels.interpreted(backend):
        jaxpr = str(jax.make_jaxpr(jax.vmap(layer))(xs))
        assert jaxpr.count("pallas_call[") == 1
        assert "15,8" in jaxpr  # the rows of all, as one
