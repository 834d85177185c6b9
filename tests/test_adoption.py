"""Adoption: what is fitted, trained and saved, against independent computations; runs that are killed, and resumed."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.analysis import layer_fit
from sqs_jax.analysis.calibration import bilinear_layer, calibrate, network_logits
from sqs_jax.analysis.language import glu_gate, mlp_weights
from sqs_jax.analysis.layer_fit import Samples
from sqs_jax.analysis.streams import layer_streams, losses
from sqs_jax.gates import GATES
from sqs_jax.messages import InputError
from sqs_jax.pretrained import decoder, load_pretrained
from sqs_jax.pretrained.saving import save_pretrained
from sqs_jax.pretrained.windows import next_tokens
from sqs_jax.train.adoption import network as parts
from sqs_jax.train.adoption.adoption_task import AdoptionTask, make_optimizer
from sqs_jax.train.adoption.distil import raw_numbers, starting_layer, with_sink_unit
from sqs_jax.train.config import AdoptConfig
from sqs_jax.train.step import TrainState
from tests.helpers import network, samples
from tests.test_families import NAMES, loaded, logits_of

ADOPTED = Path(__file__).parent / "pretrained" / "adopted"
TOKENS = np.random.default_rng(0).integers(3, 40, (2, 24))


def config_of(gate="bilinear", **fields):
    return AdoptConfig(model="m", text="t", gate=gate, **fields)


def own_glus(model, config):
    return parts.stacked_glus([parts.own_layer(model, layer, config) for layer in range(model.layers)])


@functools.cache
def random_adopted(name, gate):
    """A model of a family with another gate, every new number of it drawn at random."""
    import tempfile

    from tests.test_families import write_tokenizer

    model, config = loaded(name), config_of(gate)
    rng = np.random.default_rng(len(name))
    glus = own_glus(model, config)
    for role in sorted(glus):
        if role in ("up_bias", "gate_bias", "down_bias", "offset", "c_raw", "lam_raw"):
            glus[role] = jnp.asarray(0.3 * rng.normal(size=glus[role].shape), jnp.float32)
    adopted = parts.adopted_model(model, {"glu": glus}, config)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        from tokenizers import Tokenizer

        return dataclasses.replace(adopted, tokenizer=Tokenizer.from_file(f"{folder}/tokenizer.json"))


@pytest.mark.parametrize("gate", ["sqs", "bilinear", "own"])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_read_back_to_the_bit(name, gate, tmp_path):
    model = random_adopted(name, gate)
    save_pretrained(model, tmp_path / "saved")
    back = load_pretrained(tmp_path / "saved")
    assert back.architecture == dataclasses.replace(model.architecture)
    np.testing.assert_array_equal(logits_of(back, TOKENS), logits_of(model, TOKENS))


@pytest.mark.parametrize("name", sorted(path.name for path in ADOPTED.iterdir()))
def test_logits_are_those_of_pytorch(name):
    model = load_pretrained(ADOPTED / name)
    with np.load(ADOPTED / name / "logits.npz") as file:
        expected, tokens = file["logits"], file["tokens"]
    assert np.max(np.abs(logits_of(model, tokens) - expected)) < 1e-4 * expected.std()


@pytest.mark.parametrize("role", ["up_bias", "gate_bias", "down_bias", "offset", "c", "lam"])
def test_every_new_number_counts(role):
    model = load_pretrained(ADOPTED / "sqs_gemma3")
    changed = dataclasses.replace(
        model, block=lambda layer: model.block(layer) | {role: 1.1 * model.block(layer)[role] + 0.01}
    )
    with np.load(ADOPTED / "sqs_gemma3" / "logits.npz") as file:
        expected, tokens = file["logits"], file["tokens"]
    assert np.max(np.abs(logits_of(changed, tokens) - expected)) > 1e-3 * expected.std()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sqs", "is 'sqs'"),
        ({"gate": "tanh"}, "is {'gate': 'tanh'}"),
        ({"gate": "sqs", "p": 0.5}, "'p': 0.5"),
        ({"gate": "sqs", "c": 0.1}, "'c': 0.1"),
    ],
)
def test_a_gate_that_is_not_known_is_named(given, message, tmp_path):
    save_pretrained(random_adopted("llama2", "sqs"), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text()) | {"sqs_jax": given}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="sqs_jax is") as error:
        load_pretrained(tmp_path / "saved")
    assert message in str(error.value)


def test_what_other_programs_are_told():
    plain = random_adopted("llama2", "bilinear").config
    assert (plain["hidden_act"], plain["mlp_bias"]) == ("linear", True)
    for name, gate in (("llama2", "sqs"), ("qwen2", "bilinear")):
        assert random_adopted(name, gate).config["hidden_act"] == gate  # which no other program knows
    assert random_adopted("qwen2", "own").config["hidden_act"] == "sqs_jax"


def test_a_large_model_is_saved_in_shards(tmp_path, monkeypatch):
    from sqs_jax.pretrained import saving

    model = random_adopted("llama_linear", "sqs")
    monkeypatch.setattr(saving, "_SHARD", 40_000)
    save_pretrained(model, tmp_path / "saved")
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    np.testing.assert_array_equal(logits_of(load_pretrained(tmp_path / "saved"), TOKENS), logits_of(model, TOKENS))


def test_a_transformer_of_this_package_has_no_such_file(tmp_path):
    model = dataclasses.replace(loaded("llama2"), config=None)
    with pytest.raises(InputError, match="cannot be saved"):
        save_pretrained(model, tmp_path / "saved")
    assert not any(tmp_path.iterdir())


# What is fitted.


def planted(gate, count=6000, d=10, h=16):
    """A GLU and samples of it."""
    weights = network(d=d, h=h, outputs=d)
    x = samples(weights, count)
    return weights, x, np.array(network_logits(weights, jnp.asarray(x), GATES[gate]))


def planted_sinks(count=40):
    """A SiLU layer with one unit that is shut but at sinks, which it makes; and samples, the sinks first."""
    weights, x, _ = planted("silu")
    rng = np.random.default_rng(1)
    direction = np.linalg.qr(rng.normal(size=(10, 10)))[0][:, 0].astype(np.float32)
    x[:count] = 30 * direction + 0.3 * rng.normal(size=(count, 10))
    shut = jnp.zeros(16).at[3].set(-30.0)
    weights = weights._replace(
        w=weights.w.at[:, 3].set(2 * direction), v=weights.v.at[:, 3].set(2 * direction), v_bias=shut
    )
    y = np.array(network_logits(weights, jnp.asarray(x), GATES["silu"]))
    return weights, Samples(x[count:], y[count:], x[:count], y[:count])


def sink_error(layer, every):
    missed = np.linalg.norm(layer_fit.outputs_of(layer, every.sink_x) - every.sink_y, axis=1)
    return float(np.mean(missed / np.linalg.norm(every.sink_y, axis=1)))


def fitted(weights, x, y, gate, config, steps=400):
    every = Samples(x, y, x[:0], y[:0])
    start = starting_layer(weights, GATES[gate], every, config)
    settings = {"steps": steps, "batch_size": 256, "learning_rate": 3e-3, "seed": 0}
    return start, layer_fit.fit(start, every, (x[:500], y[:500]), **settings)


def test_a_bilinear_fit_starts_at_the_affine_gains_and_gets_nearer():
    weights, x, y = planted("silu")
    start, fit = fitted(weights, x, y, "silu", config_of("bilinear"))
    gains = calibrate(weights, x, "silu", method="output_affine")
    layer = bilinear_layer(weights, gains)
    expected = network_logits(layer, jnp.asarray(x), GATES["bilinear"])
    # Gains are those of the samples that are fitted on, up to single precision.
    apart = np.std(layer_fit.outputs_of(start, x) - np.asarray(expected)) / float(jnp.std(expected))
    assert apart < 0.05
    assert start.skip is None
    assert fit.r2 > fit.start_r2 + 0.01


def test_an_sqs_layer_is_its_own_start():
    weights, x, y = planted("sqs")
    start, _ = fitted(weights, x, y, "sqs", config_of("sqs"), steps=1)
    # The grid has no point for a scale of exactly 1: near is what it can be.
    assert layer_fit.r2(start, x, y) > 0.97


def test_sqs_with_an_offset_stands_for_silu_from_the_start():
    weights, x, y = planted("silu")
    start, fit = fitted(weights, x, y, "silu", config_of("sqs"))
    bare = layer_fit.r2(start._replace(offset=None), x, y)
    _, bilinear = fitted(weights, x, y, "silu", config_of("bilinear"))
    assert fit.start_r2 > bare + 0.2
    assert fit.r2 > bilinear.r2 + 0.05


@pytest.mark.parametrize("gate", ["sqs", "bilinear"])
def test_a_unit_for_sinks_makes_them_and_leaves_other_places(gate):
    weights, every = planted_sinks()
    assert np.min(np.sum(every.sink_y**2, axis=1)) > 100 * np.median(np.sum(every.y**2, axis=1))
    start = starting_layer(weights, GATES["silu"], every, config_of(gate))
    without = layer_fit.with_best_readout(start, every)
    own = layer_fit.with_best_readout(with_sink_unit(start, every, config_of(gate)), every)
    assert sink_error(own, every) < 0.1
    assert layer_fit.r2(own, every.x, every.y) > layer_fit.r2(start, every.x, every.y) - 0.02
    assert sink_error(without, every) > 2 * sink_error(own, every)


def test_the_best_readout_is_that_of_weighted_least_squares():
    weights, every = planted_sinks()
    start = starting_layer(weights, GATES["silu"], every, config_of("sqs"))
    layer = layer_fit.with_best_readout(start, every)
    units = [np.asarray(layer_fit.hidden(layer, jnp.asarray(part)), np.float64) for part in (every.x, every.sink_x)]
    spread = np.mean(np.sum((every.y - every.y.mean(0)) ** 2, axis=1))
    roots = [np.full(len(every.y), (len(every.y) * spread) ** -0.5)]
    roots.append(np.sqrt(0.1 / len(every.sink_y)) / np.linalg.norm(every.sink_y, axis=1))
    root = np.concatenate(roots)[:, None]
    left = np.pad(np.concatenate(units), ((0, 0), (0, 1)), constant_values=1) * root
    right = np.concatenate([every.y, every.sink_y]) * root
    best = np.sum((left @ np.linalg.lstsq(left, right)[0] - right) ** 2)
    given = np.concatenate([layer_fit.outputs_of(layer, every.x), layer_fit.outputs_of(layer, every.sink_x)])
    assert np.sum((given * root - right) ** 2) == pytest.approx(best, rel=1e-3)


def test_sinks_count_by_their_relative_error_while_a_layer_is_fitted():
    weights, every = planted_sinks()
    start = layer_fit.with_best_readout(
        with_sink_unit(starting_layer(weights, GATES["silu"], every, config_of("sqs")), every, config_of("sqs")), every
    )
    settings = {"steps": 200, "batch_size": 256, "learning_rate": 3e-4, "seed": 0}
    kept = layer_fit.fit(start, every, (every.x[:500], every.y[:500]), **settings)
    alone = every._replace(sink_x=every.sink_x[:0], sink_y=every.sink_y[:0])
    lost = layer_fit.fit(start, alone, (every.x[:500], every.y[:500]), **settings)
    assert sink_error(kept.layer, every) < sink_error(lost.layer, every)


def test_layers_are_fitted_on_the_stream_that_is_asked_for():
    """With layers that give nothing in the place of those before, the stream of the next one shows it."""
    model = loaded("llama2")
    glus = own_glus(model, config_of("bilinear"))
    silent = {name: part[0] for name, part in glus.items()} | {"down": jnp.zeros_like(glus["down"][0])}
    silent = parts.glu_weights(silent)

    def instead(layer):
        own = {name: part for name, part in model.block(layer).items() if name not in parts.GLU}
        return model.architecture.blocks[layer]._replace(gate="bilinear"), own | silent

    bare = dataclasses.replace(model, block=lambda layer: instead(layer)[1] if layer == 0 else model.block(layer))
    found = list(layer_streams(model, TOKENS, instead=instead))
    expected = list(layer_streams(bare, TOKENS))
    own = list(layer_streams(model, TOKENS))
    np.testing.assert_allclose(found[1].x, expected[1].x, atol=1e-5)
    assert np.abs(found[1].x - own[1].x).max() > 0.01


def test_streams_on_disk_are_those_in_memory(tmp_path):
    model = loaded("llama2")
    for kept, plain in zip(layer_streams(model, TOKENS, folder=tmp_path), layer_streams(model, TOKENS), strict=True):
        np.testing.assert_array_equal(kept.x, plain.x)
        np.testing.assert_array_equal(kept.y, plain.y)
        assert isinstance(kept.x.base, np.memmap)
    assert len(list(tmp_path.rglob("*.npy"))) == 6  # of two layers at most


# What is trained.


def loss_by_hand(model, windows, teacher=None, share=0.0):
    """The loss of a step in float64, from logits."""

    def log_probabilities(model):
        logits = logits_of(model, windows).astype(np.float64)[:, :-1]
        return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))

    own = log_probabilities(model)
    entropy = -np.mean(np.take_along_axis(own, windows[:, 1:, None], axis=-1))
    if teacher is None:
        return entropy
    taught = log_probabilities(teacher)
    return (1 - share) * entropy + share * np.mean(np.sum(np.exp(taught) * (taught - own), axis=-1))


def step_of(name, config, windows=TOKENS):
    """The state and the loss after a step, and the state before it."""
    model = loaded(name)
    rest = parts.rest_of(model)
    params = {"glu": own_glus(model, config)} | ({"rest": rest} if config.train == "all" else {})
    teacher = {"glu": own_glus(model, dataclasses.replace(config, gate="own"))} if config.teacher else {}
    frozen = parts.Frozen(rest, teacher) if config.train == "glu" else parts.Frozen({}, rest | teacher)
    optimizer = make_optimizer(config)
    before = jax.tree.map(np.asarray, params)
    state = TrainState(jax.tree.map(jnp.array, params), optimizer.init(params), jnp.zeros((), jnp.int32))
    state, loss = parts.make_step(model, config, optimizer)(state, frozen, jnp.asarray(windows))
    return state, float(loss), before


@pytest.mark.parametrize("name", ["llama2", "gemma2", "olmo2", "granite"])
@pytest.mark.parametrize("gate", ["sqs", "bilinear"])
def test_the_loss_of_a_step_is_that_of_the_logits(name, gate):
    config = config_of(gate, teacher=0.3, steps=10, warmup=0)
    _, loss, params = step_of(name, config)
    model = loaded(name)
    adopted = parts.adopted_model(model, params, config)
    expected = loss_by_hand(adopted, TOKENS, model, 0.3)
    assert loss == pytest.approx(expected, rel=2e-4)
    assert losses(adopted, (TOKENS, next_tokens(TOKENS)), [{}])[0] == pytest.approx(
        loss_by_hand(adopted, TOKENS), rel=2e-4
    )


def test_logits_in_parts_are_the_same_loss(monkeypatch):
    config = config_of("sqs", steps=10, warmup=0)
    state, loss, _ = step_of("llama2", config)
    monkeypatch.setattr(parts, "_LOGITS", 40 * 7)
    other, again, _ = step_of("llama2", config)
    assert again == pytest.approx(loss, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.params, other.params)


def test_accumulation_and_checkpoints_of_the_gradient_change_nothing():
    plain = config_of("sqs", steps=10, warmup=0, lr=1e-4)
    state, loss, _ = step_of("llama2", plain)
    for changed in ({"accumulate": 2}, {"remat": False}):
        other, again, _ = step_of("llama2", dataclasses.replace(plain, **changed))
        assert again == pytest.approx(loss, rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params, other.params)


def test_only_what_is_asked_for_is_trained():
    plain = config_of("sqs", steps=10, warmup=0, lr=1e-2, rest_lr=1e-3, learnable=False)
    state, _, before = step_of("llama2", plain)
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), state.params, before)
    assert moved["glu"]["up"] == pytest.approx(1e-2, rel=0.05)  # the first step of Adam is its learning rate
    assert moved["glu"]["c_raw"] == moved["glu"]["lam_raw"] == 0
    assert "rest" not in moved
    state, _, before = step_of("llama2", dataclasses.replace(plain, train="all", learnable=True))
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), state.params, before)
    assert moved["rest"]["embedding"] == pytest.approx(1e-3, rel=0.05)
    assert moved["glu"]["lam_raw"] > 0


def test_a_blend_goes_from_the_own_gate_to_the_new():
    model, config = loaded("llama2"), config_of("bilinear", stage="tune", steps=4, warmup=0, lr=1e-9, teacher=0.0)
    adopted = parts.adopted_model(model, {"glu": own_glus(model, config)}, config)
    old, new = loss_by_hand(model, TOKENS), loss_by_hand(adopted, TOKENS)
    assert step_of("llama2", dataclasses.replace(config, blend=1))[1] == pytest.approx(new, rel=1e-4)
    nearly_old = step_of("llama2", dataclasses.replace(config, blend=10_000))[1]
    assert nearly_old == pytest.approx(old, rel=1e-2)
    assert abs(nearly_old - old) < 0.1 * abs(new - old)


def test_bfloat16_is_near():
    plain = config_of("bilinear", steps=10, warmup=0)
    near = step_of("smollm3", dataclasses.replace(plain, dtype="bfloat16"))
    assert near[1] == pytest.approx(step_of("smollm3", plain)[1], rel=0.05)
    assert near[0].params["glu"]["up"].dtype == jnp.float32


def test_a_model_that_was_adopted_may_be_adopted_again():
    model, config = load_pretrained(ADOPTED / "sqs_llama"), config_of("own", stage="tune")
    again = parts.adopted_model(model, {"glu": own_glus(model, config)}, config)
    np.testing.assert_allclose(logits_of(again, TOKENS), logits_of(model, TOKENS), atol=1e-4)
    assert again.config["sqs_jax"]["gate"] == "sqs"
    assert glu_gate(model, 0).lam == pytest.approx(float(model.block(0)["lam"]))
    z = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    read = network_logits(mlp_weights(model, 0), jnp.asarray(z), glu_gate(model, 0))
    own = decoder.glu(model.architecture.blocks[0], model.block(0), jnp.asarray(z))
    np.testing.assert_allclose(read, own, atol=1e-4 * float(jnp.std(own)))


def test_numbers_before_softplus():
    raw = raw_numbers(config_of("sqs", c=0.02, lam=0.7))
    assert float(jax.nn.softplus(raw["c_raw"])) == pytest.approx(0.02, rel=1e-5)
    assert float(jax.nn.softplus(raw["lam_raw"])) == pytest.approx(0.7, rel=1e-5)
    assert float(jax.nn.softplus(raw_numbers(config_of("sqs", c=0.0))["c_raw"])) < 1e-40


def test_training_everything_leaves_the_original_as_it_is():
    """A step consumes its state: what is the original's must not be in it."""
    config = config_of("bilinear", train="all", steps=3, warmup=0)
    task = object.__new__(AdoptionTask)
    task._model, task._config, task._steps, task._optimizer = loaded("llama_linear"), config, 3, make_optimizer(config)
    state = task._first_state(task._layers(config))
    step = parts.make_step(task._model, config, task._optimizer)
    step(state, task._frozen_parts(), jnp.asarray(TOKENS))
    assert np.isfinite(logits_of(task._model, TOKENS)).all()
