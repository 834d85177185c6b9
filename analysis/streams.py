"""The residual stream of a language model, layer by layer: what GLUs read and give, the loss with forms in their place.

Each pass reads the weights of one layer at a time.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sqs_jax import display
from sqs_jax.analysis.calibration import layer_outputs
from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.pretrained import decoder
from sqs_jax.pretrained.architecture import Architecture, BlockKind
from sqs_jax.pretrained.decoder import Weights
from sqs_jax.pretrained.model import LanguageModel

Windows = tuple[np.ndarray, np.ndarray]
"""Tokens and targets, the next tokens, int (n, length) each; a target below 0 counts for nothing."""
SINK = 100.0
"""A place is a sink where the square of what a GLU adds is beyond so many medians."""
_TOKENS = 2048  # computed at a time
_LOGITS = 2**25  # in memory at a time


class Form(NamedTuple):
    """What stands in a GLU's place: a bilinear layer of its input."""

    weights: GLUWeights
    """With the whole stream as outputs: (x̂ W + b_w) ⊙ (x̂ V + b_v) P + x̂ L + b."""
    limit: Float[jax.Array, ""] | float = float("inf")
    """Where ‖y‖² of the GLU itself is beyond it, a sink, its own output is kept."""


Plan = Mapping[int, Form | Callable[[], Form]]
"""Forms by layer, or functions that read them when their layer is reached."""


Instead = Callable[[int], tuple[BlockKind, Weights]]


class LayerStream(NamedTuple):
    """One layer's GLU in its model, over all places of some windows."""

    layer: int
    x: Float[np.ndarray, "n d"]
    """What it reads: x̂, the stream over its root mean square, or the stream itself where no norm stands before it."""
    y: Float[np.ndarray, "n d"]
    """What it gives, before any norm after it."""


def layer_streams(
    model: LanguageModel, tokens: np.ndarray, *, folder: Path | None = None, instead: Instead | None = None
) -> Iterator[LayerStream]:
    """Every layer's GLU in turn, on windows of tokens (n, length): a row a place, window after window.

    Args:
      model: whose GLUs they are; tokens: the windows.
      folder: where streams are kept as memory-mapped files, each overwritten two layers on; by default in memory.
      instead: called with a layer when the next one is asked for: the block that the stream goes through in its place.
    """
    arch, x = model.architecture, _embedded(model, tokens)
    for layer, kind in enumerate(arch.blocks):
        weights = model.block(layer)
        place = None if folder is None else folder / str(layer % 2)
        after, z, y = _collected((_layer(arch, kind, weights, batch) for batch in _batches(x)), len(x), place)
        yield LayerStream(layer, z.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1]))
        if instead is not None:
            other = instead(layer)
            (after,) = _collected(((_block(arch, *other, batch),) for batch in _batches(x)), len(x), place)
        x = after


def _collected(parts: Iterator[tuple[jax.Array, ...]], count: int, folder: Path | None) -> list[np.ndarray]:
    """Arrays that come in parts, `count` rows in all: in memory, or in files of a folder."""
    arrays, done = [], 0
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for i, new in enumerate(part):
            if not done:
                shape = (count, *new.shape[1:])
                array = np.empty(shape, new.dtype) if folder is None else _mapped(folder / f"{i}.npy", shape, new.dtype)
                arrays.append(array)
            arrays[i][done : done + len(new)] = new
        done += len(part[0])
    return arrays


