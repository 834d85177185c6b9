"""Every family of pretrained models, logit by logit against `transformers`, and faults that logits have to see."""

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sqs_jax.messages import InputError
from sqs_jax.pretrained import decoder, load_pretrained
from sqs_jax.pretrained.families import FAMILIES, gelu_tanh, make_architecture

FIXTURES = Path(__file__).parent / "pretrained" / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())
TOLERANCE = 1e-4


def write_tokenizer(folder: Path, vocab: int = 40) -> None:
    """A tokenizer whose tokens are letters."""
    from tokenizers import Tokenizer, models

    names = {chr(ord("0") + i): i for i in range(vocab)}
    Tokenizer(models.WordLevel(names, unk_token="0")).save(str(folder / "tokenizer.json"))


@pytest.fixture
def folder(tmp_path):
    """A copy of a fixture, by name, that may be changed."""

    def copy(name):
        path = shutil.copytree(FIXTURES / name, tmp_path / name)
        write_tokenizer(path)
        return path

    return copy


@functools.cache
def loaded(name):
    with tempfile.TemporaryDirectory() as parent:
        path = shutil.copytree(FIXTURES / name, Path(parent) / name)
        write_tokenizer(path)
        model = load_pretrained(path)
        blocks = [model.block(layer) for layer in range(model.layers)]
    return dataclasses.replace(model, block=lambda layer: blocks[layer])


def logits_of(model, tokens):
    arch = model.architecture
    x = decoder.embed(arch, model.embedding, jnp.asarray(tokens))
    for layer, kind in enumerate(arch.blocks):
        # Without jit: its parts are compiled once for all models.
        x, _ = decoder.block(arch, kind, model.block(layer), x)
    return np.asarray(decoder.logits(arch, model.norm, model.unembedding, x))


def error_of(model, name):
    """The largest difference from the logits of transformers, over their standard deviation."""
    with np.load(FIXTURES / name / "logits.npz") as file:
        expected = file["logits"]
        return np.max(np.abs(logits_of(model, file["tokens"]) - expected)) / expected.std()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    assert error_of(loaded(name), name) < TOLERANCE


@pytest.mark.parametrize("name", ["llama3", "gemma2", "gemma3", "mistral", "phi3", "qwen2"])  # all but one have windows
def test_a_long_text_is_attended_to_in_stretches(name, monkeypatch):
    monkeypatch.setattr(decoder, "_QUERIES", 5)
    monkeypatch.setattr(decoder, "_STRETCHES", 100)
    assert error_of(loaded(name), name) < TOLERANCE


def test_every_family_has_a_fixture():
    assert {loaded(name).architecture.family for name in NAMES} == set(FAMILIES)


def blocks_with(**changes):
    def change(model):
        kinds = tuple(
            kind._replace(**{name: value(kind) if callable(value) else value for name, value in changes.items()})
            for kind in model.architecture.blocks
        )
        return dataclasses.replace(model, architecture=dataclasses.replace(model.architecture, blocks=kinds))

    return change


def arch_with(**changes):
    return lambda model: dataclasses.replace(model, architecture=dataclasses.replace(model.architecture, **changes))


def weights_with(change):
    return lambda model: dataclasses.replace(model, block=lambda layer: change(dict(model.block(layer))))


def without(*roles):
    return weights_with(lambda weights: {role: array for role, array in weights.items() if role not in roles})


def scaled_rope(factor):
    return blocks_with(
        rope=lambda kind: kind.rope and kind.rope._replace(frequencies=tuple(f * factor for f in kind.rope.frequencies))
    )


def one_frequency_off(kind):
    return kind.rope and kind.rope._replace(frequencies=(*kind.rope.frequencies[:-1], kind.rope.frequencies[-1] * 1.5))


def swapped(first, second):
    return weights_with(lambda weights: weights | {first: weights[second], second: weights[first]})


