"""The derivatives of eigenpairs in closed form."""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Eigenvalues that are closer, over |λ₁|, are one to the rounding of their solver: 8 spacings.
_ALIKE = 8


def pair_tangents(values, vectors, all_values, all_vectors, change) -> tuple[jax.Array, jax.Array]:
    """How eigenpairs of A change with it.

        dλ_i = v_iᵀ dA v_i        dv_i = Σ_{j ≠ i} v_j (v_jᵀ dA v_i) / (λ_i - λ_j)

    Args:
      values: (outputs, count), and vectors (outputs, count, d): the pairs.
      all_values: (outputs, r), and all_vectors (outputs, r, d): pairs of which those are the first, and beside which
        there are only eigenvalues of 0, if r < d.
      change: dA v_i (outputs, count, d).

    Returns dλ (outputs, count), and dv (outputs, count, d), NaN where another eigenvalue equals λ_i to rounding.

    Source: Magnus 1985, On differentiating eigenvalues and eigenvectors.
    """
    limit = _ALIKE * jnp.finfo(values.dtype).eps * jnp.abs(all_values[:, :1])
    inner = jnp.einsum("ojd,oid->oij", all_vectors, change)
    gaps = values[:, :, None] - all_values[:, None]
    alike = jnp.abs(gaps) <= limit[:, :, None]
    shares = jnp.where(alike, 0, inner / jnp.where(alike, 1, gaps))
    tangents = jnp.einsum("oij,ojd->oid", shares, all_vectors)
    diagonal = jnp.eye(gaps.shape[1], gaps.shape[2], dtype=bool)[None]
    ambiguous = jnp.any(alike & ~diagonal, axis=2)
    if all_vectors.shape[1] < all_vectors.shape[2]:
        null = jnp.abs(values) <= limit
        rest = change - jnp.einsum("oij,ojd->oid", inner, all_vectors)
        tangents += rest / jnp.where(null, 1, values)[:, :, None]
        ambiguous |= null
    ambiguous = jnp.broadcast_to(ambiguous[:, :, None], tangents.shape)
    return jnp.einsum("oid,oid->oi", vectors, change), undefined_where(ambiguous, tangents)


def undefined_where(mask, tangent) -> jax.Array:
    """A tangent with NaN where it is not defined, arrays of one shape.

    Backwards, NaN only where that derivative is asked for: a cotangent of 0 stays 0, as no product with NaN does.
    """
    return _undefined_where.bind(mask, tangent)


def _forward(mask, tangent):
    return jnp.where(mask, jnp.nan, tangent)


def _backward(cotangent, mask, tangent):
    return None, jnp.where(mask, jnp.where(cotangent == 0, 0, jnp.nan), cotangent)


def _batched(arrays, axes):
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    mask, tangent = (batching.bdim_at_front(array, axis, size) for array, axis in zip(arrays, axes, strict=True))
    return undefined_where(mask, tangent), 0


_undefined_where = Primitive("undefined_where")
_undefined_where.def_impl(_forward)
_undefined_where.def_abstract_eval(lambda mask, tangent: tangent)
mlir.register_lowering(_undefined_where, mlir.lower_fun(_forward, multiple_results=False))
batching.primitive_batchers[_undefined_where] = _batched
ad.defjvp(_undefined_where, None, lambda change, mask, tangent: undefined_where(mask, change))
ad.primitive_transposes[_undefined_where] = _backward
