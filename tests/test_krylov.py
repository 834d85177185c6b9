"""The largest eigenpairs, found without forming a matrix: against scipy in float64, and against a planted spectrum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from sqs_jax.analysis import GLUWeights, NotConvergedError, krylov, spectrum, top_eigenpairs

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def decaying(d=300, h=260, outputs=5, seed=0, dtype=np.float32):
    """Weights whose forms have eigenvalues that fall off."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1)[:, None] ** -0.7
    w, v = (rng.normal(size=(d, h)) * scale for _ in range(2))
    out = rng.normal(size=(h, outputs)) / np.sqrt(h)
    return GLUWeights(*(jnp.asarray(array, dtype) for array in (w, v, out)))


def exact(weights, k):
    """The first k eigenpairs by |λ| of each output, by scipy in float64, vectors as rows."""
    w, v, out = (np.asarray(array, np.float64) for array in weights[:3])
    result = []
    for column in out.T:
        values, vectors = scipy.linalg.eigh((w * column @ v.T + v * column @ w.T) / 2)
        order = np.argsort(-np.abs(values))[:k]
        result.append((values[order], vectors[:, order].T))
    return (np.stack(part) for part in zip(*result, strict=True))


@pytest.mark.parametrize("method", ["krylov", "dense", "auto"])
def test_values_vectors_and_residuals_match_scipy(method):
    weights = decaying()
    pairs = top_eigenpairs(weights, 8, method=method, tol=1e-5)
    values, vectors = exact(weights, 8)
    scale = np.abs(values[:, :1])
    assert pairs.values.shape == (5, 8)
    assert pairs.vectors.shape == (5, 8, 300)
    np.testing.assert_allclose(pairs.values / scale, values / scale, atol=3e-6)
    assert np.all(pairs.residuals <= 1e-5 * scale)
    cosines = np.abs(np.sum(pairs.vectors * vectors, axis=2))
    np.testing.assert_allclose(cosines, 1, atol=1e-4)
    assert np.all(np.max(pairs.vectors, axis=2) == np.max(np.abs(pairs.vectors), axis=2))


def test_the_residuals_are_those_of_the_returned_vectors():
    weights = decaying()
    pairs = top_eigenpairs(weights, 6, method="krylov", tol=1e-3)
    w, v, out = (np.asarray(array, np.float64) for array in weights[:3])
    for o in range(5):
        matrix = (w * out[:, o] @ v.T + v * out[:, o] @ w.T) / 2
        vectors = np.asarray(pairs.vectors[o], np.float64)
        residuals = np.linalg.norm(vectors @ matrix - np.asarray(pairs.values[o])[:, None] * vectors, axis=1)
        np.testing.assert_allclose(pairs.residuals[o], residuals, atol=1e-5 * np.abs(pairs.values[o, 0]))


def test_float64_reaches_a_tolerance_that_float32_does_not():
    with jax.enable_x64(True):
        weights = decaying(dtype=np.float64)
        pairs = top_eigenpairs(weights, 4, method="krylov", tol=1e-11)
        values, _ = exact(weights, 4)
        np.testing.assert_allclose(pairs.values, values, rtol=1e-12)
    with pytest.raises(NotConvergedError, match=r"`tol` is 1e-11, and after .* largest residual is"):
        top_eigenpairs(decaying(), 4, method="krylov", tol=1e-11)


