"""Shapes, tiles and costs that the Pallas backends share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl


def largest_tile(size: int, limit: int, step: int) -> int:
    """The tile of an axis: all of it up to `limit`; beyond, the largest multiple of `step` that divides it.

    Where only tiles below half of `limit` divide it, `limit` itself, whose last block sticks out.
    """
    if size <= limit:
        return size
    dividing = [tile for tile in range(limit - limit % step, limit // 2 - 1, -step) if size % tile == 0]
    return dividing[0] if dividing else limit


def dot_precision(dtype, precision) -> jax.lax.PrecisionLike:
    """The precision of a product with float32 sums. Those of 16-bit numbers are exact already."""
    return precision if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def struct(shape, like) -> jax.ShapeDtypeStruct:
    """An output with the dtype of `like`, which varies over the same axes of a `shard_map`."""
    kind = jax.typeof(like)
    if hasattr(kind, "manual_axis_type"):
        return jax.ShapeDtypeStruct(shape, kind.dtype, manual_axis_type=kind.manual_axis_type)
    return jax.ShapeDtypeStruct(shape, kind.dtype, vma=kind.vma)  # pyright: ignore - before JAX 0.10.2


def cost(flops: int, inputs, output_elements: int) -> pl.CostEstimate:
    """The cost of a kernel for XLA's scheduler: one transcendental an output, every array read or written once."""
    itemsize = inputs[0].dtype.itemsize
    elements = output_elements + sum(int(np.prod(array.shape)) for array in inputs)
    return pl.CostEstimate(flops=flops, bytes_accessed=elements * itemsize, transcendentals=output_elements)
