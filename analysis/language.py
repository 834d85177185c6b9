"""Reading the GLUs of a language model: what each adds to the residual stream, as quadratic forms of its input.

All functions take a `Transformer` of this package or a pretrained `LanguageModel`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from sqs_jax.activation import SQS
from sqs_jax.analysis.calibration import (
    METHODS,
    Calibration,
    Method,
    bilinear_layer,
    calibrate,
    calibrate_all,
    calibrated,
    even_slices,
    forms,
    layer_outputs,
    network_logits,
)
from sqs_jax.analysis.eigen import Eigenpairs, top_eigenpairs
from sqs_jax.analysis.fidelity import r_squared
from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.analysis.streams import Form, Windows, is_sink, layer_streams, losses, sink_limit
from sqs_jax.gates import Gate, static_gate
from sqs_jax.pretrained.decoder import rms
from sqs_jax.pretrained.model import LanguageModel, from_transformer
from sqs_jax.transformer import Transformer, check_tokens

Model = Transformer | LanguageModel
_BLOCK = 256  # entries of a long row whose maximum is taken first
_VECTORS = 512  # that are held against all tokens at a time


class Reading(NamedTuple):
    """How well one layer's GLU reads, for one set of gains, on tokens that the gains have not seen."""

    r2: float
    """R² of what the GLU adds to the stream."""
    loss_rise: float
    """Rise of the model's loss, in nats a token, when the form stands in the GLU's place."""


def as_language_model(model: Model) -> LanguageModel:
    """The model as arrays."""
    return from_transformer(model) if isinstance(model, Transformer) else model


def mlp_weights(model: Model, layer: int, directions: Float[Array, "d outputs"] | None = None) -> GLUWeights:
    """The GLU of a block as analysis reads it, its norm folded in: x̂ ↦ GLU(norm(x)) D, along directions.

        norm(x) = g ∘ x̂,   x̂ = x / rms(x),   W' = diag(g) W,   V' = diag(g) V,   P = D · directions

    so that each interaction matrix is a form in x̂, the residual stream scaled to a root mean square of 1. Where no norm
    stands before the GLU (OLMo 2), it is a form in x.

    Args:
      model: the language model.
      layer: number of the block, from 0.
      directions: (d, outputs) in the stream that the GLU adds to, such as `token_directions`; by default the d
        coordinates of what the GLU gives. A norm behind the GLU (Gemma 2 and 3, OLMo 2) scales each coordinate, which
        directions are multiplied with, and divides all by one positive number a place, which no form knows.

    Raises ValueError for a layer that the model does not have, or directions that do not fit.
    """
    model = as_language_model(model)
    check_layer(model, layer)
    width = model.architecture.width
    if directions is not None and (directions.ndim != 2 or directions.shape[0] != width):
        raise ValueError(f"`directions` has shape {directions.shape}: ({width}, outputs) is needed")
    block = model.block(layer)
    up, gate = block["up"], block["gate"]
    if "glu_norm" in block:
        up, gate = (block["glu_norm"][:, None] * part for part in (up, gate))
    up_bias, gate_bias, down_bias = (block.get(f"{role}_bias") for role in ("up", "gate", "down"))
    whole = GLUWeights(up, gate, block["down"], None, up_bias, gate_bias, down_bias)
    if "offset" in block:
        whole = _with_offset(whole, block["offset"])
    return whole if directions is None else along(whole, stream_directions(model, layer, directions))


def _with_offset(weights: GLUWeights, offset: Array) -> GLUWeights:
    """A layer whose gate is σ(u) + β, written with the gate σ: a·β is linear, and goes into the skip."""
    scaled = offset[:, None] * weights.out
    bias = weights.out_bias
    if weights.w_bias is not None:
        bias = weights.w_bias @ scaled + (0 if bias is None else bias)
    return weights._replace(out_bias=bias, skip=weights.w @ scaled)


def along(weights: GLUWeights, directions: Float[Array, "d outputs"]) -> GLUWeights:
    """A layer with the stream's coordinates as outputs, read along directions (d, outputs) instead."""
    bias, skip = weights.out_bias, weights.skip
    return weights._replace(
        out=weights.out @ directions,
        out_bias=None if bias is None else bias @ directions,
        skip=None if skip is None else skip @ directions,
    )


def stream_directions(model: Model, layer: int, directions: Float[Array, "d outputs"]) -> Float[Array, "d outputs"]:
    """Directions of the stream as those of what a layer's GLU gives: scaled as the norm behind it does."""
    scale = as_language_model(model).block(layer).get("glu_post_norm")
    return directions if scale is None else scale[:, None] * directions


