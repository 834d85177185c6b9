"""The study of a layer: its figures are JSON whatever the layer and the samples are."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.analysis import GLUWeights
from sqs_jax.analysis.runs.load import Samples, drawn
from sqs_jax.analysis.runs.study import study
from sqs_jax.gates import get_gate


def study_of(weights, gate, labels, inputs=12):
    """The study of a layer on random inputs ≥ 0 with these labels, for training and for the test."""
    x = np.random.default_rng(0).uniform(size=(len(labels), inputs)).astype(np.float32)
    return study(weights, get_gate(gate), Samples(x, labels, x, labels))[0]


def random_weights(h=10, outputs=3):
    rng = np.random.default_rng(1)
    shapes = ((12, h), (12, h), (h, outputs))
    return GLUWeights(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))


@pytest.mark.parametrize("h", [10, 1])
def test_studies_of_small_layers_are_json(h):
    figures = study_of(random_weights(h), "sqs", np.arange(60) % 3)
    json.dumps(figures, allow_nan=False)
    assert figures["spectrum"]["pairs"] == min(12, 2 * h)
    assert figures["fidelity"]["joint"]["r2"] > figures["fidelity"]["identity"]["r2"]


def test_samples_that_are_sorted_by_class_change_little():
    # As the files of some data sets are: the first ones may all be of one class.
    labels = np.sort(np.arange(30_000) % 3)
    places = drawn(len(labels), 20_000)
    assert len(set(places)) == 20_000
    assert np.bincount(labels[places], minlength=3).min() > 6000
    np.testing.assert_array_equal(drawn(10, 20), np.arange(10))


def test_a_class_without_samples_and_a_network_without_an_answer_are_json():
    labels = np.arange(60) % 2
    figures = study_of(random_weights(), "sqs", labels)
    json.dumps(figures, allow_nan=False)
    assert figures["eigenvectors"]["selectivity"][2] == [None] * len(figures["eigenvectors"]["selectivity"][2])
    assert figures["eigenvectors"]["selectivity"][1][0] is not None
    dead = random_weights()
    figures = study_of(dead._replace(v=-jnp.abs(dead.v)), "relu", labels)
    json.dumps(figures, allow_nan=False)
    assert figures["fidelity"]["joint"]["r2"] is None
