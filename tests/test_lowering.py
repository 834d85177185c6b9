"""The kernels as the TPU and GPU lowerings accept them, on a machine that has neither."""

import functools
import importlib
import inspect

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from sqs_jax import GATES, gated, gated_linear, kernels, sqs
from sqs_jax.kernels import epilogues

mesh_lib = pytest.importorskip("jax._src.mesh")
DEVICES = {"tpu": ("TPU v5 lite", 1, "tpu"), "triton": ("NVIDIA H100", 132, "cuda")}


def lowered(function, backend, *shapes, dtype="bfloat16"):
    kind, cores, platform = DEVICES[backend]
    fields = {"device_kind": kind, "num_cores": cores, "platform": platform}
    known = inspect.signature(mesh_lib.AbstractDevice).parameters  # JAX 0.10.0 has no platform
    device = mesh_lib.AbstractDevice(**{name: value for name, value in fields.items() if name in known})
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        return jax.jit(function).trace(*structs).lower(lowering_platforms=(platform,)).as_text()


TARGET = {"tpu": "tpu_custom_call", "triton": "xla.gpu.triton"}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("backend", "dtype"), [(b, d) for b, dtypes in kernels.DTYPES.items() for d in dtypes])
def test_forward_and_backward_lower_for_the_device_of_the_mesh(backend, dtype, gate):
    for residuals, calls in (("save", 2), ("recompute", 2)):
        layer = functools.partial(gated_linear, gate=gate, implementation="pallas", residuals=residuals)

        def both(x, w, v, g, layer=layer):
            h, pullback = jax.vjp(layer, x, w, v)
            return h, pullback(g)

        for m, k, n in ((256, 512, 1024), (7, 130, 1), (1, 1, 129)):
            text = lowered(both, backend, (m, k), (k, n), (k, n), (m, n), dtype=dtype)
            assert text.count(TARGET[backend]) == calls
    elementwise = functools.partial(gated, gate=gate, implementation="pallas")
    assert TARGET[backend] in lowered(elementwise, backend, (300, 5), (300, 5), dtype=dtype)


@pytest.mark.parametrize("backend", DEVICES)
def test_sqs_lowers_and_is_no_kernel_unless_it_is_asked_for(backend):
    both = jax.value_and_grad(lambda x: sqs(x, p=2, implementation="pallas").astype(jnp.float32).sum())
    assert lowered(both, backend, (3, 700)).count(TARGET[backend]) == 2
    assert TARGET[backend] not in lowered(sqs, backend, (3, 700))


def test_a_tile_that_was_measured_at_another_shape_is_fitted():
    from sqs_jax.kernels import tpu

    run = functools.partial(tpu.dual_product, epilogues.output, GATES["sqs"], biases=(), extra=(), precision=None)
    for tile, (m, k, n) in (
        ((1000, 300, 512), (1000, 350, 512)),
        ((500, 512, 300), (600, 512, 350)),
        ((16, 32, 128), (40, 20, 100)),
    ):
        assert TARGET["tpu"] in lowered(functools.partial(run, tile=tile), "tpu", (m, k), (k, n), (k, n))


def test_the_tpu_lowering_refuses_a_block_that_is_no_multiple_of_the_registers(monkeypatch):
    from sqs_jax.kernels import tpu

    run = functools.partial(tpu.dual_product, epilogues.output, GATES["sqs"], biases=(), extra=(), precision=None)
    assert TARGET["tpu"] in lowered(functools.partial(run, tile=(128, 128, 128)), "tpu", *[(512, 512)] * 3)
    monkeypatch.setattr(tpu, "fitted", lambda m, k, n, tile: tile)
    with pytest.raises(ValueError, match="block shape"):
        lowered(functools.partial(run, tile=(100, 100, 100)), "tpu", *[(512, 512)] * 3)


def test_the_gpu_lowering_refuses_a_tile_that_is_no_power_of_2():
    triton = importlib.import_module("sqs_jax.kernels.triton")
    run = functools.partial(triton.dual_product, epilogues.output, GATES["sqs"], biases=(), extra=(), precision=None)
    assert TARGET["triton"] in lowered(functools.partial(run, tile=(64, 64, 64)), "triton", *[(512, 512)] * 3)
    with pytest.raises(Exception, match="power of 2"):
        lowered(functools.partial(run, tile=(48, 48, 48)), "triton", *[(512, 512)] * 3)
