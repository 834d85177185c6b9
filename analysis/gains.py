"""Gains from moments: what stands for a·σ(u) in each hidden unit, γ·a·u + δ·u² + β·a + ε·u, and for the rest, z L."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.analysis.moments import Moments
from sqs_jax.gates import Gate, static_gate

_ALIKE = 1e-12  # share of a variance that is no more than rounding
_FLAT = 1e-10  # over the largest variance of z, one of a direction that is constant


class Terms(NamedTuple):
    """What multiplies each product, (h,) each, float64."""

    gain: np.ndarray
    """γ, of a·u."""
    gate_gain: np.ndarray
    """δ, of u²."""
    linear: np.ndarray
    """β, of a."""
    gate_linear: np.ndarray
    """ε, of u."""
    linear_map: np.ndarray | None = None
    """L (d, outputs), of z; None for 0."""


def unit_terms(gain: np.ndarray, linear: np.ndarray | None = None) -> Terms:
    """Terms of a·u and a alone."""
    zeros = np.zeros_like(gain)
    return Terms(gain, zeros, zeros if linear is None else linear, zeros)


def identity_gains(moments: Moments) -> Terms:
    """γ = 1."""
    return unit_terms(np.ones_like(moments["au"]))


def bussgang_gains(moments: Moments) -> Terms:
    """γ = E[u σ(u)] / E[u²]."""
    return unit_terms(_ratio(moments["us"], moments["u²"]))


def output_gains(moments: Moments) -> Terms:
    """γ = E[a² u σ(u)] / E[a² u²]."""
    return unit_terms(_ratio(moments["a²us"], moments["a²u²"]))


def output_affine_gains(moments: Moments) -> Terms:
    """γ and β of each unit by itself: least squares of a·σ(u) on a·u, a and a constant."""
    form, line, both = moments["au,au"], moments["a,a"], moments["au,a"]
    determinant = form * line - both**2
    solvable = determinant > _ALIKE * form * line
    divisor = np.where(solvable, determinant, 1)
    gain = (moments["au,as"] * line - moments["a,as"] * both) / divisor
    linear = (moments["a,as"] * form - moments["au,as"] * both) / divisor
    alone = np.where(form > 0, moments["au,as"] / np.where(form > 0, form, 1), 1)
    return unit_terms(np.where(solvable, gain, alone), np.where(solvable, linear, 0))


def joint_gains(weights: GLUWeights, moments: Moments, ridge: float) -> Terms:
    """γ of all units at once: (PPᵀ) ∘ Cov(au) γ = Cov(au, y Pᵀ), shrunk towards `output_gains`."""
    start = output_gains(moments).gain
    out = np.asarray(weights.out, np.float64)
    return unit_terms(_solved((out @ out.T) * moments["au×au"], moments["au,t"], start, ridge))


def joint_affine_gains(weights: GLUWeights, moments: Moments, ridge: float) -> Terms:
    """γ of all units at once beside a linear map of z, shrunk towards the γ of `output_affine_gains`.

    For given γ the best map is that of z on y - Σ_h γ_h a_h u_h P_h. So the normal equations are those of `joint_gains`
    for what z does not explain: with C = Cov(z), Cov(au) - Cov(au, z) C⁻¹ Cov(z, au), and the right side likewise.
    """
    out, mixed = np.asarray(weights.out, np.float64), moments["au×z"]
    values, vectors = np.linalg.eigh(moments["z×z"])
    alive = values > _FLAT * values[-1]
    inverse = (vectors[:, alive] / values[alive]) @ vectors[:, alive].T
    of_form, of_y = inverse @ mixed.T, inverse @ moments["z×y"]
    system = (out @ out.T) * (moments["au×au"] - mixed @ of_form)
    right = moments["au,t"] - np.sum(mixed * (of_y @ out.T).T, axis=1)
    gain = _solved(system, right, output_affine_gains(moments).gain, ridge)
    return unit_terms(gain)._replace(linear_map=of_y - of_form @ (gain[:, None] * out))


def _solved(system: np.ndarray, right: np.ndarray, start: np.ndarray, ridge: float) -> np.ndarray:
    """Solves normal equations, shrunk towards `start`."""
    diagonal = np.trace(system) / len(system)
    if diagonal <= 0:
        return start
    residual = right - system @ start
    return start + np.linalg.solve(system + max(ridge, 1e-12) * diagonal * np.eye(len(system)), residual)


def gaussian_terms(gate: str | Gate, moments: Moments) -> Terms:
    """`gaussian_gains` of the moments; γ = 1 for a unit whose gate branch is constant."""
    n = moments["n"]
    variance = moments["u,u"] / n
    alive = variance > _ALIKE * moments["u"] ** 2
    safe = np.where(alive, variance, 1)
    terms = gaussian_gains(gate, moments["u"], safe, moments["a"], moments["a,u"] / n)
    return Terms(*(np.where(alive, term, other) for term, other in zip(terms[:4], (1, 0, 0, 0), strict=True)))


def gaussian_gains(
    gate: str | Gate,
    u_mean: Float[np.ndarray, " h"],
    u_variance: Float[np.ndarray, " h"],
    a_mean: Float[np.ndarray, " h"],
    covariance: Float[np.ndarray, " h"],
) -> Terms:
    """The best quadratic form of a·σ(u), in closed form, for a and u jointly Gaussian.

    With u = m + s t, t standard normal, a = α + ρ (u - m) + e, e independent of u, and the Hermite coefficients of σ
    and of f(t) = (α + ρ s t) σ(m + s t),

        g₀ = E[σ],  k = E[t σ] / s,  c₁ = E[t f],  c₂ = ½ E[(t² - 1) f]

    it is γ a u + δ u² + β a + ε u, up to a constant, with

        γ = k,  δ = c₂ / s² - ρ k,  β = g₀ - k m,  ε = c₁ / s - 2 c₂ m / s² - α k - ρ g₀ + 2 ρ k m

    Args:
      gate: σ.
      u_mean: m (h,). For z with mean μ and covariance Σ it is vᵀ μ,
      u_variance: s² (h,), > 0: vᵀ Σ v,
      a_mean: α (h,): wᵀ μ,
      covariance: ρ s² (h,): wᵀ Σ v.

    Returns Terms (γ, δ, β, ε). The expectations are Gauss-Legendre sums on either side of u = 0, where σ may jump:
    never a mean of derivatives by autodiff, which misses the jump.

    Raises ValueError for a variance that is not positive.

    Source: the best quadratic approximation of a GLU for Gaussian inputs is that of Belrose and Rigg 2025
    (arXiv 2502.01032).
    """
    m, variance = np.asarray(u_mean, np.float64), np.asarray(u_variance, np.float64)
    if not np.all(variance > 0):
        raise ValueError("`u_variance` has entries that are not positive: variances > 0 are needed")
    s, alpha, rho = np.sqrt(variance), np.asarray(a_mean, np.float64), np.asarray(covariance, np.float64) / variance
    t, density = _nodes(-m / s)
    sigma = np.asarray(jax.jit(static_gate(gate))(m[:, None] + s[:, None] * t), np.float64)
    f = (alpha[:, None] + (rho * s)[:, None] * t) * sigma

    def expected(values: np.ndarray) -> np.ndarray:
        return np.sum(values * density, axis=1)

    g, k = expected(sigma), expected(t * sigma) / s
    first, second = expected(t * f), expected((t**2 - 1) * f) / 2
    linear = first / s - 2 * second * m / variance - alpha * k - rho * g + 2 * rho * k * m
    return Terms(k, second / variance - rho * k, g - k * m, linear)


def _nodes(jump: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes t (h, 320) from -12 to 12 with their normal densities, on either side of where σ may jump (h,)."""
    nodes, node_weights = np.polynomial.legendre.leggauss(160)
    jump = np.clip(jump, -12, 12)[:, None]
    sides = [(np.full_like(jump, -12), jump), (jump, np.full_like(jump, 12))]
    t = np.concatenate([low + (high - low) * (nodes + 1) / 2 for low, high in sides], axis=1)
    width = np.concatenate([(high - low) / 2 * node_weights for low, high in sides], axis=1)
    return t, width * np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)


def _ratio(upper, lower):
    """Gains of least squares; 1 for a hidden unit that is always 0, where any would do."""
    return np.where(lower > 0, upper / np.where(lower > 0, lower, 1), 1)
