"""Calibration: gains for the hidden units, so that quadratic forms stand for a gate that is not the identity.

A gain γ is the factor by which a hidden unit's product a·u is multiplied to stand for a·σ(u). An affine reading has a
linear term beside it.
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

from sqs_jax.analysis import gains
from sqs_jax.analysis.gains import Terms
from sqs_jax.analysis.interaction import (
    GLUWeights,
    all_finite,
    at_least_float32,
    check_weights,
    hidden_layer,
    input_size,
    linear_part,
)
from sqs_jax.analysis.moments import Layer, Moments, batch_layer, batch_moments, batch_residuals, merged
from sqs_jax.gates import Gate, static_gate

Method = Literal["identity", "bussgang", "gaussian", "output", "output_affine", "joint", "joint_affine"]
METHODS: tuple[Method, ...] = get_args(Method)
AFFINE: tuple[Method, ...] = ("output_affine", "joint_affine")
"""Methods whose reading has a linear term, so that `gain` alone does not say it."""
Precision = Literal["float64", "float32"]
Samples = Any  # Float[ArrayLike, "n inputs"], or an iterable of such arrays
BATCH = 2048
_LARGEST_KEPT = 2**29  # bytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Calibration:
    """How to read a layer's gate: a·σ(u) ≈ γ·a·u + δ·u² + β·a + ε·u in each hidden unit, and z L in the outputs.

    A pytree of its arrays, float32 or float64; `method` and `samples` are static.
    """

    method: Method = dataclasses.field(metadata={"static": True})
    gain: Float[Array, " h"]
    """γ (h,)."""
    gate_gain: Float[Array, " h"]
    """δ (h,): 0 except for "gaussian"."""
    linear: Float[Array, " h"]
    """β (h,): 0 except for "output_affine" and "gaussian"."""
    gate_linear: Float[Array, " h"]
    """ε (h,): 0 except for "gaussian"."""
    linear_map: Float[Array, "d outputs"] | None
    """L (d, outputs): None except for "joint_affine"."""
    offset: Float[Array, " outputs"]
    """The constant of each output (outputs,), so that the means agree on the calibration set."""
    r2: Float[Array, " outputs"]
    """R² of what the layer gives to each output (outputs,), on the calibration set; NaN where that is constant."""
    samples: int = dataclasses.field(metadata={"static": True})
    """Size of the calibration set."""


def calibrated(weights: GLUWeights, calibration: Calibration) -> GLUWeights:
    """The bilinear layer that a calibration stands for: its interaction matrices are those of the calibrated form.

        γ·a·u + β·a = a·(γ·u + β),        z L = Σ_i z_i·1·L_i

    so gains scale the gate branch, and β is its bias. The constant coordinate of interaction matrices carries all that
    is linear: a map L is d more hidden units, whose gate branch is 1. For "gaussian" there are 2h hidden units: the
    others are u·(δ·u + ε). The result is at least float32: 16 bits would round the gains.
    """
    weights = at_least_float32(weights)
    if calibration.linear_map is not None:
        d, dtype = len(weights.w), weights.w.dtype
        layer = calibrated(weights, dataclasses.replace(calibration, linear_map=None))
        assert layer.v_bias is not None
        own = jnp.zeros_like(layer.v_bias) if layer.w_bias is None else layer.w_bias
        return layer._replace(
            w=jnp.concatenate([layer.w, jnp.eye(d, dtype=dtype)], axis=1),
            v=jnp.concatenate([layer.v, jnp.zeros((d, d), dtype)], axis=1),
            w_bias=jnp.concatenate([own, jnp.zeros(d, dtype)]),
            v_bias=jnp.concatenate([layer.v_bias, jnp.ones(d, dtype)]),
            out=jnp.concatenate([layer.out, calibration.linear_map]),
        )
    gain, linear = calibration.gain, calibration.linear
    bias = jnp.zeros_like(gain) if weights.v_bias is None else weights.v_bias
    if calibration.method == "gaussian":
        own = jnp.zeros_like(gain) if weights.w_bias is None else weights.w_bias
        other = calibration.gate_gain
        return weights._replace(
            w=jnp.concatenate([weights.w, weights.v], axis=1),
            v=jnp.concatenate([weights.v * gain[None], weights.v * other[None]], axis=1),
            w_bias=jnp.concatenate([own, bias]),
            v_bias=jnp.concatenate([bias * gain + linear, bias * other + calibration.gate_linear]),
            out=jnp.concatenate([weights.out, weights.out]),
        )
    has_bias = weights.v_bias is not None or calibration.method in AFFINE
    return weights._replace(v=weights.v * gain[None], v_bias=bias * gain + linear if has_bias else None)


def bilinear_layer(weights: GLUWeights, calibration: Calibration) -> GLUWeights:
    """The layer as a calibration reads it, constants included: what stands in the layer's place.

    Its forms, its linear part and its bias add up to the calibrated outputs; a linear map is part of the skip L.
    """
    layer = calibrated(weights, dataclasses.replace(calibration, linear_map=None))
    bias = calibration.offset if weights.out_bias is None else weights.out_bias + calibration.offset
    skip, own = calibration.linear_map, weights.skip
    if skip is None or own is None:
        return layer._replace(out_bias=bias, skip=own if skip is None else skip)
    return layer._replace(out_bias=bias, skip=own + skip)


def calibrate(
    weights: GLUWeights,
    x: Samples,
    gate: str | Gate,
    *,
    method: Method = "joint",
    ridge: float = 1e-6,
    precision: Precision = "float64",
    r2: bool = True,
) -> Calibration:
    """The gains γ with which Σ_h P[h, o]·γ_h·a_h·u_h stands for Σ_h P[h, o]·a_h·σ(u_h), where a = z W, u = z V.

        "identity"   γ_h = 1: the gate is read as the identity, as in the paper
        "bussgang"   γ_h = E[u σ(u)] / E[u²]: least squares for σ itself
        "gaussian"   least squares among all quadratic forms if z were Gaussian with the mean and the covariance of
                     the calibration set: `sqs_jax.analysis.gains.gaussian_gains`
        "output"     γ_h = E[a² u σ(u)] / E[a² u²]: least squares for each hidden unit's output
        "joint"      least squares for the outputs, over all γ at once and a constant each: (PPᵀ) ∘ Cov(a u) has to
                     be solved; on the calibration set no other γ is better, but for the ridge
        "output_affine": least squares for each hidden unit's output by γ·a·u + β·a and a constant
        "joint_affine": least squares for the outputs, over all γ and a linear map z L at once, and a constant each

    Args:
      weights: of the layer.
      x: its inputs: an array (n, inputs), n ≥ 2, or an iterable of such arrays, read batch by batch: once where `r2` is
        False, or its hidden units take at most 512 MiB of the device's memory, else twice; an iterator, which can be
        read once, is kept in memory.
      gate: σ, as in `sqs_jax.gated_linear`.
      method: as above.
      ridge: for "joint" and "joint_affine": ridge·mean(diagonal)·‖γ - γ_output‖² is added to the sum of squares, which
        decides where the data does not.
      precision: of the products of a batch. Sums over batches and all that is solved are float64; float32 is twice as
        fast, and the last digits of R² are then those of float32.
      r2: False to leave R² out (NaN), which needs a second pass over x.

    Returns:
      A Calibration, from centred data, whatever the dtype of the weights. Pass it to `calibrated`. Where the method has
      no linear term and is not "gaussian", its `gain` may also be passed to `spectrum` as it is.

    Host code, outside of jit, grad and vmap.

    Raises:
      ValueError: an unknown method, inputs that do not fit, are not finite, are fewer than 2, or are so large that
        their moments overflow; a ridge below 0.
      TypeError: weights or inputs that are traced.

    Source: Bussgang 1952 for the gain of a nonlinearity; Belrose and Rigg 2025 (arXiv 2502.01032) for "gaussian"; the
    others are this project's own.
    """
    return calibrate_all(weights, x, gate, methods=(method,), ridge=ridge, precision=precision, r2=r2)[method]


def calibrate_all(
    weights: GLUWeights,
    x: Samples,
    gate: str | Gate,
    *,
    methods: Sequence[Method],
    ridge: float = 1e-6,
    precision: Precision = "float64",
    r2: bool = True,
) -> dict[Method, Calibration]:
    """`calibrate` by several methods, with the same passes over the samples for all. Raises as `calibrate`."""
    check_concrete("calibrate", weights=weights, x=x)
    check_weights(weights)
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"`method` is {method!r}: one of {', '.join(METHODS)} is needed")
    if precision not in get_args(Precision):
        raise ValueError(f"`precision` is {precision!r}: one of {', '.join(get_args(Precision))} is needed")
    if not ridge >= 0:
        raise ValueError(f"`ridge` is {ridge}: a number ≥ 0 is needed")
    sigma = static_gate(gate)
    dtype, calibrations = at_least_float32(weights).w.dtype, {}
    with _float64(), jax.default_matmul_precision("highest"):
        wide = jax.tree.map(lambda array: as_dtype(np.asarray(array), precision), weights)
        batches = as_batches(wide, x)
        moments, kept = None, _Kept(r2)
        pairs, linear = bool({"joint", "joint_affine"} & {*methods}), "joint_affine" in methods
        for batch in batches():
            layer = batch_layer(wide, batch)
            kept.add(layer)
            part = batch_moments(wide, layer, sigma, pairs=pairs, linear=linear)
            moments = merged(moments, {name: np.asarray(array, np.float64) for name, array in part.items()})
        n = 0 if moments is None else int(moments["n"])
        if moments is None or n < 2:
            raise ValueError(f"`x` has {n} sample: 2 or more are needed")
        if not all(np.all(np.isfinite(part)) for part in moments.values()):
            raise ValueError(
                "`x` or `weights` holds numbers so large that their fourth moments overflow: scale them down"
            )
        terms = {method: _terms(wide, moments, sigma, method, ridge) for method in methods}
        spread = variation(moments["y,y"], n, moments["y"])
        fits = (
            _fits(wide, list(terms.values()), kept.layers or (batch_layer(wide, x) for x in batches()), sigma, spread)
            if r2
            else np.full((len(methods), len(spread)), np.nan)
        )
    for i, method in enumerate(methods):
        parts: Any = (*terms[method], _offset(weights, terms[method], moments), fits[i])
        calibrations[method] = Calibration(method, *(as_dtype(part, dtype) for part in parts), samples=n)
    return calibrations


class _Kept:
    """The hidden units of a first pass over the samples, kept for a second, as long as they are few."""

    def __init__(self, wanted: bool):
        self.layers: list[Layer] | None = [] if wanted else None
        self._room = _LARGEST_KEPT

    def add(self, layer: Layer) -> None:
        self._room -= sum(array.nbytes for array in layer)
        if self._room < 0:
            self.layers = None
        if self.layers is not None:
            self.layers.append(layer)


def _fits(weights: GLUWeights, terms: list[Terms], layers: Iterable[Layer], gate: Gate, spread) -> np.ndarray:
    """R² (methods, outputs)."""
    arrays = jax.tree.map(lambda part: jnp.asarray(part, weights.w.dtype), terms)
    residuals = None
    for layer in layers:
        part = batch_residuals(weights, arrays, layer, gate)
        residuals = merged(residuals, {name: np.asarray(array, np.float64) for name, array in part.items()})
    assert residuals is not None
    return 1 - residuals["r,r"] / spread


def _offset(weights: GLUWeights, terms: Terms, moments: Moments) -> np.ndarray:
    """The constant of each output (outputs,) with which the means agree."""
    unit = moments["as"] - terms.gain * moments["au"] - terms.gate_gain * moments["u²"] / moments["n"]
    unit = unit - terms.linear * moments["a"] - terms.gate_linear * moments["u"]
    offset = unit @ np.asarray(weights.out, np.float64)
    return offset if terms.linear_map is None else offset - moments["z"] @ terms.linear_map


def as_dtype(part: Any, dtype: Any) -> Any:
    """An array of this dtype; None as it is."""
    if isinstance(part, np.ndarray):
        part = part.astype(dtype, copy=False)  # on the host, where nothing is compiled for it
    return None if part is None else jnp.asarray(part, dtype)


def _terms(weights: GLUWeights, moments: Moments, gate: Gate, method: Method, ridge: float) -> Terms:
    if method == "joint":
        return gains.joint_gains(weights, moments, ridge)
    if method == "joint_affine":
        return gains.joint_affine_gains(weights, moments, ridge)
    if method == "gaussian":
        return gains.gaussian_terms(gate, moments)
    simple = {
        "identity": gains.identity_gains,
        "bussgang": gains.bussgang_gains,
        "output": gains.output_gains,
        "output_affine": gains.output_affine_gains,
    }
    return simple[method](moments)


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


def even_slices(count: int, largest: int = BATCH) -> Iterator[slice]:
    """`count` rows in as few parts of at most `largest` as can be, all but the last of one size: little to compile."""
    rows = -(-count // max(1, -(-count // largest)))
    return (slice(start, start + rows) for start in range(0, count, max(1, rows)))


def readable_twice(x: Samples) -> Samples:
    """The same samples; those of an iterator, which can be read once, in a list."""
    return list(x) if isinstance(x, Iterator) else x


def as_batches(weights: GLUWeights, x: Samples) -> Callable[[], Iterator[jax.Array]]:
    """A function that iterates over x anew, in batches (n, inputs) as `even_slices` has them.

    Raises ValueError where x does not fit the weights.
    """
    inputs = input_size(weights)
    parts = [x] if hasattr(x, "shape") else readable_twice(x)
    if not isinstance(parts, Iterable):
        raise ValueError(f"`x` is {type(x).__name__}: an array (n, {inputs}) or an iterable of such is needed")

    def read():
        for part in parts:
            if np.ndim(part) != 2 or np.shape(part)[1] != inputs:
                raise ValueError(f"`x` has shape {np.shape(part)}: (n, {inputs}) is needed")
            for rows in even_slices(len(part)):
                batch = as_dtype(part[rows], weights.w.dtype)
                if not all_finite(batch):
                    raise ValueError("`x` holds numbers that are NaN or infinite: finite ones are needed")
                yield batch

    return read


def forms(weights: GLUWeights, x: jax.Array) -> jax.Array:
    """The quadratic forms Σ_h P[h, o]·a_h·u_h of inputs (n, inputs): (n, outputs)."""
    _, a, u = hidden_layer(weights, x)
    return (a * u) @ weights.out


def layer_outputs(weights: GLUWeights, x: jax.Array) -> jax.Array:
    """What a bilinear layer gives (n, outputs): its forms, its linear part and its bias."""
    return forms(weights, x) + linear_part(weights, x if weights.embed is None else x @ weights.embed)


def network_logits(weights: GLUWeights, x: jax.Array, gate: Gate) -> jax.Array:
    """The logits of the network itself (n, outputs), the linear part and the bias with them."""
    z, a, u = hidden_layer(weights, x)
    return (a * gate(u)) @ weights.out + linear_part(weights, z)
