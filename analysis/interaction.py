"""Interaction matrices: the quadratic form of each output of a gated linear unit."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from sqs_jax.messages import quoted

Basis = Literal["input", "hidden"]


class GLUWeights(NamedTuple):
    """The weights of one GLU layer and of what surrounds it:

        z = x E,   logits = ((z W + b_w) ⊙ σ(z V + b_v)) P + z L + b

    A pytree of arrays of one floating-point dtype. A matrix stands on the right of its input; weights of other
    frameworks may need a transpose.
    """

    w: Float[Array, "d h"]
    """Linear branch W (d, h)."""
    v: Float[Array, "d h"]
    """Gate branch V (d, h)."""
    out: Float[Array, "h outputs"]
    """What reads the layer, P (h, outputs)."""
    embed: Float[Array, "inputs d"] | None = None
    """Embedding E (inputs, d), or None where the layer reads the input itself."""
    w_bias: Float[Array, " h"] | None = None
    """b_w (h,)."""
    v_bias: Float[Array, " h"] | None = None
    """b_v (h,)."""
    out_bias: Float[Array, " outputs"] | None = None
    """b (outputs,): in no form."""
    skip: Float[Array, "d outputs"] | None = None
    """What reads the residual stream past the layer, L (d, outputs): linear, so in no form."""


@jax.jit(static_argnames="basis")
def interaction_matrices(
    weights: GLUWeights, *, basis: Basis = "input", gain: Float[Array, " h"] | None = None
) -> Float[Array, "outputs n n"]:
    """The symmetric matrix of each output's quadratic form.

        A_o = Σ_h P[h, o]·γ_h·sym(w_h v_hᵀ),   sym(M) = (M + Mᵀ) / 2,
        so that   Σ_h P[h, o]·γ_h·(z·w_h)·(z·v_h) = zᵀ A_o z

    Only the symmetric part of w_h v_hᵀ contributes to the form. Where the branches have biases, z and x carry
    a last coordinate that is always 1, and each matrix has a row and a column more.

    Args:
      weights: of the layer.
      basis: "hidden" for the form in z = x E, the layer's own input; "input" for the form in x, Eᵀ A_o E
        in the paper's notation, whose eigenvectors are orthonormal among the inputs.
      gain: γ (h,), as `calibrate` finds it; by default 1, which reads the gate as the identity.

    Returns:
      Array (outputs, d, d), or (outputs, inputs, inputs) for "input" with an embedding.

    Raises:
      ValueError: shapes that do not fit, or an unknown basis.

    Source: arXiv 2509.01874, section 3; Pearce et al. 2024 (arXiv 2410.08417) for bilinear layers.
    """
    check_weights(weights, gain)
    weights = with_gain(at_least_float32(weights), gain)
    with jax.default_matmul_precision("highest"):  # GPUs and TPUs would round the factors
        w, v = branches(weights, basis)
        product = jnp.einsum("ih,ho,jh->oij", w, weights.out, v)
    return (product + product.transpose(0, 2, 1)) / 2


def branches(weights: GLUWeights, basis: Basis) -> tuple[jax.Array, jax.Array]:
    """W and V as they act on the chosen basis: (d, h), or (inputs, h) through the embedding; biases are a last row."""
    if basis not in ("input", "hidden"):
        raise ValueError(f"`basis` is {basis!r}: 'input' or 'hidden' is needed")
    weights = homogeneous(weights)
    if basis == "hidden" or weights.embed is None:
        return weights.w, weights.v
    return weights.embed @ weights.w, weights.embed @ weights.v


def input_size(weights: GLUWeights) -> int:
    """How many inputs the layer has, through the embedding where there is one; a constant 1 is not counted."""
    return len(weights.w if weights.embed is None else weights.embed)


def homogeneous(weights: GLUWeights) -> GLUWeights:
    """The same layer without biases in its branches: they become the weights of a last coordinate that is always 1."""
    w, v, _, embed, w_bias, v_bias, _, skip = weights
    if w_bias is None and v_bias is None:
        return weights
    zeros = jnp.zeros(w.shape[1], w.dtype)
    rows = [zeros if bias is None else bias for bias in (w_bias, v_bias)]
    w, v = (jnp.concatenate([matrix, row[None]]) for matrix, row in zip((w, v), rows, strict=True))
    if embed is not None:
        embed = jnp.pad(embed, ((0, 1), (0, 1))).at[-1, -1].set(1)
    if skip is not None:
        skip = jnp.pad(skip, ((0, 1), (0, 0)))
    return weights._replace(w=w, v=v, embed=embed, skip=skip, w_bias=None, v_bias=None)


def at_least_float32(tree):
    """Arrays of 16 bits as float32, in which forms and their eigenpairs are computed."""
    return jax.tree.map(lambda array: array.astype(jnp.float32) if array.dtype.itemsize < 4 else array, tree)


def with_gain(weights: GLUWeights, gain: jax.Array | None) -> GLUWeights:
    """The layer with each hidden unit's part of every form multiplied by its gain γ (h,)."""
    return weights if gain is None else weights._replace(out=weights.out * gain[:, None].astype(weights.out.dtype))


