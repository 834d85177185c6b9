import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sqs_jax import generation
from sqs_jax.generation import Sampling, generate, stream
from sqs_jax.train.step import parameters, with_parameters
from sqs_jax.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(vocab=40, context=24, layers=2, width=16, heads=2, hidden=24)


@pytest.fixture(scope="module")
def model():
    """A network whose next token is not nearly uniform."""
    network = Transformer(CONFIG, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return with_parameters(
        network, jax.tree.map(lambda a: a + 0.3 * jax.random.normal(next(keys), a.shape), parameters(network))
    )


def test_one_token_after_the_other_gives_the_logits_of_the_whole(model):
    tokens = jax.random.randint(jax.random.key(2), (3, 24), 0, 40)
    whole = model(tokens)
    x, cache = model.prefill(tokens[:, :5])
    np.testing.assert_allclose(model.logits(x), whole[:, :5], atol=1e-5)
    for i in range(5, 24):
        logits, cache = model.decode(tokens[:, i], jnp.full(3, i, jnp.int32), cache)
        np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)


def greedy(model, prompt, count):
    """The likeliest continuation, the whole text read anew for each token; what stands behind it changes nothing."""
    tokens, read = list(prompt), jax.jit(model)
    for _ in range(count):
        padded = np.pad(np.array(tokens, np.int32), (0, 24 - len(tokens)))
        tokens.append(int(np.asarray(read(padded[None]))[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_rows_of_different_lengths_are_those_of_each_prompt_alone(model):
    prompts = [[1], [2, 3, 4, 5, 6], [7, 8, 9]]
    result = generate(model, prompts, tokens=12, sampling=Sampling(temperature=0))
    assert result == [greedy(model, prompt, 12) for prompt in prompts]
    assert len({tuple(row) for row in result}) == 3


def test_a_row_ends_at_the_end_of_the_context(model):
    result = generate(model, [[1], [2] * 20], sampling=Sampling(temperature=0))
    assert [len(row) for row in result] == [23, 4]
    assert result[1] == greedy(model, [2] * 20, 4)


def test_a_stop_token_ends_its_row_alone(model):
    whole = generate(model, [[1], [2]], seed=3, tokens=20)
    stop = next(token for token in whole[0][3:] if token not in whole[0][:3])
    result = generate(model, [[1], [2]], seed=3, tokens=20, stop=stop)
    assert result[0] == whole[0][: whole[0].index(stop)]
    assert result[1] == (whole[1][: whole[1].index(stop)] if stop in whole[1] else whole[1])


def test_a_row_depends_on_the_seed_its_place_and_nothing_else(model):
    alone = generate(model, [[1, 2]], seed=5, tokens=20)
    assert generate(model, [[1, 2], [9]], seed=5, tokens=10)[0] == alone[0][:10]
    pieces = list(stream(model, [[1, 2]], seed=5, tokens=20, chunk=7))
    assert [len(piece[0]) for piece in pieces] == [7, 7, 6]
    assert [token for piece in pieces for token in piece[0]] == alone[0]
    rows = generate(model, [[1, 2]] * 8, seed=5, tokens=20)
    assert len({tuple(row) for row in rows}) == 8
    assert generate(model, [[1, 2]], seed=6, tokens=20) != alone


def shares(model, sampling, prompt=(1, 2), rows=4000):
    """How often each next token is drawn."""
    drawn = generate(model, [list(prompt)] * rows, tokens=1, sampling=sampling)
    return np.bincount(np.array(drawn)[:, 0], minlength=40) / rows


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_they_are_likely(model, temperature):
    expected = jax.nn.softmax(model(jnp.array([[1, 2]]))[0, -1] / temperature)
    result = shares(model, Sampling(temperature=temperature))
    # Five standard deviations of a share of 4000 draws.
    np.testing.assert_array_less(np.abs(result - expected), 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-3)


def test_top_k_and_top_p_leave_out_the_rest_and_keep_proportions(model):
    p = np.asarray(jax.nn.softmax(model(jnp.array([[1, 2]]))[0, -1]), np.float64)
    order = np.argsort(-p)
    three = np.where(np.isin(np.arange(40), order[:3]), p, 0) / p[order[:3]].sum()
    np.testing.assert_allclose(shares(model, Sampling(top_k=3)), three, atol=0.04)
    limit = 0.6
    count = int(np.searchsorted(np.cumsum(p[order]), limit)) + 1  # the least whose sum reaches it
    assert 1 < count < 40
    nucleus = np.where(np.isin(np.arange(40), order[:count]), p, 0) / p[order[:count]].sum()
    result = shares(model, Sampling(top_p=limit))
    np.testing.assert_array_equal(result > 0, nucleus > 0)
    np.testing.assert_allclose(result, nucleus, atol=0.04)
    assert shares(model, Sampling(top_p=1e-6), rows=50)[order[0]] == 1


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 3}])
def test_a_tiny_temperature_takes_the_likeliest(model, settings):
    cold = generate(model, [[1, 2]], tokens=12, sampling=Sampling(temperature=1e-37, **settings))
    assert cold == generate(model, [[1, 2]], tokens=12, sampling=Sampling(temperature=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "`temperature` is -1.0"),
        ({"temperature": float("inf")}, "`temperature` is inf"),
        ({"top_k": -1}, "`top_k` is -1"),
        ({"top_k": 2**31}, "`top_k` is 2147483648"),
        ({"top_k": 2.5}, "`top_k` is 2.5"),
        ({"top_p": 0.0}, "`top_p` is 0.0: a number from 1e-37 to 1"),
        ({"top_p": 1.5}, "`top_p` is 1.5"),
    ],
)
def test_sampling_out_of_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Sampling(), **change)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "`prompts` has an empty one"),
        ([[1], []], {}, "`prompts` has an empty one"),
        ([[1] * 24], {}, "`prompts` has one of 24 tokens: fewer than the context, 24"),
        ([[40]], {}, "`tokens` has values from 40 to 40: 0 to 39"),
        ([[1], [2**40]], {}, "`tokens` has values from 1099511627776"),
        ([[1.9]], {}, "`tokens` has dtype float32: integers are needed"),
        (["12"], {}, "`tokens` has"),
        ([[1]], {"tokens": 0}, "`tokens` is 0"),
        ([[1]], {"stop": 999}, "`stop` is 999: a token from 0 to 39"),
        ([[1]], {"seed": 2**31}, "`seed` is 2147483648"),
    ],
)
def test_prompts_that_do_not_fit_are_named(model, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, **settings)


