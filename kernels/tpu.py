"""The kernels for TPUs (v5e, v5p, v6e), in Pallas' TPU dialect."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sqs_jax.kernels import epilogues
from sqs_jax.kernels.shapes import cost, dot_precision, largest_tile, struct

_LANES = 128


def tiles(m: int, k: int, n: int, dtype) -> tuple[int, int, int]:
    """Default tile (m, k, n) of the two products: two accumulators and all buffers within 16 MiB of VMEM (v5e)."""
    small = jnp.dtype(dtype).itemsize == 2
    return largest_tile(m, 512 if small else 256, 16), largest_tile(k, 512, _LANES), largest_tile(n, 512, _LANES)


def fitted(m: int, k: int, n: int, tile: tuple[int, int, int]) -> tuple[int, int, int]:
    """A tile measured at another shape, fitted to this one: multiples of the registers, or the whole axis."""
    steps = (16, _LANES, _LANES)
    limits = (-(-size // step) * step for size, step in zip(tile, steps, strict=True))
    return tuple(map(largest_tile, (m, k, n), limits, steps))  # pyright: ignore[reportReturnType]


def candidates(m: int, k: int, n: int, dtype) -> list[tuple[int, int, int]]:
    """The tiles that tuning tries."""
    sizes = ((512, 512, 512), (256, 512, 512), (512, 1024, 256), (256, 1024, 512), (1024, 512, 256), (256, 256, 256))
    return list(dict.fromkeys([tiles(m, k, n, dtype), *(fitted(m, k, n, size) for size in sizes)]))


def dual_product(epilogue, gate, x, w, v, biases, extra, precision, *, tile=None, interpret=False):
    """An epilogue of a = x W (+ b_w) and u = x V (+ b_v), which never leave VMEM: x (m, k), w and v (k, n).

    One pass over x feeds two float32 accumulators. The grid is (m, n, k), k innermost. What lies beyond an array is
    masked along k and discarded along m and n.
    """
    (m, k), n, dtype = x.shape, w.shape[1], x.dtype
    tile_m, tile_k, tile_n = fitted(m, k, n, tile) if tile else tiles(m, k, n, dtype)
    last = pl.cdiv(k, tile_k) - 1
    outputs, precision = epilogues.OUTPUTS[epilogue], dot_precision(dtype, precision)

    def kernel(x_ref, w_ref, v_ref, *rest):
        (*inputs, acc_a, acc_u), step = rest, pl.program_id(2)
        bias_refs, inputs = inputs[: len(biases)], inputs[len(biases) :]
        extra_refs, out_refs = inputs[: len(extra)], inputs[len(extra) :]

        @pl.when(step == 0)
        def _():
            acc_a[...] = acc_u[...] = jnp.zeros((tile_m, tile_n), jnp.float32)

        valid = k - step * tile_k if k % tile_k else None
        left = _inside(x_ref[...], valid, axis=1)
        for acc, ref in ((acc_a, w_ref), (acc_u, v_ref)):
            right = _inside(ref[...], valid, axis=0)
            acc[...] += jnp.dot(left, right, precision=precision, preferred_element_type=jnp.float32)

        @pl.when(step == last)
        def _():
            # Rounded before the gate, as the residuals are, so that forward and backward agree.
            pair = [acc_a[...], acc_u[...]]
            if biases:
                pair = [acc + ref[...].astype(jnp.float32) for acc, ref in zip(pair, bias_refs, strict=True)]
            a, u = (acc.astype(dtype).astype(jnp.float32) for acc in pair)
            further = (ref[...].astype(jnp.float32) for ref in extra_refs)
            for ref, result in zip(out_refs, epilogue(gate, a, u, *further), strict=True):
                ref[...] = result.astype(dtype)

    in_specs, outer = _blocks(tile_m, tile_k, tile_n, len(biases), len(extra))
    return pl.pallas_call(
        kernel,
        out_shape=(struct((m, n), x),) * outputs,
        grid=(pl.cdiv(m, tile_m), pl.cdiv(n, tile_n), last + 1),
        in_specs=in_specs,
        out_specs=(outer,) * outputs,
        scratch_shapes=[pltpu.VMEM((tile_m, tile_n), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=cost(4 * m * k * n, (x, w, v, *extra), outputs * m * n),
        interpret=pltpu.InterpretParams() if interpret else False,
        name=f"glu_{epilogue.__name__}",
    )(x, w, v, *(jnp.expand_dims(b, 0) for b in biases), *extra)


def _blocks(tile_m: int, tile_k: int, tile_n: int, biases: int, extra: int):
    """The blocks of x, w and v, biases and extra inputs, and the block of an output, by program (i, j, step)."""
    x = pl.BlockSpec((tile_m, tile_k), lambda i, j, step: (i, step))
    weights = pl.BlockSpec((tile_k, tile_n), lambda i, j, step: (step, j))
    bias = pl.BlockSpec((1, tile_n), lambda i, j, step: (0, j))
    outer = pl.BlockSpec((tile_m, tile_n), lambda i, j, step: (i, j))
    return [x, *[weights] * 2, *[bias] * biases, *[outer] * extra], outer


def elementwise(epilogue, gate, arrays, *, interpret=False):
    """An epilogue on arrays (m, n) of one dtype, in float32, rounded once."""
    (m, n), dtype = arrays[0].shape, arrays[0].dtype
    outputs = epilogues.OUTPUTS[epilogue]
    tile = largest_tile(m, 256, 16), largest_tile(n, 512, _LANES)

    def kernel(*refs):
        results = epilogue(gate, *(ref[...].astype(jnp.float32) for ref in refs[: len(arrays)]))
        for ref, result in zip(refs[len(arrays) :], results, strict=True):
            ref[...] = result.astype(dtype)

    block = pl.BlockSpec(tile, lambda i, j: (i, j))
    return pl.pallas_call(
        kernel,
        out_shape=(struct((m, n), arrays[0]),) * outputs,
        grid=(pl.cdiv(m, tile[0]), pl.cdiv(n, tile[1])),
        in_specs=[block] * len(arrays),
        out_specs=(block,) * outputs,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=cost(10 * m * n, arrays, outputs * m * n),
        interpret=pltpu.InterpretParams() if interpret else False,
        name=f"gate_{epilogue.__name__}",
    )(*arrays)


def _inside(block, valid, axis):
    """The block with 0 beyond its first `valid` rows (axis 0) or columns (axis 1), where NaN may lie; None for all."""
    if valid is None:
        return block
    index = jax.lax.broadcasted_iota(jnp.int32, block.shape, axis)
    return jnp.where(index < valid, block, jnp.zeros_like(block))
