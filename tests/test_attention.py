"""Attention by the kernels of devices: which device takes which, and the same numbers as the formula's."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from sqs_jax import attention, kernels
from sqs_jax.attention import attention_on, causal_attention
from sqs_jax.transformer import TransformerConfig
from tests.helpers import on_devices


class Device:
    def __init__(self, kind, capability=None):
        self.device_kind = kind
        if capability:
            self.compute_capability = capability


TPU, HOPPER, TURING, CPU = Device("TPU v5 lite"), Device("NVIDIA H100", "9.0"), Device("Tesla T4", "7.5"), Device("cpu")
BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32


@pytest.mark.parametrize(
    ("device", "dtype", "length", "width", "name"),
    [
        (TPU, BF16, 2048, 64, "splash"),
        (TPU, BF16, 2000, 64, "xla"),
        (TPU, F32, 2048, 64, "xla"),
        (HOPPER, BF16, 2000, 64, "cudnn"),
        (HOPPER, F16, 2048, 128, "cudnn"),
        (HOPPER, F32, 2048, 64, "xla"),
        (HOPPER, BF16, 2048, 136, "xla"),
        (HOPPER, BF16, 2048, 60, "xla"),
        (Device("NVIDIA B200", "10.0"), BF16, 2048, 64, "cudnn"),
        (Device("NVIDIA H100"), BF16, 2048, 64, "cudnn"),
        (Device("gfx942", "gfx942"), BF16, 2048, 64, "xla"),
        (TURING, F16, 2048, 64, "xla"),
        (CPU, BF16, 2048, 64, "xla"),
    ],
)
def test_the_device_decides(device, dtype, length, width, name):
    assert attention_on(device, dtype, length, width) == name


def test_in_a_mesh_a_gpu_tells_its_capability(monkeypatch):
    kind = "NVIDIA GeForce RTX 2080 Ti"
    monkeypatch.setattr(jax, "devices", lambda: [Device(kind, "7.5")])
    mesh = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice(kind, 68, "cuda"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernels.capability(kernels.device_of()) == 7.5
        assert kernels.target() == (None, kind)
    with jax.sharding.use_abstract_mesh(
        AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("NVIDIA H100", 132, "cuda"))
    ):
        assert kernels.target() == ("triton", "NVIDIA H100")  # described, not there


def reference(q, k, v):
    """The formula, in float64 with numpy."""
    q, k, v = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5
    scores = np.where(np.tri(q.shape[2], dtype=bool), scores, -np.inf)
    parts = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (parts / parts.sum(axis=-1, keepdims=True) @ v).swapaxes(1, 2)


def operands(length, width, dtype):
    rng = np.random.default_rng(length)
    return [jnp.asarray(rng.normal(size=(2, length, 2, width)), dtype) for _ in range(3)]


@pytest.mark.parametrize(("length", "width"), [(256, 64), (384, 32)])
def test_splash_has_the_formulas_values_and_gradients(length, width):
    q, k, v = operands(length, width, BF16)

    def loss(q, k, v):
        return jnp.sin(causal_attention(q, k, v).astype(F32)).sum()

    with kernels.interpreted("tpu"):
        assert "pallas_call" in str(jax.make_jaxpr(causal_attention)(q, k, v))
        found = causal_attention(q, k, v)
        gradients = jax.grad(loss, (0, 1, 2))(q, k, v)
    assert found.dtype == BF16
    assert np.abs(np.asarray(found, np.float64) - reference(q, k, v)).max() < 0.02
    expected = jax.grad(loss, (0, 1, 2))(*(x.astype(F32) for x in (q, k, v)))  # by XLA, in float32
    for own, other in zip(gradients, expected, strict=True):
        assert float(jnp.abs(own.astype(F32) - other).max()) < 0.01 * float(jnp.abs(other).max())


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_xla_has_the_formulas_values(dtype):
    q, k, v = operands(40, 8, dtype)
    tolerance = 2e-6 if dtype == F32 else 0.02
    assert np.abs(np.asarray(causal_attention(q, k, v), np.float64) - reference(q, k, v)).max() < tolerance


def test_a_caller_may_refuse_the_kernel():
    with kernels.interpreted("tpu"):
        text = str(jax.make_jaxpr(lambda *x: causal_attention(*x, "xla"))(*operands(128, 32, BF16)))
    assert "pallas_call" not in text
    with pytest.raises(ValueError, match="`attention` is 'flash': one of auto, xla is needed"):
        TransformerConfig(attention="flash")  # pyright: ignore


def test_cudnn_is_asked_for_by_name(monkeypatch):
    asked = []

    def recorded(q, k, v, **settings):
        asked.append(settings)
        return q

    monkeypatch.setattr(attention.kernels, "device_of", lambda _: HOPPER)
    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    causal_attention(*operands(24, 8, BF16))
    causal_attention(*operands(24, 8, F32))
    assert [settings.get("implementation") for settings in asked] == ["cudnn", None]


_ON_DEVICES = """
    import json
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from sqs_jax import kernels
    from sqs_jax.attention import causal_attention

    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.normal(size=(4, 128, 2, 32)), jnp.bfloat16) for _ in range(3)]
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)

    def on_mesh(*operands):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return causal_attention(*operands)

    with kernels.interpreted("tpu"):
        assert "pallas_call" not in str(jax.make_jaxpr(causal_attention)(*operands))  # it may lie anywhere
        assert "pallas_call" in str(jax.make_jaxpr(on_mesh)(*operands))
        found = jax.jit(on_mesh)(*jax.device_put(operands, NamedSharding(mesh, PartitionSpec())))
    expected = causal_attention(*(x.astype(jnp.float32) for x in operands))
    print(json.dumps([float(jnp.abs(found.astype(jnp.float32) - expected).max()), str(found.sharding.spec)]))
"""


def test_a_mesh_parts_sequences_and_heads():
    command = [sys.executable, "-c", textwrap.dedent(_ON_DEVICES)]
    done = subprocess.run(command, env=on_devices(8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    worst, spec = json.loads(done.stdout)
    assert worst < 0.02
    assert all(axis in spec for axis in ("data", "fsdp", "model")), spec