def glu_gate(model: Model, layer: int) -> Gate:
    """σ of a block's GLU, hashable."""
    model = as_language_model(model)
    gate, weights = model.architecture.blocks[layer].gate, model.block(layer)
    if "c" in weights:
        return SQS(float(weights["c"]), float(weights["lam"]), getattr(gate, "p", 1.0))
    return static_gate(gate)


def check_layer(model: Model, layer: int) -> None:
    """Raises ValueError for a layer that the model does not have."""
    layers = as_language_model(model).layers
    if not 0 <= layer < layers:
        raise ValueError(f"`layer` is {layer}: a number from 0 to {layers - 1} is needed")


def token_directions(model: Model, tokens: Sequence[int]) -> Float[Array, "d tokens"]:
    """The directions (d, len(tokens)) of the stream that raise the logits of tokens: unembedding times the last scale.

    The norm before the unembedding has this scale; it also divides the stream by its root mean square, which is one
    number for all tokens at a position. Raises ValueError for tokens out of range.
    """
    model = as_language_model(model)
    check_tokens(np.asarray(tokens)[:, None], model.architecture)
    return (model.norm[None] * model.unembedding[np.asarray(tokens)]).T * model.architecture.logit_scale


def token_eigenpairs(
    model: Model, layer: int, tokens: Sequence[int], k: int = 4, *, gain: Float[Array, " h"] | None = None
) -> Eigenpairs:
    """The k largest eigenpairs of a block's form for each token, over x̂: `top_eigenpairs` of `mlp_weights`.

    Args:
      model, layer: as in `mlp_weights`.
      tokens: their ids; no matrix of the whole vocabulary is formed.
      k: pairs a token.
      gain: γ (h,) of `calibrate_mlp`.
    """
    weights = mlp_weights(model, layer, token_directions(model, tokens))
    return top_eigenpairs(weights._replace(w_bias=None, v_bias=None), k, basis="hidden", gain=gain)


def normalised_streams(model: Model, tokens: np.ndarray) -> np.ndarray:
    """x̂ before the GLU of each layer, for windows of tokens (n, length): (layers, n·length, d), float32."""
    return np.stack([stream.x for stream in layer_streams(as_language_model(model), tokens)])


def counted_streams(model: Model, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`normalised_streams` where a target is not below 0: (layers, count, d)."""
    return normalised_streams(model, tokens)[:, targets.reshape(-1) >= 0]


def calibrate_mlp(model: Model, layer: int, x: np.ndarray, method: Method = "joint") -> Calibration:
    """Gains of a block's GLU for all that it adds to the stream: `calibrate` on its inputs x̂ (n, d)."""
    return calibrate(mlp_weights(model, layer), x, glu_gate(model, layer), method=method)


def read_mlps(
    model: Model, train: Windows, test: Windows, methods: Sequence[Method] = METHODS
) -> tuple[list[dict[Method, Reading]], dict[Method, float], list[dict[Method, Calibration]]]:
    """How well each layer reads, with each kind of gains.

    Args:
      model: the language model.
      train: inputs and targets of windows, (n, length) each, that gains are found on.
      test: those that all is measured on. In both, a place whose target is below 0 counts for nothing.
      methods: of `calibrate`.

    Sinks, places where the square of what a GLU adds is beyond 100 medians, are left out of gains and R²; where a form
    stands in a GLU's place, the GLU's own output is kept there.

    Returns a dict of Readings by gains for each layer; the rise of the loss when every layer is replaced, by gains; and
    the calibrations.
    """
    model = as_language_model(model)
    r2s: list[dict[Method, float]] = []
    calibrations: list[dict[Method, Calibration]] = []
    limits: list[float] = []
    counted = [targets.reshape(-1) >= 0 for _, targets in (train, test)]
    for seen, unseen in zip(layer_streams(model, train[0]), layer_streams(model, test[0]), strict=True):
        weights, gate = mlp_weights(model, seen.layer), glu_gate(model, seen.layer)
        limits.append(sink_limit(seen.y[counted[0]]))
        chosen = [rows & ~is_sink(stream.y, limits[-1]) for rows, stream in zip(counted, (seen, unseen), strict=True)]
        by_method = calibrate_all(weights, seen.x[chosen[0]], gate, methods=methods)
        x, y = unseen.x[chosen[1]], unseen.y[chosen[1]]
        r2s.append({name: layer_r2(y, predicted(bilinear_layer(weights, each), x)) for name, each in by_method.items()})
        calibrations.append(by_method)

    def form(layer: int, name: Method) -> Form:
        return Form(bilinear_layer(mlp_weights(model, layer), calibrations[layer][name]), limits[layer])

    plans = [{}] + [{i: form(i, name) for i in range(model.layers)} for name in methods]
    plans += [{i: form(i, name)} for i in range(model.layers) for name in methods]
    whole, *rest = losses(model, test, plans)
    rises = [loss - whole for loss in rest]
    count = len(methods)
    layers: list[dict[Method, Reading]] = [
        {name: Reading(r2s[i][name], rises[count + i * count + j]) for j, name in enumerate(methods)}
        for i in range(model.layers)
    ]
    return layers, dict(zip(methods, rises[:count], strict=True)), calibrations


def model_loss(model: Model, tokens: np.ndarray, targets: np.ndarray, replaced: Mapping[int, Calibration]) -> float:
    """Mean loss in nats a token, where the GLUs of some layers are replaced by their calibrated quadratic forms."""
    model = as_language_model(model)
    plan = {
        layer: Form(bilinear_layer(mlp_weights(model, layer), calibration)) for layer, calibration in replaced.items()
    }
    return losses(model, (tokens, targets), [plan])[0]


def layer_r2(y: np.ndarray, given: np.ndarray) -> float:
    """R² of what a reading gives for the outputs y, (n, outputs) both."""
    return float(r_squared(y.astype(np.float64), y - given))


def predicted(layer: GLUWeights, x: np.ndarray) -> np.ndarray:
    """What a bilinear layer gives for inputs x̂ (n, d): (n, outputs), float64."""
    parts = [_predicted(layer, jnp.asarray(x[rows])) for rows in even_slices(len(x))]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])


