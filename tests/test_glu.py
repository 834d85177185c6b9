import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sqs_jax import GATES, SQS, gated, gated_linear, get_gate, sqs, sqs_slope

pytestmark = pytest.mark.usefixtures("strict_dtypes")

REFERENCE = {
    "sqs": lambda u: (u - 0.01 * np.sign(u)) / (1 + 0.5 * np.abs(u)),
    "bilinear": lambda u: u,
    "relu": lambda u: np.maximum(u, 0),
    "gelu": lambda u: u * special.ndtr(u),
    "silu": lambda u: u * special.expit(u),
}


def arrays(shape=(5, 3, 8), h=6, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    w, v = rng.normal(size=(2, shape[-1], h)) / np.sqrt(shape[-1])
    return [jnp.asarray(array, dtype) for array in (x, w, v)]


def test_the_table_of_gates_is_the_one_tested():
    assert set(GATES) == set(REFERENCE)


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_matches_float64(gate):
    x, w, v = arrays()
    x64, w64, v64 = (np.asarray(array, np.float64) for array in (x, w, v))
    expected = (x64 @ w64) * REFERENCE[gate](x64 @ v64)
    np.testing.assert_allclose(gated_linear(x, w, v, gate=gate), expected, rtol=1e-5, atol=1e-6)
    u = np.linspace(-6, 6, 98)  # not 0, where SQS jumps
    np.testing.assert_allclose(GATES[gate](jnp.asarray(u, jnp.float32)), REFERENCE[gate](u), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_gradients_match_finite_differences(gate):
    with jax.enable_x64(True):
        x, w, v = arrays((4, 5), 3, np.float64)
        x64, w64, v64 = np.asarray(x), np.asarray(w), np.asarray(v)

        def value(x, w, v):
            return np.sum(np.sin((x @ w) * REFERENCE[gate](x @ v)))

        gradients = jax.grad(lambda *a: jnp.sin(gated_linear(*a, gate=gate)).sum(), argnums=(0, 1, 2))(x, w, v)
        rng, h = np.random.default_rng(1), 1e-6
        for i, gradient in enumerate(gradients):
            direction = rng.normal(size=gradient.shape)
            moved = [
                [a + sign * h * direction if i == j else a for j, a in enumerate((x64, w64, v64))] for sign in (1, -1)
            ]
            difference = (value(*moved[0]) - value(*moved[1])) / (2 * h)
            np.testing.assert_allclose(np.sum(np.asarray(gradient) * direction), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_branches_round_once_and_the_product_once(dtype):
    x, w, v = arrays(dtype=dtype)
    x64, w64, v64 = (np.asarray(array, np.float64) for array in (x, w, v))
    a, u = (np.asarray(jnp.asarray(x64 @ m, dtype), np.float64) for m in (w64, v64))
    h = gated_linear(x, w, v)
    assert h.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    # Two roundings of one in eps/2: of a and u where float32 sums differ in the last bit, and of the result.
    np.testing.assert_allclose(np.asarray(h, np.float64), a * REFERENCE["sqs"](u), rtol=2 * eps, atol=0.02 * eps)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_products_of_the_backward_pass_are_in_the_dtype_of_x(dtype):
    jaxpr = str(
        jax.make_jaxpr(jax.grad(lambda *a: gated_linear(*a).astype(jnp.float32).sum(), argnums=(0, 1, 2)))(
            *arrays(dtype=dtype)
        )
    )
    products = [line for line in jaxpr.splitlines() if "dot_general" in line]
    assert len(products) == 6
    name = {"bfloat16": "bf16", "float16": "f16"}[jnp.dtype(dtype).name]
    assert all(f":{name}[" in line for line in products)


def test_biases_vectors_and_the_branch_that_is_gated():
    x, w, v = arrays((8,))
    b, d = jnp.arange(6.0), -jnp.arange(6.0)
    h = gated_linear(x, w, v, gate="relu", w_bias=b, v_bias=d)
    np.testing.assert_allclose(h, (x @ w + b) * jnp.maximum(x @ v + d, 0), rtol=1e-5, atol=1e-6)
    assert np.all(gated_linear(x, w, v, gate=jnp.zeros_like) == 0)
    gate_only = gated_linear(x, jnp.zeros_like(w), v, w_bias=jnp.ones(6), gate=jnp.tanh)
    np.testing.assert_allclose(gate_only, jnp.tanh(x @ v), rtol=1e-5)


def test_sqs_without_shift_and_shrink_is_bilinear():
    x, w, v = arrays()
    np.testing.assert_array_equal(gated_linear(x, w, v, gate=SQS(0, 0)), gated_linear(x, w, v, gate="bilinear"))


def test_parameters_of_the_gate_reach_it():
    u = jnp.linspace(-3, 3, 20)
    expected = (u - 0.2 * jnp.sign(u)) / (1 + 2 * u**2)
    np.testing.assert_allclose(SQS(c=0.2, lam=2.0, p=2)(u), expected, rtol=1e-5)
    assert SQS(lam=1.0) == SQS(lam=1.0)
    assert hash(SQS(lam=1.0)) == hash(SQS(lam=1.0))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.ones((2, 7))}, ValueError, r"`x` has shape \(2, 7\)"),
        ({"v": jnp.ones((8, 5))}, ValueError, r"`v` has shape \(8, 5\)"),
        ({"w": jnp.ones(8)}, ValueError, r"`w` has shape \(8,\)"),
        ({"x": jnp.ones((2, 8), jnp.bfloat16)}, TypeError, "`w` has dtype float32"),
        ({"x": jnp.ones((2, 8), int)}, TypeError, "`x` has dtype int32"),
        ({"w_bias": jnp.ones(5)}, ValueError, r"`w_bias` has shape \(5,\)"),
        ({"gate": "swish"}, ValueError, "known are sqs, bilinear"),
        ({"gate": "silo"}, ValueError, "did you mean 'silu'"),
        ({"gate": 3}, TypeError, "`gate` is 3"),
        ({"implementation": "triton"}, ValueError, "`implementation` is 'triton'"),
    ],
)
def test_mistakes_are_named(change, error, message):
    x, w, v = arrays((2, 8))
    arguments = {"x": x, "w": w, "v": v} | change
    with pytest.raises(error, match=message):
        gated_linear(**arguments)


