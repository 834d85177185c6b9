"""The table of gates: the activations σ of a gated linear unit (x W) ⊙ σ(x V), by name."""

import dataclasses
import difflib
import functools
from collections.abc import Callable

import jax

from sqs_jax.activation import check_parameters, sqs

Gate = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class SQS:
    """`sqs` with its parameters bound: the gate to pass where the defaults are not wanted.

    `c` ≥ 0, `lam` ≥ 0 and `p` ≥ 1, all finite, else ValueError. Hashable, so that jit compiles once for
    equal parameters.

    >>> SQS(lam=1.0)(jax.numpy.array([2.0]))
    Array([0.66333336], dtype=float32)
    """

    c: float = 0.01
    lam: float = 0.5
    p: float = 1.0

    def __post_init__(self):
        check_parameters(c=self.c, lam=self.lam, p=self.p)

    def __call__(self, u):
        return sqs(u, c=self.c, lam=self.lam, p=self.p)


def bilinear(u):
    """The identity: the GLU is then the bilinear layer (x W) ⊙ (x V)."""
    return u


# GELU is the exact one, u·Φ(u), not the tanh approximation.
GATES: dict[str, Gate] = {
    "sqs": SQS(),
    "bilinear": bilinear,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


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
        raise ValueError(f"`gate` is {gate!r}: {nearest(gate, GATES)}")
    return GATES[gate]


def nearest(name, known) -> str:
    """What an error says of an unknown name: the nearest known one, if any is near, and all of them."""
    matches = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {matches[0]!r}? " if matches else ""
    return f"{meant}Known: {', '.join(known)}"
