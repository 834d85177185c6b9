"""The kernels for NVIDIA GPUs (compute capability 8.0 to 9.0), in Pallas' Triton dialect."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from sqs_jax.kernels import epilogues
from sqs_jax.kernels.shapes import cost, dot_precision, struct

_GROUP = 8  # rows of tiles that run side by side, so that they find the weights in the L2 cache
_BLOCK = 1024  # elements a program, of an elementwise kernel


def tiles(m: int, k: int, n: int, dtype) -> tuple[int, int, int]:
    """Default tile (m, k, n) of the two products, powers of 2: without spills, within the shared memory of sm_89."""
    small = jnp.dtype(dtype).itemsize == 2
    return _fit(m, 128 if small else 64), _fit(k, 64 if small else 32), _fit(n, 64)


def candidates(m: int, k: int, n: int, dtype) -> list[tuple[int, int, int]]:
    """The tiles that tuning tries."""
    # The larger ones are for the shared memory and registers of sm_90.
    sizes = ((64, 64, 64), (64, 32, 64), (128, 32, 128), (128, 64, 128), (256, 64, 64), (128, 128, 64))
    return list(dict.fromkeys([tiles(m, k, n, dtype), *((_fit(m, a), _fit(k, b), _fit(n, c)) for a, b, c in sizes)]))


def _fit(size, limit):
    return min(limit, max(16, pl.next_power_of_2(size)))  # a dot takes no less than 16


def dual_product(epilogue, gate, x, w, v, biases, extra, precision, *, tile=None, interpret=False):
    """An epilogue of a = x W (+ b_w) and u = x V (+ b_v), which never leave registers: x (m, k), w and v (k, n).

    One pass over x feeds two float32 accumulators. Tiles are taken in the order of `_swizzled`; masks cut the edges.
    """
    (m, k), n, dtype = x.shape, w.shape[1], x.dtype
    tile_m, tile_k, tile_n = tile or tiles(m, k, n, dtype)
    if dtype == jnp.float32 and precision in ("highest", jax.lax.Precision.HIGHEST):
        tile_m, tile_k, tile_n = (min(size, 32) for size in (tile_m, tile_k, tile_n))  # larger ones spill registers
    rows, columns = pl.cdiv(m, tile_m), pl.cdiv(n, tile_n)
    outputs, precision = epilogues.OUTPUTS[epilogue], dot_precision(dtype, precision)

    def kernel(x_ref, w_ref, v_ref, *rest):
        bias_refs, rest = rest[: len(biases)], rest[len(biases) :]
        extra_refs, out_refs = rest[: len(extra)], rest[len(extra) :]
        i, j = _swizzled(pl.program_id(0), rows, columns)
        at_m, at_n = pl.ds(i * tile_m, tile_m), pl.ds(j * tile_n, tile_n)
        in_m, in_n = _within(i, tile_m, m)[:, None], _within(j, tile_n, n)[None, :]

        def add(step, sums):
            at_k, in_k = pl.ds(step * tile_k, tile_k), _within(step, tile_k, k)
            left = _load(x_ref.at[at_m, at_k], in_m & in_k[None, :])
            parts = (_load(ref.at[at_k, at_n], in_k[:, None] & in_n) for ref in (w_ref, v_ref))
            dot = (jnp.dot(left, p, precision=precision, preferred_element_type=jnp.float32) for p in parts)
            return tuple(total + part for total, part in zip(sums, dot, strict=True))

        zero = jnp.zeros((tile_m, tile_n), jnp.float32)
        pair = jax.lax.fori_loop(0, pl.cdiv(k, tile_k), add, (zero, zero))
        if biases:
            loaded = (_load(ref.at[at_n], in_n[0])[None, :].astype(jnp.float32) for ref in bias_refs)
            pair = [total + bias for total, bias in zip(pair, loaded, strict=True)]
        # Rounded before the gate, as the residuals are, so that forward and backward agree.
        a, u = (total.astype(dtype).astype(jnp.float32) for total in pair)
        inside = in_m & in_n
        further = (_load(ref.at[at_m, at_n], inside).astype(jnp.float32) for ref in extra_refs)
        for ref, result in zip(out_refs, epilogue(gate, a, u, *further), strict=True):
            plgpu.store(ref.at[at_m, at_n], result.astype(dtype), mask=inside)

    return pl.pallas_call(
        kernel,
        out_shape=(struct((m, n), x),) * outputs,
        grid=(rows * columns,),
        compiler_params=plgpu.CompilerParams(num_warps=8 if tile_m * tile_n > 4096 else 4, num_stages=3),
        cost_estimate=cost(4 * m * k * n, (x, w, v, *extra), outputs * m * n),
        interpret=interpret,
        name=f"glu_{epilogue.__name__}",
    )(x, w, v, *biases, *extra)


def _swizzled(program, rows: int, columns: int):
    """Row and column of a program's tile: programs run down groups of rows of tiles, one column after the other."""
    first = program // (_GROUP * columns) * _GROUP
    group = jnp.minimum(rows - first, _GROUP)
    return first + program % (_GROUP * columns) % group, program % (_GROUP * columns) // group


def elementwise(epilogue, gate, arrays, *, interpret=False):
    """An epilogue on arrays (m, n) of one dtype, in float32, rounded once."""
    shape, size, dtype = arrays[0].shape, arrays[0].size, arrays[0].dtype
    outputs = epilogues.OUTPUTS[epilogue]

    def kernel(*refs):
        i = pl.program_id(0)
        at, inside = pl.ds(i * _BLOCK, _BLOCK), _within(i, _BLOCK, size)
        loaded = (_load(ref.at[at], inside).astype(jnp.float32) for ref in refs[: len(arrays)])
        for ref, result in zip(refs[len(arrays) :], epilogue(gate, *loaded), strict=True):
            plgpu.store(ref.at[at], result.astype(dtype), mask=inside)

    results = pl.pallas_call(
        kernel,
        out_shape=(struct((size,), arrays[0]),) * outputs,
        grid=(pl.cdiv(size, _BLOCK),),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        cost_estimate=cost(10 * size, arrays, outputs * size),
        interpret=interpret,
        name=f"gate_{epilogue.__name__}",
    )(*(array.reshape(-1) for array in arrays))
    return tuple(result.reshape(shape) for result in results)


def _within(index, tile, size):
    """Which of the elements of tile `index` lie below `size`."""
    return index * tile + jnp.arange(tile) < size


def _load(ref, mask):
    return plgpu.load(ref, mask=mask, other=0)
