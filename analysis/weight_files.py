"""Weights to read from files of any framework: .npz, .safetensors, and folders of shards."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from sqs_jax.analysis.interaction import GLUWeights, check_weights
from sqs_jax.messages import cut, first_line, one_line, quoted
from sqs_jax.start import extra

_PARTS = ("w", "v", "out", "embed", "w_bias", "v_bias", "out_bias", "skip")
_FUSED, _NORM = "gate_up", "norm"
_INDEX = ".safetensors.index.json"
# What NumPy has no name for; ml_dtypes, which JAX brings, has.
_FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


@extra()
def read_weights(path: str | os.PathLike[str], names: dict[str, str], *, transpose: bool = False) -> GLUWeights:
    """Weights from a .safetensors or .npz file of any framework, or from a model's folder of shards.

    Args:
      path: the file; of a model in shards its folder, or its .safetensors.index.json.
      names: which array is which: {"w": "mlp.up_proj.weight", "v": "mlp.gate_proj.weight", "out": …}, and as far as
        there are any, "embed", "w_bias", "v_bias", "out_bias", "skip". Without "out", the outputs are the hidden units.
        "gate_up" instead of "w" and "v" is both in one matrix, the gate branch first, as a `gate_up_proj` has them.
        "norm" is the scale s (d,) of the norm before the layer: it is folded in, W → diag(s) W, so that the weights
        read what the norm gives before its scale.
      transpose: matrices stand as (outputs, inputs), as PyTorch's Linear has them.

    Warns where names end in ".weight", as PyTorch's do, and `transpose` is not set: a matrix that is read the wrong
    way round may fit all the same.

    Raises ValueError for a file that cannot be read, a name that is not in it, shapes that do not fit, numbers that
    are NaN or infinite, and integers: those are of quantised weights, which have to be multiplied with their scales.
    """
    path = Path(path)
    for part in names:
        if part not in (*_PARTS, _FUSED, _NORM):
            raise ValueError(f"`names` has {quoted(part)}: {', '.join((*_PARTS, _FUSED, _NORM))} are known")
    needed = (_FUSED,) if _FUSED in names else ("w", "v")
    for part in needed:
        if part not in names:
            raise ValueError(f"`names` lacks {part!r}, the {'linear' if part == 'w' else 'gate'} branch")
    if _FUSED in names and names.keys() & {"w", "v"}:
        raise ValueError(f"`names` has {_FUSED!r} beside `w` or `v`: it is both of them")
    arrays = _read_arrays(path, names)
    torch = [name for part, name in names.items() if name.endswith(".weight") and arrays[part].ndim == 2]
    if torch and not transpose:
        message = f"{torch[0]} has a name as PyTorch's: its matrices stand as (outputs, inputs), and need `transpose`"
        warnings.warn(one_line(message), stacklevel=3)  # over `extra`, too
    parts = {part: _plain(array, transpose) for part, array in arrays.items()}
    if _FUSED in parts:
        parts |= _halves(parts.pop(_FUSED), path, names[_FUSED])
    if parts["w"].ndim != 2:
        raise ValueError(f"{path}: {quoted(names['w'])} for `w` has shape {parts['w'].shape}: (d, h) is needed")
    if _NORM in parts:
        parts |= _folded(parts, path, names[_NORM])
        del parts[_NORM]
    if "out" not in parts:
        parts["out"] = jnp.eye(parts["w"].shape[-1], dtype=parts["w"].dtype)
    weights = GLUWeights(**parts)
    try:
        check_weights(weights)
    except ValueError as error:
        hint = "" if transpose or not _fits_transposed(weights) else "; matrices (outputs, inputs) need `transpose`"
        raise ValueError(f"{path}{', transposed' if transpose else ''}: {error}{hint}") from None
    return weights


def _fits_transposed(weights: GLUWeights) -> bool:
    matrices = {name: array.T for name, array in weights._asdict().items() if array is not None and array.ndim == 2}
    try:
        check_weights(weights._replace(**matrices))
    except ValueError:
        return False
    return True


def read_scale(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """The scale (d,) of a norm from a file as `read_weights` takes it."""
    return np.asarray(_read_arrays(Path(path), {_NORM: name})[_NORM], np.float32)


def _plain(array: np.ndarray, transpose: bool) -> jnp.ndarray:
    wide = np.asarray(array, np.float64 if array.dtype == np.float64 else np.float32)
    return jnp.asarray(wide.T if transpose and wide.ndim == 2 else wide)


def _halves(both, path: Path, name: str) -> dict[str, jnp.ndarray]:
    if both.ndim != 2 or both.shape[1] % 2:
        raise ValueError(f"{path}: {quoted(name)} for `{_FUSED}` has shape {both.shape}: (d, 2·h) is needed")
    half = both.shape[1] // 2
    return {"v": both[:, :half], "w": both[:, half:]}


def _folded(parts: dict[str, jnp.ndarray], path: Path, name: str) -> dict[str, jnp.ndarray]:
    """What reads the norm, its rows times the scale."""
    scale = parts[_NORM]
    reading = ("embed",) if "embed" in parts else tuple(part for part in ("w", "v", "skip") if part in parts)
    if scale.shape != parts[reading[0]].shape[:1]:
        needed = parts[reading[0]].shape[:1]
        raise ValueError(f"{path}: {quoted(name)} for `{_NORM}` has shape {scale.shape}: {needed} is needed")
    return {part: parts[part] * scale[:, None] for part in reading}


def _read_arrays(path: Path, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The named arrays only: the file may hold a whole language model."""
    files = _files(path)
    known, arrays = set().union(*files.values()), {}
    for file, names_in_file in files.items():
        parts = {part: name for part, name in names.items() if name in names_in_file}
        if parts:
            with _told(file), _opened(file) as opened:
                arrays |= {part: _array(file, opened, name, part, known) for part, name in parts.items()}
    for part, name in names.items():
        if part not in arrays:
            has = sorted(known)
            shown = ", ".join(cut(name, 60) for name in has[:20]) + (", …" if len(has) > 20 else "")
            raise ValueError(one_line(f"{path} has no array {quoted(name)} for `{part}`: it has {shown}"))
    return arrays


