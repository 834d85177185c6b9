"""The table of gates: the activations σ of a gated linear unit (x W) ⊙ σ(x V), by name."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sqs_jax.activation import SQS
from sqs_jax.messages import quoted

Gate = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Activation:
    """An elementwise σ with its derivative in closed form, which a kernel needs: `value(u)` and `slope(u)`."""

    name: str
    value: Gate
    slope: Gate
    no_kernel = None

    def __call__(self, u):
        return _apply(self, u)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(activation, u):
    return activation.value(u)


@_apply.defjvp
def _apply_jvp(activation, primals, tangents):
    return activation.value(*primals), activation.slope(*primals) * tangents[0]


def _identity(u):
    return u


def _relu(u):
    return jnp.maximum(u, 0)


def _relu_slope(u):
    return jnp.where(u > 0, 1, 0).astype(u.dtype)


# Φ(-z) = exp(-z²/2)·t·Σ_i q_i t^i with t = 1 / (1 + 0.32 z), z ≥ 0: least squares at Chebyshev nodes, relative error
# 4e-8. A kernel has no erf on every device, and ½(1 + erf) loses all digits of a negative argument's.
_NORMAL_TAIL = (
    0.12766152870249176, 0.12766094701139552, 0.11462236593275693, 0.08782897719928962, 0.05865467553386719,
    -0.009379701166056052, 0.06533167610309638, -0.14671106697531608, 0.09540917323276969, -0.021078591552017283,
)  # fmt: skip


def _normal_cdf(u):
    if u.dtype == jnp.float64:
        return 0.5 * jax.lax.erfc(-u * math.sqrt(0.5))
    z = jnp.abs(u)
    t = 1 / (1 + 0.32 * z)
    tail = t * jnp.exp(-0.5 * z * z) * functools.reduce(lambda total, q: total * t + q, reversed(_NORMAL_TAIL))
    # `tail` is used once: XLA would write a quotient that is used twice to memory.
    return jnp.where(u < 0, 0, 1).astype(u.dtype) - jnp.where(u < 0, -1, 1).astype(u.dtype) * tail


# Beyond it the factors of u are 0 or 1 to the last digit: a larger u, inf among them, is taken for it, so that 0·inf,
# which is NaN, is 0 there, as it is by limit.
_FAR = 1e4


def _gelu(u):
    return jnp.maximum(u, -_FAR) * _normal_cdf(u)


def _gelu_slope(u):
    near = jnp.clip(u, -_FAR, _FAR)
    return _normal_cdf(u) + near * jnp.exp(-0.5 * near * near) * (1 / math.sqrt(2 * math.pi))


def _silu(u):
    return jnp.maximum(u, -_FAR) * jax.lax.logistic(u)


def _silu_slope(u):
    s = jax.lax.logistic(u)
    return s * (1 + jnp.clip(u, -_FAR, _FAR) * (1 - s))


GATES: dict[str, SQS | Activation] = {
    "sqs": SQS(),
    "bilinear": Activation("bilinear", _identity, jnp.ones_like),
    "relu": Activation("relu", _relu, _relu_slope),
    "gelu": Activation("gelu", _gelu, _gelu_slope),  # the exact one, u·Φ(u), not the tanh approximation
    "silu": Activation("silu", _silu, _silu_slope),
}
"""The gates by name: what `gate="relu"` stands for. Any other elementwise callable may be passed instead."""


def get_gate(gate: str | Gate) -> Gate:
    """The elementwise function of a gate: by its name in `GATES`, or any callable as it is.

    Raises ValueError for an unknown name, with the nearest known one, and TypeError for anything that is
    neither a name nor callable.
    """
    if callable(gate):
        return gate
    if not isinstance(gate, str):
        raise TypeError(f"`gate` is {gate!r}: a name or a callable is needed")
    if gate not in GATES:
        raise ValueError(f"`gate` is {quoted(gate)}: {nearest(gate, GATES)}")
    return GATES[gate]


def static_gate(gate: str | Gate) -> Gate:
    """As `get_gate`, and hashable, for a static argument of jit; a callable that is not is wrapped in a partial."""
    sigma = get_gate(gate)
    try:
        hash(sigma)
    except TypeError:
        return functools.partial(sigma)
    return sigma


def nearest(name, known) -> str:
    """For the message of an unknown name: the nearest known name, if one is near, and all known names."""
    matches = difflib.get_close_matches(str(name)[:100], known, n=1)
    meant = f"did you mean {matches[0]!r}? " if matches else ""
    return f"{meant}known are {', '.join(known)}"
