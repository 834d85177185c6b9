"""Eigenpairs of interaction matrices, by jit-compiled batched eigh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.analysis.interaction import Basis, GLUWeights, branches, check_weights, interaction_matrices


class Eigenpairs(NamedTuple):
    """Eigenvalues (outputs, k), the largest in size first, and unit eigenvectors (outputs, k, d), a row each."""

    values: jax.Array
    vectors: jax.Array


@jax.jit
def eigenpairs(matrices: jax.Array) -> Eigenpairs:
    """All eigenpairs of symmetric matrices (outputs, d, d), which stand for A = Σ_i λ_i v_i v_iᵀ each.

    Sorted by |λ|, the largest first. An eigenvector has no sign of its own: each is turned so that its entry
    of largest size is positive.

    Raises ValueError for an array of another shape.
    """
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"`matrices` has shape {matrices.shape}: (outputs, d, d) is needed")
    values, columns = jnp.linalg.eigh(matrices)
    return _sorted(values, columns.transpose(0, 2, 1))


@jax.jit(static_argnames="basis")
def spectrum(weights: GLUWeights, *, basis: Basis = "input") -> Eigenpairs:
    """All eigenpairs of every output's interaction matrix, those of the null space included.

    Equal to `eigenpairs(interaction_matrices(weights, basis=basis))`, but where the rank allows it, the
    eigenproblem is solved in the span of the rows of all forms, which is smaller: its dimension is
    at most min(d, 2h), and for the input basis at most the width of the embedding.

    Returns values (outputs, d) and vectors (outputs, d, d), d being the number of inputs for "input".

    Raises ValueError as `interaction_matrices` does.
    """
    check_weights(weights)
    if basis == "input" and weights.embed is not None and weights.embed.shape[1] < weights.embed.shape[0]:
        factor = weights.embed
        inner = weights._replace(embed=None)
    else:
        factor = jnp.concatenate(branches(weights, basis), axis=1)
        if factor.shape[1] >= factor.shape[0]:
            return eigenpairs(interaction_matrices(weights, basis=basis))
        h = weights.w.shape[1]
        eye = jnp.eye(2 * h, dtype=factor.dtype)
        inner = GLUWeights(eye[:, :h], eye[:, h:], weights.out)
    return _eigenpairs_of_product(factor, interaction_matrices(inner))


def _eigenpairs_of_product(factor, inner):
    """All eigenpairs of F S Fᵀ for F (d, r) and S (outputs, r, r), r < d: of R S Rᵀ, where F = Q R."""
    d, rank = factor.shape
    q, r = jnp.linalg.qr(factor, mode="complete")
    small = jnp.einsum("ij,ojk,lk->oil", r[:rank], inner, r[:rank])
    values, columns = jnp.linalg.eigh((small + small.transpose(0, 2, 1)) / 2)
    vectors = jnp.einsum("dr,ork->okd", q[:, :rank], columns)
    null = jnp.broadcast_to(q[:, rank:].T, (len(inner), d - rank, d))
    zeros = jnp.zeros((len(inner), d - rank), values.dtype)
    return _sorted(jnp.concatenate([values, zeros], axis=1), jnp.concatenate([vectors, null], axis=1))


def _sorted(values, vectors):
    order = jnp.argsort(-jnp.abs(values), axis=1)
    values = jnp.take_along_axis(values, order, axis=1)
    vectors = jnp.take_along_axis(vectors, order[:, :, None], axis=1)
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=2)[:, :, None], axis=2)
    return Eigenpairs(values, vectors * jnp.where(largest < 0, -1, 1).astype(vectors.dtype))


def extremes(pairs: Eigenpairs, count: int) -> Eigenpairs:
    """The `count` most positive pairs of each output, then the `count` most negative, the largest in size first.

    Returns values (outputs, 2·count) and vectors (outputs, 2·count, d). Where an output has fewer of
    a sign, the value is NaN and the vector 0.
    """
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
    return Eigenpairs(values.reshape(len(values), -1), vectors.reshape(len(vectors), 2 * count, -1))
