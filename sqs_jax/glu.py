"""The gated linear unit as a function of arrays."""

import jax
import jax.numpy as jnp

from sqs_jax import kernels
from sqs_jax.activation import arithmetic_dtype
from sqs_jax.gates import Gate, get_gate


def gated_linear(
    x,
    w,
    v,
    *,
    gate: str | Gate = "sqs",
    w_bias=None,
    v_bias=None,
    implementation=None,
    precision: jax.lax.PrecisionLike = None,
):
    """Gated linear unit: a linear branch times a gated one.

        GLU(x) = a ⊙ σ(u),   a = x W + b_w,   u = x V + b_v

    Args:
      x: inputs (..., d), float16, bfloat16, float32 or float64.
      w: weights (d, h) of the linear branch, with the dtype of `x`.
      v: weights (d, h) of the gate branch, likewise.
      gate: σ, a name in `sqs_jax.GATES` or any elementwise callable; `SQS(c, lam, p)` sets its parameters.
      w_bias, v_bias: biases (h,) of the two branches, or None.
      implementation: None (chosen for the device) or "xla".
      precision: of the two products, as in `jax.lax.dot_general`.

    Returns:
      Array (..., h) with the dtype of `x`, in which the products are too; XLA sums them in at least float32. a and u
      have that dtype, then σ and their product are computed in at least float32 and rounded once.

    Raises:
      ValueError: shapes that do not fit, an unknown gate or implementation.
      TypeError: dtypes that are not floating point or differ.

    Source: Dauphin et al. 2017 and Shazeer 2020 for the unit; arXiv 2509.01874, section 3 for SQS in it.
    """
    kernels.choose(implementation)
    sigma = get_gate(gate)
    x, w, v = jnp.asarray(x), jnp.asarray(w), jnp.asarray(v)
    _check(x, w, v, w_bias, v_bias)
    wide = arithmetic_dtype(x.dtype)

    def branch(weights, bias):
        # Not asked for in float32: the products of the backward pass would then be in float32 too.
        product = jnp.matmul(x, weights, precision=precision).astype(wide)
        if bias is not None:
            product += jnp.expand_dims(jnp.asarray(bias, wide), tuple(range(product.ndim - 1)))
            product = product.astype(x.dtype).astype(wide)
        return product

    return (branch(w, w_bias) * sigma(branch(v, v_bias))).astype(x.dtype)


def _check(x, w, v, w_bias, v_bias):
    for name, array in (("x", x), ("w", w), ("v", v)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"`{name}` has dtype {array.dtype}: a real floating-point dtype is needed")
        if array.dtype != x.dtype:
            raise TypeError(f"`{name}` has dtype {array.dtype}: that of `x`, {x.dtype}, is needed")
    if w.ndim != 2:
        raise ValueError(f"`w` has shape {w.shape}: (d, h) is needed")
    if v.shape != w.shape:
        raise ValueError(f"`v` has shape {v.shape}: that of `w`, {w.shape}, is needed")
    if x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"`x` has shape {x.shape}: its last axis must be the first of `w`, {w.shape[0]}")
    for name, bias in (("w_bias", w_bias), ("v_bias", v_bias)):
        if bias is not None and jnp.shape(bias) != w.shape[1:]:
            raise ValueError(f"`{name}` has shape {jnp.shape(bias)}: {w.shape[1:]} is needed")
