"""Fidelity: how much of a network its quadratic forms explain."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy.special import log_softmax, logsumexp

from sqs_jax.analysis.calibration import (
    Calibration,
    Samples,
    as_batches,
    calibrated,
    check_concrete,
    forms,
    network_logits,
    readable_twice,
    variation,
)
from sqs_jax.analysis.eigen import Eigenpairs
from sqs_jax.analysis.interaction import (
    Basis,
    GLUWeights,
    at_least_float32,
    check_weights,
    hidden_layer,
    linear_part,
)
from sqs_jax.gates import Gate, static_gate

# Numbers that the responses of a batch may hold.
_RESPONSES = 2**24


Labels = Int[ArrayLike, " n"]
_Map = Callable[[np.ndarray], np.ndarray]


class Fidelity(NamedTuple):
    """How well a quadratic network stands for the network itself; arrays of one shape, () or (ks,)."""

    r2: Float[np.ndarray, "*ks"]
    """1 - Σ(y - ŷ)² / Σ(y - ȳ)² over all samples and outputs; at most 1, and negative where the mean is closer."""
    kl: Float[np.ndarray, "*ks"]
    """Mean KL(network ‖ quadratic network) of the softmax outputs, in nats."""
    agreement: Float[np.ndarray, "*ks"]
    """Share of samples where both have the same largest logit."""
    accuracy: Float[np.ndarray, "*ks"]
    """Accuracy of the quadratic network; NaN without labels."""
    network_accuracy: Float[np.ndarray, "*ks"]
    """Accuracy of the network; NaN without labels."""


def fidelity(
    weights: GLUWeights,
    x: Samples,
    gate: str | Gate,
    *,
    calibration: Calibration,
    labels: Labels | None = None,
) -> Fidelity:
    """Measures the quadratic network ŷ = zᵀ A z + linear part + offset against the network itself.

    Args:
      weights, gate: of the layer.
      x: (n, inputs), or batches of them. Use other samples than for the gains, so that the figures are held out.
      calibration: from `calibrate`.
      labels: (n,) int, the classes; without them both accuracies are NaN.

    Host code, as `calibrate`. Raises ValueError where they do not fit or are empty. R² is NaN where the network's
    logits are constant.
    """
    return fidelity_all(weights, x, gate, calibrations={"": calibration}, labels=labels)[""]


def fidelity_all(
    weights: GLUWeights, x: Samples, gate: str | Gate, *, calibrations: Mapping[Any, Calibration], labels: Labels | None
) -> dict[Any, Fidelity]:
    """`fidelity` of several calibrations by name; the network itself is computed once. Raises as `fidelity`."""
    x = readable_twice(x)
    y, labels = _network(weights, x, labels, gate)
    reads = {name: _read(weights, calibration) for name, calibration in calibrations.items()}
    parts = {name: [] for name in calibrations}
    for batch in _batches(weights, x):
        for name, read in reads.items():
            parts[name].append(_quadratic(read, batch, calibrations[name].offset))
    compared = {name: _compare(y, np.concatenate(part)[:, :, None], labels) for name, part in parts.items()}
    return {name: Fidelity(*(array[0] for array in arrays)) for name, arrays in compared.items()}


def deep_fidelity(
    layers: Sequence[GLUWeights],
    x: Samples,
    gates: Sequence[str | Gate],
    *,
    calibrations: Sequence[Calibration],
    labels: Labels | None = None,
) -> Fidelity:
    """Measures a deep network with every GLU replaced by its quadratic layer against the network itself.

    Each quadratic layer reads the output of the quadratic layer before it, so errors accumulate.

    Args:
      layers: the weights of each GLU, the first with the embedding, the last with the head as `out`, the others with
        the identity, as `sqs_jax.analysis.layer_weights` gives them.
      x: (n, inputs) of the first layer; gates: of each layer.
      calibrations: from `calibrate`, of each layer on its own inputs in the network.
      labels: as in `fidelity`.

    Raises ValueError for lists of different lengths, and as `fidelity`.
    """
    if not len(layers) == len(calibrations) == len(gates) > 0:
        counts = f"{len(layers)}, {len(calibrations)} and {len(gates)}"
        raise ValueError(f"`layers`, `calibrations` and `gates` have {counts} entries: as many of each are needed")
    inner = list(_batches(layers[0], x))
    quadratic = list(inner)
    for weights, calibration, gate in zip(layers[:-1], calibrations[:-1], gates[:-1], strict=True):
        inner = [_logits(at_least_float32(weights), batch, static_gate(gate)) for batch in inner]
        quadratic = [_quadratic(_read(weights, calibration), batch, calibration.offset) for batch in quadratic]
    y, labels = _network(layers[-1], inner, labels, gates[-1])
    read, offset = _read(layers[-1], calibrations[-1]), calibrations[-1].offset
    predicted = np.concatenate([np.asarray(_quadratic(read, batch, offset)) for batch in quadratic])
    return Fidelity(*(array[0] for array in _compare(y, predicted[:, :, None], labels)))


def truncation(
    weights: GLUWeights,
    x: Samples,
    gate: str | Gate,
    *,
    pairs: Eigenpairs,
    calibration_x: Samples,
    ks: tuple[int, ...],
    labels: Labels | None = None,
    basis: Basis = "input",
) -> Fidelity:
    """The fidelity of the forms with only their k largest eigenpairs, for each k in `ks`; arrays (ks,).

        ŷ_o = Σ_{i ≤ k} λ_i (x·v_i)² + linear part + c_k,   c_k making the means agree on `calibration_x`

    Args:
      weights: the network's own; pairs: of its calibrated form in `basis`, max(ks) or more for each output.
      calibration_x: samples that the constants are found on.
      others: as in `fidelity`.
    """
    if not ks or min(ks) < 1 or max(ks) > pairs.values.shape[1]:
        raise ValueError(f"`ks` is {ks}: numbers from 1 to {pairs.values.shape[1]} are needed")
    x, calibration_x = readable_twice(x), readable_twice(calibration_x)
    y, labels = _network(weights, x, labels, gate)
    reference, _ = _network(weights, calibration_x, None, gate)
    offset = np.mean(reference[:, :, None] - _cut_off(weights, pairs, calibration_x, ks, basis), axis=0)
    return _compare(y, _cut_off(weights, pairs, x, ks, basis) + offset, labels)


def ablation(
    weights: GLUWeights,
    x: Samples,
    gate: str | Gate,
    *,
    pairs: Eigenpairs,
    labels: Labels | None,
    basis: Basis = "input",
) -> Float[np.ndarray, "outputs k"]:
    """The rise of the network's loss, in nats, when one eigenpair is removed from one output: (outputs, k).

    From the network's own logit o, λ_i (x·v_i)² is subtracted and its mean over x put back. Arguments as in
    `truncation`; the loss needs the labels.
    """
    x = readable_twice(x)
    y, labels = _network(weights, x, labels, gate)
    if labels is None:
        raise ValueError("`labels` is None: the loss needs the classes (n,)")
    log_p = log_softmax(y, axis=1)
    parts = [np.asarray(_responses(weights, pairs, batch, basis)) for batch in _small_batches(weights, pairs, x)]
    change = -np.concatenate(parts)  # (n, outputs, k)
    change -= change.mean(0)
    # What the other classes have of the probability: of their own logits, for 1 - p loses it near 1.
    others = np.stack([logsumexp(np.delete(log_p, o, axis=1), axis=1) for o in range(y.shape[1])], axis=1)
    rise = np.logaddexp(others[:, :, None], log_p[:, :, None] + change)
    is_label = labels[:, None] == np.arange(y.shape[1])
    return np.mean(rise - change * is_label[:, :, None], axis=0)


def linear_share(weights: GLUWeights, x: Samples, gate: str | Gate) -> float:
    """R² of the logits by the linear part alone, up to a constant: what the residual stream past the layer explains."""
    x = readable_twice(x)
    y, _ = _network(weights, x, None, gate)
    linear = np.concatenate([np.asarray(_linear(at_least_float32(weights), batch)) for batch in _batches(weights, x)])
    left = y - linear
    return float(r_squared(y, left - left.mean(0)))


def r_squared(y: np.ndarray, residual: np.ndarray, axis: Any = None) -> np.ndarray:
    """1 - Σ residual² / Σ(y - ȳ)² of outputs y (n, outputs) over an axis, or all; residual (n, outputs, …).

    NaN where every output is a constant, to the rounding of float32.
    """
    mean = y.mean(0)
    squares = np.sum((y - mean) ** 2, axis=0)
    constant = np.isnan(variation(squares, len(y), mean, float(np.finfo(np.float32).eps)))
    spread = np.where(constant, 0, squares)
    spread = spread if axis == 0 else spread.sum()
    return 1 - np.sum(residual**2, axis=(0, 1) if axis is None else axis) / np.where(spread > 0, spread, np.nan)


def _batches(weights: GLUWeights, x: Samples) -> Iterator[jax.Array]:
    return as_batches(at_least_float32(weights), x)()


def _network(weights, x, labels, gate) -> tuple[np.ndarray, np.ndarray | None]:
    """The network's logits, float64, and the labels, where there are any."""
    check_concrete("fidelity", weights=weights, x=x, labels=labels)
    check_weights(weights)
    sigma, wide = static_gate(gate), at_least_float32(weights)
    parts = [np.asarray(_logits(wide, batch, sigma)) for batch in _batches(weights, x)]
    if not sum(map(len, parts)):
        raise ValueError("`x` has 0 samples: 1 or more are needed")
    y = np.concatenate(parts).astype(np.float64)
    if labels is None:
        return y, None
    labels = np.asarray(labels)
    if labels.shape != (len(y),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`labels` is {labels.dtype}{labels.shape}: whole numbers ({len(y)},) are needed")
    if labels.min() < 0 or labels.max() >= y.shape[1]:
        raise ValueError(f"`labels` has values from {labels.min()} to {labels.max()}: 0 to {y.shape[1] - 1} are needed")
    return y, labels


_read = jax.jit(calibrated)


@jax.jit(static_argnames="gate")
def _logits(weights, x, gate):
    with jax.default_matmul_precision("highest"):
        return network_logits(weights, x, gate)


@jax.jit
def _quadratic(read, x, offset):
    with jax.default_matmul_precision("highest"):
        return forms(read, x) + _linear(read, x) + offset[None]


@jax.jit
def _linear(weights, x):
    with jax.default_matmul_precision("highest"):
        z, _, _ = hidden_layer(weights, x)
        return jnp.broadcast_to(linear_part(weights, z), (len(x), weights.out.shape[1]))


@jax.jit(static_argnames="basis")
def _responses(weights, pairs, x, basis):
    """λ_i (x·v_i)², (n, outputs, k)."""
    with jax.default_matmul_precision("highest"):
        at = points(weights, x, basis, pairs.vectors.shape[2])
        return pairs.values[None] * jnp.einsum("nd,okd->nok", at, pairs.vectors) ** 2


def points(weights: GLUWeights, x: jax.Array, basis: Basis, size: int) -> jax.Array:
    """The coordinates (n, size) in which forms of this basis are written: x or z.

    With a last 1 where `size` is one more, as it is where there are biases or a linear term.
    """
    if basis == "hidden" and weights.embed is not None:
        x = x @ weights.embed
    return x if x.shape[1] == size else jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)