def test_bad_parameters_of_sqs():
    with pytest.raises(ValueError, match="`lam` is -1"):
        SQS(lam=-1)
    assert get_gate(jnp.tanh) is jnp.tanh


@pytest.mark.parametrize(
    "call",
    [
        sqs,
        sqs_slope,
        lambda x: sqs(x, c=x),
        lambda x: gated(x, x),
        lambda x: gated_linear(x, x, x),
        lambda x: gated_linear(x, x, x, gate="gelu", residuals="recompute", precision="highest"),
    ],
)
def test_outside_of_a_program_each_is_one(call, caplog):
    jax.clear_caches()
    with jax.log_compiles():
        call(jnp.asarray(np.ones((3, 3), np.float32)))
    found = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert len([name for name in found if name not in ("stage", "convert_element_type")]) == 1  # and what makes arrays


@pytest.mark.parametrize("number", [np.array(0.1), np.float32(0.1), jnp.array(0.1)])
def test_numbers_of_any_kind_are_parameters_of_a_gate(number):
    x, w, v = arrays()
    for given, own in ((gated_linear(x, w, v, gate=SQS(c=number)), gated_linear(x, w, v, gate=SQS(c=0.1))),
                       (gated(x, x, gate=SQS(c=number)), gated(x, x, gate=SQS(c=0.1)))):  # fmt: skip
        np.testing.assert_allclose(given, own, atol=1e-6)
