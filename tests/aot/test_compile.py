"""What the real compilers of TPUs and NVIDIA GPUs make of the kernels. Nothing runs: interpreters tell the numbers.

Register spills are errors here (`XLA_FLAGS` of `make test-aot`), and the VMEM limit of a TPU is the default one.
"""

import functools
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import memory
from sqs_jax import GATES, SQS, gated_linear, kernels, sharded_gated_linear, sqs
from sqs_jax.kernels import epilogues, rules, timings

SHAPES = [(2048, 1024, 4096), (100, 130, 1000), (7, 600, 129), (1, 1, 1)]
TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
GPUS = {"sm_80": "sm_80_a100", "sm_89": "sm_89", "sm_90": "sm_90_h100"}
_TARGETS = Path(__file__).parent / "targets"  # named after no real device: the default tiles, and none of a table


class Target:
    """Devices that are only described. `make test-aot` installs their compilers, and sets what those read."""

    def __init__(self, devices, backend: str):
        self.devices, self.backend = devices, backend

    def mesh(self, shape=(1,), names=("x",)) -> Mesh:
        return Mesh(np.array(self.devices[: int(np.prod(shape))]).reshape(shape), names)

    def compile(self, function, *arrays, dtype="bfloat16", options=None):
        """Compiles for one device, from shapes."""
        mesh = self.mesh()
        sharding = NamedSharding(mesh, PartitionSpec())
        structs = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape in arrays]
        with jax.set_mesh(mesh):
            return jax.jit(function, out_shardings=sharding).lower(*structs).compile(options)


def _topology(**settings):
    from jax.experimental import topologies

    return topologies.get_topology_desc(**settings).devices


def tpu_target(name: str) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: make test-aot")
    return Target(_topology(platform="tpu", topology_name=TPUS[name]), "tpu")


def gpu_target(name: str) -> Target:
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("the CUDA compilers are not installed: make test-aot")
    config = (_TARGETS / f"{GPUS[name]}.pbtxt").read_text()
    return Target(_topology(platform="cuda", topology_name=name, target_config=config, topology="1x1x1"), "triton")


@pytest.fixture(scope="session", params=TPUS)
def tpu(request) -> Target:
    return tpu_target(request.param)


@pytest.fixture(scope="session", params=GPUS)
def gpu(request) -> Target:
    return gpu_target(request.param)


@pytest.fixture(scope="session")
def v5e() -> Target:
    return tpu_target("v5e")


@pytest.fixture(scope="session")
def sm_89() -> Target:
    return gpu_target("sm_89")


@pytest.fixture(scope="session", params=[*TPUS, *GPUS])
def target(request) -> Target:
    """Each of all."""
    return tpu_target(request.param) if request.param in TPUS else gpu_target(request.param)


def layer(**settings):
    return functools.partial(gated_linear, implementation="pallas", **settings)


def training(function):
    def both(*arrays):
        result, pullback = jax.vjp(function, *arrays[:-1])
        return result, pullback(arrays[-1])

    return both


def operands(m, k, n):
    return (m, k), (k, n), (k, n)


@pytest.mark.parametrize("gate", GATES)
def test_every_kernel_gate_and_dtype_compiles(target, gate):
    backend = importlib.import_module(f"sqs_jax.kernels.{target.backend}")
    for dtype in kernels.DTYPES[target.backend]:
        for m, k, n in SHAPES if gate == "sqs" else SHAPES[:1]:
            for epilogue in (epilogues.output, epilogues.output_and_branches, epilogues.gradients):

                def product(x, w, v, *extra, epilogue=epilogue):
                    return backend.dual_product(epilogue, GATES[gate], x, w, v, (), extra, None)

                extra = [(m, n)] if epilogue is epilogues.gradients else []
                target.compile(product, *operands(m, k, n), *extra, dtype=dtype)
        for epilogue, inputs in ((epilogues.output, 2), (epilogues.gradients, 3), (epilogues.activation_gradient, 2)):
            elementwise = functools.partial(backend.elementwise, epilogue, GATES[gate])
            target.compile(lambda *z, f=elementwise: f(z), *[(300, 700)] * inputs, dtype=dtype)


@pytest.mark.parametrize("residuals", ["save", "recompute"])
def test_the_layer_compiles_forward_and_backward(target, residuals):
    for shape in SHAPES[:2]:
        m, _, n = shape
        target.compile(training(layer(residuals=residuals)), *operands(*shape), (m, n))


def test_every_tile_of_the_h100_table_compiles():
    """A tile that was measured to be the fastest may spill a few registers, as a default one may not."""
    rows = timings._read(timings._OURS / "nvidia-h100-80gb-hbm3.json").values()
    shapes = {(row.residuals, row.tile): row.shape for row in rows if row.op == "gated_linear"}
    assert shapes
    spilling = {"xla_gpu_fail_ptx_compilation_on_register_spilling": False}
    for (residuals, tile), (m, k, n) in shapes.items():
        plan = kernels.plan_for("triton", tile)

        def measured(x, w, v, plan=plan, residuals=residuals):
            return rules.gated_linear(x, w, v, (), GATES["sqs"], plan, residuals, jax.lax.Precision.DEFAULT)

        gpu_target("sm_90").compile(training(measured), *operands(m, k, n), (m, n), options=spilling)


