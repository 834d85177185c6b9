"""The first stage of adoption: each GLU of a model is fitted, by itself, with the gate that is wanted."""

import functools
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax import display, files
from sqs_jax.activation import sqs
from sqs_jax.analysis import layer_fit
from sqs_jax.analysis.calibration import bilinear_layer, calibrate
from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.analysis.language import glu_gate, mlp_weights
from sqs_jax.analysis.layer_fit import Layer, Samples
from sqs_jax.analysis.layer_reading import default_steps
from sqs_jax.analysis.streams import Instead, LayerStream, is_sink, layer_streams, sink_limit
from sqs_jax.gates import Gate
from sqs_jax.messages import InputError
from sqs_jax.modules import inverse_softplus
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.train.config import AdoptConfig
from sqs_jax.train.interrupt import Stopped

_START_SAMPLES, _GRID_SAMPLES = 10_000, 4096
_BATCH, _LEARNING_RATE = 1024, 1e-3
# What is tried for each unit of an SQS layer: the root mean square of u, and what is added to it.
_SCALES = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
_SHIFTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, -0.5)
_LEAST_SIZE, _LARGEST_OFFSET = 1e-3, 5.0
_SHUT, _SHRINKAGE = 100.0, 1e-4  # of the unit for sinks: u where its gate is shut, and what is added to Σ
_FIGURES = ("r2", "start_r2", "step", "sinks", "sink_error", "seconds")


class Distilled(NamedTuple):
    """One GLU with another gate, and how near it is to the model's own."""

    layer: Layer
    r2: float
    """R² of what it gives, at held-out places that are no sinks,"""
    start_r2: float
    """and that of the start of the fit."""
    step: int
    """The step that it is of."""
    sinks: int
    """Sinks among the places that it was fitted on,"""
    sink_error: float
    """and the mean of ‖y - ŷ‖ / ‖y‖ there; NaN where there are none."""
    seconds: float = 0.0
    """That it took, its stream included."""


def distil(
    model: LanguageModel,
    tokens: np.ndarray,
    config: AdoptConfig,
    folder: Path,
    instead: Callable[[list[Layer]], Instead],
    stopping: Callable[[], Any],
) -> list[Distilled]:
    """Every layer's GLU with the gate of the configuration, fitted to what the model's own reads and gives.

        least squares of ŷ = ((x W + b_w) ⊙ (σ(x V + b_v) + β)) D + b over places of the text, β for SQS alone

    Sinks count by their relative error. One layer at a time is in memory; its streams lie in the folder.

    Args:
      model: the language model; tokens: windows (n, length) that GLUs are fitted on.
      config: its gate, steps and inputs.
      folder: where each layer is kept once it is fitted, and taken from where it is there.
      instead: of the layers so far, the blocks that a stream of adopted layers goes through.
      stopping: gives a signal's number when the process has to end: then `Stopped` is raised after the layer at hand.
    """
    folder.mkdir(exist_ok=True)
    done = [
        load_layer(layer_file(folder, layer)) for layer in range(model.layers) if layer_file(folder, layer).is_file()
    ]
    if len(done) == model.layers:
        return done
    layers = [each.layer for each in done]
    other = instead(layers) if config.inputs == "adopted" else None
    start = time.monotonic()
    with display.stage("fitting GLUs", model.layers, "layers") as shown:
        for stream in layer_streams(model, tokens, folder=folder / "streams", instead=other):
            shown.at(stream.layer)
            if stream.layer < len(done):
                continue
            found = fit_glu(model, stream, config)
            found = found._replace(seconds=time.monotonic() - start)
            start = time.monotonic()
            files.write(layer_file(folder, stream.layer), _content(found))
            done.append(found)
            layers.append(found.layer)
            display.line(_line(stream.layer, found))
            if number := stopping():
                raise Stopped(number)
    files.remove(folder / "streams")
    return done


def _line(layer: int, found: Distilled) -> str:
    sinks = f", {found.sinks} sinks within {found.sink_error:.3f}" if found.sinks else ""
    return f"layer {layer:>2}: R² {found.r2:.3f}, {found.start_r2:.3f} at the start{sinks}; {found.seconds:.1f} s"


