"""Summaries of eigenvalues: the most positive and most negative pairs, effective rank, gaps."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from sqs_jax.analysis.eigen import Eigenpairs


@jax.jit(static_argnames="count")
def extremes(pairs: Eigenpairs, count: int) -> Eigenpairs:
    """The `count` most positive pairs of each output, then the `count` most negative, the largest in size first.

    Returns values (outputs, 2·count) and vectors (outputs, 2·count, d). Where an output has fewer of
    a sign, the value is NaN and the vector 0. Raises ValueError for a `count` below 1.
    """
    if count < 1:
        raise ValueError(f"`count` is {count}: a whole number ≥ 1 is needed")
    kept = min(count, pairs.values.shape[1])
    order = jnp.argsort(pairs.values, axis=1)
    order = jnp.concatenate([order[:, ::-1][:, :kept], order[:, :kept]], axis=1)
    values = jnp.take_along_axis(pairs.values, order, axis=1)
    vectors = jnp.take_along_axis(pairs.vectors, order[:, :, None], axis=1)
    right = jnp.concatenate([values[:, :kept] > 0, values[:, kept:] < 0], axis=1)
    missing = ((0, 0), (0, count - kept))
    values = jnp.where(right, values, jnp.nan).reshape(len(values), 2, kept)
    vectors = jnp.where(right[:, :, None], vectors, 0).reshape(len(vectors), 2, kept, -1)
    values = jnp.pad(values, ((0, 0), *missing), constant_values=jnp.nan)
    vectors = jnp.pad(vectors, ((0, 0), *missing, (0, 0)))
    residuals = jnp.take_along_axis(pairs.residuals, order, axis=1).reshape(len(order), 2, kept)
    residuals = jnp.pad(residuals, ((0, 0), *missing), constant_values=jnp.nan).reshape(len(order), 2 * count)
    return Eigenpairs(values.reshape(len(values), -1), vectors.reshape(len(vectors), 2 * count, -1), residuals)


@jax.jit(static_argnames="kind")
def effective_rank(
    values: Float[Array, "*outputs k"], kind: Literal["participation", "entropy"] = "participation"
) -> Float[Array, "*outputs"]:
    """How many eigenvalues (..., k) count: (...,), from 1 to k; 0 where all are 0, NaN where one is NaN.

        participation: (Σ|λ|)² / Σλ²        entropy: exp(-Σ p log p), p = |λ| / Σ|λ|

    Of a truncated spectrum it is the rank of the part at hand. Raises ValueError for another `kind`.

    Source: Roy and Vetterli 2007 for the entropy.
    """
    sizes = jnp.abs(values)
    sizes = jnp.ldexp(sizes, -jnp.frexp(jnp.max(sizes, axis=-1, keepdims=True))[1])  # or their sum may overflow
    total = jnp.sum(sizes, axis=-1)
    share = sizes / jnp.where(total == 0, 1, total)[..., None]
    if kind == "participation":
        squares = jnp.sum(share**2, axis=-1)
        return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, squares))
    if kind == "entropy":
        return jnp.where(total == 0, 0, jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share), axis=-1)))
    raise ValueError(f"`kind` is {kind!r}: 'participation' or 'entropy' is needed")


@jax.jit
def eigengaps(values: Float[Array, "*outputs k"]) -> Float[Array, "*outputs k"]:
    """Distance of each eigenvalue (..., k), as sorted by size, to its nearest neighbour, over |λ₁|: (..., k).

    Where a gap is small, only the span of the neighbouring eigenvectors is determined: compare subspaces.
    NaN for a single eigenvalue.
    """
    order = jnp.sort(values, axis=-1)
    gaps = jnp.diff(order, axis=-1)
    infinite = jnp.full((*gaps.shape[:-1], 1), jnp.inf, gaps.dtype)
    nearest = jnp.minimum(jnp.concatenate([infinite, gaps], -1), jnp.concatenate([gaps, infinite], -1))
    back = jnp.argsort(jnp.argsort(values, axis=-1), axis=-1)
    nearest = jnp.take_along_axis(nearest, back, axis=-1)
    largest = jnp.max(jnp.abs(values), axis=-1, keepdims=True)
    return jnp.where(jnp.isfinite(nearest), nearest / jnp.where(largest > 0, largest, 1), jnp.nan)
