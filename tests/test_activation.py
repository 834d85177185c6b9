import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sqs_jax import GATES, sqs, sqs_slope

pytestmark = pytest.mark.usefixtures("strict_dtypes")

SHIFTS = st.sampled_from([0.0, 0.001, 0.01, 0.5, 3.0])
SHRINKS = st.sampled_from([0.0, 1e-3, 0.5, 1.0, 40.0])
EXPONENTS = st.sampled_from([1, 2, 3, 1.5])
FLOATS = st.floats(width=32, allow_nan=False, allow_subnormal=False)
INF = float("inf")

# Compiled once for each p and dtype: hypothesis calls them hundreds of times.
compiled_sqs = jax.jit(sqs, static_argnames="p")
compiled_slope = jax.jit(sqs_slope, static_argnames="p")
compiled_gradient = jax.jit(
    lambda point, p: jax.grad(lambda v: sqs(v[0], c=v[1], lam=v[2], p=p))(point), static_argnames="p"
)


def reference(x, c, lam, p):
    """The formula in float64, where |x| ≤ 3.4e38 cannot overflow for p ≤ 3, and its limits at ±inf."""
    x = np.asarray(x, np.float64)
    r = np.abs(x)
    with np.errstate(all="ignore"):
        value = (x - c * np.sign(x)) / (1 + lam * r**p)
        limit = INF if lam == 0 else 1 / lam if p == 1 else 0.0
        return np.where(np.isinf(x), np.sign(x) * limit, value)


def reference_slope(x, c, lam, p):
    """The slope in float64, its two terms of size r^p taken together: apart, they cancel."""
    r = np.abs(np.asarray(x, np.float64))
    with np.errstate(all="ignore"):
        power = np.where(r == 0, 1.0 if p == 1 else 0.0, r ** (p - 1))
        slope = (1 + lam * (1 - p) * r**p + c * lam * p * power) / (1 + lam * r**p) ** 2
    return np.where(np.isinf(r), 1.0 if lam == 0 else 0.0, slope)


@settings(deadline=None, max_examples=400)
@given(x=FLOATS, c=SHIFTS, lam=SHRINKS, p=EXPONENTS)
@example(x=0.0, c=0.01, lam=0.5, p=1)
@example(x=-0.0, c=0.01, lam=0.5, p=2)
@example(x=3e38, c=0.01, lam=40.0, p=1)
@example(x=-3e38, c=0.01, lam=1e-3, p=2)
@example(x=INF, c=3.0, lam=0.0, p=2)
@example(x=INF, c=0.01, lam=0.5, p=1)
@example(x=-INF, c=0.01, lam=0.5, p=1.5)
def test_value_and_slope_match_float64(x, c, lam, p):
    c32, lam32 = float(np.float32(c)), float(np.float32(lam))
    expected, slope = reference(x, c32, lam32, p), reference_slope(x, c32, lam32, p)
    # x - c cancels near c, and the slope's two terms near its zero: what is lost there is a rounding of the terms.
    # Results below the smallest normal number are flushed to 0.
    rounding = max(2**-23 * min(abs(x), c32), 1.2e-38)
    value = compiled_sqs(np.float32(x), c=c, lam=lam, p=p)
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=rounding)
    decay = 1 / (1 + lam * min(abs(float(x)), 1e100) ** p)
    cancelled = 1.2e-38 + (2e-6 * decay * (1 + c * lam * p) if p > 1 else 0)
    if lam and abs(float(x)) ** p > 3.3e38:  # r^p overflows before λr^p does: a slope below p / λr^p becomes 0
        cancelled += p / (lam * 3.3e38)
    np.testing.assert_allclose(compiled_slope(np.float32(x), c=c, lam=lam, p=p), slope, rtol=2e-6, atol=cancelled)
    assert compiled_sqs(np.float32(-x), c=c, lam=lam, p=p) == -value


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("p", [1, 2])
def test_special_points(dtype, p):
    def at(x):
        return np.asarray(sqs(jnp.asarray(x, dtype), p=p), np.float64)

    np.testing.assert_equal(at(0.0), 0.0)
    limit = 2.0 if p == 1 else 0.0
    np.testing.assert_array_equal(at([INF, -INF]), [limit, -limit])
    np.testing.assert_array_equal(np.signbit(at([INF, -INF])), [False, True])
    assert np.isnan(at(np.nan))
    assert np.isnan(np.asarray(sqs_slope(jnp.asarray(np.nan, dtype), p=p), np.float64))
    tiny = float(jnp.finfo(dtype).tiny)
    expected = reference(tiny, 0.01, 0.5, p)
    assert expected < -0.009
    np.testing.assert_allclose(at([tiny, -tiny]), [expected, -expected], rtol=float(jnp.finfo(dtype).eps))


