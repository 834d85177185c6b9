"""Reading the GLUs of a Transformer: what each adds to the residual stream, as quadratic forms of its input."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from sqs_jax.analysis.calibration import (
    BATCH,
    Calibration,
    Method,
    calibrate,
    calibrate_all,
    calibrated,
    forms,
    network_logits,
)
from sqs_jax.analysis.calibration import (
    METHODS as ALL_METHODS,
)
from sqs_jax.analysis.eigen import Eigenpairs, top_eigenpairs
from sqs_jax.analysis.fidelity import fidelity, r_squared
from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.gates import static_gate
from sqs_jax.transformer import Transformer, check_tokens, rms_norm

# The stream is not Gaussian with mean 0.
METHODS: tuple[Method, ...] = tuple(method for method in ALL_METHODS if method != "gaussian")
Windows = tuple[np.ndarray, np.ndarray]
_BATCH = 16  # windows at a time


class Reading(NamedTuple):
    """How well one layer's GLU reads, for one set of gains, on tokens that the gains have not seen."""

    r2: float
    """R² of what the GLU adds to the stream."""
    loss_rise: float
    """Rise of the model's loss, in nats a token, when the form stands in the GLU's place."""


def mlp_weights(model: Transformer, layer: int, directions: Float[Array, "d outputs"] | None = None) -> GLUWeights:
    """The GLU of a block as analysis reads it, its norm folded in: x̂ ↦ GLU(norm(x)) D, along directions.

        norm(x) = g ∘ x̂,   x̂ = x / rms(x),   W' = diag(g) W,   V' = diag(g) V,   P = D · directions

    so that each interaction matrix is a form in x̂, the residual stream scaled to a root mean square of 1.

    Args:
      model: the Transformer.
      layer: number of the block, from 0.
      directions: (d, outputs) in the stream that the GLU adds to, such as `token_directions`; by default its d
        coordinates.

    Raises ValueError for a layer that the model does not have, or directions that do not fit.
    """
    config = model.config
    if not 0 <= layer < config.layers:
        raise ValueError(f"`layer` is {layer}: a number from 0 to {config.layers - 1} is needed")
    if directions is not None and (directions.ndim != 2 or directions.shape[0] != config.width):
        raise ValueError(f"`directions` has shape {directions.shape}: ({config.width}, outputs) is needed")
    block = model.block(layer)
    scale, down = block.glu_norm[...][:, None], block.down[...]
    out = down if directions is None else down @ directions
    return GLUWeights(scale * block.glu.w[...], scale * block.glu.v[...], out)


def token_directions(model: Transformer, tokens: Sequence[int]) -> Float[Array, "d tokens"]:
    """The directions (d, len(tokens)) of the stream that raise the logits of tokens: unembedding times the last scale.

    The norm before the unembedding has this scale; it also divides the stream by its root mean square, which is one
    number for all tokens at a position. Raises ValueError for tokens out of range.
    """
    check_tokens(np.asarray(tokens)[:, None], model.config)
    return model.norm[...][:, None] * model.directions()[:, np.asarray(tokens)]


def token_eigenpairs(
    model: Transformer, layer: int, tokens: Sequence[int], k: int = 4, *, gain: Float[Array, " h"] | None = None
) -> Eigenpairs:
    """The k largest eigenpairs of a block's form for each token, over x̂: `top_eigenpairs` of `mlp_weights`.

    Args:
      model, layer: as in `mlp_weights`.
      tokens: their ids; no matrix of the whole vocabulary is formed.
      k: pairs a token.
      gain: γ (h,) of `calibrate_mlp`.
    """
    weights = mlp_weights(model, layer, token_directions(model, tokens))
    return top_eigenpairs(weights, k, basis="hidden", gain=gain)


