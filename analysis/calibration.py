"""Calibration: gains for the hidden units, so that quadratic forms stand for a gate that is not the identity.

A gain γ is the factor by which a hidden unit's product a·u is multiplied to stand for a·σ(u).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

from sqs_jax.analysis.interaction import (
    GLUWeights,
    at_least_float32,
    check_weights,
    hidden_layer,
    input_size,
    linear_part,
)
from sqs_jax.gates import Gate, get_gate, static_gate

Method = Literal["identity", "bussgang", "output", "joint", "gaussian"]
METHODS: tuple[Method, ...] = get_args(Method)
Samples = Any  # Float[ArrayLike, "n inputs"], or an iterable of such arrays
BATCH = 2048


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Calibration:
    """How to read a layer's gate: a_h·σ(u_h) ≈ (gain_h·a_h + gate_gain_h·u_h)·u_h, up to a constant in each output.

    A pytree of its arrays, float32 or float64; `method` and `samples` are static.
    """

    method: Method = dataclasses.field(metadata={"static": True})
    gain: Float[Array, " h"]
    """γ (h,)."""
    gate_gain: Float[Array, " h"]
    """What the form takes of u² (h,): 0 except for "gaussian"."""
    offset: Float[Array, " outputs"]
    """The constant of each output (outputs,), so that the means agree on the calibration set."""
    r2: Float[Array, " outputs"]
    """R² of what the layer gives to each output (outputs,), on the calibration set; NaN where that is constant."""
    samples: int = dataclasses.field(metadata={"static": True})
    """Size of the calibration set."""


def calibrated(weights: GLUWeights, calibration: Calibration) -> GLUWeights:
    """The layer with the gains in its linear branch: its interaction matrices are those of the calibrated form.

    The result is at least float32: 16 bits would round the gains.
    """
    weights = at_least_float32(weights)
    gain, gate_gain = calibration.gain, calibration.gate_gain
    w = weights.w * gain[None] + weights.v * gate_gain[None]
    biases = weights.w_bias, weights.v_bias
    if biases == (None, None):
        return weights._replace(w=w)
    w_bias, v_bias = (jnp.zeros_like(gain) if bias is None else bias for bias in biases)
    return weights._replace(w=w, w_bias=w_bias * gain + v_bias * gate_gain, v_bias=v_bias)


def calibrate(
    weights: GLUWeights, x: Samples, gate: str | Gate, *, method: Method = "joint", ridge: float = 1e-6
) -> Calibration:
    """The gains γ with which Σ_h P[h, o]·γ_h·a_h·u_h stands for Σ_h P[h, o]·a_h·σ(u_h), where a = z W, u = z V.

        "identity"   γ_h = 1: the gate is read as the identity, as in the paper
        "bussgang"   γ_h = E[u σ(u)] / E[u²]: least squares for σ itself
        "output"     γ_h = E[a² u σ(u)] / E[a² u²]: least squares for each hidden unit's output
        "joint"      least squares for the outputs, over all γ at once and a constant each: (PᵀP) ∘ Cov(a u) has to
                     be solved; on the calibration set no other γ is better, but for the ridge
        "gaussian"   least squares among all quadratic forms if z were Gaussian with mean 0 and the second moments of
                     the calibration set: `gaussian_gains`

    Args:
      weights: of the layer.
      x: its inputs: an array (n, inputs), n ≥ 2, or an iterable of such arrays, read twice, batch by batch; an
        iterator, which can be read once, is kept in memory.
      gate: σ, as in `sqs_jax.gated_linear`.
      method: as above.
      ridge: for "joint": ridge·mean(diagonal)·‖γ - γ_output‖² is added to the sum of squares, which decides where
        the data does not.

    Returns:
      A Calibration. All is computed in float64, from centred data, whatever the dtype of the weights. Pass it to
      `calibrated`. Unless the method is "gaussian", its `gain` may also be passed to `spectrum` as it is.

    Host code: it sums over batches outside of jit, grad and vmap.

    Raises:
      ValueError: an unknown method, inputs that do not fit, are not finite, are fewer than 2, or are so large that
        their moments overflow; a ridge below 0.
      TypeError: weights or inputs that are traced.

    Source: Bussgang 1952 for the gain of a nonlinearity; "joint" and the Gaussian form are this project's own.
    """
    return calibrate_all(weights, x, gate, methods=(method,), ridge=ridge)[method]


def calibrate_all(
    weights: GLUWeights, x: Samples, gate: str | Gate, *, methods: Sequence[Method], ridge: float = 1e-6
) -> dict[Method, Calibration]:
    """`calibrate` by several methods, with one pass over the samples for all. Raises as `calibrate`."""
    check_concrete("calibrate", weights=weights, x=x)
    check_weights(weights)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"`method` is {method!r}: one of {', '.join(METHODS)} is needed")
    if not ridge >= 0:
        raise ValueError(f"`ridge` is {ridge}: a number ≥ 0 is needed")
    sigma = static_gate(gate)
    dtype, calibrations = at_least_float32(weights).w.dtype, {}
    with _float64():
        wide = jax.tree.map(lambda array: jnp.asarray(np.asarray(array), jnp.float64), weights)
        batches = as_batches(wide, x)
        moments = None
        for batch in batches():
            part = _moments(wide, batch, sigma, "joint" in methods)
            moments = _merged(moments, {name: np.asarray(array) for name, array in part.items()})
        n = 0 if moments is None else int(moments["n"])
        if moments is None or n < 2:
            raise ValueError(f"`x` has {n} sample: 2 or more are needed")
        if not all(np.all(np.isfinite(part)) for part in moments.values()):
            raise ValueError(
                "`x` or `weights` holds numbers so large that their fourth moments overflow: scale them down"
            )
        gains = {method: _gains(wide, moments, sigma, method, ridge) for method in methods}
        stacked = tuple(jnp.asarray(np.stack(part)) for part in zip(*gains.values(), strict=True))
        # Of each output and method: of what the layer gives, and of what its form leaves of it.
        residuals = None
        for batch in batches():
            part = _residuals(wide, *stacked, batch, sigma)
            residuals = _merged(residuals, {name: np.asarray(array) for name, array in part.items()})
        assert residuals is not None
    spread = variation(moments["y²"], n, moments["y"])
    for i, method in enumerate(methods):
        arrays = (*gains[method], residuals["r"][i], 1 - residuals["r²"][i] / spread)
        gain, gate_gain, offset, r2 = (jnp.asarray(array, dtype) for array in arrays)
        calibrations[method] = Calibration(method, gain, gate_gain, offset, r2, n)
    return calibrations


def variation(squares, n: int, mean, eps: float = float(np.finfo(np.float64).eps)) -> np.ndarray:
    """Σ(y - ȳ)² of n numbers with this mean; NaN where it is no more than the rounding of y, so that R² is NaN too."""
    least = n * (16 * eps * np.abs(mean)) ** 2
    return np.where(squares > least, squares, np.nan)


def check_concrete(name: str, **arguments: Any) -> None:
    """Raises TypeError for an argument that is traced: `name` is host code."""
    for argument, value in arguments.items():
        leaves = [] if isinstance(value, Iterator) else jax.tree.leaves(value)
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            raise TypeError(f"`{argument}` is traced: `{name}` runs on the host, outside of jit, grad and vmap")
    if isinstance(jnp.zeros(()), Tracer):  # all arguments are constants of a function that is traced
        raise TypeError(f"`{name}` runs on the host, outside of jit, grad and vmap")


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """Makes JAX compute in float64; on the CPU where the device is a TPU, which has no float64."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        if jax.default_backend() == "tpu":
            stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
        yield


