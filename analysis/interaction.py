"""Interaction matrices: the quadratic form of each output of a gated linear unit."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Basis = Literal["input", "hidden"]


class GLUWeights(NamedTuple):
    """The weights of one GLU layer and what surrounds it: logits = ((x E W) ⊙ σ(x E V)) P.

    A pytree of arrays of one floating-point dtype. Weights of other frameworks may need a transpose: here
    a matrix stands on the right of its input.
    """

    w: jax.Array
    """Linear branch W (d, h)."""
    v: jax.Array
    """Gate branch V (d, h)."""
    out: jax.Array
    """What reads the layer, P (h, outputs)."""
    embed: jax.Array | None = None
    """Embedding E (inputs, d), or None where the layer reads the input itself."""


@jax.jit(static_argnames="basis")
def interaction_matrices(weights: GLUWeights, *, basis: Basis = "input") -> jax.Array:
    """The symmetric matrix of each output's quadratic form, reading the gate as the identity.

        A_o = Σ_h P[h, o]·sym(w_h v_hᵀ),   sym(M) = (M + Mᵀ) / 2,   so that   Σ_h P[h, o]·(z·w_h)·(z·v_h) = zᵀ A_o z

    Only the symmetric part of w_h v_hᵀ contributes to the form.

    Args:
      weights: of the layer.
      basis: "hidden" for the form in z = x E, the layer's own input; "input" for the form in x, Eᵀ A_o E
        in the paper's notation, whose eigenvectors are orthonormal among the inputs.

    Returns:
      Array (outputs, d, d), or (outputs, inputs, inputs) for "input" with an embedding.

    Raises:
      ValueError: shapes that do not fit, or an unknown basis.

    Source: arXiv 2509.01874, section 3; Pearce et al. 2024 (arXiv 2410.08417) for bilinear layers.
    """
    check_weights(weights)
    with jax.default_matmul_precision("highest"):  # GPUs and TPUs would round the factors
        w, v = branches(weights, basis)
        product = jnp.einsum("ih,ho,jh->oij", w, weights.out, v)
    return (product + product.transpose(0, 2, 1)) / 2


def branches(weights: GLUWeights, basis: Basis) -> tuple[jax.Array, jax.Array]:
    """W and V as they act on the chosen basis: (d, h), or (inputs, h) through the embedding."""
    if basis not in ("input", "hidden"):
        raise ValueError(f"`basis` is {basis!r}: 'input' or 'hidden' is needed")
    if basis == "hidden" or weights.embed is None:
        return weights.w, weights.v
    return weights.embed @ weights.w, weights.embed @ weights.v


def check_weights(weights: GLUWeights) -> None:
    """Raises ValueError where the shapes of the weights do not fit each other."""
    w, v, out, embed = weights
    if w.ndim != 2 or v.shape != w.shape:
        raise ValueError(f"`w` and `v` have shapes {w.shape} and {v.shape}: both must be (d, h)")
    if out.ndim != 2 or out.shape[0] != w.shape[1]:
        raise ValueError(f"`out` has shape {out.shape}: ({w.shape[1]}, outputs) is needed")
    if embed is not None and (embed.ndim != 2 or embed.shape[1] != w.shape[0]):
        raise ValueError(f"`embed` has shape {embed.shape}: (inputs, {w.shape[0]}) is needed")