def _small_batches(weights, pairs, x: Samples):
    rows = max(1, _RESPONSES // pairs.values.size)
    for batch in _batches(weights, x):
        for start in range(0, len(batch), rows):
            yield batch[start : start + rows]


def _cut_off(weights, pairs, x, ks, basis) -> np.ndarray:
    """Linear part and forms of the first k pairs, for each k: (n, outputs, ks)."""
    pairs = Eigenpairs(*(array[:, : max(ks)] for array in pairs))
    parts = []
    wide = at_least_float32(weights)
    for batch in _small_batches(weights, pairs, x):
        parts.append(np.asarray(_sums(wide, pairs, batch, tuple(ks), basis)))
    return np.concatenate(parts)


@jax.jit(static_argnames=("ks", "basis"))
def _sums(weights, pairs, x, ks, basis):
    sums = jnp.cumsum(_responses(weights, pairs, x, basis), axis=2)[:, :, np.array(ks) - 1]
    return sums + _linear(weights, x)[:, :, None]


def _compare(y, predicted, labels) -> Fidelity:
    """All figures of predictions (n, outputs, ks): arrays (ks,)."""
    r2 = r_squared(y, y[:, :, None] - predicted)
    log_p, log_q = (log_softmax(array, axis=1) for array in (y, predicted))
    kl = np.sum(np.exp(log_p)[:, :, None] * (log_p[:, :, None] - log_q), axis=1).mean(0)
    best, guess = y.argmax(1), predicted.argmax(1)
    agreement = np.mean(guess == best[:, None], axis=0)
    if labels is None:
        unknown = np.full(agreement.shape, np.nan)
        return Fidelity(r2, kl, agreement, unknown, unknown)
    network = np.broadcast_to(np.mean(best == labels), agreement.shape)
    return Fidelity(r2, kl, agreement, np.mean(guess == labels[:, None], axis=0), network)


def network_parts(weights: GLUWeights, gate: str | Gate) -> tuple[_Map, _Map, _Map]:
    """The network through this layer as three functions of arrays:

    1. from inputs (n, inputs) to all that is linear in them: a, u and the linear part, (n, 2 h + outputs),
    2. from there to classes (n,),
    3. the first without its constants: of a sum of inputs, 1 of one and 3 of the others add up.
    """
    check_weights(weights)  # once: it waits for the device
    sigma, wide = static_gate(gate), at_least_float32(weights)
    slopes = wide._replace(w_bias=None, v_bias=None, out_bias=None)

    def linear(weights: GLUWeights) -> _Map:
        return lambda x: np.concatenate([np.asarray(_before(weights, part)) for part in _batches(weights, x)])

    return linear(wide), lambda before: np.asarray(_classes(wide, before, sigma)), linear(slopes)


@jax.jit
def _before(weights, x):
    with jax.default_matmul_precision("highest"):
        z, a, u = hidden_layer(weights, x)
        linear = jnp.broadcast_to(linear_part(weights, z), (len(x), weights.out.shape[1]))
        return jnp.concatenate([a, u, linear], axis=1)


@jax.jit(static_argnames="gate")
def _classes(weights, before, gate):
    h = weights.w.shape[1]
    a, u, linear = jnp.split(before, (h, 2 * h), axis=1)
    with jax.default_matmul_precision("highest"):
        return ((a * gate(u)) @ weights.out + linear).argmax(1)