def gaussian_gains(
    gate: str | Gate, u_variance: Float[np.ndarray, " h"], covariance: Float[np.ndarray, " h"]
) -> tuple[Float[np.ndarray, " h"], Float[np.ndarray, " h"]]:
    """The best quadratic form of a·σ(u), in closed form, for a and u jointly Gaussian with mean 0.

    With s² = E[u²], ρ = E[a u] / s², g = E[u σ(u)] / s² and κ = (E[u³ σ(u)] - 3 s⁴ g) / s⁶, it is
    g·a u + ½ρs²κ·u², up to a constant. Never g = E[σ'(u)] by autodiff, which misses a jump at 0.

    Args:
      gate: σ.
      u_variance: s² (h,), > 0. For z with covariance Σ it is vᵀ Σ v,
      covariance: E[a u] (h,), and this wᵀ Σ v.

    Returns gains of a·u and of u², (h,) each, float64; the expectations are Gauss-Legendre sums on either side of 0.

    Raises ValueError for a variance that is not positive.
    """
    variance = np.asarray(u_variance, np.float64)
    if not np.all(variance > 0):
        raise ValueError("`u_variance` has entries that are not positive: variances > 0 are needed")
    nodes, node_weights = np.polynomial.legendre.leggauss(160)
    nodes, node_weights = 6 * (nodes + 1), 6 * node_weights  # from 0 to 12 standard deviations
    t = np.concatenate([-nodes[::-1], nodes])
    density = np.concatenate([node_weights[::-1], node_weights]) * np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    u = np.sqrt(variance)[:, None] * t
    sigma = np.asarray(get_gate(gate)(jnp.asarray(u)), np.float64)
    first, third = (u * sigma) @ density, (u**3 * sigma) @ density
    g = first / variance
    kappa = (third - 3 * variance**2 * g) / variance**3
    return g, np.asarray(covariance, np.float64) * kappa / 2  # ρ s² is the covariance