def _mapped(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    path.unlink(missing_ok=True)  # whoever still reads the file of before keeps it
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def sink_limit(y: Float[np.ndarray, "n d"]) -> float:
    """‖y‖² beyond which a place is a sink: 100 medians."""
    return SINK * float(np.median(np.sum(np.square(y, dtype=np.float64), axis=1)))


def is_sink(y: Float[np.ndarray, "n d"], limit: float) -> np.ndarray:
    """Which places (n,) are sinks."""
    return np.sum(np.square(y, dtype=np.float64), axis=1) > limit


def losses(model: LanguageModel, windows: Windows, plans: Sequence[Plan]) -> list[float]:
    """The model's loss for each plan, in nats a token: a plan names the layers whose GLUs a form replaces.

    An empty plan is the model itself. One pass over the layers serves all plans; until its first form a plan shares the
    stream of the model.
    """
    tokens, targets = windows
    arch, x = model.architecture, _embedded(model, tokens)
    streams: dict[int, np.ndarray] = {}
    with display.stage("measuring losses", model.layers, "layers") as shown:
        for layer, kind in enumerate(arch.blocks):
            weights = model.block(layer)
            for i, plan in enumerate(plans):
                if i in streams or layer in plan:
                    form = plan.get(layer)
                    form = form() if callable(form) else form
                    streams[i] = _advanced(arch, kind, weights, streams.get(i, x), form)
            x = _advanced(arch, kind, weights, x, None)
            shown.advance()
    own = _mean_loss(model, x, targets) if len(streams) < len(plans) else 0.0
    return [_mean_loss(model, streams[i], targets) if i in streams else own for i in range(len(plans))]


def _embedded(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(decoder.embed(model.architecture, model.embedding, jnp.asarray(tokens)))


def _batches(x: np.ndarray) -> Iterator[jax.Array]:
    count = max(1, _TOKENS // x.shape[1])
    for start in range(0, len(x), count):
        yield jnp.asarray(x[start : start + count])


def _joined(parts: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in parts])


def _advanced(arch: Architecture, kind: BlockKind, weights: Weights, x: np.ndarray, form: Form | None) -> np.ndarray:
    if form is None:
        return _joined(_block(arch, kind, weights, batch) for batch in _batches(x))
    return _joined(_replaced(arch, kind, weights, form, batch) for batch in _batches(x))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _layer(arch: Architecture, kind: BlockKind, weights: Weights, x):
    """The stream after a block, and what its GLU reads and gives."""
    with jax.default_matmul_precision("highest"):
        x, _ = decoder.attend(arch, kind, weights, x)
        z = decoder.glu_input(arch, x)
        y = decoder.glu(kind, weights, z)
        return decoder.add(arch, weights, "glu", x, y), z, y


@functools.partial(jax.jit, static_argnums=(0, 1))
def _block(arch: Architecture, kind: BlockKind, weights: Weights, x):
    with jax.default_matmul_precision("highest"):
        return decoder.block(arch, kind, weights, x)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _replaced(arch: Architecture, kind: BlockKind, weights: Weights, form: Form, x):
    """The stream after a block with a form in the place of its GLU, except at sinks."""
    with jax.default_matmul_precision("highest"):
        x, _ = decoder.attend(arch, kind, weights, x)
        z = decoder.glu_input(arch, x)
        own = decoder.glu(kind, weights, z)
        flat = z.reshape(-1, z.shape[-1])
        y = layer_outputs(form.weights, flat).reshape(own.shape)
        y = jnp.where(jnp.sum(own**2, axis=-1, keepdims=True) > form.limit, own, y)
        return decoder.add(arch, weights, "glu", x, y)


def _mean_loss(model: LanguageModel, x: np.ndarray, targets: np.ndarray) -> float:
    counted = targets.reshape(-1) >= 0
    rows, chosen = x.reshape(-1, x.shape[-1])[counted], targets.reshape(-1)[counted]
    size = max(1, _LOGITS // model.architecture.vocab)
    total = 0.0
    for start in range(0, len(rows), size):
        part, labels = rows[start : start + size], chosen[start : start + size]
        fill = min(size, len(rows)) - len(part)  # one shape, one program
        part, labels = np.pad(part, ((0, fill), (0, 0))), np.pad(labels, (0, fill), constant_values=-1)
        total += float(_nats(model.architecture, model.norm, model.unembedding, part, labels))
    return total / max(1, int(counted.sum()))


@functools.partial(jax.jit, static_argnums=0)
def _nats(arch: Architecture, norm, unembedding, x, targets):
    with jax.default_matmul_precision("highest"):
        logits = decoder.logits(arch, norm, unembedding, x)
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], axis=1)[:, 0]
    return jnp.sum(jax.nn.logsumexp(logits, axis=1) - chosen, where=targets >= 0)
