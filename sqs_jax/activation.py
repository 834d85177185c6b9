"""Signed Quadratic Shrink (SQS): the formula, its limits and its closed-form derivative rule."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from sqs_jax import kernels
from sqs_jax.kernels import epilogues, rules, xla
from sqs_jax.kernels.xla import arithmetic_dtype

# Powers up to this one are products.
_LARGEST_WHOLE = 2**10
_ONE = 1.0
# With λ and c of this size sqs has its limit, for p = 1 to the last digit, long before λr overflows.
_ORDINARY = (2.0**-30, 2.0**30)
_FAR = 2.0**90


def sqs(
    x: ArrayLike, *, c: ArrayLike = 0.01, lam: ArrayLike = 0.5, p: float = 1, implementation: str | None = None
) -> jax.Array:
    """Signed Quadratic Shrink, elementwise.

        sqs(x) = (x - c·sgn x) / (1 + λ·|x|^p)

    Odd, with sgn(0) = 0: sqs(0) = 0, a jump from +c to -c at 0, zeros at ±c. For p = 1 the range is
    (-1/λ, 1/λ) and sqs(±inf) = ±1/λ; for p > 1 sqs(±inf) = ±0. NaN gives NaN. With c = λ = 0 it is
    the identity, and a GLU that is gated by it is a bilinear layer.

    Args:
      x: array (...), float16, bfloat16, float32 or float64. Below float32 the arithmetic is float32,
        rounded once at the end.
      c: shift, ≥ 0 and finite: a number, or an array that broadcasts to `x.shape` (then it may be
        traced or learnt, and its values are not checked).
      lam: shrink rate λ, ≥ 0 and finite: as `c`.
      p: exponent, ≥ 1 and finite (below 1 the slope at 0 would be unbounded): a number, never traced.
      implementation: "xla"; "pallas" for a kernel of this device, which needs `c` and `lam` to be numbers and
        knows reverse mode alone; or None, which chooses by what was measured (`sqs_jax.kernels`).

    Returns:
      Array (...) with the dtype of `x`. Differentiable to any order, forward and reverse, in `x`, `c` and
      `lam`; reverse mode keeps one array, `x` itself, as residual.

    Raises:
      ValueError: a parameter out of range, a shape that does not broadcast, an unknown implementation.
      TypeError: `x` is not real floating point, or `p` is not a number.
      NotImplementedError: "pallas" where there is no such kernel, with the reason.

    Source: arXiv 2509.01874, section 3.1; its "norm exponent" p is read as |x|^p.

    >>> sqs(jnp.array([-4.0, -0.01, 0.0, 0.5, jnp.inf]))
    Array([-1.33      , -0.        ,  0.        ,  0.39200002,  2.        ],      dtype=float32)
    """
    numbers: Any = (c, lam)
    x, c, lam, p = _check(x, c, lam, p)
    gate: Any = SQS(numbers[0], numbers[1], p)
    plan = kernels.plan("sqs", implementation, x, kernels.rows(x), gate, gate.no_kernel)
    if not plan and not _are_numbers(*numbers):
        return _sqs_program(p, x, c, lam)
    fixed = SQS(float(gate.c), float(gate.lam), p)
    return rules.activation(x, fixed, plan) if plan else _fixed_program(fixed, x)


def sqs_slope(x: ArrayLike, *, c: ArrayLike = 0.01, lam: ArrayLike = 0.5, p: float = 1) -> jax.Array:
    """Derivative of `sqs` in x, elementwise, with r = |x|.

        sqs'(x) = [(1 + λr^p) - (r - c)·λp·r^(p-1)] / (1 + λr^p)²        p = 1: (1 + λc) / (1 + λr)²

    Even. At 0, where `sqs` itself jumps, it is the common limit from both sides: 1 + λc for p = 1,
    else 1. NaN gives NaN. Arguments, dtypes and errors are those of `sqs`, but that XLA always computes it.

    Source: arXiv 2509.01874, section 3.1, differentiated.

    >>> sqs_slope(jnp.array([-2.0, 0.0, 2.0]))
    Array([0.25125, 1.005  , 0.25125], dtype=float32)
    """
    x, c, lam, p = _check(x, c, lam, p)
    return _slope_program(p, x, c, lam)


@dataclasses.dataclass(frozen=True)
class SQS:
    """`sqs` with its parameters bound: the gate to pass where the defaults are not wanted.

    `c` ≥ 0, `lam` ≥ 0 and `p` ≥ 1, all finite, else ValueError. Numbers make it hashable, so that jit compiles once for
    equal parameters; arrays, which may be traced, are computed by XLA alone.

    >>> SQS(lam=1.0)(jnp.array([2.0]))
    Array([0.66333336], dtype=float32)
    """

    c: float = 0.01
    lam: float = 0.5
    p: float = 1.0

    def __post_init__(self):
        check_parameters(c=self.c, lam=self.lam, p=self.p)
        for name, number in vars(self).items():
            if isinstance(number, np.ndarray) and number.ndim == 0:  # a number, as a file of arrays gives it: no key
                object.__setattr__(self, name, number.item())

    def __call__(self, u):
        # By XLA always: inside a layer that was asked to run by XLA, too.
        return sqs(u, c=self.c, lam=self.lam, p=self.p, implementation="xla")

    @property
    def name(self) -> str:
        """What measurements are filed under: c and λ cost nothing, p does."""
        return "sqs" if self.p == 1 else f"sqs, p = {self.p:g}"

    @property
    def no_kernel(self) -> str | None:
        """Why no kernel computes it, or None: a power that is no product of factors spills registers."""
        if any(isinstance(number, jax.Array) or np.ndim(number) for number in (self.c, self.lam)):
            return "`c` and `lam` are arrays: a kernel is built for numbers"
        return None if float(self.p).is_integer() else f"the kernels know a whole `p`, not {self.p}"

    def value(self, u):
        """The bare formula of `sqs`, without derivative rules, in the dtype of `u`: what kernels compute."""
        return _value(u, float(self.c), float(self.lam), float(self.p))

    def slope(self, u):
        """The bare formula of `sqs_slope`, likewise."""
        return _slope(u, float(self.c), float(self.lam), float(self.p))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fixed(gate, x):
    """Of numbers: what is known of them when the program is built need not be asked in it."""
    return xla.elementwise(epilogues.activation, gate, (x,))[0]


@_fixed.defjvp
def _fixed_jvp(gate, primals, tangents):
    @functools.partial(jax.checkpoint, prevent_cse=False)  # as in `_sqs_jvp`
    def tangent(x, t):
        return xla.elementwise(epilogues.activation_gradient, gate, (x, t))[0]

    return _fixed(gate, *primals), tangent(*primals, *tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sqs(p, x, c, lam):
    return _value(*_widen(x, c, lam), p).astype(x.dtype)


@functools.partial(_sqs.defjvp, symbolic_zeros=True)
def _sqs_jvp(p, primals, tangents):
    needed = [not isinstance(t, SymbolicZero) for t in tangents]

    # Under remat the linear map is rebuilt from x in the backward pass: what is kept is x in its own
    # dtype, not one float32 array of partial derivatives for each argument.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent(primals, tangents):
        partials = _partials(*_widen(*primals), p, needed)
        total = sum(d * t.astype(d.dtype) for d, t in zip(partials, tangents, strict=True))
        return jnp.broadcast_to(total, primals[0].shape).astype(primals[0].dtype)

    moving = [t for t, w in zip(tangents, needed, strict=True) if w]
    return _sqs(p, *primals), tangent(primals, moving)


# Outside of a program each is one of its own, not one for each operation; within one it is a part like any other.
_program = functools.partial(jax.jit, static_argnums=0, inline=True)
_fixed_program, _sqs_program = _program(_fixed), _program(_sqs)


@_program
def _slope_program(p, x, c, lam):
    return _slope(*_widen(x, c, lam), p).astype(x.dtype)


def _partials(x, c, lam, p, needed):
    """The wanted ones of ∂sqs/∂x, ∂sqs/∂c, ∂sqs/∂λ."""
    slopes = (_slope, _slope_in_c, _slope_in_lam)
    return [slope(x, c, lam, p) for slope, want in zip(slopes, needed, strict=True) if want]


def _value(x, c, lam, p):
    r = jnp.abs(x)
    if p == 1 and _are_numbers(c, lam) and lam > 0:
        near = jnp.where(r > _FAR, _FAR, r)  # NaN stays, on any device
        value = (near - c) / (1 + lam * near)
    elif p == 1:
        t = _shrink(r, lam, p)
        # Where λr overflows the 1 beside it is nothing, and r cancels: the plain quotient would be inf / inf.
        far = t == jnp.inf
        distant = jnp.where(far, r, 1)  # where r is 0 the derivative of c / r would be NaN, though it is not chosen
        value = jnp.where(far, (1 - c / distant) / lam, (r - c) / (1 + t))
    else:
        finite = jnp.where(r == jnp.inf, 1, r)
        value = jnp.where(r == jnp.inf, _unless_0(lam, jnp.inf, 0.0), _over_decay(finite - c, finite, lam, p))
    # The quotient is used once: XLA would write one that is used twice to memory.
    return jnp.where(x == 0, x, value * jnp.where(x < 0, -1, 1).astype(x.dtype))


def _are_numbers(*parameters) -> bool:
    """Whether parameters are plain numbers, and 0 or far, with their products, from what float32 has no number for."""
    smallest, largest = _ORDINARY
    return all(isinstance(each, int | float) and (each == 0 or smallest <= each <= largest) for each in parameters)


def _slope(x, c, lam, p):
    """With q = 1 / (1 + λr^p): q·[1 - p(1 - q)] + c·q·p·λr^(p-1)·q, in an order without inf / inf and 0·inf."""
    r = jnp.abs(x)
    finite = jnp.where(r == jnp.inf, 1, r)
    if p == 1:
        t = _shrink(finite, lam, p)
        far = t == jnp.inf
        near = 1 + jnp.where(far, 0, t)
        q, product = 1 / near, lam * c
        slope = (1 + product) * q * q
        if not isinstance(product, float) or product > 1e38:  # a kernel's numbers are plain ones, and need no choice
            slope = jnp.where(product <= float(jnp.finfo(x.dtype).max), slope, q * q + (lam / near) * (c / near))
        slope = jnp.where(far, _over_decay(c, finite, lam, p) / jnp.where(far, finite, 1), slope)
    else:
        share = _share(finite, lam, p)
        # λr^(p-1)·q = (1 - q) / r: the left form is good near 0, the right one at infinity.
        small = finite < 1
        low, high = jnp.where(small, finite, 0), jnp.where(small, 1, finite)
        shift = jnp.where(small, _over_decay(_shrink(low, lam, p - 1), low, lam, p), share / high)
        slope = _over_decay(1 - p * share, finite, lam, p) + _over_decay(c, finite, lam, p) * shift * p
    return jnp.where(r == jnp.inf, _unless_0(lam, 1.0, 0.0), slope)


def _slope_in_c(x, c, lam, p):
    r = jnp.abs(x)
    finite = jnp.where(r == jnp.inf, 1, r)
    return -jnp.sign(x) * jnp.where(r == jnp.inf, _unless_0(lam, 1.0, 0.0), _over_decay(1, finite, lam, p))


def _slope_in_lam(x, c, lam, p):
    """∂sqs/∂λ = -sqs(x)·r^p / (1 + λr^p), the last factor being (1 - q) / λ where r^p overflows."""
    r, value = jnp.abs(x), _value(x, c, lam, p)
    far = (r >= _root_of_largest(r, p)) | _beyond(_shrink(r, lam, p))
    near = jnp.where(far, 1, r)
    # Below 1 the power may be too small for a number, above 1 the value times it too large.
    part = near if p == 1 else _power(near, p / 2)
    below = value * part * (1 if p == 1 else part) * _over_decay(1, near, lam, p)
    plain = jnp.where(near < 1, below, value * _over_decay(_power(near, p), near, lam, p))
    # Far out it is value·(1 - q) / λ, where the value may be too small for a number that over λ is one.
    unit = jnp.where((lam > 0) & (lam < 1), lam, 1)
    finite = jnp.where(r == jnp.inf, 1, r)
    over = jnp.where(r == jnp.inf, value / unit, jnp.sign(x) * _over_decay(finite - c, finite, lam, p, unit))
    at_0 = value * jnp.where(lam > 0, 0, jnp.inf)
    distant = jnp.where(lam > 0, over * _share(r, lam, p) * (unit / jnp.where(lam > 0, lam, 1)), at_0)
    return -jnp.where(far, jnp.where((lam == 0) & (value == 0), 0, distant), plain)


def _unless_0(lam, at_0: float, otherwise: float):
    """One number for λ = 0, another for any other; a plain one where λ is, for kernels."""
    if isinstance(lam, float):
        return otherwise if lam else at_0
    return jnp.where(lam == 0, at_0, otherwise)


def _over_decay(number, r, lam, p, unit: Any = _ONE):
    """number / (1 + λr^p), over `unit` ≤ 1, for finite r; also where λr^p overflows: by the smallest normal number."""
    t, tiny = _shrink(r, lam, p), float(jnp.finfo(r.dtype).tiny)
    far, root = _beyond(t), _root_of_largest(r, p)
    scaled = jnp.where(far, jnp.minimum(_scaled(r, lam, p, tiny), root), 1)
    beyond = 0
    if unit is not _ONE:  # over a small unit, even larger λr^p leave a number
        smaller = jnp.where(far, jnp.minimum(_scaled(r, lam, p, tiny) * unit ** (1 / p), root), 1)
        beyond = jnp.where(smaller < root, number / _power(smaller, p) * tiny, 0)
    distant = jnp.where(scaled < root, number / _power(scaled, p) * (tiny / unit), beyond)
    return jnp.where(far, distant, number * (1 / (1 + jnp.where(far, 0, t))) / unit)


def _share(r, lam, p):
    """λr^p / (1 + λr^p) = 1 - q, which keeps the digits of a small one."""
    t = _shrink(r, lam, p)
    near = jnp.where(_beyond(t), 0, t)
    return jnp.where(_beyond(t), 1, near * (1 / (1 + near)))


def _beyond(t):
    """Where λr^p is so large that it may have overflown."""
    return t > float(jnp.finfo(t.dtype).max) / 4


def _root_of_largest(r, p) -> float:
    """What r is cut off at before its power of p is taken, so that neither that nor its derivative is infinite."""
    return (float(jnp.finfo(r.dtype).max) / 2) ** (1 / p)


def _shrink(r, lam, p):
    """λ·r^p, and 0 for λ = 0 even where r^p is inf; (λ^(1/p)·r)^p where r^p alone overflows, or is too small."""
    if p <= 1:
        t = lam * _power(r, p)
    else:
        root = _root_of_largest(r, p)
        power = _power(jnp.minimum(r, root), p)
        extreme = (r >= root) | (power < jnp.finfo(r.dtype).tiny)
        scaled = jnp.where(extreme, jnp.minimum(_scaled(r, lam, p), root), 0)
        t = jnp.where(extreme, _power(scaled, p), lam * power)
    if isinstance(lam, float) and lam:
        return t
    return jnp.where(lam == 0, jnp.where(jnp.isnan(r), r, 0), t)


def _scaled(r, lam, p, factor: float = 1.0):
    """(factor·λ)^(1/p)·r."""
    if isinstance(lam, float):
        return factor ** (1 / p) * lam ** (1 / p) * r
    lam = jnp.where(lam == 0, 1, lam)
    if factor == 1:
        return r * lam ** (1 / p)
    # In two parts: r times the whole factor may be too small. The second part is a choice, or the compiler would draw
    # the two constants together, and r·λ^(1/p) may overflow.
    root, large = factor ** (0.5 / p), lam > 1
    part = jnp.where(large, (factor**0.5 * jnp.maximum(lam, 1)) ** (1 / p), root * jnp.minimum(lam, 1) ** (1 / p))
    return (root * r) * part


def _power(r, p):
    """r^p for r ≥ 0 and p > 0, with finite derivatives of any order at 0."""
    if float(p).is_integer() and p <= _LARGEST_WHOLE:
        return jax.lax.integer_pow(r, int(p))
    positive = r > 0
    return jnp.where(positive, jnp.where(positive, r, 1) ** p, r)


def _widen(x, c, lam):
    """All three in the dtype of the arithmetic: at least float32."""
    dtype = arithmetic_dtype(x.dtype)
    return x.astype(dtype), c.astype(dtype), lam.astype(dtype)


def _check(x, c, lam, p):
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"`x` has dtype {x.dtype}: a real floating-point dtype is needed")
    if isinstance(p, jax.Array) or np.ndim(p) != 0:
        raise TypeError(f"`p` is {p!r}: a plain number is needed, since the program is built for it")
    check_parameters(c=c, lam=lam, p=p)
    return x, _align("c", c, x), _align("lam", lam, x), float(p)


def _align(name, value, x):
    """`value` as an array that broadcasts against `x` without a promotion of its rank."""
    value = jnp.asarray(value)
    try:
        fits = np.broadcast_shapes(value.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"`{name}` has shape {value.shape}: it must broadcast to the shape of `x`, {x.shape}")
    return value.reshape((1,) * (x.ndim - value.ndim) + value.shape) if value.ndim else value


def check_parameters(*, c, lam, p):
    """Raises ValueError unless c ≥ 0, λ ≥ 0 and p ≥ 1, all finite. JAX arrays, which may be traced, pass unchecked."""
    for name, value, least in (("c", c, 0), ("lam", lam, 0), ("p", p, 1)):
        if isinstance(value, jax.Array):
            continue
        if not np.all(np.isfinite(value) & (np.asarray(value) >= least)):
            raise ValueError(f"`{name}` is {value}: a finite number ≥ {least} is needed")