@pytest.mark.parametrize("method", ["krylov", "dense"])
def test_outputs_in_chunks_give_the_same(method):
    weights = decaying()
    whole = top_eigenpairs(weights, 6, method=method)
    for memory in (1, 900_000):
        chunked = top_eigenpairs(weights, 6, method=method, memory=memory)
        np.testing.assert_allclose(chunked.values, whole.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(chunked.vectors, whole.vectors, atol=2e-3)


def test_a_planted_spectrum_with_equal_eigenvalues():
    rng = np.random.default_rng(1)
    d, planted = 240, np.array([3.0, -2.0, 2.0, 1.0, 1.0, 1.0, 0.5])
    vectors = scipy.linalg.qr(rng.normal(size=(d, d)))[0][:, : len(planted)]
    columns = jnp.asarray(vectors, jnp.float32)
    weights = GLUWeights(columns, columns, jnp.asarray(np.stack([planted, -2 * planted], 1), jnp.float32))
    pairs = top_eigenpairs(weights, 7, method="krylov", tol=1e-5)
    np.testing.assert_allclose(np.abs(pairs.values), [np.abs(planted), 2 * np.abs(planted)], atol=2e-5)
    np.testing.assert_allclose(np.sort(pairs.values[0]), np.sort(planted), atol=1e-5)
    for output in range(2):
        span = np.asarray(pairs.vectors[output, 3:6])
        np.testing.assert_allclose(np.linalg.norm(span @ vectors[:, 3:6], ord="fro") ** 2, 3, atol=1e-4)
        np.testing.assert_allclose(pairs.vectors[output] @ pairs.vectors[output].T, np.eye(7), atol=1e-5)


def test_a_form_of_low_rank_and_one_that_is_zero():
    # The basis outgrows the rank: what is left must stay orthonormal and bring no eigenvalue of its own.
    weights = decaying(d=240, h=2, outputs=2)
    weights = weights._replace(out=weights.out.at[:, 1].set(0))
    pairs = top_eigenpairs(weights, 4, method="krylov", tol=1e-5)
    values, _ = exact(weights, 4)
    np.testing.assert_allclose(pairs.values, values, atol=1e-5 * np.abs(values).max())
    assert np.all(np.isfinite(pairs.vectors))
    assert np.all(pairs.values[1] == 0)


def test_a_flat_spectrum_converges_by_restarts_or_falls_back():
    rng = np.random.default_rng(0)
    w, v = (jnp.asarray(rng.normal(size=(400, 400)), jnp.float32) for _ in range(2))
    weights = GLUWeights(w, v, jnp.asarray(rng.normal(size=(400, 2)), jnp.float32))
    values, _ = exact(weights, 3)
    for method in ("krylov", "auto"):
        pairs = top_eigenpairs(weights, 3, method=method)
        np.testing.assert_allclose(pairs.values, values, rtol=1e-4)


def test_bases_biases_and_gain():
    rng = np.random.default_rng(0)
    weights = decaying(d=220, h=230)
    embed = jnp.asarray(rng.normal(size=(250, 220)) / 15, jnp.float32)
    gain = jnp.asarray(rng.uniform(0.5, 2, 230), jnp.float32)
    full = weights._replace(embed=embed, w_bias=weights.w[0], v_bias=weights.v[1])
    for basis, size in (("input", 251), ("hidden", 221)):
        dense = spectrum(full, basis=basis, gain=gain, count=5)
        krylov = top_eigenpairs(full, 5, basis=basis, gain=gain, method="krylov", tol=1e-5)
        assert krylov.vectors.shape == (5, 5, size)
        np.testing.assert_allclose(krylov.values, dense.values, rtol=1e-4, atol=1e-5)
    scaled = top_eigenpairs(full._replace(out=full.out * gain[:, None]), 5, method="krylov", tol=1e-5)
    np.testing.assert_allclose(scaled.values, spectrum(full, gain=gain, count=5).values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "`k` is 0: a number from 1 to 300"),
        ({"k": 301}, "`k` is 301: a number from 1 to 300, the rank"),
        ({"method": "lanczos"}, "`method` is 'lanczos'"),
        ({"tol": 0.0}, "`tol` is 0.0"),
        ({"memory": 0}, "`memory` is 0"),
        ({"basis": "pixels"}, "`basis` is 'pixels'"),
        ({"k": 200, "method": "krylov"}, "`method` 'krylov' needs d ≥ 416 for k = 200, and d is 300"),
        ({"gain": jnp.ones(3)}, r"`gain` has shape \(3,\): \(260,\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(decaying(), **arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value):
    weights = decaying()
    for method in ("krylov", "dense"):
        with pytest.raises(ValueError, match="`v` holds numbers that are NaN or infinite"):
            top_eigenpairs(weights._replace(v=weights.v.at[3, 4].set(value)), method=method)


@pytest.mark.parametrize("method", ["auto", "krylov"])
@pytest.mark.parametrize(("copies", "k"), [((10,), 10), ((3, 25), 20), ((1, 1, 9), 12)])
def test_copies_of_an_eigenvalue_beyond_the_block_are_found(method, copies, k):
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(256, 256)))[0]
    head = np.concatenate([np.full(count, 20.0 - 5 * i) * (-1) ** i for i, count in enumerate(copies)])
    values = np.concatenate([head, 3 * 0.97 ** np.arange(256 - len(head))])
    weights = GLUWeights(*(jnp.asarray(part, jnp.float32) for part in (q, q, values[:, None])))
    pairs = top_eigenpairs(weights, k, method=method)
    np.testing.assert_allclose(np.abs(pairs.values[0]), np.sort(np.abs(values))[::-1][:k], rtol=1e-4)
    np.testing.assert_allclose(pairs.vectors[0] @ pairs.vectors[0].T, np.eye(k), atol=1e-4)
    assert np.max(pairs.residuals) < 1e-3


