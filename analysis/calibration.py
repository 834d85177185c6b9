"""Calibration: the gains with which a quadratic form stands for a gate that is not the identity."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis.interaction import GLUWeights, check_weights, hidden_layer, input_size, linear_part
from sqs_jax.gates import Gate, get_gate

Method = Literal["identity", "bussgang", "output", "joint", "gaussian"]
Samples = Any  # an array (n, inputs), or an iterable of such arrays
BATCH = 2048


class Calibration(NamedTuple):
    """How to read a layer's gate: a_h·σ(u_h) ≈ (gain_h·a_h + gate_gain_h·u_h)·u_h, up to a constant in each output."""

    method: Method
    gain: jax.Array
    """γ (h,)."""
    gate_gain: jax.Array
    """What the form takes of u² (h,): 0 except for "gaussian"."""
    offset: jax.Array
    """The constant of each output (outputs,), so that the means agree on the calibration set."""
    r2: jax.Array
    """R² of what the layer gives to each output (outputs,), on the calibration set."""
    samples: int
    """Size of the calibration set."""


def calibrated(weights: GLUWeights, calibration: Calibration) -> GLUWeights:
    """The layer with the gains in its linear branch: its interaction matrices are those of the calibrated form."""
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
      A Calibration; sums over batches are float64. Use it by `calibrated`, or its `gain` alone as the `gain` of
      `spectrum`, which is the same unless the method is "gaussian".

    Raises:
      ValueError: an unknown method, inputs that do not fit, are not finite or are fewer than 2, a ridge below 0.

    Source: Bussgang 1952 for the gain of a nonlinearity; "joint" and the Gaussian form are this project's own.
    """
    check_weights(weights)
    if method not in get_args(Method):
        raise ValueError(f"`method` is {method!r}: one of {', '.join(get_args(Method))} is needed")
    if not ridge >= 0:
        raise ValueError(f"`ridge` is {ridge}: a number ≥ 0 is needed")
    sigma = get_gate(gate)
    batches = as_batches(weights, x)
    sums = _total(_moments(weights, batch, sigma, method == "joint") for batch in batches())
    n = int(sums["n"])
    if n < 2:
        raise ValueError(f"`x` has {n} sample: 2 or more are needed")
    gain, gate_gain = _gains(weights, sums, sigma, method, ridge)
    dtype = weights.w.dtype
    found = Calibration(
        method,
        jnp.asarray(gain, dtype),
        jnp.asarray(gate_gain, dtype),
        jnp.zeros(weights.out.shape[1], dtype),
        jnp.zeros(weights.out.shape[1], dtype),
        n,
    )
    read, mean = calibrated(weights, found), sums["y"] / n
    sums = _total(_residuals(weights, read, batch, jnp.asarray(mean, dtype), sigma) for batch in batches())
    offset = sums["residual"] / n
    unexplained = sums["residual²"] - n * offset**2
    r2 = 1 - unexplained / np.where(sums["y²"] > 0, sums["y²"], np.nan)
    return found._replace(offset=jnp.asarray(offset, dtype), r2=jnp.asarray(r2, dtype))


def gaussian_gains(gate: str | Gate, u_variance: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    """What begins to read x anew: batches (n, inputs) of at most 2048 rows. Raises ValueError where they do not fit."""
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


def _total(parts) -> dict[str, np.ndarray]:
    """The sum of dicts of arrays, in float64."""
    total: dict[str, np.ndarray] = {}
    for part in parts:
        for name, array in part.items():
            total[name] = total.get(name, np.float64(0)) + np.asarray(array, np.float64)
    return total or {"n": np.zeros(())}


@jax.jit(static_argnames=("gate", "pairs"))
def _moments(weights, x, gate, pairs: bool):
    """Sums over a batch that all gains are made of; `pairs` adds those of two hidden units."""
    with jax.default_matmul_precision("highest"):
        _, a, u = hidden_layer(weights, x)
        s = gate(u)
        form, y = a * u, (a * s) @ weights.out
        sums = {"n": jnp.asarray(len(x)), "y": y.sum(0), "u²": (u**2).sum(0), "uσ": (u * s).sum(0)}
        sums |= {"au": form.sum(0), "a²u²": (form**2).sum(0), "a²uσ": (a**2 * u * s).sum(0)}
        if pairs:
            sums |= {"FF": form.T @ form, "Fy": form.T @ y}
    return sums


@jax.jit(static_argnames="gate")
def _residuals(weights, read, x, mean, gate):
    with jax.default_matmul_precision("highest"):
        _, a, u = hidden_layer(weights, x)
        y = (a * gate(u)) @ weights.out
        residual = y - forms(read, x)
    return {"residual": residual.sum(0), "residual²": (residual**2).sum(0), "y²": ((y - mean[None]) ** 2).sum(0)}


def forms(weights: GLUWeights, x: jax.Array) -> jax.Array:
    """The quadratic forms Σ_h P[h, o]·a_h·u_h of inputs (n, inputs): (n, outputs)."""
    _, a, u = hidden_layer(weights, x)
    return (a * u) @ weights.out


def network_logits(weights: GLUWeights, x: jax.Array, gate: Gate) -> jax.Array:
    """The logits of the network itself (n, outputs), the linear part and the bias with them."""
    z, a, u = hidden_layer(weights, x)
    return (a * gate(u)) @ weights.out + linear_part(weights, z)


def _gains(weights, sums, gate, method: Method, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    ones, zeros = np.ones(weights.w.shape[1]), np.zeros(weights.w.shape[1])
    if method == "identity":
        return ones, zeros
    if method == "bussgang":
        return _ratio(sums["uσ"], sums["u²"]), zeros
    if method == "gaussian":
        variance = sums["u²"] / sums["n"]
        alive = variance > 0
        g, half = gaussian_gains(gate, np.where(alive, variance, 1), sums["au"] / sums["n"])
        return np.where(alive, g, 1), np.where(alive, half, 0)
    output = _ratio(sums["a²uσ"], sums["a²u²"])
    return (output if method == "output" else _joint(weights, sums, output, ridge)), zeros


def _joint(weights, sums, start: np.ndarray, ridge: float) -> np.ndarray:
    """Solves the normal equations of the outputs, shrunk towards the gains `start`."""
    n, out = sums["n"], np.asarray(weights.out, np.float64)
    mean = sums["au"] / n
    system = (out @ out.T) * (sums["FF"] / n - np.outer(mean, mean))
    right = np.sum(out * (sums["Fy"] / n - np.outer(mean, sums["y"] / n)), axis=1)
    diagonal = np.trace(system) / len(system)
    if diagonal <= 0:
        return start
    system_ridge = system + max(ridge, 1e-12) * diagonal * np.eye(len(system))
    return start + np.linalg.solve(system_ridge, right - system @ start)


def _ratio(upper, lower):
    """Gains of least squares; 1 for a hidden unit that is always 0, where any would do."""
    return np.where(lower > 0, upper / np.where(lower > 0, lower, 1), 1)
