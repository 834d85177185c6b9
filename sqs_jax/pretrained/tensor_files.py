"""Arrays in .safetensors files, alone or in shards with an index: found by name, read one at a time."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.messages import InputError, first_line, quoted

INDEX = ".safetensors.index.json"
CONFIG = "config.json"
HUB = "hf:"


def tensor_files(path: Path) -> dict[str, Path]:
    """The file of each array of a model: of a .safetensors file, an index, or a folder that has either.

    Raises InputError, naming the file, where there is none, it cannot be read, or a shard is missing.
    """
    if path.is_dir():
        index = sorted(path.glob(f"*{INDEX}"))
        if index:
            return tensor_files(index[0])
        shards = sorted(path.glob("*.safetensors"))
        if not shards:
            raise InputError(f"{path}: it has no .safetensors file")
        return {name: shard for shard in shards for name in _names(shard)}
    if path.name.endswith(INDEX):
        return _indexed(path)
    return dict.fromkeys(_names(path), path)


def read_tensor(path: Path, name: str) -> np.ndarray:
    """One array of a .safetensors file, in its own dtype. Raises InputError where it cannot be read."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return file.get_tensor(name)
    except Exception as error:
        raise InputError(f"{path} cannot be read: {quoted(name)}: {first_line(error)}") from None


def tensor_shape(path: Path, name: str) -> tuple[int, ...]:
    """Its shape, without reading it."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return tuple(file.get_slice(name).get_shape())


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys())
    except Exception as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from None


def _indexed(path: Path) -> dict[str, Path]:
    files = _weight_map(path)
    for file in sorted(set(files.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(f"{path} names the shard {quoted(file)}: a .safetensors file beside it is needed")
        if not (path.parent / file).is_file():
            raise InputError(f"{path} names the shard {file}, which is not there")
    return {name: path.parent / file for name, file in files.items()}


def _weight_map(path: Path) -> dict[str, str]:
    content = read_json(path).get("weight_map")
    if not isinstance(content, dict) or not all(isinstance(file, str) for file in content.values()):
        raise InputError(f"{path} is damaged: it has no weight_map from arrays to files")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object. Raises InputError where it cannot be read, or holds another."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: an object is needed")
    return content


def is_pretrained(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a pretrained model, not of a run of this package."""
    text = os.fspath(path)
    config = Path(text) / CONFIG
    if text.startswith(HUB) or text.endswith(".gguf") or (Path(text) / "model.safetensors").exists():
        return True
    return config.is_file() and "model_type" in read_json(config)
