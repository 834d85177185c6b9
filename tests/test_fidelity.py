"""Fidelity against numpy in float64: whole, cut down, layer after layer, and what an eigenpair is worth."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from sqs_jax.analysis import spectrum
from sqs_jax.analysis.calibration import METHODS, calibrate, calibrated
from sqs_jax.analysis.fidelity import ablation, deep_fidelity, fidelity, linear_share, network_parts, truncation
from tests.helpers import logits64, network, samples


def deep(gate, residual=False):
    """Three layers, their inputs in the network, and its logits in float64."""
    first = network(d=12, h=10, outputs=10, embed=8, biases=True)._replace(out=jnp.eye(10), out_bias=None)
    inner = network(d=10, h=10, outputs=10, seed=3)._replace(out=jnp.eye(10))
    last = network(d=10, h=10, outputs=4, seed=4)
    if residual:
        inner, last = inner._replace(skip=jnp.eye(10)), last._replace(skip=last.out)
    layers, inputs = [first, inner, last], [samples(first, 2000)]
    for layer in layers:
        inputs.append(logits64(layer, inputs[-1], gate)[0].astype(np.float32))
    return layers, inputs


@pytest.mark.parametrize("residual", [False, True])
def test_a_deep_network_is_replaced_layer_after_layer(residual):
    layers, inputs = deep("sqs", residual)
    result = [calibrate(layer, x, "sqs") for layer, x in zip(layers, inputs, strict=False)]
    x = samples(layers[0], 500, seed=2)
    y = h = x
    for layer, gains in zip(layers, result, strict=True):
        y = logits64(layer, y, "sqs")[0]
        scaled = layer._replace(w=np.asarray(layer.w) * np.asarray(gains.gain))
        if layer.w_bias is not None:
            scaled = scaled._replace(w_bias=np.asarray(layer.w_bias) * np.asarray(gains.gain))
        h = logits64(scaled, h, "bilinear")[0] + np.asarray(gains.offset, np.float64)
    labels = y.argmax(1)
    measured = deep_fidelity(layers, x, ["sqs"] * 3, calibrations=result, labels=labels)
    r2 = 1 - np.sum((y - h) ** 2) / np.sum((y - y.mean(0)) ** 2)
    np.testing.assert_allclose(measured.r2, r2, rtol=1e-4)
    assert measured.agreement == measured.accuracy == np.mean(h.argmax(1) == labels)
    assert measured.network_accuracy == 1


def test_a_deep_bilinear_network_is_its_own_quadratic_layers():
    layers, inputs = deep("bilinear")
    result = [calibrate(layer, x, "bilinear", method="identity") for layer, x in zip(layers, inputs, strict=False)]
    measured = deep_fidelity(layers, inputs[0], ["bilinear"] * 3, calibrations=result)
    assert measured.r2 > 1 - 1e-6


def test_of_one_layer_deep_fidelity_is_fidelity_and_lengths_must_agree():
    weights = network(biases=True)
    x, labels = samples(weights, 300), np.zeros(300, int)
    gains = calibrate(weights, x, "gelu")
    for deep_value, value in zip(
        deep_fidelity([weights], x, ["gelu"], calibrations=[gains], labels=labels),
        fidelity(weights, x, "gelu", calibration=gains, labels=labels),
        strict=True,
    ):
        np.testing.assert_allclose(deep_value, value, rtol=1e-6)
    with pytest.raises(ValueError, match="1, 0 and 1 entries"):
        deep_fidelity([weights], x, ["gelu"], calibrations=[])


@pytest.mark.parametrize("gate", ["sqs", "silu"])
def test_fidelity_is_what_numpy_finds_in_float64(gate):
    weights = network(biases=True)._replace(skip=jnp.tile(jnp.arange(4.0) / 10, (12, 1)))
    result = calibrate(weights, samples(weights), gate)
    x = samples(weights, 800, seed=5)
    labels = np.random.default_rng(0).integers(4, size=800)
    measured = fidelity(weights, x, gate, calibration=result, labels=labels)
    y, a, u, _ = logits64(weights, x.astype(np.float64), gate)
    linear = x @ np.asarray(weights.skip) + np.asarray(weights.out_bias)
    guess = (np.asarray(result.gain) * a * u) @ np.asarray(weights.out, np.float64) + linear + np.asarray(result.offset)
    p, q = log_softmax(y, axis=1), log_softmax(guess, axis=1)
    np.testing.assert_allclose(measured.r2, 1 - np.sum((y - guess) ** 2) / np.sum((y - y.mean(0)) ** 2), atol=1e-5)
    np.testing.assert_allclose(measured.kl, np.mean(np.sum(np.exp(p) * (p - q), 1)), rtol=1e-3)
    assert abs(measured.agreement - np.mean(y.argmax(1) == guess.argmax(1))) <= 2 / 800
    assert abs(measured.accuracy - np.mean(labels == guess.argmax(1))) <= 2 / 800
    assert abs(measured.network_accuracy - np.mean(labels == y.argmax(1))) <= 2 / 800
    explained = 1 - np.sum(((y - linear) - (y - linear).mean(0)) ** 2) / np.sum((y - y.mean(0)) ** 2)
    np.testing.assert_allclose(linear_share(weights, x, gate), explained, atol=1e-5)


def test_batches_that_can_be_read_once_are_as_good_as_an_array():
    weights, labels = network(), np.arange(300) % 4
    x, pairs = samples(weights, 300), spectrum(weights, count=3)
    result = calibrate(weights, x, "sqs")

    def measured(given):
        return (
            *fidelity(weights, given(), "sqs", calibration=result, labels=labels),
            *truncation(weights, given(), "sqs", pairs=pairs, calibration_x=given(), ks=[1, 3])[:3],  # pyright: ignore
            ablation(weights, given(), "sqs", pairs=pairs, labels=labels),
            linear_share(weights, given(), "sqs"),
        )

    for array, batches in zip(measured(lambda: x), measured(lambda: iter([x[:100], x[100:]])), strict=True):
        np.testing.assert_allclose(batches, array, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_the_network_in_parts_is_the_network_and_the_first_is_linear(residual):
    weights = network(biases=True, embed=9, seed=2)
    weights = weights._replace(skip=weights.out[:1] + jnp.ones((12, 1))) if residual else weights
    before, classes, slopes = network_parts(weights, "silu")
    x, masks = samples(weights, 500), np.random.default_rng(3).normal(size=(4, 9))
    for mask, slope in zip(masks, slopes(masks), strict=True):
        y = logits64(weights, x.astype(np.float64) + 2.5 * mask, "silu")[0]
        assert np.sum(classes(before(x) + np.float32(2.5) * slope) != y.argmax(1)) <= 1  # a near tie


@pytest.mark.parametrize("biases", [False, True])
def test_the_form_cut_down_to_all_its_pairs_is_the_form(biases):
    weights = network(biases=biases)
    x, other = samples(weights), samples(weights, 500, seed=3)
    labels = np.zeros(500, int)
    result = calibrate(weights, x, "sqs")
    pairs = spectrum(calibrated(weights, result))
    d = 12 + biases
    curve = truncation(weights, other, "sqs", pairs=pairs, calibration_x=x, labels=labels, ks=(1, 3, d))
    whole = fidelity(weights, other, "sqs", calibration=result, labels=labels)
    assert curve.r2.shape == (3,)
    np.testing.assert_allclose(curve.r2[-1], whole.r2, atol=1e-5)
    np.testing.assert_allclose(curve.kl[-1], whole.kl, rtol=1e-3, atol=1e-6)
    assert curve.r2[0] < curve.r2[1] < curve.r2[2]


def test_ablation_is_the_rise_of_the_loss():
    weights = network()
    x = samples(weights, 400)
    labels = np.random.default_rng(0).integers(4, size=400)
    pairs = spectrum(weights, count=3)
    rise = ablation(weights, x, "sqs", pairs=pairs, labels=labels)
    y = logits64(weights, x.astype(np.float64), "sqs")[0]

    def loss(logits):
        return -np.mean(log_softmax(logits, axis=1)[np.arange(400), labels])

    for o in range(4):
        for i in range(3):
            part = np.asarray(pairs.values)[o, i] * (x @ np.asarray(pairs.vectors)[o, i]) ** 2
            without = y.copy()
            without[:, o] -= part - part.mean()
            np.testing.assert_allclose(rise[o, i], loss(without) - loss(y), rtol=1e-3, atol=1e-4)


def test_bad_labels_and_ks_are_named():
    weights = network()
    x = samples(weights, 20)
    result = calibrate(weights, x, "sqs")
    with pytest.raises(ValueError, match="`x` has 0 samples"):
        fidelity(weights, x[:0], "sqs", calibration=result)
    with pytest.raises(ValueError, match=r"`labels` is float64\(20,\): whole numbers"):
        fidelity(weights, x, "sqs", calibration=result, labels=np.zeros(20))
    with pytest.raises(ValueError, match="`labels` has values from 0 to 4: 0 to 3 are needed"):
        fidelity(weights, x, "sqs", calibration=result, labels=np.arange(20) % 5)
    pairs = spectrum(weights, count=2)
    with pytest.raises(ValueError, match=r"`ks` is \(1, 3\): numbers from 1 to 2"):
        truncation(weights, x, "sqs", pairs=pairs, calibration_x=x, ks=(1, 3))


@pytest.mark.parametrize("value", [0, 3.3, -1e4])
@pytest.mark.parametrize("gate", ["sqs", "bilinear", "gelu"])
def test_constant_inputs_have_no_r2(gate, value):
    weights = network(biases=True)
    x = np.full((4100, 12), value, np.float32)
    for method in METHODS:
        result = calibrate(weights, x, gate, method=method)
        assert np.all(np.isnan(result.r2))
        assert np.all(np.isfinite(result.gain))
        assert np.isnan(fidelity(weights, x, gate, calibration=result).r2)


def test_without_labels_there_are_no_accuracies():
    weights, x = network(), samples(network(), 200)
    result = fidelity(weights, x, "sqs", calibration=calibrate(weights, x, "sqs"))
    assert np.isfinite([result.r2, result.kl, result.agreement]).all()
    assert np.isnan([result.accuracy, result.network_accuracy]).all()
    with pytest.raises(ValueError, match="`labels` is None"):
        ablation(weights, x, "sqs", pairs=spectrum(weights), labels=None)
