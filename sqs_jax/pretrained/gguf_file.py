"""GGUF files, as llama.cpp reads them: one file with the numbers of a llama model, its weights and its tokenizer."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.messages import InputError, first_line, quoted
from sqs_jax.pretrained.architecture import Architecture, BlockKind, Rope
from sqs_jax.pretrained.decoder import Weights
from sqs_jax.pretrained.gguf_tokenizer import make_tokenizer
from sqs_jax.pretrained.loading import kept_blocks, oriented, shapes_by_role
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.rope import make_rope
from sqs_jax.pretrained.vocabulary import check_tokenizer

_NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "up": "ffn_up",
    "gate": "ffn_gate",
    "down": "ffn_down",
    "attention_norm": "attn_norm",
    "glu_norm": "ffn_norm",
}
_FACTORS = "rope_freqs.weight"
# The keys below "llama." that are read, and those that change no number here.
_READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon", "rope.freq_base",
    "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "attention.sliding_window",
}  # fmt: skip
_HARMLESS = {"vocab_size", "attention.value_length", "rope.scaling.original_context_length", "rope.scaling.finetuned"}


def load_gguf(path: Path) -> LanguageModel:
    """The language model in a GGUF file, as `load_pretrained`; blocks are dequantised when they are asked for."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        reader = GGUFReader(path)
        fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever a damaged header leads to
        raise InputError(f"{path} is damaged, or no GGUF file: {first_line(error)}") from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        try:
            array = dequantize(tensor.data, tensor.tensor_type)
        except Exception as error:
            kind = tensor.tensor_type.name
            raise InputError(f"{path}: {name} of type {kind} cannot be dequantised: {first_line(error)}") from None
        return np.asarray(array, np.float32).reshape(_shape(tensor))

    factors = read(_FACTORS) if _FACTORS in tensors else None
    architecture = _architecture(fields, tensors, factors, path)
    biases = {f"{role}_bias": name for role, name in _NAMES.items() if f"blk.0.{name}.bias" in tensors}
    _check_tensors(path, tensors, architecture, biases)

    def block(layer: int) -> Weights:
        arrays = {role: read(f"blk.{layer}.{name}.weight") for role, name in _NAMES.items()}
        arrays |= {role: read(f"blk.{layer}.{name}.bias") for role, name in biases.items()}
        for role, heads in (("q", architecture.heads), ("k", architecture.key_heads)):
            for name in {role, f"{role}_bias"} & arrays.keys():
                arrays[name] = _in_halves(arrays[name], heads)
        return oriented(arrays, architecture)

    embedding = jnp.asarray(read("token_embd.weight"))
    return LanguageModel(
        architecture=architecture,
        embedding=embedding,
        norm=jnp.asarray(read("output_norm.weight")),
        unembedding=jnp.asarray(read("output.weight")) if "output.weight" in tensors else embedding,
        block=kept_blocks(block, architecture),
        tokenizer=check_tokenizer(make_tokenizer(fields, path), architecture, path),
        name=path.stem,
        end=fields.get("tokenizer.ggml.eos_token_id"),
        config=None
        if factors is not None or biases
        else _config(fields, architecture, tied="output.weight" not in tensors),
    )