@jax.jit
def _predicted(layer, x):
    with jax.default_matmul_precision("highest"):
        return layer_outputs(layer, x)


def direction_r2(weights: GLUWeights, x: np.ndarray, gate: Any, *, calibration: Calibration) -> np.ndarray:
    """R² (outputs,) of a GLU along each direction of `weights.out`, over inputs x̂ (n, d)."""
    read = calibrated(weights, calibration)
    sigma = static_gate(gate)
    parts = [_both(weights, read, jnp.asarray(x[rows]), sigma) for rows in even_slices(len(x))]
    y, form = (np.concatenate([np.asarray(part[i], np.float64) for part in parts]) for i in range(2))
    return r_squared(y, (y - form) - (y - form).mean(0), axis=0)


@functools.partial(jax.jit, static_argnames="gate")
def _both(weights, read, x, gate):
    with jax.default_matmul_precision("highest"):
        return network_logits(weights, x, gate), forms(read, x)


def liked_tokens(vectors: np.ndarray, model: Model, count: int = 6) -> np.ndarray:
    """Tokens whose normalised embeddings lie furthest along each vector, and against it: (..., 2, count) ids.

    A form is even: both ends of an eigenvector count alike.
    """
    model = as_language_model(model)
    embedding = rms(model.embedding, model.architecture.epsilon)
    flat = vectors.reshape(-1, vectors.shape[-1])
    parts = [np.asarray(_ends(flat[i : i + _VECTORS], embedding, count)) for i in range(0, len(flat), _VECTORS)]
    return np.concatenate(parts).reshape(*vectors.shape[:-1], 2, -1)


@functools.partial(jax.jit, static_argnames="count")
def _ends(vectors, embedding, count: int):
    with jax.default_matmul_precision("highest"):
        score = vectors @ embedding.T
    return jnp.stack([first_columns(score, count), first_columns(-score, count)], axis=1)


@functools.partial(jax.jit, static_argnames="count")
def first_columns(score: Float[Any, "rows columns"], count: int) -> Int[Array, "rows count"]:
    """The columns of the largest entries of each row, the largest first."""
    rows, columns = score.shape
    count = min(count, columns)
    if columns <= 2 * count * _BLOCK:
        return jax.lax.top_k(score, count)[1]
    # The largest entries lie in the blocks with the largest maxima.
    blocks = jnp.pad(score, ((0, 0), (0, -columns % _BLOCK)), constant_values=-jnp.inf).reshape(rows, -1, _BLOCK)
    chosen = jax.lax.top_k(blocks.max(axis=2), count)[1]
    near = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, -1)
    within = jax.lax.top_k(near, count)[1]
    return jnp.take_along_axis(chosen, within // _BLOCK, axis=1) * _BLOCK + within % _BLOCK


def liked_places(vectors: np.ndarray, x: np.ndarray, count: int = 3) -> np.ndarray:
    """Indices of the inputs x̂ (n, d) with the largest (x̂·v)²: (..., count), the largest first."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    parts = [first_columns((flat[i : i + _VECTORS] @ x.T) ** 2, count) for i in range(0, len(flat), _VECTORS)]
    return np.concatenate([np.asarray(part) for part in parts]).reshape(*vectors.shape[:-1], -1)
