"""Figures of what eigenvectors show, on data where the answer is known."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics import roc_auc_score

from sqs_jax.analysis import interpret


def classes(n=600, d=12, seed=0):
    """Samples of three classes: the class moves along its own axis."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    x = 0.3 * rng.normal(size=(n, d))
    x[np.arange(n), labels] += 2
    return x, labels


def test_template_correlation_of_the_template_is_1():
    x, labels = classes()
    vectors = np.stack([[x[labels == o].mean(0) - x.mean(0), np.eye(12)[11]] for o in range(3)])
    result = interpret.template_correlations(vectors, x, labels)
    np.testing.assert_allclose(result[:, 0], 1)
    assert np.all(result[:, 1] < 0.6)
    assert np.isnan(interpret.template_correlations(vectors, x[labels != 1], labels[labels != 1])[1, 0])


def test_smoothness_of_shapes_and_of_noise():
    rng = np.random.default_rng(0)
    row = np.sin(np.linspace(0, 3, 28))
    images = np.stack([np.outer(row, row), rng.normal(size=(28, 28)), np.ones((28, 28))])
    smooth, noise, constant = interpret.smoothness(images)
    assert smooth < 0.2
    assert noise == pytest.approx(1, abs=0.05)
    assert np.isnan(constant)


def test_selectivity_is_the_area_under_the_curve():
    x, labels = classes()
    vectors = np.random.default_rng(1).normal(size=(3, 2, 12))
    vectors[:, 0] = np.eye(12)[:3]
    result = interpret.selectivity(vectors, x, labels)
    for o in range(3):
        for i in range(2):
            assert result[o, i] == pytest.approx(roc_auc_score(labels == o, (x @ vectors[o, i]) ** 2))
    assert np.all(result[:, 0] > 0.95)
    assert np.all(np.isnan(interpret.selectivity(vectors, x[labels == 0], labels[labels == 0])))


def test_the_most_activating_samples():
    x = np.diag([1.0, -3.0, 2.0])
    result = interpret.most_activating(np.array([[[1.0, 1.0, 1.0], [0, 0, 1.0]]]), x, 2)
    np.testing.assert_array_equal(result, [[[1, 2], [2, 0]]])


def test_a_mask_moves_its_own_response_and_no_other():
    vectors = np.random.default_rng(0).normal(size=(4, 20))
    masks = interpret.adversarial_masks(vectors)
    responses = masks @ vectors.T
    np.testing.assert_allclose(responses - np.diag(np.diag(responses)), 0, atol=1e-12)
    assert np.all(np.diag(responses) > 0)
    np.testing.assert_allclose(np.linalg.norm(masks, axis=1), 1)


def test_success_of_a_mask_of_either_sign():
    x, labels = classes()
    predict = lambda x: x[:, :3].argmax(1)  # noqa: E731
    masks = np.eye(12)[:3] * np.array([[1], [-1], [1]])
    result = interpret.mask_success(predict, masks, x, labels, (0.0, 1.0, 5.0))
    assert np.all(result[:, 0] < 0.02)
    assert np.all(result[:, 2] > 0.98)
    useless = interpret.mask_success(predict, np.eye(12)[9:], x, labels, (0.0, 5.0))
    assert np.all(useless < 0.02)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4))
    b = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4)) + 1
    cov = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov[0] @ cov[1]).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov[0] + cov[1] - 2 * root)
    assert interpret.frechet_distance(a, b) == pytest.approx(expected)
    assert interpret.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert interpret.frechet_distance(a, a + 3) == pytest.approx(36)
    with pytest.raises(ValueError, match="1 and 200 samples"):
        interpret.frechet_distance(a[:1], b)


def test_reconstructions_from_the_directions_of_the_class_are_nearer_than_random_ones():
    x, labels = classes()
    features = interpret.train_features(x, labels, width=16)
    assert features(x).shape == (600, 16)
    assert np.all(features(x) >= 0)
    np.testing.assert_array_equal(features(x), interpret.train_features(x, labels, width=16)(x))
    vectors = np.stack([np.eye(12)[[o, 5]] for o in range(3)])
    result = interpret.reconstruction_distances(vectors, features, x, labels, x, labels)
    assert np.all(result["eigenvectors"] < result["random"])
    whole = interpret.reconstruction_distances(np.stack([np.eye(12)] * 3), features, x, labels, x, labels)
    np.testing.assert_allclose(whole["eigenvectors"], 0, atol=1e-8)
