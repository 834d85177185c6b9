"""GGUF files: a model that is written as one, quantised, is the model of the Hugging Face folder."""

import dataclasses
import json

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from safetensors.numpy import load_file

from sqs_jax.messages import InputError
from sqs_jax.pretrained import load_pretrained
from sqs_jax.pretrained.gguf_file import _in_halves
from tests.test_families import logits_of

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TEXT = "once upon a time, there was a little girl named lily. she had 2 cats & a dög"


def in_pairs(rows, heads):
    """Rows of q or k as the converter of llama.cpp writes them: the two of a rotary pair beside each other."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(folder, path, kind=gguf.GGMLQuantizationType.F32, change=lambda writer, tensors: None):
    """A Hugging Face folder of a LLaMA as a GGUF file; matrices whose rows allow it are quantised."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in tokenizer["model"]["merges"]
    ]
    ranks = {"".join(merge): -float(i) for i, merge in reversed(list(enumerate(merges)))}
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_scores([ranks.get(token, -1e6) for token, _ in vocab])
    types = [3 if i in (1, 2) else 2 if i == 0 else 6 if token.startswith("<0x") else 1 for token, i in vocab]
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    tensors = {}
    for name, array in load_file(folder / "model.safetensors").items():
        parts = name.removesuffix(".weight").split(".", 3)
        if parts[1] == "layers":
            inner = NAMES[parts[3]]
            heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(inner)
            tensors[f"blk.{parts[2]}.{inner}.weight"] = in_pairs(array, config[heads]) if heads else array
        else:
            tensors["token_embd.weight" if "embed" in name else "output_norm.weight"] = array
    change(writer, tensors)
    for name, array in tensors.items():
        plain = array.ndim < 2 or array.shape[1] % 32 or kind == gguf.GGMLQuantizationType.F32
        data = array.astype(np.float32) if plain else quantize(array.astype(np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=None if plain else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(stories):
    return stories[0]


def loss_of(model, ids):
    logits = logits_of(model, np.array([ids]))[0].astype(np.float64)
    log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    return -np.mean(log_p[np.arange(len(ids) - 1), ids[1:]])


def test_a_file_is_the_folder_it_was_made_of(folder, tmp_path):
    model, other = load_pretrained(folder), load_pretrained(write_gguf(folder, tmp_path / "a.gguf"))
    epsilon = pytest.approx(other.architecture.epsilon, rel=1e-6)
    assert model.architecture.epsilon == epsilon  # a GGUF file has it in float32
    assert dataclasses.replace(other.architecture, epsilon=model.architecture.epsilon) == model.architecture
    ids = model.tokenizer.encode(TEXT).ids
    assert other.tokenizer.encode(TEXT).ids == ids
    assert other.tokenizer.decode(ids) == model.tokenizer.decode(ids)
    assert (other.end, other.name) == (model.end, "a")
    np.testing.assert_allclose(logits_of(other, [ids]), logits_of(model, [ids]), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "most"), [("Q8_0", 0.01), ("Q4_0", 0.5), ("Q4_1", 0.4), ("Q5_1", 0.15), ("BF16", 0.01)]
)
def test_quantised_files(folder, tmp_path, kind, most):
    model = load_pretrained(folder)
    other = load_pretrained(write_gguf(folder, tmp_path / "a.gguf", gguf.GGMLQuantizationType[kind]))
    ids = model.tokenizer.encode(TEXT).ids
    assert abs(loss_of(other, ids) - loss_of(model, ids)) < most
    assert np.max(np.abs(np.asarray(other.block(0)["q"] - model.block(0)["q"]))) > 0


def test_the_order_of_rotary_pairs_goes_there_and_back():
    rows = np.random.default_rng(0).normal(size=(24, 5))
    np.testing.assert_array_equal(_in_halves(in_pairs(rows, 3), 3), rows)
    assert not np.array_equal(in_pairs(rows, 3), rows)


def test_frequency_factors_divide(folder, tmp_path):
    factors = np.array([1, 1, 2, 4], np.float32)
    path = write_gguf(
        folder, tmp_path / "a.gguf", change=lambda writer, tensors: tensors.update({"rope_freqs.weight": factors})
    )
    plain, scaled = (load_pretrained(source).architecture.blocks[0].rope.frequencies for source in (folder, path))
    np.testing.assert_allclose(scaled, np.array(plain) / factors)


def drop(name):
    return lambda writer, tensors: tensors.pop(name)


BAD = {
    "missing": (drop("blk.1.ffn_up.weight"), "has no tensor blk.1.ffn_up.weight"),
    "shape": (lambda writer, tensors: tensors.update({"output_norm.weight": np.ones(3)}), r"has shape \(3,\): \(64,\)"),
    "unknown": (
        lambda writer, tensors: tensors.update({"blk.0.extra.weight": np.ones(3)}),
        "has the tensor 'blk.0.extra",
    ),
    "experts": (lambda writer, tensors: writer.add_expert_count(8), "key 'llama.expert_count' is not known"),
    "yarn": (lambda writer, tensors: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope scaling 'yarn'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(folder, tmp_path, case):
    change, message = BAD[case]
    path = write_gguf(folder, tmp_path / "a.gguf", change=change)
    with pytest.raises(InputError, match=message):
        load_pretrained(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_pretrained(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(InputError, match="is damaged, or no GGUF file"):
        load_pretrained(tmp_path / "b.gguf")
    writer = gguf.GGUFWriter(tmp_path / "c.gguf", "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match="architecture 'gpt2' is not supported in a GGUF file"):
        load_pretrained(tmp_path / "c.gguf")


def test_byte_level_tokenizers_of_gguf_files():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from sqs_jax.pretrained.gguf_tokenizer import make_tokenizer

    trained = Tokenizer(models.BPE())
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        [TEXT] * 3, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
    }
    made = make_tokenizer(fields, "here")
    for text in (TEXT, " in 2019 it's  12\n\n x", "ünï"):
        assert made.encode(text).ids == trained.encode(text).ids
        assert made.decode(made.encode(text).ids) == text
    for change, message in (
        ({"tokenizer.ggml.pre": "other"}, "pre-tokenizer 'other' is not supported"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer 'bert' is not supported"),
        ({"tokenizer.ggml.tokens": None}, "lacks tokenizer.ggml.tokens"),
    ):
        with pytest.raises(InputError, match=message):
            make_tokenizer(fields | change, "here")