def scaled(weights: GLUWeights) -> tuple[GLUWeights, jax.Array]:
    """The layer scaled to entries of about 1, and the exponent of the power of two that each form is divided by.

    Products of small or large weights would leave the range of float32. Powers of two do not round. The exponents are
    (outputs,) int.
    """
    w, v = exponent(weights.w, weights.w_bias), exponent(weights.v, weights.v_bias)
    out = exponent(weights.out, axis=0)
    # The constant 1 that biases stand beside is no part of the embedding.
    has_bias = weights.w_bias is not None or weights.v_bias is not None
    embed = jnp.zeros_like(w) if weights.embed is None or has_bias else exponent(weights.embed)
    by = {"w": w, "w_bias": w, "v": v, "v_bias": v, "embed": embed}
    parts = weights._asdict()
    small = {name: jnp.ldexp(parts[name], -size) for name, size in by.items() if parts[name] is not None}
    return weights._replace(out=jnp.ldexp(weights.out, -out[None]), **small), w + v + 2 * embed + out


def exponent(*arrays: jax.Array | None, axis: int | None = None) -> jax.Array:
    """The exponent of the power of two next above the largest entry of all arrays, int32; 0 where that is 0."""
    sizes = [jnp.max(jnp.abs(array), axis=axis) for array in arrays if array is not None]
    return jnp.frexp(functools.reduce(jnp.maximum, sizes))[1]


def hidden_layer(weights: GLUWeights, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The layer's input z (n, d), the linear branch a = z W + b_w and the gate's u = z V + b_v, (n, h) each."""
    z = x if weights.embed is None else x @ weights.embed
    a, u = z @ weights.w, z @ weights.v
    a = a if weights.w_bias is None else a + weights.w_bias[None]
    u = u if weights.v_bias is None else u + weights.v_bias[None]
    return z, a, u


def linear_part(weights: GLUWeights, z: jax.Array) -> jax.Array | float:
    """The part of the logits that is in no form: z L + b, (n, outputs), or 0."""
    skip = 0.0 if weights.skip is None else z @ weights.skip
    return skip if weights.out_bias is None else skip + weights.out_bias[None]


def check_weights(weights: GLUWeights, gain: jax.Array | None = None) -> None:
    """Raises ValueError where shapes do not fit each other, and for NaN or infinite numbers where they can be seen."""
    w, v, out, embed, w_bias, v_bias, out_bias, skip = weights
    for name, array in (weights._asdict() | {"gain": gain}).items():
        if array is None and name not in ("w", "v", "out"):
            continue
        if array is None or not hasattr(array, "dtype"):
            raise ValueError(f"`{name}` is {quoted(array)}: an array is needed")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"`{name}` has dtype {array.dtype}: a real floating-point dtype is needed")
    if w.ndim != 2 or v.shape != w.shape:
        raise ValueError(f"`w` and `v` have shapes {w.shape} and {v.shape}: both must be (d, h)")
    d, h = w.shape
    if min(d, h) < 1:
        raise ValueError(f"`w` has shape {w.shape}: (d, h) with both ≥ 1 is needed")
    if out.ndim != 2 or out.shape[0] != h or out.shape[1] < 1:
        raise ValueError(f"`out` has shape {out.shape}: ({h}, outputs) is needed")
    if embed is not None and (embed.ndim != 2 or embed.shape[1] != d or len(embed) < 1):
        raise ValueError(f"`embed` has shape {embed.shape}: (inputs, {d}) is needed")
    outputs = out.shape[1]
    vectors = {"w_bias": (w_bias, (h,)), "v_bias": (v_bias, (h,)), "out_bias": (out_bias, (outputs,))}
    for name, (array, shape) in (vectors | {"skip": (skip, (d, outputs)), "gain": (gain, (h,))}).items():
        if array is not None and array.shape != shape:
            raise ValueError(f"`{name}` has shape {array.shape}: {shape} is needed")
    for name, array in (weights._asdict() | {"gain": gain}).items():
        if array is not None and not isinstance(array, Tracer) and not all_finite(array):
            raise ValueError(f"`{name}` holds numbers that are NaN or infinite: finite ones are needed")


def all_finite(array) -> bool:
    """Whether no number of an array is NaN or infinite."""
    if isinstance(array, np.ndarray) or (isinstance(array, jax.Array) and _is_on_cpu(array)):
        return bool(np.all(np.isfinite(array)))  # nothing to compile
    with jax.ensure_compile_time_eval():  # under jit a constant is no tracer, but what is computed of it would be one
        return bool(_finite(array))


def _is_on_cpu(array: jax.Array) -> bool:
    return array.is_fully_addressable and all(device.platform == "cpu" for device in array.devices())


@jax.jit
def _finite(array):
    return jnp.all(jnp.isfinite(array))  # a maximum would do with less memory, but does not keep NaN on every CPU