def test_sqs_compiles_for_other_exponents(target):
    for dtype in kernels.DTYPES[target.backend]:
        for p in (2, 3):
            activation = functools.partial(sqs, p=p, implementation="pallas")
            target.compile(training(activation), (300, 700), (300, 700), dtype=dtype)
            target.compile(layer(gate=SQS(p=p)), *operands(256, 256, 256), dtype=dtype)


def test_the_highest_precision_compiles(target):
    for dtype in kernels.DTYPES[target.backend]:
        for residuals in ("save", "recompute"):
            function = layer(precision="highest", residuals=residuals)
            target.compile(training(function), *operands(513, 600, 1000), (513, 1000), dtype=dtype)


def test_biases_compile(target):
    def with_biases(x, w, v, b):
        return layer(w_bias=b, v_bias=b)(x, w, v)

    for dtype in kernels.DTYPES[target.backend]:
        target.compile(training(with_biases), *operands(256, 130, 129), (129,), (256, 129), dtype=dtype)


def test_the_kernel_keeps_its_products_out_of_memory(target):
    m, k, n = 8192, 512, 2048
    kernel = target.compile(layer(), *operands(m, k, n)).memory_analysis()
    assert kernel.temp_size_in_bytes < 2 * m * n  # less than one of the two products


def test_a_scan_in_bfloat16_keeps_a_u_and_x_of_each_layer(v5e):
    arrays = functools.partial(
        memory.arrays_a_layer, rows=1024, width=1024, dtype="bfloat16", compiled=v5e.compile, layers=(4, 12)
    )
    by_autodiff = arrays(memory.plain)
    for implementation in ("xla", "pallas"):
        kept = arrays(functools.partial(gated_linear, implementation=implementation))
        assert kept <= 3 * 1.01
        assert kept <= 0.55 * by_autodiff


@pytest.mark.parametrize("fsdp", [None, "data"])
@pytest.mark.parametrize("residuals", ["save", "recompute"])
def test_the_sharded_layer_compiles_for_a_2_by_2_slice(v5e, residuals, fsdp):
    mesh = v5e.mesh((2, 2), ("data", "model"))
    specs = [PartitionSpec(*axes) for axes in (("data", None), (fsdp, "model"), (fsdp, "model"), ("data", "model"))]
    shapes = [(1024, 512), (512, 2048), (512, 2048), (1024, 2048)]
    structs = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    settings: dict[str, Any] = {"mesh": mesh, "fsdp": fsdp, "implementation": "pallas", "residuals": residuals}
    function = functools.partial(sharded_gated_linear, **settings)
    text = jax.jit(training(function)).lower(*structs).compile().as_text()
    assert text.count("tpu_custom_call") >= 2
    assert "all-reduce" in text  # of the gradients
    gathers = len(re.findall(r" all-gather(-start)?\(", text))
    assert (gathers > 0) == (fsdp is not None)


# That each compiler can fail.


def test_a_kernel_that_overflows_vmem_is_refused(v5e):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def kernel(x_ref, out_ref, scratch):
        scratch[0:8, :] = x_ref[...]
        out_ref[...] = scratch[0:8, :]

    def function(scratch_rows, x):
        scratch = [pltpu.VMEM((scratch_rows, 128), jnp.float32)]
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), scratch_shapes=scratch)(x)

    v5e.compile(functools.partial(function, 8), (8, 128), dtype="float32")
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)vmem"):
        v5e.compile(functools.partial(function, 400_000), (8, 128), dtype="float32")


def test_float16_is_refused_by_the_tpu_compiler_as_the_table_says(v5e):
    from sqs_jax.kernels import tpu

    assert "float16" not in kernels.DTYPES["tpu"]
    run = functools.partial(tpu.dual_product, epilogues.output, GATES["sqs"], biases=(), extra=(), precision=None)
    with pytest.raises(Exception, match=r"(?i)f16|float16|unsupported|not supported|failed"):
        v5e.compile(run, *operands(256, 256, 256), dtype="float16")


@pytest.mark.parametrize(("tile", "reason"), [((256, 16, 128), r"(?i)spill"), ((128, 256, 256), r"(?i)shared memory")])
def test_a_tile_that_spills_registers_or_overflows_shared_memory_is_refused(sm_89, tile, reason):
    from sqs_jax.kernels import triton

    run = functools.partial(triton.dual_product, epilogues.output, GATES["sqs"], biases=(), extra=(), precision=None)
    sm_89.compile(run, *operands(512, 512, 512))
    with pytest.raises(jax.errors.JaxRuntimeError, match=reason):
        sm_89.compile(functools.partial(run, tile=tile), *operands(512, 512, 512))
