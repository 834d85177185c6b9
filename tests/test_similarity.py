"""Measures of likeness on planted spectra, and the arms and intervals of a comparison."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from sqs_jax.analysis import similarity as measures
from sqs_jax.analysis.similarity import Reading, compare


def orthonormal(k, d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, k)))[0].T


def test_vectors_that_swap_ranks_are_matched():
    a = orthonormal(4, 20)
    b = -a[[1, 0, 2, 3]]
    np.testing.assert_allclose(measures.rank_cosines(a, b), [0, 0, 1, 1], atol=1e-12)
    np.testing.assert_allclose(measures.matched_cosines(a, b), 1)


def test_matching_is_one_to_one():
    # Both rows of a are nearest to the same row of b: one of them has to take the other.
    a = np.eye(3)[:2]
    b = np.stack([[1, 1, 0] / np.sqrt(2), [0, 0, 1.0]])
    np.testing.assert_allclose(np.sort(measures.matched_cosines(a, b)), [0, np.sqrt(0.5)], atol=1e-12)


def test_overlap_and_angles_of_planted_subspaces():
    # scipy's own angles, and one subspace turned in itself.
    a, b = orthonormal(3, 15), orthonormal(3, 15, seed=1)
    angles = measures.principal_angles(a, b)
    np.testing.assert_allclose(angles, np.sort(scipy.linalg.subspace_angles(a.T, b.T)), atol=1e-12)
    np.testing.assert_allclose(measures.subspace_overlap(a, b), np.mean(np.cos(angles) ** 2))
    assert measures.subspace_overlap(a, orthonormal(3, 3) @ a) == pytest.approx(1)


def test_chance_levels():
    pairs = [(orthonormal(10, 784, seed=i), orthonormal(10, 784, seed=1000 + i)) for i in range(30)]
    assert np.mean([measures.rank_cosines(*pair) for pair in pairs]) == pytest.approx(0.0285, abs=0.003)
    assert np.mean([measures.subspace_overlap(*pair) for pair in pairs]) == pytest.approx(10 / 784, abs=0.001)


def test_form_cosine_in_the_metric_of_the_data_is_that_of_gaussian_responses():
    rng = np.random.default_rng(0)
    a, b = (m + m.T for m in rng.normal(size=(2, 5, 5)))
    root = rng.normal(size=(5, 5))
    x = rng.normal(size=(400_000, 5)) @ root.T
    left, right = (np.einsum("ni,ij,nj->n", x, m, x) for m in (a, b))
    expected = np.mean(left * right) / np.sqrt(np.mean(left**2) * np.mean(right**2))
    assert measures.form_cosine(a, b, root @ root.T) == pytest.approx(expected, abs=0.01)
    assert measures.form_cosine(a, a) == pytest.approx(1)
    assert measures.form_cosine(a, -2 * a) == pytest.approx(-1)
    assert np.isnan(measures.form_cosine(a, 0 * b))


def planted(seed, noise, outputs=3, k=4, d=30):
    """A network whose forms are those of a common truth, and noise of its own seed."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).normal(size=(outputs, d, d))
    matrices = truth + noise * rng.normal(size=truth.shape)
    matrices = (matrices + matrices.transpose(0, 2, 1)) / 2
    values, columns = np.linalg.eigh(matrices)
    order = np.argsort(-np.abs(values), axis=1)[:, :k]
    vectors = np.take_along_axis(columns.transpose(0, 2, 1), order[:, :, None], axis=1)
    # The form of an output by its eigenvectors: w_h = v_h, read with the eigenvalue by that output alone.
    factors = columns.transpose(1, 0, 2).reshape(d, -1)
    return Reading(seed, vectors, factors, factors, scipy.linalg.block_diag(*values[:, :, None]))


def test_a_planted_comparison():
    a = [planted(seed, 0.05) for seed in range(5)]
    b = [planted(seed, 0.02) for seed in (3, 4, 5, 6, 7)]
    blank = [planted(seed, 1e6) for seed in range(5)]
    result = compare(a, b, blank, np.eye(30))
    angles = result["angle"]
    assert np.all(np.diff(angles["disjoint"]["mean"]) >= 0)
    assert angles["disjoint"]["mean"][0] < 0.3
    assert angles["random"]["mean"][0] > 0.5
    assert "fraction" not in angles
    for name in set(measures.MEASURES) - {"angle"}:
        arms = result[name]
        if name != "form_cosine" and name != "data_form_cosine":
            assert np.shape(arms["disjoint"]["mean"]) == (4,)
        first = {arm: np.ravel(values["mean"])[0] for arm, values in arms.items()}
        assert first["disjoint"] > 0.8
        assert first["ceiling"] >= first["disjoint"] - 0.02
        assert first["fraction"] == pytest.approx(first["disjoint"] / first["ceiling"])
        assert abs(first["classes"]) < 0.5
        assert abs(first["untrained"]) < 0.5
        for values in arms.values():
            assert np.all(np.array(values["low"]) <= np.array(values["mean"]) + 1e-12)
            assert np.all(np.array(values["mean"]) <= np.array(values["high"]) + 1e-12)
        assert ("random" in arms) == ("form" not in name)
    everything = measures.similarities(a[3], b[0], np.eye(30))  # seed 3 both
    other = measures.similarities(a[4], b[1], np.eye(30))
    shared = result["overlap"]["shared"]["mean"]
    np.testing.assert_allclose(shared, (everything["overlap"] + other["overlap"]) / 2)


