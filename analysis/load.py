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
    from sqs_jax.train.config import ImageConfig
    from sqs_jax.train.data import Dataset

_OPTIONAL = ("embed", "w_bias", "v_bias", "out_bias", "skip")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its configuration, data, trained network, and rows of metrics."""

    path: Path
    config: "ImageConfig"
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
    model, config = _model(folder, epoch), read_config(folder)
    inputs = (model.layers[0].w if model.embed is None else model.embed).shape[0]
    data = load(config.data, data_dir)
    if inputs != int(np.prod(data.shape)) or model.head.shape[1] != len(data.classes):
        raise InputError(
            f"{folder.path} has {inputs} inputs, not the {np.prod(data.shape)} of {data.name}: its data set is another"
        )
    history = read_rows(folder.metrics)
    summary = read_json(folder.summary, folder.summary.read_text())
    if not {"test", "epochs"} <= set(summary):
        raise InputError(f"{folder.summary} is not the summary of a run: it has no `test`")
    return Run(folder.path, config, data, model, history, summary)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`. Raises InputError for a damaged one."""
    return [read_json(path, line) for line in path.read_text().splitlines()]


def read_json(path: Path, text: str) -> dict[str, Any]:
    """A JSON object, the text of a file or of a line in it. Raises InputError, naming the file, where it is none."""
    from sqs_jax.train.config import InputError

    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: {type(found).__name__} where an object is needed")
    return found


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
    for part in names:
        if part not in ("w", "v", "out", *_OPTIONAL):
            raise ValueError(f"`names` has {part!r}: w, v, out, {', '.join(_OPTIONAL)} are known")
    arrays = _read_arrays(Path(path), names)
    found: dict[str, Any] = {}
    for part, array in arrays.items():
        if not (jnp.issubdtype(array.dtype, jnp.floating) or np.issubdtype(array.dtype, np.integer)):
            raise ValueError(f"{path}: {names[part]!r} for `{part}` is of dtype {array.dtype}: real numbers are needed")
        array = np.asarray(array, np.float64 if array.dtype == np.float64 else np.float32)
        found[part] = jnp.asarray(array.T if transpose and array.ndim == 2 else array)
    for part in ("w", "v"):
        if part not in found:
            raise ValueError(f"`names` lacks {part!r}, the {'linear' if part == 'w' else 'gate'} branch")
    if found["w"].ndim != 2:
        raise ValueError(f"{path}: {names['w']!r} for `w` has shape {found['w'].shape}: (d, h) is needed")
    if "out" not in found:
        found["out"] = jnp.eye(found["w"].shape[-1], dtype=found["w"].dtype)
    weights = GLUWeights(**found)
    try:
        check_weights(weights)
    except ValueError as error:
        raise ValueError(f"{path}{', transposed' if transpose else ''}: {error}") from None
    return weights


def _read_arrays(path: Path, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The named arrays of a file, and no others: it may be a language model's."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path}: a .safetensors or .npz file is needed")
    try:
        with _open_arrays(path) as file:
            known = list(file.keys())
            for part, name in names.items():
                if name not in known:
                    has = ", ".join(sorted(known)[:20])
                    raise KeyError(f"{path} has no array {name!r} for `{part}`: it has {has}")
            read = file.get_tensor if path.suffix == ".safetensors" else file.__getitem__
            return {part: np.asarray(read(name)) for part, name in names.items()}
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    except Exception as error:  # each reader has errors of its own
        raise ValueError(f"{path} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def _open_arrays(path: Path) -> Any:
    if path.suffix == ".npz":
        return np.load(path)
    from safetensors import safe_open

    return safe_open(path, framework="flax")


def _model(folder: Any, epoch: int | None) -> "GLUClassifier":
    from sqs_jax.train.checkpoint import check_architecture, restore_params
    from sqs_jax.train.config import ImageConfig, InputError
    from sqs_jax.train.run_folder import read_config
    from sqs_jax.train.step import make_model, parameters, with_parameters

    config = read_config(folder)
    if not isinstance(config, ImageConfig):
        raise InputError(f"{folder.path} is a run on text: sqs_jax.train.language.load_language reads it")
    if not folder.checkpoints.is_dir():
        raise InputError(f"{folder.path} has no checkpoint: nothing was trained yet")
    if not folder.summary.is_file():
        raise InputError(f"{folder.path} is not finished: go on with python -m train --run-dir {folder.path} --resume")
    params = restore_params(folder.checkpoints, epoch)
    inputs = len(params["embed"]) if "embed" in params else len(_first(params["layers"])["w"])
    model = make_model(config, inputs, params["head"].shape[1])
    check_architecture(params, parameters(model), folder.checkpoints)
    return with_parameters(model, params)


def _first(layers: dict[Any, Any]) -> dict[str, Any]:
    return layers[0] if 0 in layers else layers["0"]


def load_comparable(run_dirs: Sequence[Path], *, data_dir: Path | None = None) -> list[Run]:
    """Runs that can be compared with each other: of one data set and one architecture.

    Raises InputError as `load_run`, and where two differ.
    """
    from sqs_jax.train.config import ImageConfig, InputError
    from sqs_jax.train.run_folder import RunFolder, read_config

    configs = [read_config(RunFolder(path)) for path in run_dirs]
    for path, config in zip(run_dirs, configs, strict=True):
        if not isinstance(config, ImageConfig):
            raise InputError(f"{path} is a run on text: those are compared by analysis report RUN --against OTHER")
    # The matrices of a single layer are over the pixels, whatever its width; a deep network's have its own basis.
    same = ["data", "layers", "bias", *(["width", "hidden"] if configs[0].layers > 1 else [])]
    for path, config in zip(run_dirs, configs, strict=True):
        for name in same:
            first, other = getattr(configs[0], name), getattr(config, name)
            if first != other:
                raise InputError(f"{run_dirs[0]} has `{name}` {first!r} and {path} {other!r}: no comparison")
    return [load_run(path, data_dir=data_dir) for path in run_dirs]
