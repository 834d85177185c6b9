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
    order = jnp.argsort(-jnp.abs(values), axis=1)
    vectors = jnp.take_along_axis(columns, order[:, None, :], axis=2).transpose(0, 2, 1)
    return Eigenpairs(jnp.take_along_axis(values, order, axis=1), _turned(vectors))


@jax.jit(static_argnames=("basis", "count"))
def spectrum(weights: GLUWeights, *, basis: Basis = "input", count: int | None = None) -> Eigenpairs:
    """The `count` eigenpairs of each output's interaction matrix that are largest in size; by default all d of them.

    Equal to the first of `eigenpairs(interaction_matrices(weights, basis=basis))`, but where the rank allows it
    the eigenproblem is solved in the span of the rows of all forms, which is smaller: its dimension is at most 2h,
    and for the input basis at most the width of the embedding. The pairs of the null space come last.

    Returns values (outputs, count) and vectors (outputs, count, d), d being the number of inputs for "input".

    Raises ValueError as `interaction_matrices` does, and for a `count` that is not from 1 to d.
    """
    check_weights(weights)
    with jax.default_matmul_precision("highest"):  # GPUs and TPUs would round the factors
        w, v = branches(weights, basis)
        (d, h), dtype = w.shape, w.dtype
        count = d if count is None else count
        if not 1 <= count <= d:
            raise ValueError(f"`count` is {count}: a number from 1 to {d} is needed")
        if basis == "input" and weights.embed is not None and weights.embed.shape[1] < min(d, 2 * h + 1):
            inner = interaction_matrices(weights._replace(embed=None))
            return _eigenpairs_of_product(weights.embed, inner, count)
        if 2 * h < d:
            # In the coordinates [W V]ᵀ x each hidden unit is a product of two of them.
            unit = GLUWeights(jnp.eye(2 * h, h, dtype=dtype), jnp.eye(2 * h, h, -h, dtype=dtype), weights.out)
            return _eigenpairs_of_product(jnp.concatenate([w, v], axis=1), interaction_matrices(unit), count)
        values, vectors = eigenpairs(interaction_matrices(weights, basis=basis))
        return Eigenpairs(values[:, :count], vectors[:, :count])


def _eigenpairs_of_product(factor, inner, count):
    """The `count` largest eigenpairs of F S Fᵀ for F (d, r) and S (outputs, r, r), r < d: of R S Rᵀ, where F = Q R."""
    d, rank = factor.shape
    q, r = jnp.linalg.qr(factor, mode="complete" if count > rank else "reduced")
    small = jnp.einsum("ij,ojk,lk->oil", r[:rank], inner, r[:rank])
    values, vectors = eigenpairs((small + small.transpose(0, 2, 1)) / 2)
    found = jnp.einsum("dr,okr->okd", q[:, :rank], vectors[:, :count])
    null = jnp.broadcast_to(q[:, rank:count].T, (len(inner), max(0, count - rank), d))
    values = jnp.pad(values[:, :count], ((0, 0), (0, max(0, count - rank))))
    return Eigenpairs(values, _turned(jnp.concatenate([found, null], axis=1)))


def _turned(vectors):
    """Rows with their entry of largest size positive."""
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=2)[:, :, None], axis=2)
    return vectors * jnp.where(largest < 0, -1, 1).astype(vectors.dtype)


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
