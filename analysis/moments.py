"""Moments of a layer's hidden units over a data set, batch by batch: what gains are computed from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis.interaction import GLUWeights, hidden_layer
from sqs_jax.gates import Gate

Moments = dict[str, np.ndarray]
"""By name, float64. Of a hidden unit a = z W, u = z V, s = σ(u) and t, which is y Pᵀ for the outputs y = (a s) P:

    "n"                                         the number of samples
    "a" "u" "au" "as" "z" "t" "y"               means
    "u²" "us" "a²u²" "a²us"                     sums over samples (h,)
    "a,a" "u,u" "a,u" "au,au" "au,a" "au,as"    sums of products of what is centred (h,)
    "a,as" "au,t" "y,y"
    "au×au"                                     the same for all pairs of units (h, h); of joint gains alone
    "au×z" "z×z" "z×y"                          and with z (h, d), (d, d), (d, outputs); of joint affine gains alone
"""


class _Centred(NamedTuple):
    """A sum of products of two centred arrays, by the names of their means."""

    left: str
    right: str
    pairs: bool


def _names(text: str) -> dict[str, _Centred]:
    parts = {name: name.replace("×", ",").split(",") for name in text.split()}
    return {name: _Centred(left, right, "×" in name) for name, (left, right) in parts.items()}


_MEANS = ("a", "u", "au", "as", "z", "t", "y")
_EACH = _names("a,a u,u a,u au,au au,a au,as a,as au,t y,y r,r")
_PAIRS = _names("au×au au×z z×z z×y")
_CENTRED = _EACH | _PAIRS


Layer = tuple[jax.Array, jax.Array, jax.Array]  # z (n, d), a (n, h), u (n, h)


@jax.jit
def batch_layer(weights: GLUWeights, x: jax.Array) -> Layer:
    """What a layer makes of a batch x (n, inputs), before its gate."""
    return hidden_layer(weights, x)


@jax.jit(static_argnames=("gate", "pairs", "linear"))
def batch_moments(weights: GLUWeights, layer: Layer, gate: Gate, *, pairs: bool, linear: bool) -> dict[str, jax.Array]:
    """The moments of a batch; those of pairs of units only where `pairs`, with z only where `linear`."""
    z, a, u = layer
    s = gate(u)
    form, unit = a * u, a * s
    y = unit @ weights.out
    arrays = {"a": a, "u": u, "au": form, "as": unit, "z": z, "t": y @ weights.out.T, "y": y}
    means = {name: array.mean(0) for name, array in arrays.items()}
    rest = {name: array - means[name][None] for name, array in arrays.items()}
    moments = {"n": jnp.asarray(len(a))} | means
    moments |= {"u²": (u**2).sum(0), "us": (u * s).sum(0), "a²u²": (form**2).sum(0), "a²us": (form * unit).sum(0)}
    for name, (left, right, _) in _EACH.items():
        if name != "r,r":
            moments[name] = jnp.sum(rest[left] * rest[right], axis=0)
    for name, (left, right, _) in _PAIRS.items():
        if pairs and (linear or "z" not in name):
            moments[name] = rest[left].T @ rest[right]
    return moments


@jax.jit(static_argnames="gate")
def batch_residuals(weights: GLUWeights, terms, layer: Layer, gate: Gate) -> dict[str, jax.Array]:
    """What forms with several `gains.Terms` leave: means and centred sums of squares (methods, outputs)."""
    z, a, u = layer
    unit = a * gate(u)
    means, squares = [], []
    for term in terms:
        gain, gate_gain, linear, gate_linear = (part[None] for part in term[:4])
        rest = (unit - (gain * a + gate_gain * u + gate_linear) * u - linear * a) @ weights.out
        rest = rest if term[4] is None else rest - z @ term[4]
        means.append(rest.mean(0))
        squares.append(jnp.sum((rest - means[-1][None]) ** 2, axis=0))
    return {"n": jnp.asarray(len(a)), "r": jnp.stack(means), "r,r": jnp.stack(squares)}


def merged(a: Moments | None, b: Moments) -> Moments:
    """The moments of two batches together.

    Means are weighted by the sizes; centred sums get the product of the differences of the means (Chan et al. 1979).
    """
    if a is None:
        return b
    n = a["n"] + b["n"]
    apart = {name: b[name] - a[name] for name in (*_MEANS, "r") if name in a}
    shift = a["n"] * b["n"] / n
    total = {name: a[name] + b[name] for name in a}  # n, sums
    for name, difference in apart.items():
        total[name] = a[name] + difference * (b["n"] / n)
    for name, (left, right, pairs) in _CENTRED.items():
        if name in a:
            product = np.outer if pairs else np.multiply
            total[name] += product(shift * apart[left], apart[right])
    return total