ALL = {
    "epsilon": arch_with(epsilon=1e-6),
    "theta": scaled_rope(1.05),
    "no positions": blocks_with(rope=None),
    "gate": blocks_with(gate=lambda kind: "relu"),
    "branches swapped": swapped("up", "gate"),
    "attention scale": arch_with(attention_scale=0.3),
}
NO_WINDOW = {
    "no window": blocks_with(window=0),
    "window": blocks_with(window=lambda kind: kind.window and kind.window + 1),
}
ALL_LOCAL = {"all layers local": blocks_with(window=5)}
OF = {
    "llama3": {
        **{f"{role} bias": without(f"{role}_bias") for role in ("q", "v", "o", "up", "gate", "down")},
        "a frequency": blocks_with(rope=one_frequency_off),
    },
    "llama_linear": {"factor": scaled_rope(4.0)},
    "llama_yarn": {
        "gain": blocks_with(rope=lambda kind: kind.rope._replace(gain=1.0)),
        "a frequency": blocks_with(rope=one_frequency_off),
    },
    "mistral": NO_WINDOW,
    "phi3": NO_WINDOW
    | {"whole head": blocks_with(rope=lambda kind: kind.rope._replace(frequencies=kind.rope.frequencies * 2))},
    "qwen2": NO_WINDOW | ALL_LOCAL | {"biases": without("q_bias", "v_bias"), "query bias": without("q_bias")},
    "qwen3": {"head norms": without("q_norm", "k_norm")},
    "gemma": {"embedding": arch_with(embedding_scale=1.0), "gate": blocks_with(gate=lambda kind: "silu")},
    "gemma2": NO_WINDOW
    | ALL_LOCAL
    | {
        "score cap": arch_with(attention_cap=0.0),
        "logit cap": arch_with(logit_cap=0.0),
        "post-norms": without("attention_post_norm", "glu_post_norm"),
        "scale": arch_with(attention_scale=12**-0.5),
    },
    "gemma3": NO_WINDOW
    | ALL_LOCAL
    | {
        "head norms": without("q_norm", "k_norm"),
        "one base": blocks_with(rope=lambda kind: loaded("gemma3").architecture.blocks[0].rope),
    },
    "granite": {
        name: arch_with(**{name: 1.0})
        for name in ("embedding_scale", "residual_scale", "logit_scale", "attention_scale")
    },
    "olmo2": {
        "norm before": arch_with(norms="both"),
        "head norms": weights_with(
            lambda weights: weights | {name: weights[name][:8] for name in ("q_norm", "k_norm")}
        ),
    },
    "smollm3": {"positions everywhere": blocks_with(rope=lambda kind: loaded("smollm3").architecture.blocks[0].rope)},
}
FAULTS = [(name, fault) for name in NAMES for fault in ALL | OF.get(name, {})]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_planted_fault_is_seen(name, fault):
    change = OF.get(name, {}).get(fault) or ALL[fault]
    broken = change(loaded(name))
    if name == "olmo2" and fault == "norm before":
        ones = jnp.ones(32)
        broken = weights_with(lambda weights: weights | {"attention_norm": ones, "glu_norm": ones})(broken)
    assert error_of(broken, name) > 10 * TOLERANCE


def test_gemmas_scale_is_one_more_than_its_weight(folder):
    path = folder("gemma")
    raw = load_file(path / "model.safetensors")["model.norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(load_pretrained(path).norm, raw + 1)


# How a config.json of transformers 4 says what one of 5 says.
def as_before_5(config):
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
    config["torch_dtype"] = "bfloat16"
    return config


@pytest.mark.parametrize("name", NAMES)
def test_configurations_of_older_files_say_the_same(name):
    config = json.loads((FIXTURES / name / "config.json").read_text())
    new, _ = make_architecture(config, "new")
    before, _ = make_architecture(as_before_5(json.loads(json.dumps(config))), "old")
    assert new == before


@pytest.mark.parametrize(
    ("name", "removed", "expected"),
    [
        (
            "llama2",
            ("rms_norm_eps", "num_key_value_heads", "head_dim", "hidden_act"),
            {"epsilon": 1e-6, "key_heads": 4},
        ),
        ("phi3", ("rms_norm_eps",), {"epsilon": 1e-5}),
        ("olmo2", ("rms_norm_eps",), {"epsilon": 1e-5}),
        ("gemma", ("head_dim",), {"head_width": 256}),
        ("qwen3", ("head_dim",), {"head_width": 128}),
        ("gemma2", ("attn_logit_softcapping",), {"attention_cap": 50.0}),
        ("gemma2", ("final_logit_softcapping",), {"logit_cap": 30.0}),
        ("mistral", ("sliding_window",), {"blocks": 4096}),
    ],
)
def test_what_a_file_leaves_out_is_the_familys_default(name, removed, expected):
    config = json.loads((FIXTURES / name / "config.json").read_text())
    for field in removed:
        del config[field]
    architecture, _ = make_architecture(config, "here")
    for field, value in expected.items():
        assert (architecture.blocks[0].window if field == "blocks" else getattr(architecture, field)) == value


def test_a_cap_that_is_null_is_none():
    config = json.loads((FIXTURES / "gemma2" / "config.json").read_text())
    config |= {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    architecture, _ = make_architecture(config, "here")
    assert architecture.attention_cap == architecture.logit_cap == 0


def test_windows_by_layer_without_layer_types():
    def windows(name, **fields):
        config = json.loads((FIXTURES / name / "config.json").read_text()) | {"num_hidden_layers": 7} | fields
        config.pop("layer_types", None)
        return [kind.window for kind in make_architecture(config, "here")[0].blocks]

    assert windows("gemma2") == [5, 0, 5, 0, 5, 0, 5]
    assert windows("gemma3") == [5, 5, 5, 5, 5, 0, 5]
    assert windows("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=3) == [0, 0, 0, 5, 5, 5, 5]
    assert windows("qwen2", use_sliding_window=False, sliding_window=5) == [0] * 7
    assert windows("mistral", sliding_window=None) == [0] * 7
    config = json.loads((FIXTURES / "smollm3" / "config.json").read_text()) | {"num_hidden_layers": 8}
    del config["no_rope_layers"], config["layer_types"]
    ropes = [kind.rope is not None for kind in make_architecture(config, "here")[0].blocks]
    assert ropes == [True, True, True, False] * 2


def test_gemma_of_old_files_says_gelu_and_means_tanh():
    config = json.loads((FIXTURES / "gemma" / "config.json").read_text()) | {
        "hidden_act": "gelu",
        "hidden_activation": None,
    }
    assert make_architecture(config, "here")[0].blocks[0].gate is gelu_tanh


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_shards_and_dtypes(folder, dtype):
    path = folder("mistral")
    arrays = {name: array.astype(dtype) for name, array in load_file(path / "model.safetensors").items()}
    (path / "model.safetensors").unlink()
    names = sorted(arrays)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: arrays[name] for name in own}, path / file)
    weight_map = {name: file for file, own in parts.items() for name in own}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    model = load_pretrained(path)
    assert model.embedding.dtype == jnp.float32
    assert error_of(model, "mistral") < (TOLERANCE if dtype != "bfloat16" else 0.5)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"names the shard model-00002-of-00002.safetensors, which is not there"):
        load_pretrained(path)