def test_the_temperature_decides_how_many_tokens_top_p_takes():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.1, 0.06, 0.04]))

    def taken(temperature, top_p=0.7):
        settings = (jnp.float32(temperature), jnp.int32(0), jnp.float32(top_p))
        return int(generation._allowed(logits, settings).sum())

    assert [taken(temperature) for temperature in (0.2, 1.0, 1e30)] == [1, 2, 4]


@pytest.mark.parametrize("temperature", [1e-37, 1e-6, 1.0, 1e37])
@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 1e-37}, {"top_p": 1e-9}, {"top_k": 3, "top_p": 0.5}])
def test_no_temperature_brings_an_excluded_token_back(temperature, settings):
    logits = jnp.array([0.0, 5.0, -1e30, 4.9, -3.0, 4.8, -jnp.inf])
    sampling = Sampling(temperature=temperature, **settings)
    numbers = (jnp.float32(sampling.temperature), jnp.int32(sampling.top_k), jnp.float32(sampling.top_p))
    allowed = np.flatnonzero(generation._allowed(logits, numbers))
    assert 1 <= len(allowed) <= settings.get("top_k", 1)
    keys = jax.random.split(jax.random.key(0), 300)
    drawn = jax.vmap(lambda key: generation._draw(key, jnp.int32(3), logits, numbers))(keys)
    assert set(np.asarray(drawn).tolist()) <= set(allowed.tolist())