def normalised_streams(model: Transformer, tokens: np.ndarray) -> np.ndarray:
    """x̂ before the GLU of each layer, for windows of tokens (n, length): (layers, n·length, d), float32."""
    graph, params = nnx.split(model)
    parts = [_streams(graph, params, jnp.asarray(tokens[i : i + _BATCH])) for i in range(0, len(tokens), _BATCH)]
    return np.concatenate([np.asarray(part) for part in parts], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _streams(graph, params, tokens):
    model = nnx.merge(graph, params)
    x, streams = model.embed(tokens), []
    for layer in range(model.config.layers):
        block = model.block(layer)
        x = block.attend(x)[0]
        streams.append(_unit(x))
        x = x + block.mlp(x)
    return jnp.stack(streams).reshape(model.config.layers, -1, model.config.width)


def _unit(x):
    return rms_norm(x, jnp.ones(x.shape[-1], jnp.float32)).astype(jnp.float32)


def counted_streams(model: Transformer, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`normalised_streams` where a target is not below 0: (layers, count, d)."""
    return normalised_streams(model, tokens)[:, targets.reshape(-1) >= 0]


def calibrate_mlp(model: Transformer, layer: int, x: np.ndarray, method: Method = "joint") -> Calibration:
    """Gains of a block's GLU for all that it adds to the stream: `calibrate` on its inputs x̂ (n, d)."""
    return calibrate(mlp_weights(model, layer), x, model.block(layer).glu.sigma, method=method)


def read_mlps(
    model: Transformer, train: Windows, test: Windows
) -> tuple[list[dict[str, Reading]], dict[str, float], list[dict[str, Calibration]]]:
    """How well each layer reads, with each kind of gains.

    Args:
      model: the Transformer.
      train: inputs and targets of windows, (n, length) each, that gains are found on.
      test: those that all is measured on. In both, a place whose target is below 0 counts for nothing.

    Returns a dict of Readings by gains for each layer; the rise of the loss when every layer is replaced, by gains; and
    the calibrations.
    """
    seen, unseen = counted_streams(model, *train), counted_streams(model, *test)
    whole = model_loss(model, *test, {})
    layers, calibrations = [], []
    for layer in range(model.config.layers):
        weights, gate = mlp_weights(model, layer), model.block(layer).glu.sigma
        by_method = calibrate_all(weights, seen[layer], gate, methods=METHODS)
        row = {}
        for name, calibration in by_method.items():
            r2 = fidelity(weights, unseen[layer], gate, calibration=calibration).r2
            rise = model_loss(model, *test, {layer: calibration}) - whole
            row[name] = Reading(float(r2), rise)
        layers.append(row)
        calibrations.append(by_method)
    together = {
        name: model_loss(model, *test, {i: by_method[name] for i, by_method in enumerate(calibrations)}) - whole
        for name in METHODS
    }
    return layers, together, calibrations


def model_loss(model: Transformer, tokens: np.ndarray, targets: np.ndarray, replaced: dict[int, Calibration]) -> float:
    """Mean loss in nats a token, where the GLUs of some layers are replaced by their calibrated quadratic forms."""
    graph, params = nnx.split(model)
    forms_of = {
        layer: (calibrated(mlp_weights(model, layer), calibration), calibration.offset)
        for layer, calibration in replaced.items()
    }
    total = sum(
        float(_nats(graph, params, forms_of, jnp.asarray(tokens[i : i + _BATCH]), jnp.asarray(targets[i : i + _BATCH])))
        for i in range(0, len(tokens), _BATCH)
    )
    return total / max(1, int(np.sum(targets >= 0)))


@functools.partial(jax.jit, static_argnums=0)
def _nats(graph, params, forms_of, tokens, targets):
    model = nnx.merge(graph, params)
    x = model.embed(tokens)
    for layer in range(model.config.layers):
        block = model.block(layer)
        x = block.attend(x)[0]
        if layer in forms_of:
            weights, offset = forms_of[layer]
            flat = _unit(x).reshape(-1, x.shape[-1])
            x = x + (forms(weights, flat) + offset[None]).reshape(x.shape).astype(x.dtype)
        else:
            x = x + block.mlp(x)
    log_p = jax.nn.log_softmax(model.logits(x))
    chosen = jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[:, :, None], axis=2)[:, :, 0]
    return -jnp.sum(chosen, where=targets >= 0)


def direction_r2(weights: GLUWeights, x: np.ndarray, gate: Any, *, calibration: Calibration) -> np.ndarray:
    """R² (outputs,) of a GLU along each direction of `weights.out`, over inputs x̂ (n, d)."""
    read = calibrated(weights, calibration)
    sigma = static_gate(gate)
    parts = [_both(weights, read, jnp.asarray(x[i : i + BATCH]), sigma) for i in range(0, len(x), BATCH)]
    y, form = (np.concatenate([np.asarray(part[i], np.float64) for part in parts]) for i in range(2))
    return r_squared(y, (y - form) - (y - form).mean(0), axis=0)


@functools.partial(jax.jit, static_argnames="gate")
def _both(weights, read, x, gate):
    with jax.default_matmul_precision("highest"):
        return network_logits(weights, x, gate), forms(read, x)


def liked_tokens(vectors: np.ndarray, model: Transformer, count: int = 6) -> np.ndarray:
    """Tokens whose normalised embeddings lie furthest along each vector, and against it: (..., 2, count) ids.

    A form is even: both ends of an eigenvector count alike.
    """
    embedding = np.asarray(_unit(model.embedding[...]))
    flat = vectors.reshape(-1, vectors.shape[-1])
    parts = []
    for start in range(0, len(flat), 512):
        score = flat[start : start + 512] @ embedding.T
        order = np.argsort(score, axis=1)
        parts.append(np.stack([order[:, ::-1][:, :count], order[:, :count]], axis=1))
    return np.concatenate(parts).reshape(*vectors.shape[:-1], 2, count)


def liked_places(vectors: np.ndarray, x: np.ndarray, count: int = 3) -> np.ndarray:
    """Indices of the inputs x̂ (n, d) with the largest (x̂·v)²: (..., count), the largest first."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    parts = []
    for start in range(0, len(flat), 512):
        response = (flat[start : start + 512] @ x.T) ** 2
        order = np.argpartition(-response, count, axis=1)[:, :count] if count < len(x) else np.argsort(-response)
        order = np.take_along_axis(order, np.argsort(-np.take_along_axis(response, order, 1), axis=1), axis=1)
        parts.append(order)
    return np.concatenate(parts).reshape(*vectors.shape[:-1], -1)