def _shape(tensor) -> tuple[int, ...]:
    """The shape of a tensor as NumPy has it: GGUF counts axes from the last."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _in_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k with the two entries of a rotary pair half a head apart; GGUF has them beside each other."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _architecture(fields: dict[str, Any], tensors, factors: np.ndarray | None, path: Path) -> Architecture:
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise InputError(f"{path}: the architecture {quoted(kind)} is not supported in a GGUF file: 'llama' is")
    numbers = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    if unknown := sorted(name for name in numbers.keys() - _READ - _HARMLESS if numbers[name]):
        raise InputError(f"{path}: the key 'llama.{unknown[0]}' is not known: it may change numbers")
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        if not isinstance(numbers.get(name), int):
            raise InputError(f"{path} lacks llama.{name}, a whole number")
    width, heads = numbers["embedding_length"], numbers["attention.head_count"]
    head_width = numbers.get("attention.key_length", width // heads)
    rope = _rope(numbers, head_width, factors, path)
    window = numbers.get("attention.sliding_window", 0)
    return Architecture(
        family="llama",
        vocab=_shape(tensors["token_embd.weight"])[0] if "token_embd.weight" in tensors else 0,
        context=numbers["context_length"],
        width=width,
        hidden=numbers["feed_forward_length"],
        heads=heads,
        key_heads=numbers.get("attention.head_count_kv", heads),
        head_width=head_width,
        epsilon=numbers.get("attention.layer_norm_rms_epsilon", 1e-5),
        blocks=(BlockKind(window, rope, "silu"),) * numbers["block_count"],
        attention_scale=head_width**-0.5,
    )


def _rope(numbers: dict[str, Any], head_width: int, factors: np.ndarray | None, path: Path) -> Rope:
    """The rotary frequencies. Llama 3's scaling stands in the file as a factor for each frequency."""
    kind = numbers.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise InputError(f"{path}: the rope scaling {quoted(kind)} is not supported in a GGUF file: none, linear are")
    scaling = {"rope_type": "linear", "factor": numbers.get("rope.scaling.factor")} if kind == "linear" else {}
    width = numbers.get("rope.dimension_count", head_width)
    rope = make_rope(numbers.get("rope.freq_base", 1e4), width, scaling, numbers["context_length"], str(path))
    if factors is None:
        return rope
    return Rope(tuple(float(value) for value in np.array(rope.frequencies) / factors.ravel()))


def _config(fields: dict[str, Any], arch: Architecture, *, tied: bool) -> dict[str, Any] | None:
    """The config.json of the same model in a Hugging Face folder; None where there is none."""
    if fields.get("llama.rope.dimension_count", arch.head_width) != arch.head_width:
        return None
    window, kind = arch.blocks[0].window, fields.get("llama.rope.scaling.type", "none")
    config = {
        "model_type": "mistral" if window else "llama",
        "architectures": ["MistralForCausalLM" if window else "LlamaForCausalLM"],
        "vocab_size": arch.vocab,
        "hidden_size": arch.width,
        "intermediate_size": arch.hidden,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.key_heads,
        "head_dim": arch.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": arch.context,
        "rms_norm_eps": float(arch.epsilon),
        "rope_theta": float(fields.get("llama.rope.freq_base", 1e4)),
        "tie_word_embeddings": tied,
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
    }
    if window:
        config["sliding_window"] = window
    if kind == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": fields.get("llama.rope.scaling.factor")}
    return config


def _check_tensors(path: Path, tensors, architecture: Architecture, biases: dict[str, str]) -> None:
    """Raises InputError for a tensor that is missing, has another shape, or is not known."""
    d, vocab = architecture.width, architecture.vocab
    table: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, d), "output_norm.weight": (d,)}
    if "output.weight" in tensors:
        table["output.weight"] = (vocab, d)
    by_role = shapes_by_role(architecture, full_norms=False)
    for layer in range(architecture.layers):
        table |= {f"blk.{layer}.{name}.weight": by_role[role] for role, name in _NAMES.items()}
        table |= {f"blk.{layer}.{name}.bias": by_role[role] for role, name in biases.items()}
    for name, needed in table.items():
        if name not in tensors:
            raise InputError(f"{path} has no tensor {name}, which a llama model needs")
        if _shape(tensors[name]) != needed:
            raise InputError(f"{path}: {name} has shape {_shape(tensors[name])}: {needed} is needed")
    for name in sorted(tensors.keys() - table.keys() - {_FACTORS}):
        raise InputError(f"{path} has the tensor {quoted(name)}, which is not known in a llama model")
