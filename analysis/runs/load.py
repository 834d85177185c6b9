"""Runs to read: their weights, networks, data and metrics."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis.calibration import even_slices
from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.start import extra

if TYPE_CHECKING:
    from sqs_jax.modules import GLUClassifier
    from sqs_jax.train.config import ImageConfig
    from sqs_jax.train.images.dataset import Dataset
    from sqs_jax.train.run_folder import RunFolder


CALIBRATION_SAMPLES = 20_000


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its configuration, data, trained network, and rows of metrics."""

    path: Path
    config: "ImageConfig"
    data: "Dataset"
    model: "GLUClassifier"
    history: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Samples:
    """The inputs (n, inputs) of a layer, float32, and the classes (n,) of the images that they come from."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def drawn(size: int, count: int) -> np.ndarray:
    """Indices of `count` of `size` samples, always the same. The first samples of a data set may be of one class."""
    return np.sort(np.random.default_rng(0).permutation(size)[:count])


@extra()
def load_run(run_dir: str | os.PathLike[str], *, data_dir: Path | None = None, epoch: int | None = None) -> Run:
    """The run in a folder, its network as of an epoch's checkpoint, by default the last.

    Raises InputError, a ValueError, where that is no run, is not finished, has no such checkpoint, or its data set
    cannot be had.
    """
    from sqs_jax.train.run_folder import RunFolder, read_config

    folder = RunFolder(Path(run_dir))
    return open_run(folder, read_config(folder), data_dir, epoch)


def open_run(folder: "RunFolder", config: Any, data_dir: Path | None, epoch: int | None = None) -> Run:
    """`load_run`, for a configuration that was read already."""
    from sqs_jax.messages import InputError
    from sqs_jax.train.images.dataset import load, own_facts
    from sqs_jax.train.records import Summary, read_record, read_rows
    from sqs_jax.train.run_folder import check_same_files

    model = _model(folder, config, epoch)
    inputs = (model.layers[0].w if model.embed is None else model.embed).shape[0]
    data = load(config.data, data_dir, size=config.size)
    if inputs != int(np.prod(data.shape)) or model.head.shape[1] != len(data.classes):
        raise InputError(
            f"{folder.path} has {inputs} inputs, not the {np.prod(data.shape)} of {data.name}: its data set is another"
        )
    check_same_files(folder, own_facts(config.data, data))
    summary = dict(read_record(folder.summary, Summary))
    return Run(folder.path, config, data, model, read_rows(folder.metrics), summary)


@extra()
def load_weights(run_dir: str | os.PathLike[str], *, layer: int = -1, epoch: int | None = None) -> GLUWeights:
    """The weights of one GLU layer of a run, the last by default; no data set is needed.

    Args:
      run_dir: folder of a finished run.
      layer: its number, from 0, or from -1 backwards.
      epoch: whose checkpoint; by default the last.

    Raises InputError, a ValueError, where that is no finished run or has no such checkpoint, and ValueError for a
    layer that it does not have.
    """
    from sqs_jax.train.run_folder import RunFolder, read_config

    folder = RunFolder(Path(run_dir))
    return layer_weights(_model(folder, read_config(folder), epoch), layer)


def layer_weights(model: "GLUClassifier", layer: int = -1) -> GLUWeights:
    """The weights of one GLU layer of a classifier, and of what surrounds it.

    The first layer includes the embedding, so that its input is the image. The head reads the last layer; the outputs
    of any other layer are its own hidden units. In a residual network `skip` reads the stream past the layer.
    """
    count = len(model.layers)
    if not -count <= layer < count:
        raise ValueError(f"`layer` is {layer}: a number from {-count} to {count - 1} is needed")
    layer %= count
    glu, last = model.layers[layer], layer == count - 1

    def plain(parameter):
        return None if parameter is None else parameter[...]

    out = model.head[...] if last else jnp.eye(glu.w.shape[1], dtype=glu.w[...].dtype)
    weights = GLUWeights(glu.w[...], glu.v[...], out, plain(model.embed) if layer == 0 else None)
    weights = weights._replace(w_bias=plain(glu.w_bias), v_bias=plain(glu.v_bias))
    weights = weights._replace(out_bias=plain(model.head_bias) if last else None)
    return weights._replace(skip=out) if model.residual else weights


def untrained(run: Run, layer: int = -1) -> GLUWeights:
    """The weights that a run began with."""
    from sqs_jax.train.images.classifier import make_model

    return layer_weights(make_model(run.config, int(np.prod(run.data.shape)), len(run.data.classes)), layer)


def _model(folder: "RunFolder", config: Any, epoch: int | None) -> "GLUClassifier":
    from flax import nnx

    from sqs_jax.messages import InputError
    from sqs_jax.train.checkpoint import check_architecture, restore_params
    from sqs_jax.train.config import ImageConfig
    from sqs_jax.train.images.classifier import make_model
    from sqs_jax.train.step import parameters, with_parameters

    if not isinstance(config, ImageConfig):
        raise InputError(f"{folder.path} is a run on text: `load_language` reads it")
    if not folder.checkpoints.is_dir():
        raise InputError(f"{folder.path} has no checkpoint: nothing was trained yet")
    if not folder.summary.is_file():
        raise InputError(f"{folder.path} is not finished: go on with python -m train --run-dir {folder.path} --resume")
    params = restore_params(folder.checkpoints, epoch, spread=False)  # classifiers are small
    try:
        inputs = len(params["embed"]) if "embed" in params else len(_first(params["layers"])["w"])
        outputs = params["head"].shape[1]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.checkpoints} is of another architecture: it lacks {error}") from None
    model: Any = nnx.eval_shape(lambda: make_model(config, inputs, outputs))
    check_architecture(params, parameters(model), folder.checkpoints)
    return with_parameters(model, params)


def _first(layers: dict[Any, Any]) -> dict[str, Any]:
    return layers[0] if 0 in layers else layers["0"]


@extra()
def load_comparable(run_dirs: Sequence[Path], *, data_dir: Path | None = None) -> list[Run]:
    """Runs that can be compared with each other: of one data set and one architecture.

    Raises InputError as `load_run`, and where two differ.
    """
    from sqs_jax.messages import InputError
    from sqs_jax.train.config import ImageConfig
    from sqs_jax.train.run_folder import RunFolder, read_config

    folders = [RunFolder(Path(path)) for path in run_dirs]
    configs = [read_config(folder) for folder in folders]
    kept = [config for config in configs if isinstance(config, ImageConfig)]
    if len(kept) < len(configs):
        other = next(path for path, config in zip(run_dirs, configs, strict=True) if config not in kept)
        raise InputError(f"{other} is no run on images: it cannot be compared with one")
    configs = kept
    # The matrices of a single layer are over the pixels, whatever its width; a deep network's have its own basis.
    same = ["data", "layers", "bias", *(["width", "hidden"] if configs[0].layers > 1 else [])]
    for path, config in zip(run_dirs, configs, strict=True):
        for name in same:
            first, other = getattr(configs[0], name), getattr(config, name)
            if first != other:
                raise InputError(f"{run_dirs[0]} has `{name}` {first!r} and {path} {other!r}: no comparison")
    return [open_run(folder, config, data_dir) for folder, config in zip(folders, configs, strict=True)]


def layer_samples(run: Run, layer: int = -1) -> Samples:
    """The inputs of a GLU layer: pixels in [0, 1] for the first, which comes with the embedding; no noise."""
    data = run.data
    train, test = (layer_inputs(run, images, layer) for images in (data.train_images, data.test_images))
    return Samples(train, np.asarray(data.train_labels), test, np.asarray(data.test_labels))


def layer_inputs(run: Run, images, layer: int = -1) -> np.ndarray:
    """The inputs (n, inputs) of a GLU layer for images uint8 (n, …), float32."""
    from sqs_jax.train.images.classifier import scale_pixels

    layer %= len(run.model.layers)
    parts = []
    for rows in even_slices(len(images)):
        x = scale_pixels(np.asarray(images[rows]))
        parts.append(np.asarray(x if layer == 0 else run.model.hidden(x, layer).astype(jnp.float32)))
    return np.concatenate(parts)
