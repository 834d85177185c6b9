"""The language model: one step against its parts, on several devices, and what its loss keeps in memory."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sqs_jax.train import TextConfig, train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.layout import make_mesh
from sqs_jax.train.optimizer import make_optimizer
from sqs_jax.train.records import read_rows
from sqs_jax.train.step import first_state, parameters, with_parameters
from sqs_jax.train.text import language_model
from sqs_jax.train.text.token_stream import Stream, load_text, windows
from sqs_jax.transformer import Transformer, TransformerConfig
from tests.helpers import quiet

SIZES = {"vocab": 300, "context": 32, "width": 16, "layers": 2, "heads": 2, "steps": 25, "batch_size": 4}

SIZES |= {"evaluate_every": 10, "lr": 1e-2, "warmup": 2, "noise_std": 0.1}
CONFIG = TextConfig(**SIZES)


def test_a_text_that_can_be_learnt_by_heart_is(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("\n\n".join(["The quick brown fox jumps over the lazy dog, and then it goes home to sleep."] * 3))
    config = dataclasses.replace(CONFIG, data="text", text=str(path), steps=250, evaluate_every=250, noise_std=0.0)
    summary = train(dataclasses.replace(config, validation=1, test=1), tmp_path / "run", report=quiet)
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["train_loss"] > 0.05  # it was not known from the beginning
    assert summary["test"]["loss"] < 0.05
    assert summary["validation"]["loss"] < 0.05


def one_step(config, tokens):
    """The state after one step on these windows, and its loss."""
    model = language_model.make_model(config, 300)
    optimizer = make_optimizer(config, 25)
    stream = Stream(np.asarray(tokens, np.uint16), 1, 1)
    batch = windows(stream, config.context, np.arange(config.batch_size))
    return language_model.make_step(config, model, optimizer, make_mesh())(first_state(model, optimizer), *batch)


def test_accumulating_gradients_is_the_whole_batch():
    tokens = np.random.default_rng(0).integers(0, 300, 101)  # the last window is not full
    whole = dataclasses.replace(CONFIG, noise_std=0.0, warmup=0)
    state, loss = one_step(whole, tokens)
    parts, part_loss = one_step(dataclasses.replace(whole, accumulate=4), tokens)
    np.testing.assert_allclose(loss, part_loss, rtol=1e-6)
    first = jax.tree.leaves(parameters(language_model.make_model(whole, 300)))
    for before, a, b in zip(first, jax.tree.leaves(state.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # Adam's first step has the gradient's sign, even of a tiny one
        assert np.abs(a - before).max() > 1e-3


def test_padding_counts_for_nothing():
    config = dataclasses.replace(CONFIG, noise_std=0.0)
    tokens = np.random.default_rng(0).integers(0, 300, 101)
    _, loss = one_step(config, tokens)
    logits = language_model.make_model(config, 300)(jnp.asarray(np.pad(tokens, (0, 28))[None, :128].reshape(4, 32)))
    log_p = jax.nn.log_softmax(logits).reshape(128, 300)
    expected = -np.mean([log_p[i, tokens[i + 1]] for i in range(100)])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_noise_is_in_units_of_the_embedding(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 300, 129)
    losses = [float(one_step(dataclasses.replace(CONFIG, noise_std=std), tokens)[1]) for std in (0.0, 1e-6, 3.0)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert abs(losses[2] - losses[0]) > 1e-4


def test_weight_decay_is_for_matrices_alone():
    config = dataclasses.replace(CONFIG, weight_decay=10.0, warmup=0)
    params = parameters(language_model.make_model(config, 300))
    optimizer = make_optimizer(config, 25)
    zeros = jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), params)
    updates: dict = jax.jit(optimizer.update)(zeros, jax.jit(optimizer.init)(params), params)[0]  # pyright: ignore
    for name in ("qkv", "project", "down"):
        np.testing.assert_allclose(updates["blocks"][name], -0.1 * np.asarray(params["blocks"][name]), rtol=1e-5)
    for update in (updates["norm"], updates["blocks"]["glu_norm"], updates["blocks"]["attention_norm"]):
        assert not np.any(update)


def test_bfloat16_and_untied_embeddings_train(tmp_path):
    config = dataclasses.replace(
        CONFIG, dtype="bfloat16", tied=False, remat="block", steps=10, learnable=True, samples=0
    )
    summary = train(config, tmp_path / "run", report=quiet)
    assert summary["test"]["loss"] < math.log(300)
    assert {leaf.dtype for leaf in jax.tree.leaves(restore_params(tmp_path / "run" / "checkpoints"))} == {
        jnp.dtype("float32")
    }
    assert not (tmp_path / "run" / "samples.txt").exists()


def test_epochs_set_the_number_of_steps(tmp_path):
    text = load_text(CONFIG)
    count = -(-(len(text.train.tokens) - 1) // 32)
    config = dataclasses.replace(CONFIG, steps=0, epochs=1, batch_size=1024, evaluate_every=1000, samples=0)
    train(config, tmp_path / "run", report=quiet)
    last = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["step"] == -(-count // 1024)
    np.testing.assert_allclose(last["epoch"], last["step"] * 1024 / count, atol=1e-4)


def test_the_loss_of_a_large_vocabulary_keeps_one_part_of_the_logits():
    config = TransformerConfig(vocab=5000, context=64, layers=1, width=16, heads=2, hidden=16, dtype=jnp.bfloat16)
    network = Transformer(config, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (4, 65), 0, 5000)
    targets = jnp.where(jnp.arange(64)[None] < jnp.array([64, 60, 3, 1])[:, None], tokens[:, 1:], -1)

    def loss(params, limit):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(language_model, "_LOGITS", limit)
            model = with_parameters(network, params)
            return language_model.stream_loss(model, model.stream(model.embed(tokens[:, :-1])), targets)

    params = parameters(network)
    result = {limit: jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, limit) for limit in (2**30, 200_000)}
    (whole, gradient), (parts, parts_gradient) = result.values()
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(parts_gradient), strict=True):
        np.testing.assert_allclose(b, a, rtol=0.02, atol=0.02 * np.abs(a).max())  # sums of bfloat16 in another order
    logits = 4 * 4 * 64 * 5000
    taken = {
        limit: jax.jit(jax.grad(loss), static_argnums=1).lower(params, limit).compile().memory_analysis()
        for limit in (2**30, 200_000)
    }
    assert taken[2**30].temp_size_in_bytes > logits
    assert taken[200_000].temp_size_in_bytes < 0.6 * logits  # parts of 10 of 64 positions
