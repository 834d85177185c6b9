"""A few eigenpairs of dense interaction matrices, against numpy's eigh of the whole matrix in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.analysis import GLUWeights, eigen, top_eigenpairs
from sqs_jax.analysis.lapack import extreme_eigenpairs


def layer(d, h, outputs, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in ((d, h), (d, h), (h, outputs))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize(("d", "k"), [(1, 1), (2, 2), (3, 2), (7, 7), (40, 5), (41, 40)])
def test_the_largest_pairs_in_size(d, k, dtype, tolerance):
    w, v, out = layer(d, 9, 3, dtype)
    values, vectors, residuals = extreme_eigenpairs(w, v, out, k)
    assert values.dtype == vectors.dtype == dtype
    for o in range(3):
        product = (w.astype(np.float64) * out[:, o]) @ v.T.astype(np.float64)
        expected = np.linalg.eigvalsh((product + product.T) / 2)
        expected = expected[np.argsort(-np.abs(expected), kind="stable")][:k]
        size = np.abs(expected[0])
        np.testing.assert_allclose(values[o], expected, atol=10 * tolerance * size)
        np.testing.assert_allclose(vectors[o] @ vectors[o].T, np.eye(k), atol=10 * tolerance)
        images = vectors[o] @ ((product + product.T) / 2)
        np.testing.assert_allclose(images, values[o][:, None] * vectors[o], atol=20 * tolerance * size)
        assert np.all(residuals[o] < 20 * tolerance * size)


def test_the_matrices_of_the_caller_stay_as_they_are():
    w, v, out = layer(30, 9, 4, np.float32)
    copies = [part.copy() for part in (w, v, out)]
    extreme_eigenpairs(w, v, out, 3)
    for part, copy in zip((w, v, out), copies, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is for CPUs")
@pytest.mark.parametrize("biases", [False, True])
def test_auto_takes_it_for_moderate_sizes_with_the_same_answer(biases, monkeypatch):
    w, v, out = (jnp.asarray(part) for part in layer(210, 250, 3, np.float32))
    weights = GLUWeights(w, v, 1e-3 * out)
    if biases:
        weights = weights._replace(v_bias=jnp.ones(250))
    gain = jnp.linspace(0.5, 2, 250)
    called = []
    monkeypatch.setattr(eigen, "extreme_eigenpairs", lambda *args: called.append(1) or extreme_eigenpairs(*args))
    pairs = top_eigenpairs(weights, 4, gain=gain)
    assert called
    dense = top_eigenpairs(weights, 4, gain=gain, method="dense")
    np.testing.assert_allclose(pairs.values, dense.values, rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(pairs.vectors * dense.vectors, axis=2)), 1, atol=1e-3)


def test_only_outputs_that_did_not_converge_are_solved_densely(monkeypatch):
    w, v, out = (jnp.asarray(part) for part in layer(240, 260, 2, np.float32))
    monkeypatch.setattr(eigen, "_MOST_FOR_LAPACK", 0)
    krylov = eigen._krylov

    def of_which_one_fails(*args, **options):
        pairs = krylov(*args, **options)
        return pairs._replace(values=pairs.values.at[1].set(7), residuals=pairs.residuals.at[1].set(jnp.inf))

    monkeypatch.setattr(eigen, "_krylov", of_which_one_fails)
    solved = []

    def count(*args):
        solved.append(args[2].shape[1])
        return extreme_eigenpairs(*args)

    monkeypatch.setattr(eigen, "extreme_eigenpairs", count)
    weights = GLUWeights(w, v, out)
    pairs = top_eigenpairs(weights, 4)
    dense = top_eigenpairs(weights, 4, method="dense")
    np.testing.assert_allclose(pairs.values, dense.values, rtol=1e-3, atol=1e-3 * float(jnp.max(dense.values)))
    assert solved == [1]