def test_zeros_at_c_and_the_identity():
    assert sqs(jnp.float32(0.01), c=jnp.float32(0.01)) == 0
    x = jnp.linspace(-5, 5, 101)
    np.testing.assert_array_equal(sqs(x, c=0, lam=0), x)
    np.testing.assert_array_equal(sqs_slope(x, c=0, lam=0), jnp.ones_like(x))


@pytest.mark.parametrize("p", [1, 2, 3, 1.5])
def test_slope_at_zero_and_at_infinity(p):
    at_zero = 1 + 0.5 * 0.01 if p == 1 else 1.0
    np.testing.assert_allclose(sqs_slope(jnp.array([0.0, -0.0]), p=p), at_zero, rtol=1e-6)
    np.testing.assert_array_equal(sqs_slope(jnp.array([INF, -INF]), p=p), 0)


@settings(deadline=None, max_examples=50)
@given(x=st.floats(width=32, allow_nan=False), lam=st.sampled_from([0.1, 0.5, 2.0]))
def test_range_for_p_1(x, lam):
    assert abs(sqs(np.float32(x), lam=lam)) <= np.float32(1 / np.float32(lam))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_rounds_once(dtype):
    x = jnp.linspace(-20, 20, 4001).astype(dtype)
    exact = reference(np.asarray(x, np.float64), np.float32(0.01), np.float32(0.5), 1)
    error = np.abs(np.asarray(sqs(x), np.float64) - exact)
    assert sqs(x).dtype == dtype
    half_spacing = (
        np.maximum(float(jnp.finfo(dtype).eps) * np.abs(exact), float(jnp.finfo(dtype).smallest_subnormal)) / 2
    )
    assert np.all(error <= half_spacing * (1 + 1e-3))


