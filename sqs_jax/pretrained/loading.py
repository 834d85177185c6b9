"""Pretrained language models from files: a Hugging Face folder, a GGUF file, or a name on the Hugging Face hub."""

import functools
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from sqs_jax.messages import InputError, first_line, quoted
from sqs_jax.pretrained.architecture import Architecture
from sqs_jax.pretrained.decoder import Weights
from sqs_jax.pretrained.families import block_names, make_architecture
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.tensor_files import CONFIG, HUB, read_json, read_tensor, tensor_files, tensor_shape
from sqs_jax.pretrained.vocabulary import check_tokenizer, read_any_tokenizer
from sqs_jax.start import extra

# Of the memory that is free, the part that blocks may stay in once they were read.
_KEPT = 0.3


@extra()
def load_pretrained(path: str | os.PathLike[str]) -> LanguageModel:
    """A pretrained language model, in float32, its blocks read one at a time as they are asked for.

    Args:
      path: a folder as Hugging Face's `save_pretrained` leaves it (config.json, tokenizer.json, and .safetensors files
        of float32, float16 or bfloat16, in shards or not); a .gguf file of the llama architecture, of any quantisation;
        or "hf:owner/name", a model on the hub, where `huggingface_hub` is installed and there is a network.

    Families: LLaMA 2 and 3, SmolLM 2 and 3, Mistral, Qwen 2, 2.5 and 3, Gemma 1, 2 and 3 (text), Phi-3, Granite,
    OLMo 2. Logits of each are compared with those of `transformers` in the tests.

    Raises InputError, a ValueError, for anything that is not supported (a family, an activation, a rope, a field of the
    configuration or an array that is not known), for a file that is missing or damaged, for an array of another shape,
    and for a tokenizer that does not fit.
    """
    text = os.fspath(path)
    if text.startswith(HUB):
        return load_pretrained(_from_hub(text.removeprefix(HUB)))
    folder = Path(text)
    if folder.suffix == ".gguf":
        from sqs_jax.pretrained.gguf_file import load_gguf

        return load_gguf(folder)
    return _from_folder(folder)


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise InputError(f"{HUB}{name} needs the package huggingface_hub: install it, or download the folder") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # of the network, of the hub, or of the name
        raise InputError(f"{HUB}{quoted(name).strip(chr(39))} cannot be had: {first_line(error)}") from None


def _from_folder(folder: Path) -> LanguageModel:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, and no .gguf file")
    where = folder / CONFIG
    if not where.is_file():
        raise InputError(f"{folder} has no {CONFIG}: a folder as Hugging Face saves models is needed")
    config = read_json(where)
    architecture, family = make_architecture(config, str(where))
    files = tensor_files(folder)
    prefix = "model." if "model.embed_tokens.weight" in files else ""
    tied = config.get("tie_word_embeddings", family.defaults.get("tie_word_embeddings", "lm_head.weight" not in files))
    names = block_names(config, family)
    check_arrays(folder, files, architecture, names, prefix, tied)

    def read(name: str, offset: bool = False) -> np.ndarray:
        array = _as_float32(folder, name, read_tensor(files[name], name))
        return array + 1 if offset else array

    def block(layer: int) -> Weights:
        arrays = {
            role: read(f"{prefix}layers.{layer}.{name}", family.unit_offset and role.endswith("norm"))
            for role, name in names.items()
        }
        return oriented(arrays, architecture)

    embedding = jnp.asarray(read(f"{prefix}embed_tokens.weight"))
    return LanguageModel(
        architecture=architecture,
        embedding=embedding,
        norm=jnp.asarray(read(f"{prefix}norm.weight", family.unit_offset)),
        unembedding=embedding if tied else jnp.asarray(read("lm_head.weight")),
        block=kept_blocks(block, architecture),
        tokenizer=check_tokenizer(
            read_any_tokenizer(folder / "tokenizer.json"), architecture, folder / "tokenizer.json"
        ),
        name=folder.resolve().name,
        end=_end(config, architecture),
        config=config,
    )


def _end(config, architecture: Architecture) -> int | None:
    """The token that ends a text: of several the first."""
    end = config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    return end if isinstance(end, int) and 0 <= end < architecture.vocab else None


def kept_blocks(block, architecture: Architecture):
    """The function `block`, which keeps what it has read where all blocks fit in a part of the free memory."""
    import psutil

    fits = architecture.blocks_bytes < _KEPT * psutil.virtual_memory().available
    return functools.lru_cache(maxsize=architecture.layers if fits else 1)(block)


def oriented(arrays: dict[str, np.ndarray], architecture: Architecture) -> Weights:
    """Arrays of a block as files have them, by role: fused ones parted, and matrices on the right of their input."""
    if "qkv" in arrays:
        q, k = (heads * architecture.head_width for heads in (architecture.heads, architecture.key_heads))
        arrays |= dict(zip("qkv", np.split(arrays.pop("qkv"), [q, q + k]), strict=True))
    if "gate_up" in arrays:
        arrays |= dict(zip(("gate", "up"), np.split(arrays.pop("gate_up"), 2), strict=True))
    return {role: jnp.asarray(array.T if array.ndim == 2 else array) for role, array in arrays.items()}


def shapes_by_role(arch: Architecture, full_norms: bool) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a block as files have it, (outputs, inputs); `full_norms`: q and k over all heads."""
    d, h, q, k = arch.width, arch.hidden, arch.heads * arch.head_width, arch.key_heads * arch.head_width
    matrices = {"q": (q, d), "k": (k, d), "v": (k, d), "o": (d, q), "up": (h, d), "gate": (h, d), "down": (d, h)}
    fused = {"qkv": (q + 2 * k, d), "gate_up": (2 * h, d)}
    table: dict[str, tuple[int, ...]] = {**matrices, **fused}
    table |= {f"{role}_bias": shape[:1] for role, shape in matrices.items()}
    table |= dict.fromkeys(("attention_norm", "glu_norm", "attention_post_norm", "glu_post_norm"), (d,))
    table |= {"offset": (h,), "c": (), "lam": ()}
    n = arch.head_width
    return table | ({"q_norm": (q,), "k_norm": (k,)} if full_norms else {"q_norm": (n,), "k_norm": (n,)})


def check_arrays(
    folder: Path, files, architecture: Architecture, names: dict[str, str], prefix: str, tied: bool
) -> None:
    """Raises InputError for an array that is missing, has another shape, or is not known."""
    table: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (architecture.vocab, architecture.width)}
    table[f"{prefix}norm.weight"] = (architecture.width,)
    if not tied:
        table["lm_head.weight"] = (architecture.vocab, architecture.width)
    by_role = shapes_by_role(architecture, full_norms=architecture.family == "olmo2")
    for layer in range(architecture.layers):
        table |= {f"{prefix}layers.{layer}.{name}": by_role[role] for role, name in names.items()}
    for name, needed in table.items():
        if name not in files:
            raise InputError(f"{folder} has no array {name}, which a {architecture.family} model needs")
        found = tensor_shape(files[name], name)
        if found != needed:
            raise InputError(f"{folder}: {name} has shape {found}: {needed} is needed, as {CONFIG} says")
    for name in sorted(files.keys() - table.keys()):
        if not (name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")):
            raise InputError(
                f"{folder} has the array {quoted(name)}, which is not known in a {architecture.family} model"
            )


def _as_float32(folder: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.names or not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
        dtype = quoted(array.dtype.name)
        raise InputError(f"{folder}: {name} is of dtype {dtype}: float32, float16 or bfloat16 is needed")
    return array.astype(np.float32)
