"""Surrogates: exact where the layer is bilinear, better than its start where it is not, and the same over seeds."""

import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.analysis import GLUWeights, interaction_matrices
from sqs_jax.analysis.calibration import layer_outputs, network_logits
from sqs_jax.analysis.fidelity import r_squared
from sqs_jax.analysis.surrogate import fit_surrogate, form_cosines
from sqs_jax.gates import GATES
from tests.helpers import network, samples


def r2(weights, x, layer, gate):
    y = np.asarray(network_logits(weights, jnp.asarray(x), GATES[gate]), np.float64)
    return float(r_squared(y, y - np.asarray(layer_outputs(layer, jnp.asarray(x)))))


@pytest.mark.parametrize("biases", [False, True])
def test_a_bilinear_layer_is_its_own_surrogate(biases):
    weights = network(biases=biases)
    result = fit_surrogate(weights, samples(weights, 600), "bilinear", steps=8)
    assert result.r2 > 1 - 1e-6
    np.testing.assert_allclose(result.form_cosine, 1, atol=1e-5)
    assert r2(weights, samples(weights, 300, seed=3), result.weights, "bilinear") > 1 - 1e-6


def test_a_gated_layer_is_read_better_than_by_gains_and_on_samples_that_were_never_seen():
    # About a mean far from 0 the layer is nearly quadratic, in a way that no gain of its own products says.
    weights = network(d=12, h=16)
    x = 0.4 * samples(weights, 8000) + 1.5
    result = fit_surrogate(weights, x[:6000], "silu", steps=400)
    unseen = r2(weights, x[6000:], result.weights, "silu")
    assert unseen > result.start_r2 + 0.3 * (1 - result.start_r2)
    np.testing.assert_allclose(unseen, result.r2, atol=0.05)
    assert 0 < result.steps <= 400


def test_more_width_is_never_worse_at_the_start_and_better_in_the_end():
    weights = network(d=12, h=24)
    x = samples(weights, 4000)
    narrow = weights._replace(w=weights.w[:, :6], v=weights.v[:, :6], out=weights.out[:6])
    own = fit_surrogate(weights, x, "bilinear", start=narrow, steps=300)
    wide = fit_surrogate(weights, x, "bilinear", start=narrow, steps=300, width=24)
    assert wide.weights.w.shape == (12, 24)
    assert wide.start_r2 == pytest.approx(own.start_r2, abs=1e-5)
    assert wide.r2 > own.r2 + 0.05


def test_a_start_that_is_given_is_where_the_fit_begins():
    # The layer is bilinear: from itself nothing is left to fit, while a strange start has to be left behind.
    weights = network()
    x = samples(weights, 2000)
    itself = fit_surrogate(weights, x, "bilinear", start=weights, steps=8, learning_rate=1e-9)
    np.testing.assert_allclose([itself.start_r2, itself.r2], 1, atol=1e-6)
    np.testing.assert_allclose(itself.form_cosine, 1, atol=1e-5)
    other = fit_surrogate(weights, x, "bilinear", start=network(seed=1, h=14), steps=8, learning_rate=1e-9)
    assert other.start_r2 < 0.2
    assert other.weights.w.shape == (12, 14)


def test_the_best_step_is_kept():
    weights = network(d=12, h=16)
    x = samples(weights, 400)
    result = fit_surrogate(weights, x, "silu", steps=64, learning_rate=30.0)  # far too large
    assert (result.steps, result.r2) == (0, result.start_r2)


def test_the_cosine_of_forms_is_that_of_the_matrices():
    a, b = network(seed=0), network(seed=1)
    rng = np.random.default_rng(0)
    root = rng.normal(size=(12, 12))
    metric = root @ root.T
    left, right = (np.asarray(interaction_matrices(part), np.float64) for part in (a, b))

    def inner(x, y):
        return np.array([np.trace(p @ metric @ q @ metric) for p, q in zip(x, y, strict=True)])

    expected = inner(left, right) / np.sqrt(inner(left, left) * inner(right, right))
    np.testing.assert_allclose(form_cosines(a, b, jnp.asarray(metric, jnp.float32)), expected, atol=1e-4)
    np.testing.assert_allclose(form_cosines(a, a, jnp.asarray(metric, jnp.float32)), 1, atol=1e-5)


def test_a_planted_sample_of_noise_does_not_pass_for_signal():
    # A layer whose gate is even has no quadratic part that stands for it: a reading must say so.
    weights = network(d=12, h=16)
    result = fit_surrogate(weights, samples(weights, 3000), lambda u: jnp.cos(7 * u), steps=100)
    assert result.r2 < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((30, 11))}, r"`x` has shape \(30, 11\): \(n, 12\)"),
        ({"x": np.ones((5, 12))}, "`x` has 5 samples"),
        ({"x": np.full((30, 12), np.nan)}, "not finite"),
        ({"width": 3}, "`width` is 3: 10, that of the start, or more"),
        ({"steps": 0}, "`steps` is 0"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0"),
        ({"weights": network(embed=9)}, "`weights` has an embedding"),
        ({"start": network(d=11)}, "`start` has 11 inputs and 4 outputs, .* 12 inputs and 4 outputs without"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"weights": network(), "x": samples(network(), 40), "gate": "silu", "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        fit_surrogate(arguments.pop("weights"), arguments.pop("x"), arguments.pop("gate"), **arguments)


def test_weights_of_a_surrogate_are_a_layer_like_any_other():
    weights = network()
    result = fit_surrogate(weights, samples(weights, 500), "gelu", steps=20).weights
    assert isinstance(result, GLUWeights)
    x = samples(weights, 50, seed=4).astype(np.float64)
    point = np.pad(x, ((0, 0), (0, 1)), constant_values=1)
    form = np.einsum("ni,oij,nj->no", point, np.asarray(interaction_matrices(result), np.float64), point)
    linear = x @ np.asarray(result.skip, np.float64) + np.asarray(result.out_bias)
    np.testing.assert_allclose(layer_outputs(result, jnp.asarray(x, jnp.float32)), form + linear, rtol=1e-3, atol=1e-3)
