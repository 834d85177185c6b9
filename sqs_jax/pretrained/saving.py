"""A pretrained language model as a Hugging Face folder, which `load_pretrained` reads back to the same numbers."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax import files
from sqs_jax.messages import InputError
from sqs_jax.pretrained.decoder import Weights
from sqs_jax.pretrained.families import FAMILIES, Family, block_names
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.tensor_files import CONFIG, INDEX

_SHARD = 2**32  # bytes of a file, at most, but for a block that is larger by itself


def save_pretrained(model: LanguageModel, folder: str | os.PathLike[str]) -> None:
    """Writes a model as config.json, tokenizer.json and .safetensors files in float32, in shards beyond 4 GiB.

    Args:
      model: one with a `config`: from `load_pretrained`, or with another gate from `python -m train adopt`.
      folder: a new folder, which appears whole; its parent exists.

    Raises InputError for a model that no config.json describes, and OSError where it cannot be written.
    """
    check_savable(model)
    config = dict(model.config or {})
    family = FAMILIES[config["model_type"]]
    names = block_names(config, family)
    prefix = "model."
    tied = model.unembedding is model.embedding
    ends = {f"{prefix}embed_tokens.weight": model.embedding, f"{prefix}norm.weight": _stored(model.norm, family, True)}
    if not tied:
        ends["lm_head.weight"] = model.unembedding
    with files.appearing(Path(folder)) as partial:
        shards = _Shards(partial)
        shards.add({name: np.asarray(array, np.float32) for name, array in ends.items()})
        for layer in range(model.layers):
            arrays = _as_files_have_them(model.block(layer), family, names)
            shards.add({f"{prefix}layers.{layer}.{names[role]}": array for role, array in arrays.items()})
        shards.finish()
        config |= {"tie_word_embeddings": tied, "dtype": "float32"}
        config.pop("torch_dtype", None)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (partial / "tokenizer.json").write_text(model.tokenizer.to_str(), encoding="utf-8")


def check_savable(model: LanguageModel) -> None:
    """Raises InputError for a model that no config.json describes."""
    if model.config is None:
        raise InputError(f"{model.name} cannot be saved: no config.json describes it")


def _stored(array: Any, family: Family, is_norm: bool) -> np.ndarray:
    """An array as files have it: (outputs, inputs), and norms as what is added to 1 where the family has them so."""
    array = np.asarray(array, np.float32)
    array = array - 1 if is_norm and family.unit_offset else array
    return np.array(array.T, order="C")


def _as_files_have_them(weights: Weights, family: Family, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The arrays of a block by role, fused where the family has them fused."""
    arrays = {role: _stored(array, family, role.endswith("norm")) for role, array in weights.items()}
    for fused, parts in (("qkv", ("q", "k", "v")), ("gate_up", ("gate", "up"))):
        if fused in names:
            arrays[fused] = np.concatenate([arrays.pop(part) for part in parts])
    return arrays


class _Shards:
    """Writes arrays into one .safetensors file, or into several with an index."""

    def __init__(self, folder: Path):
        self._folder, self._arrays, self._bytes = folder, {}, 0
        self._files: list[list[str]] = []

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes arrays, and writes those before them where all together would be too many."""
        size = sum(array.nbytes for array in arrays.values())
        if self._arrays and self._bytes + size > _SHARD:
            self._write()
        self._arrays |= arrays
        self._bytes += size

    def finish(self) -> None:
        """Writes what is left, and the index where there is more than one file."""
        self._write()
        count = len(self._files)
        if count == 1:
            (self._folder / _shard(0)).rename(self._folder / "model.safetensors")
            return
        named = {name: _shard(i) for i, names in enumerate(self._files) for name in names}
        content = json.dumps({"metadata": {}, "weight_map": named}, indent=2)
        (self._folder / f"model{INDEX}").write_text(content + "\n", encoding="utf-8")

    def _write(self) -> None:
        from safetensors.numpy import save_file

        path = self._folder / _shard(len(self._files))
        save_file(self._arrays, path, metadata={"format": "pt"})
        path.chmod(0o644)  # the library leaves it to its owner alone
        self._files.append(list(self._arrays))
        self._arrays, self._bytes = {}, 0


def _shard(number: int) -> str:
    return f"model-{number + 1:05}.safetensors"