def fit_glu(model: LanguageModel, stream: LayerStream, config: AdoptConfig) -> Distilled:
    """One GLU with the gate of the configuration, fitted to its stream."""
    weights, gate = mlp_weights(model, stream.layer), glu_gate(model, stream.layer)
    sink = is_sink(stream.y, sink_limit(stream.y))
    kept, held = layer_fit.parted(len(sink) - int(sink.sum()), config.seed)
    # One size for all layers, whatever their sinks: one program.
    kept = kept[: max(1, len(kept) // _BATCH) * _BATCH]
    x, y = stream.x[~sink], stream.y[~sink]
    sink_x, sink_y = (_repeated(part[sink]) for part in (stream.x, stream.y))
    samples, test = Samples(x[kept], y[kept], sink_x, sink_y), (x[held], y[held])
    start = starting_layer(weights, gate, samples, config)
    if sink.any():
        start = layer_fit.with_best_readout(with_sink_unit(start, samples, config), samples)
    steps = config.distil_steps or default_steps(model)
    fit = layer_fit.fit(
        start, samples, test, steps=steps, batch_size=_BATCH, learning_rate=_LEARNING_RATE, seed=config.seed
    )
    layer = layer_fit.with_best_readout(fit.layer, samples)
    error = float("nan")
    if sink.any():
        missed = np.linalg.norm(layer_fit.outputs_of(layer, sink_x) - sink_y, axis=1)
        error = float(np.mean(missed / np.linalg.norm(sink_y, axis=1)))
    return Distilled(layer, layer_fit.r2(layer, *test), fit.start_r2, fit.step, int(sink.sum()), error)


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Rows over and over up to a power of two, so that few programs serve all layers."""
    return rows if not len(rows) else np.resize(rows, (1 << (len(rows) - 1).bit_length(), rows.shape[1]))


def starting_layer(weights: GLUWeights, gate: Gate, samples: Samples, config: AdoptConfig) -> Layer:
    """What a fit starts from: the model's own weights, as near to its outputs as a few numbers a unit bring them.

    bilinear: with affine gains, a·(γ u + β) for a·σ(u). sqs: a·k·(sqs(s u + b) + β), s and b the best of a grid, k and
    β by least squares.
    """
    x = samples.x[:: max(1, len(samples.x) // _START_SAMPLES)]
    if config.gate == "bilinear":
        gains = calibrate(weights, x, gate, method="output_affine", precision="float32", r2=False)
        return layer_fit.balanced(bilinear_layer(weights, gains), x, skip=False)
    few = jnp.asarray(samples.x[:: max(1, len(samples.x) // _GRID_SAMPLES)][:_GRID_SAMPLES])
    scale, shift, size, slope = _best_of_grid(weights, few, gate, config.c, config.lam, config.p)
    h, outputs = weights.out.shape
    even = jnp.sqrt(jnp.maximum(jnp.abs(size), _LEAST_SIZE))
    layer = Layer(
        w=weights.w * even[None],
        w_bias=_or_zero(weights.w_bias, h) * even,
        v=weights.v * scale[None],
        v_bias=_or_zero(weights.v_bias, h) * scale + shift,
        out=weights.out * (size / even)[:, None],
        skip=None,
        bias=jnp.zeros(outputs),
        **raw_numbers(config),
        offset=jnp.clip(slope / jnp.where(size == 0, 1, size), -_LARGEST_OFFSET, _LARGEST_OFFSET),
    )
    missed = samples.y[: layer_fit.PART] - layer_fit.outputs_of(layer, samples.x[: layer_fit.PART])
    return layer._replace(bias=jnp.asarray(missed.mean(0)))


def with_sink_unit(layer: Layer, samples: Samples, config: AdoptConfig) -> Layer:
    """The layer with one hidden unit for sinks, in the place of the one that gives most there.

    SiLU keeps such a unit shut everywhere else, a quadratic form cannot. The unit reads s = (x - μ)·Σ⁻¹(m - μ) / D, the
    direction that tells sinks, of mean m, best from other places, of mean μ and covariance Σ. There s has variance 1,
    and at sinks it is about D = sqrt((m - μ)·Σ⁻¹(m - μ)). The unit gives s², or s·(sqs(u) + β), u from -100 to 100.
    """
    x = np.asarray(samples.x, np.float64)
    mean, covariance = x.mean(0), np.cov(x.T)
    covariance[np.diag_indices_from(covariance)] += _SHRINKAGE * np.trace(covariance) / len(covariance)
    apart = np.asarray(samples.sink_x, np.float64).mean(0) - mean
    direction = np.linalg.solve(covariance, apart)
    distance = np.sqrt(apart @ direction)
    direction = direction / distance
    given = np.abs(np.asarray(layer_fit.hidden(layer, jnp.asarray(samples.sink_x)))).mean(0)
    unit = int(np.argmax(given * np.linalg.norm(layer.out, axis=1)))
    steep, middle = (2 * _SHUT / distance, distance / 2) if config.gate == "sqs" else (1.0, 0.0)
    changes = {
        "w": layer.w.at[:, unit].set(direction),
        "w_bias": layer.w_bias.at[unit].set(-direction @ mean),
        "v": layer.v.at[:, unit].set(steep * direction),
        "v_bias": layer.v_bias.at[unit].set(-steep * (direction @ mean + middle)),
    }
    if config.gate == "sqs":
        # What the gate gives at -100: where λ is 0 or p above 1 it has no limit, and this is it all the same.
        shut = float(sqs(jnp.float32(-_SHUT), c=config.c, lam=config.lam, p=config.p, implementation="xla"))
        changes["offset"] = layer.offset.at[unit].set(-shut)
    return layer._replace(**changes)


@functools.partial(jax.jit, static_argnames=("gate", "c", "lam", "p"))
def _best_of_grid(weights: GLUWeights, x, gate: Gate, c: float, lam: float, p: float):
    """For each unit s, b, k and β (h,) with the least residual of a·σ(u) - a·(k·sqs(s u + b) + β), up to a constant."""
    h = weights.w.shape[1]
    a = x @ weights.w + _or_zero(weights.w_bias, h)[None]
    u = x @ weights.v + _or_zero(weights.v_bias, h)[None]
    line = a - a.mean(0)[None]
    length = jnp.sum(line * line, axis=0)

    def without_line(part):
        """A centred column without its part along a, and that part."""
        part = part - part.mean(0)[None]
        along = jnp.sum(part * line, axis=0) / jnp.where(length > 0, length, 1)
        return part - along[None] * line, along

    wanted, wanted_along = without_line(a * gate(u))
    size = jnp.sqrt(jnp.mean(u * u, axis=0))
    unit = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 1)

    def tried(point):
        scale, shift = point
        given, along = without_line(a * sqs(u * (scale * unit)[None] + shift, c=c, lam=lam, p=p, implementation="xla"))
        square = jnp.sum(given * given, axis=0)
        k = jnp.sum(given * wanted, axis=0) / jnp.where(square > 0, square, 1)
        error = jnp.sum((wanted - k[None] * given) ** 2, axis=0)
        return scale * unit, jnp.full_like(k, shift), k, wanted_along - k * along, error

    points = jnp.array([(scale, shift) for scale in _SCALES for shift in _SHIFTS])
    *found, error = jax.lax.map(tried, points)
    best = jnp.argmin(error, axis=0)
    return tuple(jnp.take_along_axis(part, best[None], axis=0)[0] for part in found)


def raw_numbers(config: AdoptConfig) -> dict[str, Any]:
    """c and λ of a layer as they are trained, before softplus; none where the gate is not SQS."""
    if config.gate != "sqs":
        return {}
    return {f"{name}_raw": before_softplus(getattr(config, name)) for name in ("c", "lam")}


def before_softplus(value: float) -> jax.Array:
    """The number whose softplus this is, for one ≥ 0; what is not trained may be 0."""
    return inverse_softplus(value) if value > 0 else jnp.float32(-100)  # softplus(-100) is 0


def _or_zero(bias, size: int) -> jax.Array:
    return jnp.zeros(size) if bias is None else bias


def layer_file(folder: Path, layer: int) -> Path:
    """Where a fitted layer is kept."""
    return folder / f"layer-{layer:02}.npz"


def _content(found: Distilled) -> bytes:
    arrays = {name: array for name, array in found.layer._asdict().items() if array is not None}
    return files.npz(arrays | {f"figure_{name}": getattr(found, name) for name in _FIGURES})


def load_layer(path: Path) -> Distilled:
    """A fitted GLU from its file. Raises InputError for a damaged one."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
        figures = {name: arrays.pop(f"figure_{name}").item() for name in _FIGURES}
        layer = Layer(**dict.fromkeys(Layer._fields) | {name: jnp.asarray(array) for name, array in arrays.items()})
        return Distilled(layer, **figures)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        kind = type(error).__name__
        raise InputError(f"{path} is damaged ({kind}): remove it, and --resume fits the layer anew") from None