def test_the_interval_covers_and_narrows_with_seeds():
    few, many = (
        compare([planted(s, 0.5) for s in range(n)], [planted(100 + s, 0.5) for s in range(n)], [], np.eye(30))
        for n in (4, 16)
    )
    truth = many["form_cosine"]["disjoint"]["mean"]
    arms = [result["form_cosine"]["disjoint"] for result in (few, many)]
    assert arms[1]["high"] - arms[1]["low"] < arms[0]["high"] - arms[0]["low"]
    assert few["form_cosine"]["disjoint"]["low"] - 0.02 <= truth <= few["form_cosine"]["disjoint"]["high"] + 0.02
    assert "shared" not in few["overlap"]
    assert "untrained" not in few["overlap"]


def test_forms_by_their_factors_are_the_matrices():
    rng = np.random.default_rng(0)
    d, outputs = 9, 3
    readings = []
    for h in (5, 7):
        w, v = rng.normal(size=(2, d, h))
        readings.append(Reading(h, np.stack([orthonormal(2, d)] * outputs), w, v, rng.normal(size=(h, outputs))))
    root = rng.normal(size=(d, d))
    result = measures.similarities(*readings, root @ root.T, [(0, 1), (2, 2)])
    matrices = [[(r.w * r.out[:, o] @ r.v.T + r.v * r.out[:, o] @ r.w.T) / 2 for o in range(outputs)] for r in readings]
    for name, metric in (("form_cosine", None), ("data_form_cosine", root @ root.T)):
        expected = [measures.form_cosine(matrices[0][i], matrices[1][j], metric) for i, j in ((0, 1), (2, 2))]
        np.testing.assert_allclose(result[name], np.mean(expected))


def test_an_arm_of_one_pair_has_no_interval_and_pairs_of_one_seed_are_drawn_as_pairs():
    b = [planted(seed, 0.3) for seed in (1, 2)]
    result = compare([planted(seed, 0.3) for seed in (0, 1)], b, [], np.eye(30))["form_cosine"]
    for arm in ("ceiling", "fraction", "shared"):
        assert result[arm]["mean"] is not None
        assert result[arm]["low"] is None
        assert result[arm]["high"] is None
    assert result["disjoint"]["low"] < result["disjoint"]["high"]
    seeds = range(5)
    a = [planted(seed, 0.8) for seed in seeds]
    b = [planted(seed + 50, 0.8)._replace(seed=seed) for seed in seeds]
    pairs = [measures.similarities(*pair, np.eye(30))["form_cosine"] for pair in zip(a, b, strict=True)]
    draws = np.random.default_rng(1).choice(pairs, size=(4000, 5)).mean(1)
    shared = compare(a, b, [], np.eye(30))["form_cosine"]["shared"]
    np.testing.assert_allclose([shared["low"], shared["high"]], np.percentile(draws, [2.5, 97.5]), atol=0.01)


def test_a_form_that_is_0_gives_no_number():
    a, b = [planted(0, 0.1)], [planted(1, 0.1), planted(2, 0.1)]
    a = [a[0]._replace(out=0 * a[0].out)]
    result = compare(a, b, [], np.eye(30))
    assert result["form_cosine"]["disjoint"]["mean"] is None
    assert result["overlap"]["disjoint"]["mean"] is not None


def test_one_network_beside_two_is_enough_and_less_is_named():
    result = compare([planted(0, 0.1)], [planted(1, 0.1), planted(2, 0.1)], [planted(0, 9)], np.eye(30))
    assert result["overlap"]["ceiling"]["mean"][0] > 0.5
    with pytest.raises(ValueError, match="`b` has 1 networks: 2 or more are needed"):
        compare([planted(0, 0.1)], [planted(1, 0.1)], [], np.eye(30))
    with pytest.raises(ValueError, match=r"`b` has the seeds \[1, 1\]"):
        compare([planted(0, 0.1)], [planted(1, 0.1)] * 2, [], np.eye(30))
    with pytest.raises(ValueError, match="eigenvectors of shapes"):
        compare([planted(0, 0.1, k=3)], [planted(1, 0.1), planted(2, 0.1)], [], np.eye(30))


def test_intervals_are_of_95_percent():
    samples = np.random.default_rng(0).permutation(np.linspace(0, 1, 4001))
    result = measures._summary(np.float64(0.5), samples)
    np.testing.assert_allclose((result["low"], result["high"]), (0.025, 0.975), atol=1e-6)


def test_the_null_of_classes_leaves_out_networks_of_one_seed():
    # Those of one seed are alike in all outputs, as networks that began as one may be; others are not.
    rng, k, d = np.random.default_rng(0), 2, 40
    readings = {}
    for seed in range(6):
        rows = orthonormal(k, d, seed=seed)
        factors = rng.normal(size=(d, 5))
        readings[seed] = Reading(seed, np.stack([rows] * 3), factors, factors, rng.normal(size=(5, 3)))
    a, b = [readings[seed] for seed in (0, 1, 2)], [readings[seed] for seed in (0, 1, 2)]
    result = compare(a, b, a, np.eye(d))["overlap"]
    assert result["shared"]["mean"][-1] == pytest.approx(1)
    rows = [readings[seed].vectors[0] for seed in range(3)]
    across = [measures.subspace_overlap(x, y) for x, y in itertools.permutations(rows, 2)]
    for arm in ("classes", "disjoint", "untrained"):
        assert result[arm]["mean"][-1] == pytest.approx(np.mean(across))