def as_batches(weights: GLUWeights, x: Samples) -> Callable[[], Iterator[jax.Array]]:
    """A function that iterates over x anew, in batches (n, inputs) of at most 2048 rows.

    Raises ValueError where x does not fit the weights.
    """
    inputs = input_size(weights)
    parts = [x] if hasattr(x, "shape") else x
    if not isinstance(parts, Iterable):
        raise ValueError(f"`x` is {type(x).__name__}: an array (n, {inputs}) or an iterable of such is needed")
    parts = list(parts) if isinstance(parts, Iterator) else parts

    def read():
        for part in parts:
            if np.ndim(part) != 2 or np.shape(part)[1] != inputs:
                raise ValueError(f"`x` has shape {np.shape(part)}: (n, {inputs}) is needed")
            for start in range(0, len(part), BATCH):
                batch = jnp.asarray(part[start : start + BATCH], weights.w.dtype)
                if not jnp.all(jnp.isfinite(batch)):
                    raise ValueError("`x` holds numbers that are NaN or infinite: finite ones are needed")
                yield batch

    return read


def _merged(a: dict[str, np.ndarray] | None, b: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The moments of two batches together.

    Means are weighted by the sizes; centred sums get the product of the differences of the means (Chan et al. 1979).
    """
    if a is None:
        return b
    n = a["n"] + b["n"]
    apart = {name: b[name] - a[name] for name in a}
    shift = a["n"] * b["n"] / n
    merged = {name: a[name] + b[name] for name in a}  # n, sums
    for name in _MEANS & a.keys():
        merged[name] = a[name] + apart[name] * (b["n"] / n)
    for name, (left, right) in _CENTRED.items():
        if name in a:
            between = apart[left] * apart[right] if name.endswith("²") else np.outer(apart[left], apart[right])
            merged[name] = merged[name] + shift * between
    return merged


# Of the moments of a batch, which are means, and which are sums of products of what is centred at two of these.
_MEANS = {"au", "as", "y", "r"}
_CENTRED = {"FF": ("au", "au"), "FS": ("au", "as"), "y²": ("y", "y"), "r²": ("r", "r")}


@jax.jit(static_argnames=("gate", "pairs"))
def _moments(weights, x, gate, pairs: bool):
    """The moments of a batch that gains are computed from; `pairs` adds the covariances of hidden units."""
    _, a, u = hidden_layer(weights, x)
    s = gate(u)
    form, unit = a * u, a * s
    y = unit @ weights.out
    moments = {"n": jnp.asarray(len(x)), "au": form.mean(0), "as": unit.mean(0), "y": y.mean(0)}
    moments |= {"u²": (u**2).sum(0), "uσ": (u * s).sum(0), "a²u²": (form**2).sum(0), "a²uσ": (form * unit).sum(0)}
    moments["y²"] = jnp.sum((y - y.mean(0)[None]) ** 2, axis=0)
    if pairs:
        centred = form - form.mean(0)[None]
        moments |= {"FF": centred.T @ centred, "FS": centred.T @ (unit - unit.mean(0)[None])}
    return moments


@jax.jit(static_argnames="gate")
def _residuals(weights, gains, gate_gains, x, gate):
    """The residuals of forms with several gains (methods, h): means and centred sums of squares (methods, outputs)."""
    _, a, u = hidden_layer(weights, x)
    unit = a * gate(u)

    def left(gain, gate_gain):
        rest = (unit - (gain[None] * a + gate_gain[None] * u) * u) @ weights.out
        return rest.mean(0), jnp.sum((rest - rest.mean(0)[None]) ** 2, axis=0)

    mean, squares = jax.lax.map(lambda pair: left(*pair), (gains, gate_gains))
    return {"n": jnp.asarray(len(x)), "r": mean, "r²": squares}


def forms(weights: GLUWeights, x: jax.Array) -> jax.Array:
    """The quadratic forms Σ_h P[h, o]·a_h·u_h of inputs (n, inputs): (n, outputs)."""
    _, a, u = hidden_layer(weights, x)
    return (a * u) @ weights.out


def network_logits(weights: GLUWeights, x: jax.Array, gate: Gate) -> jax.Array:
    """The logits of the network itself (n, outputs), the linear part and the bias with them."""
    z, a, u = hidden_layer(weights, x)
    return (a * gate(u)) @ weights.out + linear_part(weights, z)


def _gains(weights, moments, gate, method: Method, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    ones, zeros = np.ones(weights.w.shape[1]), np.zeros(weights.w.shape[1])
    if method == "identity":
        return ones, zeros
    if method == "bussgang":
        return _ratio(moments["uσ"], moments["u²"]), zeros
    if method == "gaussian":
        variance = moments["u²"] / moments["n"]
        alive = variance > 0
        g, half = gaussian_gains(gate, np.where(alive, variance, 1), moments["au"])
        return np.where(alive, g, 1), np.where(alive, half, 0)
    output = _ratio(moments["a²uσ"], moments["a²u²"])
    return (output if method == "output" else _joint(weights, moments, output, ridge)), zeros


def _joint(weights, moments, start: np.ndarray, ridge: float) -> np.ndarray:
    """Solves the normal equations of the outputs, shrunk towards the gains `start`."""
    out = np.asarray(weights.out)
    weight = out @ out.T / moments["n"]
    system, right = weight * moments["FF"], np.sum(weight * moments["FS"], axis=1)
    diagonal = np.trace(system) / len(system)
    if diagonal <= 0:
        return start
    system_ridge = system + max(ridge, 1e-12) * diagonal * np.eye(len(system))
    return start + np.linalg.solve(system_ridge, right - system @ start)


def _ratio(upper, lower):
    """Gains of least squares; 1 for a hidden unit that is always 0, where any would do."""
    return np.where(lower > 0, upper / np.where(lower > 0, lower, 1), 1)
