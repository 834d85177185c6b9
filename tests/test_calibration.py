"""Gains and fidelity: closed forms against Monte Carlo and numpy's least squares, exactness where theory says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sqs_jax import GATES, SQS
from sqs_jax.analysis import GLUWeights, calibration, interaction_matrices, spectrum
from sqs_jax.analysis.calibration import METHODS, bilinear_layer, calibrate, calibrated, layer_outputs
from sqs_jax.analysis.fidelity import fidelity
from sqs_jax.analysis.gains import gaussian_gains
from tests.helpers import logits64, network, samples


@pytest.mark.parametrize("embed", [0, 9])
@pytest.mark.parametrize("method", METHODS)
def test_bilinear_networks_are_read_exactly(method, embed):
    weights = network(embed=embed)
    result = calibrate(weights, samples(weights), "bilinear", method=method)
    np.testing.assert_allclose(result.gain, 1, atol=2e-3)
    np.testing.assert_allclose(result.r2, 1, atol=1e-5)
    labels = np.zeros(500, int)
    exact = fidelity(weights, samples(weights, 500, seed=2), "bilinear", calibration=result, labels=labels)
    np.testing.assert_allclose(exact.r2, 1, atol=1e-5)
    assert exact.kl < 1e-4
    assert exact.agreement == 1


@pytest.mark.parametrize("gate", ["sqs", "relu", "gelu", "silu"])
def test_each_gain_is_its_least_squares(gate):
    weights = network()
    x = samples(weights)
    y, a, u, s = logits64(weights, x.astype(np.float64), gate)
    bussgang = [np.linalg.lstsq(u[:, [h]], s[:, h], rcond=None)[0][0] for h in range(10)]
    output = [np.linalg.lstsq((a * u)[:, [h]], (a * s)[:, h], rcond=None)[0][0] for h in range(10)]
    ones = np.ones(len(x))
    units = [np.stack([a[:, h] * u[:, h], a[:, h], ones], axis=1) for h in range(10)]
    affine = np.array([np.linalg.lstsq(unit, (a * s)[:, h], rcond=None)[0] for h, unit in enumerate(units)])
    result = calibrate(weights, x, gate, method="output_affine")
    np.testing.assert_allclose(result.gain, affine[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.linear, affine[:, 1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(calibrate(weights, x, gate, method="bussgang").gain, bussgang, rtol=1e-4)
    np.testing.assert_allclose(calibrate(weights, x, gate, method="output").gain, output, rtol=1e-4)
    # All outputs one under the other: unknown are the gains and a constant for each output.
    out = np.asarray(weights.out, np.float64)
    design = np.concatenate([np.hstack([a * u * out[:, o], np.tile(np.eye(4)[o], (len(x), 1))]) for o in range(4)])
    solution = np.linalg.lstsq(design, y.T.ravel(), rcond=None)[0]
    joint = calibrate(weights, x, gate, method="joint", ridge=0)
    np.testing.assert_allclose(joint.gain, solution[:10], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(joint.offset, solution[10:], rtol=1e-3, atol=1e-3)
    linear = np.concatenate([np.hstack([x * (i == o) for i in range(4)]) for o in range(4)])
    solution = np.linalg.lstsq(np.hstack([design[:, :10], linear, design[:, 10:]]), y.T.ravel(), rcond=None)[0]
    joint = calibrate(weights, x, gate, method="joint_affine", ridge=0)
    np.testing.assert_allclose(joint.gain, solution[:10], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(joint.linear_map, solution[10:58].reshape(4, 12).T, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(joint.offset, solution[58:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("gate", ["sqs", "relu", "gelu", "silu"])
def test_joint_is_the_best_on_its_calibration_set_and_r2_is_what_it_says(gate):
    weights = network()
    x = samples(weights)
    y = logits64(weights, x.astype(np.float64), gate)[0]
    total = np.sum((y - y.mean(0)) ** 2, axis=0)
    left = {}
    for method in METHODS:
        result = calibrate(weights, x, gate, method=method)
        matrices = interaction_matrices(calibrated(weights, result))
        z = np.pad(x.astype(np.float64), ((0, 0), (0, matrices.shape[1] - 12)), constant_values=1)
        form = np.einsum("ni,oij,nj->no", z, matrices, z)
        residual = y - form - np.asarray(result.offset)
        np.testing.assert_allclose(result.r2, 1 - np.sum((residual - residual.mean(0)) ** 2, axis=0) / total, atol=1e-4)
        left[method] = np.sum(residual**2)
    linear = ("output_affine", "joint_affine", "gaussian")
    assert left["joint"] <= min(value for name, value in left.items() if name not in linear) * (1 + 1e-5)
    assert left["joint_affine"] <= min(left["joint"], left["output_affine"]) * (1 + 1e-5)
    assert left["joint"] < 0.98 * left["identity"]
    if gate != "sqs":  # an odd gate has no linear term to speak of
        assert left["joint_affine"] < 0.8 * left["joint"]


@pytest.mark.parametrize("gate", ["sqs", "relu", "gelu", "silu"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.7, -0.9), (-1.5, 2.0)])
def test_the_gaussian_form_against_monte_carlo(gate, scale, shift):
    # The best quadratic form in (a, u), by least squares over many draws of a pair with correlation 0.6.
    rng = np.random.default_rng(0)
    t = rng.normal(size=1_000_000)
    a = (0.6 * t + 0.8 * rng.normal(size=len(t))) * 2 * scale + shift[0] * scale
    u = (t + shift[1]) * scale
    target = a * np.asarray(GATES[gate](jnp.asarray(u, jnp.float32)), np.float64)
    design = np.stack([a * u, u * u, a * scale, u * scale, a * a, np.full_like(u, scale**2)], axis=1) / scale**2
    solution = np.linalg.lstsq(design, target, rcond=None)[0] / scale**2
    moments = (shift[1] * scale, scale**2, shift[0] * scale, 1.2 * scale**2)
    result = np.concatenate(gaussian_gains(gate, *(np.array([moment]) for moment in moments))[:4])
    expected = solution[:4] * [1, 1, scale, scale]
    size = np.max(np.abs(solution))
    np.testing.assert_allclose(result / [1, 1, scale, scale], expected / [1, 1, scale, scale], atol=0.03 * size + 1e-3)
    np.testing.assert_allclose(solution[4], 0, atol=0.02 * size + 1e-3)


def test_the_gain_of_sqs_near_0_counts_the_jump():
    # E[u σ(u)] / s² at s = 0.1 by adaptive quadrature, far from the mean slope that autodiff would give.
    from scipy.integrate import quad

    gate, s = SQS(), 0.1
    density = lambda u: np.exp(-((u / s) ** 2) / 2) / (s * np.sqrt(2 * np.pi))  # noqa: E731
    value = lambda u: (u - 0.01) / (1 + 0.5 * u)  # noqa: E731
    expected = 2 * quad(lambda u: u * value(u) * density(u), 0, 2)[0] / s**2
    zero = np.array([0.0])
    result = gaussian_gains(gate, zero, np.array([s**2]), zero, zero).gain
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    learnt = gaussian_gains(SQS(c=jnp.array(gate.c)), zero, np.array([s**2]), zero, zero).gain
    np.testing.assert_allclose(learnt, result, rtol=1e-4)
    slope = 2 * quad(lambda u: density(u) * 1.005 / (1 + 0.5 * u) ** 2, 0, 2)[0]
    assert abs(result[0] - slope) > 0.05


@pytest.mark.parametrize("method", METHODS)
def test_batches_give_what_the_whole_gives(method):
    weights = network(biases=True)
    x = samples(weights)
    whole = calibrate(weights, x, "sqs", method=method)
    for parts in ([x[:7], x[7:2000], x[2000:]], iter([x[:1500], x[1500:]])):
        result = calibrate(weights, parts, "sqs", method=method)
        assert result.samples == 3000
        np.testing.assert_allclose(result.gain, whole.gain, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(result.r2, whole.r2, atol=1e-4)


class Batches:
    """Batches that count how often they are read."""

    def __init__(self, *parts):
        self.parts, self.count = parts, 0

    def __iter__(self):
        self.count += 1
        return iter(self.parts)


@pytest.mark.parametrize(("largest", "r2", "count"), [(2**29, True, 1), (2**29, False, 1), (200_000, True, 2)])
def test_samples_are_read_again_only_where_their_hidden_units_are_many(largest, r2, count, monkeypatch):
    weights = network()
    x = samples(weights)  # of 32 numbers each, in float64
    whole = calibrate(weights, x, "sqs")
    monkeypatch.setattr(calibration, "_LARGEST_KEPT", largest)
    batches = Batches(x[:1500], x[1500:])
    result = calibrate(weights, batches, "sqs", r2=r2)
    assert batches.count == count
    if r2:
        np.testing.assert_allclose(result.r2, whole.r2, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_constant_makes_the_means_agree_with_and_without_r2(method):
    weights = network(biases=True)
    x = samples(weights) + 0.5
    whole, quick = (calibrate(weights, x, "gelu", method=method, r2=flag) for flag in (True, False))
    assert np.all(np.isnan(quick.r2))
    np.testing.assert_array_equal(quick.offset, whole.offset)
    y = logits64(weights, x.astype(np.float64), "gelu")[0]
    given = np.asarray(layer_outputs(bilinear_layer(weights, whole), jnp.asarray(x)), np.float64)
    np.testing.assert_allclose(given.mean(0), y.mean(0), atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("embed", [0, 9])
def test_biases_are_a_coordinate_that_is_always_1(embed):
    weights = network(biases=True, embed=embed)
    x = samples(weights, 200)
    y = logits64(weights, x.astype(np.float64), "bilinear")[0] - np.asarray(weights.out_bias)
    point = np.concatenate([x, np.ones((200, 1), np.float32)], axis=1)
    matrices = interaction_matrices(weights)
    np.testing.assert_allclose(np.einsum("ni,oij,nj->no", point, matrices, point), y, rtol=1e-3, atol=1e-3)
    pairs = spectrum(weights)
    form = np.einsum("ok,nok->no", pairs.values, np.einsum("okd,nd->nok", pairs.vectors, point) ** 2)
    np.testing.assert_allclose(form, y, rtol=1e-3, atol=1e-3)


def test_calibration_can_be_differentiated_through_its_forms():
    weights = network()
    gain = calibrate(weights, samples(weights), "sqs").gain
    gradient = jax.grad(lambda gain: spectrum(weights, gain=gain, count=1).values.sum())(gain)
    step = 1e-2
    for h in (0, 5):
        moved = [spectrum(weights, gain=gain.at[h].add(s), count=1).values.sum() for s in (step, -step)]
        np.testing.assert_allclose(gradient[h], (moved[0] - moved[1]) / (2 * step), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (np.ones((1, 12)), {}, "`x` has 1 sample: 2 or more are needed"),
        (np.ones((0, 12)), {}, "`x` has 0 sample"),
        (np.ones((5, 11)), {}, r"`x` has shape \(5, 11\): \(n, 12\) is needed"),
        (np.full((5, 12), np.nan), {}, "`x` holds numbers that are NaN or infinite"),
        (3, {}, "`x` is int: an array"),
        (np.ones((5, 12)), {"method": "best"}, "`method` is 'best': one of identity, bussgang"),
        (np.ones((5, 12)), {"ridge": -1.0}, "`ridge` is -1.0"),
    ],
)
def test_bad_calibration_sets_are_named(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(network(), x, "sqs", **arguments)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_bilinear_gains_are_1_whatever_the_dtype(dtype):
    weights = jax.tree.map(lambda array: array.astype(dtype), network(biases=True))
    result = calibrate(weights, samples(weights, 2000), "bilinear")
    assert result.gain.dtype == jnp.float32
    np.testing.assert_allclose(result.gain, 1, rtol=1e-6)
    np.testing.assert_allclose(result.r2, 1, atol=1e-6)
    half = fidelity(weights, samples(weights, 500, seed=2), "bilinear", calibration=result)
    np.testing.assert_allclose(half.r2, 1, atol=1e-5)


@pytest.mark.parametrize("mean", [100, 300, 1e4])
def test_inputs_far_from_0_are_read_as_well(mean):
    weights = network(d=20, h=16)
    x = samples(weights, 4500) + mean
    result = calibrate(weights, x, "bilinear")
    np.testing.assert_allclose(result.gain, 1, rtol=1e-6)
    np.testing.assert_allclose(result.r2, 1, atol=1e-6)


@pytest.mark.parametrize("mean", [0, 100])
def test_joint_gains_are_those_of_numpy_in_float64(mean):
    weights, ridge = network(), 1e-6
    x = np.asarray(samples(weights, 3000) + np.float32(mean), np.float64)
    w, v, out = (np.asarray(part, np.float64) for part in weights[:3])
    a, u = x @ w, x @ v
    gated = a * (u - 0.01 * np.sign(u)) / (1 + 0.5 * np.abs(u))
    # The columns of all outputs under each other, each centred: least squares with a ridge towards the output gains.
    start = np.sum(a * u * gated, axis=0) / np.sum((a * u) ** 2, axis=0)
    columns = np.concatenate([(a * u - (a * u).mean(0)) * out[:, o] for o in range(4)])
    target = np.concatenate([(gated - gated.mean(0)) @ out[:, o] for o in range(4)])
    weight = np.sqrt(ridge * np.mean(np.sum(columns**2, axis=0)))
    columns_ridge = np.concatenate([columns, weight * np.eye(10)])
    expected = np.linalg.lstsq(columns_ridge, np.concatenate([target, weight * start]), rcond=None)[0]
    result = calibrate(weights, x.astype(np.float32), "sqs", ridge=ridge)
    np.testing.assert_allclose(result.gain, expected, rtol=1e-4, atol=1e-6)
    assert np.max(np.abs(expected - start)) > 0.01


def test_the_ridge_pulls_to_the_output_gains_and_is_as_large_as_it_is_told():
    weights, x = network(), samples(network())
    start = np.asarray(calibrate(weights, x, "gelu", method="output").gain)
    apart = [np.max(np.abs(calibrate(weights, x, "gelu", ridge=ridge).gain - start)) for ridge in (0, 1, 1e8)]
    assert apart[0] > apart[1] > 0.1 * apart[0]
    assert apart[2] < 1e-6
    # Two units that are one: the data do not tell their gains, and no least ridge but a tiny one may.
    twins = GLUWeights(
        *(jnp.concatenate([part, part], axis=axis) for part, axis in zip(weights[:3], (1, 1, 0), strict=True))
    )
    whole, half = calibrate(weights, x, "gelu", ridge=0).gain, calibrate(twins, x, "gelu", ridge=0).gain
    np.testing.assert_allclose(half[:10], half[10:], atol=1e-3)
    np.testing.assert_allclose((half[:10] + half[10:]) / 2, whole, rtol=2e-6)


def test_numbers_too_large_are_told():
    weights = network()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: array.astype(jnp.float64), weights)
        with pytest.raises(ValueError, match="fourth moments overflow"):
            calibrate(wide, np.full((3, 12), 1e90) * [[1], [2], [3]], "sqs")
    assert np.all(np.isfinite(calibrate(weights, 1e9 * samples(weights), "sqs").gain))


def test_gains_are_host_code_and_say_so():
    weights, x = network(), samples(network(), 50)
    result = calibrate(weights, x, "sqs")
    with pytest.raises(TypeError, match="`x` is traced: `calibrate` runs on the host"):
        jax.jit(lambda x: calibrate(weights, x, "sqs").gain)(x)
    with pytest.raises(TypeError, match="`weights` is traced"):
        jax.grad(lambda weights: calibrate(weights, x, "sqs").gain.sum())(weights)
    with pytest.raises(TypeError, match=r"^`calibrate` runs on the host"):
        jax.jit(lambda scale: scale * calibrate(weights, x, "sqs").gain)(2.0)
    with pytest.raises(TypeError, match="`x` is traced: `fidelity` runs on the host"):
        jax.jit(lambda x: fidelity(weights, x, "sqs", calibration=result).r2)(x)


def test_a_calibration_goes_through_jit_and_any_callable_is_a_gate():
    class Unhashable:
        __hash__ = None

        def __call__(self, u):
            return jnp.tanh(u)

    weights, x = network(), samples(network(), 200)
    result, expected = calibrate(weights, x, Unhashable()), calibrate(weights, x, jnp.tanh)
    np.testing.assert_array_equal(result.gain, expected.gain)
    through = jax.jit(lambda result: result)(result)
    assert (through.method, through.samples) == ("joint", 200)
    np.testing.assert_array_equal(through.r2, result.r2)
    read = jax.jit(calibrated)(weights, result)
    np.testing.assert_allclose(read.v, weights.v * result.gain[None], rtol=1e-6)