def test_float64_is_float64():
    with jax.enable_x64(True):
        x = np.linspace(-9, 9, 400)
        value = sqs(x, p=1.5)
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, reference(x, 0.01, 0.5, 1.5), rtol=1e-14)
        np.testing.assert_allclose(sqs_slope(x, p=1.5), reference_slope(x, 0.01, 0.5, 1.5), rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    x=st.floats(-30, 30),
    c=st.floats(0.001, 2),
    lam=st.floats(0.01, 5),
    p=st.sampled_from([1, 1.5, 2, 3]),
)
def test_gradients_match_finite_differences(x, c, lam, p):
    assume(abs(x) > 1e-3)
    with jax.enable_x64(True):
        point = np.array([x, c, lam])
        gradient = compiled_gradient(point, p)
        for i, h in enumerate(1e-6 * np.eye(3)):
            (x1, c1, l1), (x0, c0, l0) = point + h, point - h
            difference = (reference(x1, c1, l1, p) - reference(x0, c0, l0, p)) / 2e-6
            np.testing.assert_allclose(gradient[i], difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_second_derivatives_match_finite_differences(p):
    with jax.enable_x64(True):
        f = functools.partial(sqs, c=0.3, lam=0.7, p=p)
        for x in (-4.0, -0.5, 0.2, 0.9, 1.1, 8.0):
            h = 1e-5
            difference = (reference_slope(x + h, 0.3, 0.7, p) - reference_slope(x - h, 0.3, 0.7, p)) / (2 * h)
            np.testing.assert_allclose(jax.hessian(f)(x), difference, rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(jax.grad(jax.grad(f))(x), difference, rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(jax.jvp(f, (x,), (1.0,))[1], reference_slope(x, 0.3, 0.7, p), rtol=1e-9)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_derivatives_are_finite_everywhere(p, lam):
    x = jnp.array([0.0, -0.0, 1e-30, 0.01, 1e10, 1e20, 3e38, INF, -INF])
    gradient = jax.vmap(jax.grad(lambda x: sqs(x, lam=lam, p=p)))(x)
    curvature = jax.vmap(jax.hessian(lambda x: sqs(x, lam=lam, p=p)))(x)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(curvature))
    assert np.isfinite(jax.grad(lambda c: sqs(x, c=c, lam=0.5, p=p)[:-2].sum())(0.1))


def test_transformations_agree_with_the_plain_call():
    x = jax.random.normal(jax.random.key(0), (5, 7))
    plain, slope = sqs(x), sqs_slope(x)
    np.testing.assert_allclose(jax.jit(sqs)(x), plain, rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(sqs)(x), plain)
    np.testing.assert_allclose(jax.vmap(lambda x, lam: sqs(x, lam=lam))(x, jnp.full(5, 0.5)), plain, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: jax.checkpoint(sqs)(x).sum())(x), slope, rtol=1e-6)
    scanned = jax.lax.scan(lambda carry, row: (carry + sqs(row), sqs(row)), jnp.zeros(7), x)
    np.testing.assert_allclose(scanned[1], plain, rtol=1e-6)
    through = jax.grad(lambda x: jax.lax.scan(lambda carry, row: (carry + sqs(row), None), jnp.zeros(7), x)[0].sum())
    np.testing.assert_allclose(through(x), slope, rtol=1e-6)
    assert sqs(jnp.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_reverse_mode_keeps_x_alone(dtype):
    x = jnp.linspace(-2, 2, 512).reshape(16, 32).astype(dtype)
    _, pullback = jax.vjp(sqs, x)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size > 1]
    assert {leaf.unsafe_buffer_pointer() for leaf in kept} == {kept[0].unsafe_buffer_pointer()}
    for leaf in kept:
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(leaf, x)


def test_parameters_may_be_arrays_of_each_unit():
    x, c = jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([0.0, 0.1, 0.4])
    columns = [sqs(x[:, i], c=float(c[i])) for i in range(3)]
    np.testing.assert_allclose(sqs(x, c=c), jnp.stack(columns, axis=1), rtol=1e-6)
    gradient = jax.grad(lambda c: sqs(x, c=c).sum())(c)
    assert gradient.shape == c.shape
    np.testing.assert_allclose(gradient, (-np.sign(x) / (1 + 0.5 * np.abs(x))).sum(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c": -0.1}, "`c` is -0.1"),
        ({"lam": -1}, "`lam` is -1"),
        ({"lam": INF}, "`lam` is inf"),
        ({"c": np.nan}, "`c` is nan"),
        ({"p": 0.5}, "`p` is 0.5"),
        ({"implementation": "cuda"}, "`implementation` is 'cuda'"),
        ({"c": jnp.ones(3)}, r"`c` has shape \(3,\)"),
    ],
)
def test_bad_parameters_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sqs(jnp.ones(2), **arguments)


@pytest.mark.parametrize("x", [jnp.arange(3), jnp.ones(2, complex), np.array([True])])
def test_other_dtypes_are_refused(x):
    with pytest.raises(TypeError, match="`x` has dtype"):
        sqs(x)


def test_the_exponent_is_no_array():
    with pytest.raises(TypeError, match="`p`"):
        sqs(jnp.ones(2), p=jnp.ones(()))


def exactly(x, c, lam, p):
    """Value, slope, ∂c and ∂λ of sqs by mpmath, with digits and exponents to spare."""
    x, c, lam = (mpmath.mpf(float(number)) for number in (x, c, lam))
    if mpmath.isinf(x):
        sign, at_0 = mpmath.sign(x), lam == 0
        return sign * (mpmath.inf if at_0 else 1 / lam if p == 1 else 0), mpmath.mpf(at_0), -sign * at_0, None
    r, sign = abs(x), mpmath.sign(x)
    decay = 1 + lam * r**p
    value = sign * (r - c) / decay
    below = mpmath.mpf(1) if p == 1 else r ** (p - 1)
    return value, (decay - (r - c) * lam * p * below) / decay**2, -sign / decay, -value * r**p / decay


LOGARITHMS = st.floats(-37.5, 38.4)


@settings(deadline=None, max_examples=300)
@given(
    size=st.one_of(LOGARITHMS, st.floats(-2, 2), st.sampled_from([-INF, INF])),
    sign=st.sampled_from([-1, 1]),
    c=st.one_of(st.just(-INF), st.just(-2.0), LOGARITHMS),
    lam=st.one_of(st.just(-INF), st.just(-0.3), LOGARITHMS),
    p=st.sampled_from([1, 1.5, 2, 2.7, 3, 7, 50]),
)
@example(size=38.4, sign=1, c=-2.0, lam=-37.5, p=3)
@example(size=INF, sign=-1, c=30.0, lam=38.4, p=1)
@example(size=1.4, sign=1, c=13.8, lam=34.1, p=1)
@example(size=20.7, sign=-1, c=12.2, lam=-34.5, p=2)
@example(size=-23.0, sign=-1, c=36.9, lam=-0.3, p=50)
@example(size=24.0, sign=-1, c=-INF, lam=22.0, p=1.5)  # r·λ^(1/p) overflows
def test_the_whole_range_of_parameters_is_exact(size, sign, c, lam, p):
    x, c, lam = (np.float32(min(10.0**power, 3.3e38) if power != INF else INF) for power in (size, c, lam))
    x = np.float32(sign) * x
    value, (_, in_c, in_lam) = compiled_sqs(x, c=c, lam=lam, p=p), compiled_gradient(jnp.array([x, c, lam]), p)
    assert_exact(x, c, lam, p, (value, compiled_slope(x, c=c, lam=lam, p=p), in_c, in_lam))


def assert_exact(x, c, lam, p, result):
    """Value, slope, ∂c and ∂λ, as far as they are there, are those of mpmath, but for what float32 has to lose."""
    with mpmath.workdps(60):
        exact, r = exactly(x, c, lam, p), mpmath.mpf(abs(float(x)))
        finite = np.isfinite(x)
        decay = 1 + mpmath.mpf(float(lam)) * r**p if finite else mpmath.inf
        # r - c cancels, terms of the slope do, and what is below 1.2e-38 is 0.
        lost = 2**-22 * min(r, mpmath.mpf(float(c))) / decay if finite else 0
        terms = (1 + float(c) * p * float(lam) * r ** (p - 1) / decay) / decay if finite and r else 1
        tiny = mpmath.mpf("2.4e-38")
        slopes = 5e-6 * p * terms + tiny * p * max(1, float(c)) * max(1, float(lam), 1 / r if r else 1)
        shrunk = lost * r**p / decay if finite else 0
        limits = (lost + tiny, slopes, tiny, shrunk + tiny * max(1, float(c)))
        for name, ours, truth, limit in zip(("value", "slope", "c", "lam"), result, exact, limits, strict=False):
            ours = float(ours)
            if truth is None or abs(truth) > mpmath.mpf("3.3e38"):
                assert not np.isnan(ours), name
            else:
                assert abs(ours - truth) <= 2e-6 * max(5, p) * abs(truth) + limit, (name, x, ours, truth)


@pytest.mark.parametrize(
    ("c", "lam", "p"),
    [
        (0.01, 0.5, 1),
        (0.0, 2.0**-30, 1),
        (2.0**30, 2.0**-30, 1),
        (2.0**30, 2.0**30, 1),
        (2.0**31, 2.0**31, 1),
        (1e10, 1e30, 1),  # a float32 has no number for their product
        (1e5, 1e35, 1),
        (0.01, 1e-50, 1),  # nor for this one
        (0.01, 1e-50, 2),
        (2.0**30, 2.0**30, 3),
        (1.0, 2.0**-30, 1.5),
        (0.3, 0.0, 2),
    ],
)
def test_plain_numbers_are_as_exact_as_arrays(c, lam, p):
    sizes = [1e-37, 1e-3, 0.01, 1.0, 5.0, 1e10, 2.0**89, 2.0**91, 1e30, 3e38, INF]
    x = np.array([0.0, *sizes, *(-size for size in sizes)], np.float32)
    values = jax.jit(lambda x: sqs(x, c=c, lam=lam, p=p))(x)
    slopes = jax.jit(jax.vmap(jax.grad(lambda x: sqs(x, c=c, lam=lam, p=p))))(x)
    for each, value, slope in zip(x, values, slopes, strict=True):
        assert_exact(each, np.float32(c), np.float32(lam), p, (value, slope))
    assert np.isnan(sqs(jnp.float32(jnp.nan), c=c, lam=lam, p=p))


@pytest.mark.parametrize("p", [1, 1.5, 2])
@pytest.mark.parametrize("point", [(1.5, 0.01, 0.5), (-0.3, 0.2, 2.0), (4.0, 0.0, 0.1)])
def test_reverse_over_reverse_is_forward_over_reverse(point, p):
    def value(v):
        return sqs(v[0], c=v[1], lam=v[2], p=p)

    gradient = jax.grad(value)
    forward = jax.jacfwd(gradient)(jnp.array(point))
    assert np.all(np.isfinite(forward))
    np.testing.assert_allclose(jax.jacrev(gradient)(jnp.array(point)), forward, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gate", ["gelu", "silu", "relu", "bilinear", "sqs"])
def test_gates_at_infinity_are_their_limits(gate):
    ends = jnp.array([-INF, -3.3e38, 3.3e38, INF])
    limits = {"bilinear": [-INF, -3.3e38, 3.3e38, INF], "sqs": [-2, -2, 2, 2]}.get(gate, [-0.0, -0.0, 3.3e38, INF])
    value = np.asarray(GATES[gate](ends))
    np.testing.assert_allclose(value, limits, rtol=1e-6)
    if gate in ("gelu", "silu"):
        assert np.signbit(value[:2]).all()
    slopes = {"bilinear": [1, 1, 1, 1], "sqs": [0, 0, 0, 0]}.get(gate, [0, 0, 1, 1])
    np.testing.assert_allclose(jax.vmap(jax.grad(GATES[gate]))(ends), slopes, atol=1e-30)
    assert np.isnan(GATES[gate](jnp.float32(jnp.nan)))
