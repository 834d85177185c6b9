"""Derivatives of eigenpairs: against finite differences in float64, and what has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax.analysis import GLUWeights, effective_rank, eigenpairs, extremes, interaction_matrices, spectrum


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def layer(d, h, outputs, embed=0, bias=False, seed=0):
    rng = np.random.default_rng(seed)
    draw = rng.normal
    weights = GLUWeights(*(draw(size=shape) for shape in ((d, h), (d, h), (h, outputs))))
    weights = weights._replace(embed=draw(size=(embed, d)) if embed else None)
    if bias:
        weights = weights._replace(w_bias=draw(size=h), v_bias=draw(size=h))
    return jax.tree.map(jnp.asarray, weights)


def test_where_w_and_v_share_a_column(float64):
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    v[:, 0] = w[:, 0]
    result = jax.grad(lambda w: spectrum(GLUWeights(w, jnp.asarray(v), jnp.ones((3, 1)))).values[0, 0])(jnp.asarray(w))
    pairs = spectrum(GLUWeights(jnp.asarray(w), jnp.asarray(v), jnp.ones((3, 1))))
    q = np.asarray(pairs.vectors[0, 0])
    np.testing.assert_allclose(result, q[:, None] * (q @ v)[None], atol=1e-10)  # dλ/dw_h = q (q·v_h) P_h


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"embed": 0}, {"count": 3}),
        ({"embed": 12}, {"count": 5}),
        ({"embed": 12, "bias": True}, {"count": 2}),
        ({"embed": 5}, {"count": 3}),
        ({"embed": 12, "bias": True}, {"basis": "hidden"}),
        ({"embed": 0}, {}),
        ({"embed": 40, "h": 2}, {"count": 4}),
    ],
)
def test_forward_and_reverse_match_finite_differences(shape, options, float64):
    weights = layer(6, shape.get("h", 4), 2, embed=shape["embed"], bias=shape.get("bias", False))
    rng, gain = np.random.default_rng(1), np.random.default_rng(2).random(weights.w.shape[1]) + 0.5
    primals = jax.tree.map(np.asarray, (weights, gain))
    tangents = jax.tree.map(lambda array: rng.normal(size=array.shape), primals)

    def pairs(weights, gain):
        result = spectrum(weights, gain=gain, **options)
        return result.values, result.vectors

    step = 1e-6
    plus, minus = (pairs(*jax.tree.map(lambda a, t, s=s: a + s * t, primals, tangents)) for s in (step, -step))
    result = jax.jit(lambda *both: jax.jvp(pairs, *both)[1])(primals, tangents)
    for exact, high, low in zip(result, plus, minus, strict=True):
        np.testing.assert_allclose(exact, (high - low) / (2 * step), rtol=1e-4, atol=1e-6)
    cotangent = tuple(rng.normal(size=array.shape) for array in result)
    pulled = jax.jit(lambda primals, change: jax.vjp(pairs, *primals)[1](change))(primals, cotangent)
    left = sum(np.sum(np.asarray(a) * b) for a, b in zip(result, cotangent, strict=True))
    right = sum(np.sum(np.asarray(a) * b) for a, b in zip(*map(jax.tree.leaves, (pulled, tangents)), strict=True))
    np.testing.assert_allclose(left, right, rtol=1e-9)


def test_second_derivatives_and_batches(float64):
    weights = layer(6, 4, 2)

    def value(t):
        return spectrum(weights._replace(w=weights.w * t**2)).values[0, 0]  # t²·λ

    first = spectrum(weights).values[0, 0]
    np.testing.assert_allclose(jax.jit(jax.hessian(value))(1.5), 2 * first, rtol=1e-9)
    batch = jax.jit(jax.vmap(jax.grad(value)))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(batch, [2 * first, 4 * first], rtol=1e-9)
    np.testing.assert_allclose(jax.grad(value)(2.0), 4 * first, rtol=1e-9)


def test_a_dead_hidden_unit_has_finite_derivatives(float64):
    weights = layer(12, 4, 2, embed=30)
    weights = weights._replace(w=weights.w.at[:, 1].set(0), v=weights.v.at[:, 1].set(0))
    result = jax.jit(jax.grad(lambda weights: spectrum(weights, count=3).values.sum()))(weights)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result))


def test_an_eigenvector_has_no_derivative_where_eigenvalues_coincide(float64):
    rng = np.random.default_rng(0)
    q = jnp.asarray(np.linalg.qr(rng.normal(size=(5, 5)))[0])
    weights = GLUWeights(q, q, jnp.array([[3.0], [2.0], [2.0], [1.0], [0.5]]))
    step = jax.tree.map(jnp.ones_like, weights)
    _, change = jax.jvp(lambda weights: spectrum(weights).vectors, (weights,), (step,))
    assert np.isnan(change[0]).all(axis=1).tolist() == [False, True, True, False, False]
    assert np.isfinite(change[0, [0, 3, 4]]).all()

    def gradient(row):
        return jax.jit(jax.grad(lambda weights: spectrum(weights).vectors[0, row].sum()))(weights)

    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(0)))
    assert np.isnan(gradient(1).w).any()
    # The eigenvalues themselves have one, but each alone no more than their sum has.
    total = jax.grad(lambda weights: spectrum(weights).values[0, 1:3].sum())(weights).out
    np.testing.assert_allclose(total, [[0], [1], [1], [0], [0]], atol=1e-9)


def test_an_eigenvector_of_0_has_no_derivative_beside_a_null_space(float64):
    weights = layer(12, 2, 1)
    weights = weights._replace(v=weights.v.at[:, 0].set(weights.w[:, 0]))  # of rank 3: the fourth eigenvalue is 0
    step = jax.tree.map(jnp.ones_like, weights)
    pairs, change = jax.jvp(lambda weights: spectrum(weights, count=4), (weights,), (step,))
    assert abs(pairs.values[0, 3]) < 1e-9 * abs(pairs.values[0, 0])
    assert np.isnan(change.vectors[0]).all(axis=1).tolist() == [False, False, False, True]


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.complex64])
def test_what_is_no_real_number_is_refused(dtype):
    arrays = [jnp.ones(shape, dtype) for shape in ((4, 3), (4, 3), (3, 2))]
    for call in (interaction_matrices, spectrum):
        with pytest.raises(ValueError, match=r"`w` has dtype .*: a real floating-point dtype is needed"):
            call(GLUWeights(*arrays))
    with pytest.raises(ValueError, match="`matrices` has dtype"):
        eigenpairs(jnp.ones((1, 3, 3), dtype))


def test_a_gain_is_an_array_and_16_bits_are_widened():
    weights = GLUWeights(*(jnp.ones(shape, jnp.float16) for shape in ((4, 3), (4, 3), (3, 2))))
    with pytest.raises(ValueError, match=r"`gain` is 1\.0: an array is needed"):
        spectrum(weights, gain=1.0)  # pyright: ignore
    assert spectrum(weights).values.dtype == jnp.float32
    assert eigenpairs(jnp.eye(3, dtype=jnp.float16)[None]).values.dtype == jnp.float32
    with pytest.raises(ValueError, match="`count` is 0"):
        extremes(spectrum(weights), 0)


@pytest.mark.parametrize("kind", ["participation", "entropy"])
def test_effective_ranks_over_the_whole_range(kind):
    def rank(*values):
        return float(effective_rank(jnp.array(values, jnp.float32), kind))

    for scale in (1e-30, 1.0, 1e38):
        np.testing.assert_allclose(rank(scale, -scale, scale), 3, rtol=1e-5)
        np.testing.assert_allclose(rank(scale, 3 * scale), rank(1, 3), rtol=1e-5)
    assert rank(0, 0) == 0
    assert np.isnan(rank(np.nan, 1))