def change_config(path, **fields):
    config = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(config))


def change_array(path, name, change):
    arrays = load_file(path / "model.safetensors")
    array = change(arrays.pop(name)) if name in arrays else change(None)
    save_file(arrays | ({} if array is None else {name: array}), path / "model.safetensors")


NORM = "model.layers.1.input_layernorm.weight"
DAMAGE = {
    "config": (lambda path: (path / "config.json").unlink(), "has no config.json"),
    "json": (lambda path: (path / "config.json").write_text("{"), "config.json is damaged"),
    "list": (lambda path: (path / "config.json").write_text("[]"), "an object is needed"),
    "family": (
        lambda path: change_config(path, model_type="mixtral"),
        "model_type 'mixtral' is not supported: did you mean",
    ),
    "no family": (lambda path: change_config(path, model_type=None), "model_type None is not supported"),
    "size": (lambda path: change_config(path, hidden_size="many"), "hidden_size is 'many': a whole number"),
    "activation": (lambda path: change_config(path, hidden_act="mish"), "activation 'mish' is not supported"),
    "field": (lambda path: change_config(path, clip_qkv=8.0), "field 'clip_qkv' of a llama model is not known"),
    "rope": (
        lambda path: change_config(path, rope_parameters={"rope_type": "longrope"}),
        "rope type 'longrope' is not",
    ),
    "rope field": (
        lambda path: change_config(path, rope_parameters={"rope_type": "linear", "factor": 2, "x": 1}),
        "field 'x'",
    ),
    "rope factor": (lambda path: change_config(path, rope_parameters={"rope_type": "linear"}), "needs factor"),
    "quantised": (lambda path: change_config(path, quantization_config={"quant_method": "awq"}), "quantised .'awq'."),
    "heads": (lambda path: change_config(path, num_key_value_heads=3), "a multiple of num_key_value_heads"),
    "layer types": (lambda path: change_config(path, layer_types=["chunked"]), "layer_types has to say"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "has no .safetensors file"),
    "broken weights": (lambda path: (path / "model.safetensors").write_bytes(b"x" * 30), "cannot be read"),
    "missing": (
        lambda path: change_array(path, NORM, lambda _: None),
        f"has no array {NORM}, which a llama model needs",
    ),
    "shape": (lambda path: change_array(path, NORM, lambda array: array[:5]), r"has shape \(5,\): \(32,\) is needed"),
    "unknown": (
        lambda path: change_array(path, "lora.weight", lambda _: np.ones(3, "f4")),
        "has the array 'lora.weight'",
    ),
    "integers": (lambda path: change_array(path, NORM, lambda array: array.astype("i8")), "of dtype 'int64': float32"),
    "tokenizer": (lambda path: (path / "tokenizer.json").unlink(), "cannot read the tokenizer"),
    "broken tokenizer": (lambda path: (path / "tokenizer.json").write_text("{}"), "tokenizer.json is damaged"),
    "other tokenizer": (lambda path: write_tokenizer(path, 41), "has the token 40, and the model 40 tokens"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_named(folder, damage):
    path = folder("llama2")
    change, message = DAMAGE[damage]
    change(path)
    with pytest.raises(InputError, match=message):
        load_pretrained(path).block(1)


def test_a_path_that_leads_nowhere_and_a_hub_without_a_network(tmp_path):
    with pytest.raises(InputError, match=r"no such folder, and no .gguf file"):
        load_pretrained(tmp_path / "nothing")
    with pytest.raises(InputError, match="hf:nobody/nothing"):
        load_pretrained("hf:nobody/nothing")
