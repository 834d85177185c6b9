"""Weights to read: of a run's folder, or from files of any framework."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis.interaction import GLUWeights, check_weights

if TYPE_CHECKING:
    from sqs_jax.modules import GLUClassifier
    from sqs_jax.train.config import TrainConfig
    from sqs_jax.train.data import Dataset

_OPTIONAL = ("embed", "w_bias", "v_bias", "out_bias", "skip")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its configuration, data, trained network, and rows of metrics."""

    path: Path
    config: "TrainConfig"
    data: "Dataset"
    model: "GLUClassifier"
    history: list[dict[str, Any]]
    summary: dict[str, Any]


def load_run(run_dir: str | os.PathLike[str], *, data_dir: Path | None = None, epoch: int | None = None) -> Run:
    """The run in a folder, its network as of an epoch's checkpoint, by default the last.

    Raises InputError, a ValueError, where that is no run, is not finished, has no such checkpoint, or its data set
    cannot be had.
    """
    from sqs_jax.train.config import InputError
    from sqs_jax.train.data import load
    from sqs_jax.train.run_folder import RunFolder, read_config

    folder = RunFolder(Path(run_dir))
    model = _model(folder, epoch)
    inputs = (model.layers[0].w if model.embed is None else model.embed).shape[0]
    data = load(read_config(folder).data, data_dir)
    if inputs != int(np.prod(data.shape)) or model.head.shape[1] != len(data.classes):
        raise InputError(
            f"{folder.path} has {inputs} inputs, not the {np.prod(data.shape)} of {data.name}: its data set is another"
        )
    history = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return Run(folder.path, read_config(folder), data, model, history, json.loads(folder.summary.read_text()))


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


def read_weights(path: str | os.PathLike[str], names: dict[str, str], *, transpose: bool = False) -> GLUWeights:
    """Weights from a .safetensors or .npz file of any framework.

    Args:
      path: the file.
      names: which array is which: {"w": "mlp.up_proj.weight", "v": "mlp.gate_proj.weight", "out": …}, and as far as
        there are any, "embed", "w_bias", "v_bias", "out_bias", "skip". Without "out", the outputs are the hidden units.
      transpose: matrices stand as (outputs, inputs), as PyTorch's Linear has them.

    Raises ValueError for a file that cannot be read, a name that is not in it, shapes that do not fit, or numbers
    that are NaN or infinite.
    """
    arrays = _read_arrays(Path(path))
    found: dict[str, Any] = {}
    for part, name in names.items():
        if part not in ("w", "v", "out", *_OPTIONAL):
            raise ValueError(f"`names` has {part!r}: w, v, out, {', '.join(_OPTIONAL)} are known")
        if name not in arrays:
            raise ValueError(f"{path} has no array {name!r} for `{part}`: it has {', '.join(sorted(arrays)[:20])}")
        array = np.asarray(arrays[name], np.float64 if arrays[name].dtype == np.float64 else np.float32)
        found[part] = jnp.asarray(array.T if transpose and array.ndim == 2 else array)
    for part in ("w", "v"):
        if part not in found:
            raise ValueError(f"`names` lacks {part!r}, the {'linear' if part == 'w' else 'gate'} branch")
    if "out" not in found:
        found["out"] = jnp.eye(found["w"].shape[-1], dtype=found["w"].dtype)
    weights = GLUWeights(**found)
    check_weights(weights)
    return weights


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                return dict(file)
        if path.suffix == ".safetensors":
            from safetensors.flax import load_file

            return {name: np.asarray(array.astype(jnp.float32)) for name, array in load_file(path).items()}
    except Exception as error:  # each reader has errors of its own
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    raise ValueError(f"{path}: a .safetensors or .npz file is needed")


def _model(folder: Any, epoch: int | None) -> "GLUClassifier":
    from sqs_jax.train.checkpoint import restore_params
    from sqs_jax.train.config import InputError
    from sqs_jax.train.run_folder import read_config
    from sqs_jax.train.step import make_model, with_parameters

    config = read_config(folder)
    if not folder.checkpoints.is_dir():
        raise InputError(f"{folder.path} has no checkpoint: nothing was trained yet")
    if not folder.summary.is_file():
        raise InputError(f"{folder.path} is not finished: go on with python -m train --run-dir {folder.path} --resume")
    params = restore_params(folder.checkpoints, epoch)
    inputs = len(params["embed"]) if "embed" in params else len(_first(params["layers"])["w"])
    return with_parameters(make_model(config, inputs, params["head"].shape[1]), params)


def _first(layers: dict[Any, Any]) -> dict[str, Any]:
    return layers[0] if 0 in layers else layers["0"]


def load_comparable(run_dirs: Sequence[Path], *, data_dir: Path | None = None) -> list[Run]:
    """Runs that can be compared with each other: of one data set and one architecture.

    Raises InputError as `load_run`, and where two differ.
    """
    from sqs_jax.train.config import InputError
    from sqs_jax.train.run_folder import RunFolder, read_config

    configs = [read_config(RunFolder(path)) for path in run_dirs]
    # The matrices of a single layer are over the pixels, whatever its width; a deep network's have its own basis.
    same = ["data", "layers", "bias", *(["width", "hidden"] if configs[0].layers > 1 else [])]
    for path, config in zip(run_dirs, configs, strict=True):
        for name in same:
            first, other = getattr(configs[0], name), getattr(config, name)
            if first != other:
                raise InputError(f"{run_dirs[0]} has `{name}` {first!r} and {path} {other!r}: no comparison")
    return [load_run(path, data_dir=data_dir) for path in run_dirs]