@pytest.mark.parametrize("method", ["krylov", "dense", "auto"])
@pytest.mark.parametrize("scale", [1e-7, 1e-12, 1e9])
def test_small_and_large_weights_are_read_as_others(method, scale):
    weights = decaying(h=300)
    scaled = weights._replace(w=weights.w * scale, v=weights.v * scale, out=weights.out * scale)
    pairs, plain = top_eigenpairs(scaled, 4, method=method), top_eigenpairs(weights, 4, method=method)
    factor = np.float64(scale) ** 3
    np.testing.assert_allclose(np.asarray(pairs.values, np.float64) / factor, plain.values, rtol=1e-4)
    assert np.all(np.asarray(pairs.residuals, np.float64) > 0) or scale < 1e-10
    assert np.max(np.asarray(pairs.residuals, np.float64)) < 1e-3 * factor * np.max(np.abs(plain.values))


def test_under_transformations_the_dense_solver_answers():
    weights = decaying(outputs=2)
    plain = top_eigenpairs(weights, 3, method="dense")
    jitted = jax.jit(lambda weights: top_eigenpairs(weights, 3))(weights)
    np.testing.assert_allclose(jitted.values, plain.values, rtol=1e-4)
    many = jax.vmap(lambda out: top_eigenpairs(weights._replace(out=out), 3).values)(jnp.stack([weights.out] * 2))
    np.testing.assert_allclose(many[1], plain.values, rtol=1e-4)
    with pytest.raises(TypeError, match="`method` 'krylov' runs on the host"):
        jax.jit(lambda weights: top_eigenpairs(weights, 3, method="krylov"))(weights)


def test_outputs_that_have_converged_stay_as_they_are():
    rng = np.random.default_rng(0)
    basis = jnp.asarray(np.linalg.qr(rng.normal(size=(2, 30, 8)))[0].transpose(0, 2, 1), jnp.float32)
    draw = jnp.asarray(rng.normal(size=(2, 8, 8)), jnp.float32)
    state = krylov._State(
        basis=basis,
        images=basis,
        projected=draw + draw.transpose(0, 2, 1),
        block=basis[:, :4],
        size=jnp.int32(8),
        products=jnp.int32(8),
        values=jnp.full((2, 3), 7.0),
        vectors=jnp.full((2, 3, 30), 7.0),
        residuals=jnp.full((2, 3), 7.0),
    )
    result = krylov._look(state, 3, jnp.array([True, False]))
    for array in (result.values, result.vectors, result.residuals):
        np.testing.assert_array_equal(array[0], 7)
        assert np.all(np.asarray(array[1]) != 7)


def test_pairs_whose_rest_was_not_looked_through_do_not_count_as_found():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(256, 256)))[0]
    values = np.concatenate([np.full(60, 2.0), np.full(196, 1.9)])  # flat: 60 copies, four a start
    weights = GLUWeights(*(jnp.asarray(part, jnp.float32) for part in (q, q, values[:, None])))
    pairs = top_eigenpairs(weights, 20)
    np.testing.assert_allclose(pairs.values[0], 2, rtol=1e-4)  # by the dense solver, if not by Krylov
    result = krylov.krylov_eigenpairs(weights.w, weights.v, weights.out, jnp.arange(1), 20, 1e-4, 48)
    assert np.all(np.isinf(result[2])) or np.allclose(result[0], 2, rtol=1e-3)
