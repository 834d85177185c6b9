"""Runs to read: their weights, networks, data and metrics."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.start import extra

if TYPE_CHECKING:
    from sqs_jax.modules import GLUClassifier
    from sqs_jax.train.config import ImageConfig
    from sqs_jax.train.images.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its configuration, data, trained network, and rows of metrics."""

    path: Path
    config: "ImageConfig"
    data: "Dataset"
    model: "GLUClassifier"
    history: list[dict[str, Any]]
    summary: dict[str, Any]


@extra()
def load_run(run_dir: str | os.PathLike[str], *, data_dir: Path | None = None, epoch: int | None = None) -> Run:
    """The run in a folder, its network as of an epoch's checkpoint, by default the last.

    Raises InputError, a ValueError, where that is no run, is not finished, has no such checkpoint, or its data set
    cannot be had.
    """
    from sqs_jax.train.config import ImageConfig, InputError
    from sqs_jax.train.images.dataset import load
    from sqs_jax.train.records import Summary, read_record, read_rows
    from sqs_jax.train.run_folder import RunFolder, read_config

    folder = RunFolder(Path(run_dir))
    model, config = _model(folder, epoch), read_config(folder)
    inputs = (model.layers[0].w if model.embed is None else model.embed).shape[0]
    data = load(config.data, data_dir)
    if inputs != int(np.prod(data.shape)) or model.head.shape[1] != len(data.classes):
        raise InputError(
            f"{folder.path} has {inputs} inputs, not the {np.prod(data.shape)} of {data.name}: its data set is another"
        )
    summary = dict(read_record(folder.summary, Summary))
    assert isinstance(config, ImageConfig)  # or there was no model
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
    from sqs_jax.train.run_folder import RunFolder

    return layer_weights(_model(RunFolder(Path(run_dir)), epoch), layer)


def layer_weights(model: "GLUClassifier", layer: int = -1) -> GLUWeights:
    """The weights of one GLU layer of a classifier, and of what surrounds it.

    The first layer comes with the embedding, so that its input is the image. The last is read by the head; any other
    has its own hidden units for outputs. In a residual network `skip` is what reads the stream past the layer.
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
    from sqs_jax.train.step import make_model

    return layer_weights(make_model(run.config, int(np.prod(run.data.shape)), len(run.data.classes)), layer)


def _model(folder: Any, epoch: int | None) -> "GLUClassifier":
    from sqs_jax.train.checkpoint import check_architecture, restore_params
    from sqs_jax.train.config import ImageConfig, InputError
    from sqs_jax.train.run_folder import read_config
    from sqs_jax.train.step import make_model, parameters, with_parameters

    config = read_config(folder)
    if not isinstance(config, ImageConfig):
        raise InputError(f"{folder.path} is a run on text: `load_language` reads it")
    if not folder.checkpoints.is_dir():
        raise InputError(f"{folder.path} has no checkpoint: nothing was trained yet")
    if not folder.summary.is_file():
        raise InputError(f"{folder.path} is not finished: go on with python -m train --run-dir {folder.path} --resume")
    params = restore_params(folder.checkpoints, epoch)
    try:
        inputs = len(params["embed"]) if "embed" in params else len(_first(params["layers"])["w"])
        outputs = params["head"].shape[1]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{folder.checkpoints} is of another architecture: it lacks {error}") from None
    model = make_model(config, inputs, outputs)
    check_architecture(params, parameters(model), folder.checkpoints)
    return with_parameters(model, params)


def _first(layers: dict[Any, Any]) -> dict[str, Any]:
    return layers[0] if 0 in layers else layers["0"]


@extra()
def load_comparable(run_dirs: Sequence[Path], *, data_dir: Path | None = None) -> list[Run]:
    """Runs that can be compared with each other: of one data set and one architecture.

    Raises InputError as `load_run`, and where two differ.
    """
    from sqs_jax.train.config import ImageConfig, InputError
    from sqs_jax.train.run_folder import RunFolder, read_config

    configs = [read_config(RunFolder(path)) for path in run_dirs]
    for path, config in zip(run_dirs, configs, strict=True):
        if not isinstance(config, ImageConfig):
            raise InputError(f"{path} is a run on text: it is compared with runs on text, not on images")
    # The matrices of a single layer are over the pixels, whatever its width; a deep network's have its own basis.
    same = ["data", "layers", "bias", *(["width", "hidden"] if configs[0].layers > 1 else [])]
    for path, config in zip(run_dirs, configs, strict=True):
        for name in same:
            first, other = getattr(configs[0], name), getattr(config, name)
            if first != other:
                raise InputError(f"{run_dirs[0]} has `{name}` {first!r} and {path} {other!r}: no comparison")
    return [load_run(path, data_dir=data_dir) for path in run_dirs]
