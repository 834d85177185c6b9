"""The gated linear unit as a function of arrays."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike
from jaxtyping import Float

from sqs_jax import kernels
from sqs_jax.activation import SQS
from sqs_jax.gates import Activation, Gate, get_gate
from sqs_jax.kernels import rules, xla

Residuals = Literal["save", "recompute"]


def gated_linear(
    x: Float[ArrayLike, "*rows d"],
    w: Float[ArrayLike, "d h"],
    v: Float[ArrayLike, "d h"],
    *,
    gate: str | Gate = "sqs",
    w_bias: Float[ArrayLike, " h"] | None = None,
    v_bias: Float[ArrayLike, " h"] | None = None,
    implementation: str | None = None,
    residuals: Residuals = "save",
    precision: jax.lax.PrecisionLike = None,
) -> Float[Array, "*rows h"]:
    """Gated linear unit: a linear branch times a gated one.

        GLU(x) = a ⊙ σ(u),   a = x W + b_w,   u = x V + b_v

    Args:
      x: inputs (..., d), float16, bfloat16, float32 or float64.
      w, v: weights (d, h) of the linear branch and of the gate branch, with the dtype of `x`.
      gate: σ, a name in `sqs_jax.GATES` or any elementwise callable; `SQS(c, lam, p)` sets its parameters.
      w_bias, v_bias: biases (h,) of the two branches, or None.
      implementation: "xla", which is differentiable to any order; "pallas", a kernel of this device for the gates of
        the table, in reverse mode alone; None for the one that was measured to be faster here (`sqs_jax.kernels`).
      residuals: what reverse mode keeps beside x and the weights. "save": a and u, in the dtype of `x`. "recompute":
        nothing, and the backward pass computes both products again; the numbers are the same.
      precision: of the products, as in `jax.lax.dot_general`.

    Returns:
      Array (..., h) with the dtype of `x`, in which the products are too; they are summed in at least float32. a and u
      have that dtype, then σ and their product are computed in at least float32 and rounded once. Remat policies know
      a as "glu_linear" and u as "glu_gate".

    Raises:
      ValueError: shapes that do not fit, an unknown gate, implementation or way with residuals.
      TypeError: dtypes that are not floating point or differ.
      NotImplementedError: "pallas" where there is no such kernel, with the reason.

    Source: Dauphin et al. 2017 and Shazeer 2020 for the unit; arXiv 2509.01874, section 3 for SQS in it.
    """
    sigma, x, w, v = get_gate(gate), jnp.asarray(x), jnp.asarray(w), jnp.asarray(v)
    _check(x, w, v, w_bias, v_bias)
    if residuals not in ("save", "recompute"):
        raise ValueError(f"`residuals` is {residuals!r}: 'save' or 'recompute' is needed")
    biases = _biases(w_bias, v_bias, w.shape[1], xla.arithmetic_dtype(x.dtype))
    exact = kernels.is_exact(precision)
    if plan := _plan(x, w, sigma, implementation, residuals, exact):
        known = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
        return rules.gated_linear(x, w, v, biases, sigma, plan, residuals, known)
    layer = _by_xla if _no_kernel(sigma) else _by_xla_program
    return layer(x, w, v, biases, sigma=sigma, precision=precision, residuals=residuals)


def _plan(x, w, sigma, implementation, residuals, exact: bool | None) -> kernels.Plan | None:
    """The kernel to run, or None for XLA."""
    reason = _no_kernel(sigma)
    if exact is None:
        reason = "the kernels know the `precision` 'default' and 'highest', not what is asked for here or by jax.config"
    shape = (kernels.rows(x)[0], *w.shape)
    settings = {"residuals": residuals, "exact": bool(exact)}
    return kernels.plan("gated_linear", implementation, x, shape, sigma, reason, **settings)


def _by_xla(x, w, v, biases, *, sigma, precision, residuals):
    def layer(x, w, v, biases):
        a, u = map(checkpoint_name, xla.products(x, w, v, biases, precision), rules.BRANCH_NAMES)
        return gated(a, u, gate=sigma, implementation="xla")

    return (layer if residuals == "save" else jax.checkpoint(layer))(x, w, v, biases)


# Outside of a program a layer is one of its own, not one for each operation; within one it is a part like any other.
# For gates whose parameters are numbers: others may be no keys.
_by_xla_program = jax.jit(_by_xla, static_argnames=("sigma", "precision", "residuals"), inline=True)


def gated(
    a: Float[ArrayLike, "*shape"],
    u: Float[ArrayLike, "*shape"],
    *,
    gate: str | Gate = "sqs",
    implementation: str | None = None,
) -> Float[Array, "*shape"]:
    """The elementwise half of a gated linear unit, for products that are made elsewhere: h = a ⊙ σ(u).

    Args:
      a, u: arrays (...) of one shape and dtype, float16, bfloat16, float32 or float64.
      gate, implementation: as in `gated_linear`.

    Returns:
      Array (...) with the dtype of `a`, computed in at least float32 and rounded once. Reverse mode keeps a and u.

    Raises as `gated_linear`.

    >>> gated(jnp.array([3.0, 3.0]), jnp.array([-1.0, 2.0]), gate="relu")
    Array([0., 6.], dtype=float32)
    """
    sigma = get_gate(gate)
    a, u = jnp.asarray(a), jnp.asarray(u)
    _check_operands(a=a, u=u)
    if u.shape != a.shape:
        raise ValueError(f"`u` has shape {u.shape}: that of `a`, {a.shape}, is needed")
    plan = kernels.plan("gated", implementation, a, kernels.rows(a), sigma, _no_kernel(sigma))
    if plan:
        return rules.gated(a, u, sigma, plan)

    return (_product if _no_kernel(sigma) else _product_program)(sigma, a, u)


def _product(sigma, a, u):
    # What is kept of a checkpoint is what goes in: a and u in their own dtype, not what the gate made of them.
    @jax.checkpoint
    def product(a, u):
        wide = xla.arithmetic_dtype(a.dtype)
        return (a.astype(wide) * sigma(u.astype(wide))).astype(a.dtype)

    return product(a, u)


_product_program = jax.jit(_product, static_argnums=0, inline=True)


def _no_kernel(gate: Gate) -> str | None:
    """Why no kernel can be built with this gate, or None."""
    if not isinstance(gate, SQS | Activation):
        return f"the gate {gate!r} is not one of the table, whose slopes are known, with numbers as parameters"
    return gate.no_kernel


def _biases(w_bias, v_bias, h: int, dtype) -> tuple[jax.Array, ...]:
    """Both biases, or none; one that is missing beside the other is 0."""
    if w_bias is None and v_bias is None:
        return ()
    return tuple(jnp.zeros(h, dtype) if bias is None else jnp.asarray(bias, dtype) for bias in (w_bias, v_bias))


def _check(x, w, v, w_bias, v_bias):
    _check_operands(x=x, w=w, v=v)
    if w.ndim != 2:
        raise ValueError(f"`w` has shape {w.shape}: (d, h) is needed")
    if v.shape != w.shape:
        raise ValueError(f"`v` has shape {v.shape}: that of `w`, {w.shape}, is needed")
    if x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"`x` has shape {x.shape}: its last axis must be the first of `w`, {w.shape[0]}")
    for name, bias in (("w_bias", w_bias), ("v_bias", v_bias)):
        if bias is not None and not jnp.issubdtype(jnp.result_type(bias), jnp.floating):
            raise TypeError(f"`{name}` has dtype {jnp.result_type(bias)}: a real floating-point dtype is needed")
        if bias is not None and jnp.shape(bias) != w.shape[1:]:
            raise ValueError(f"`{name}` has shape {jnp.shape(bias)}: {w.shape[1:]} is needed")


def _check_operands(**arrays):
    """Raises TypeError unless all are of one real floating-point dtype."""
    (first, reference), *_ = arrays.items()
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"`{name}` has dtype {array.dtype}: a real floating-point dtype is needed")
        if array.dtype != reference.dtype:
            raise TypeError(f"`{name}` has dtype {array.dtype}: that of `{first}`, {reference.dtype}, is needed")