def _files(path: Path) -> dict[Path, set[str]]:
    """The files that hold arrays, each with their names."""
    if path.is_dir():
        index = sorted(path.glob(f"*{_INDEX}"))
        if index:
            return _files(index[0])
        shards = sorted(path.glob("*.safetensors"))
        if not shards:
            raise ValueError(f"{path}: it has no .safetensors file")
        return {shard: _names(shard) for shard in shards}
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.name.endswith(_INDEX):
        return _indexed(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path}: a .safetensors or .npz file, or a folder of the first, is needed")
    return {path: _names(path)}


def _indexed(path: Path) -> dict[Path, set[str]]:
    from sqs_jax.train.records import ShardIndex, read_record

    files: dict[Path, set[str]] = {}
    for name, file in read_record(path, ShardIndex)["weight_map"].items():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{path} names the shard {quoted(file)}: a .safetensors file beside it is needed")
        files.setdefault(path.parent / file, set()).add(name)
    return files


def _names(path: Path) -> set[str]:
    with _told(path), _opened(path) as opened:
        return set(opened.keys())


def _array(path: Path, opened: Any, name: str, part: str, known: set[str]) -> np.ndarray:
    if path.suffix == ".npz":
        array = opened[name]
    elif (kind := opened.get_slice(name).get_dtype()) in _FLOAT8:
        scales = [other for other in known if other != name and other.startswith(name.removesuffix("weight"))]
        if scales := sorted(other for other in scales if "scale" in other):
            raise ValueError(f"{path}: {quoted(name)} for `{part}` is quantised: {quoted(scales[0])} has to be applied")
        array = _raw(path, name, _FLOAT8[kind])
    else:
        array = opened.get_tensor(name)
    if array.dtype.names or not jnp.issubdtype(array.dtype, jnp.floating):
        dtype = quoted(array.dtype.name)
        raise ValueError(f"{path}: {quoted(name)} for `{part}` is of dtype {dtype}: real floating point is needed")
    return array


def _raw(path: Path, name: str, dtype: Any) -> np.ndarray:
    """An array of a .safetensors file that was opened before: 8 bytes of length, a header in JSON, then numbers."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    start, end = entry["data_offsets"]
    numbers = np.memmap(path, np.uint8, "r", offset=8 + size + start, shape=(end - start,))
    return numbers.view(dtype).reshape(entry["shape"])


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns the errors of the libraries that read files into a ValueError that names the file."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise  # ours
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.suffix == ".npz":
        opened = np.load(path)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name, as an .npy file does")
        with opened:
            yield opened
        return
    from safetensors import safe_open

    with safe_open(path, framework="np") as opened:
        yield opened
