import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sqs_jax import GLU, SQS, GLUClassifier, Transformer, TransformerConfig, gated_linear, kernels
from sqs_jax.analysis import GLUWeights, calibrate


def shapes(module):
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module)))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def test_classifier_is_head_of_glu_of_embedding():
    model = GLUClassifier(12, 3, width=8, hidden=6, gate="silu", rngs=nnx.Rngs(0))
    assert shapes(model) == {"embed": (12, 8), "layers.0.w": (8, 6), "layers.0.v": (8, 6), "head": (6, 3)}
    x = jax.random.normal(jax.random.key(1), (5, 12))
    glu = model.layers[0]
    assert model.embed is not None
    z = np.asarray(x, np.float64) @ np.asarray(model.embed[...])
    u = z @ np.asarray(glu.v[...])
    expected = ((z @ np.asarray(glu.w[...])) * (u / (1 + np.exp(-u)))) @ np.asarray(model.head[...])
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_deep_residual_classifier_with_biases():
    model = GLUClassifier(8, 3, width=None, hidden=8, layers=2, residual=True, bias=True, rngs=nnx.Rngs(0))
    assert shapes(model)["layers.1.w_bias"] == (8,)
    assert shapes(model)["head_bias"] == (3,)
    x = jax.random.normal(jax.random.key(1), (5, 8))
    z = x + model.layers[0](x)
    np.testing.assert_array_equal(model.hidden(x, 1), z)
    z += model.layers[1](z)
    np.testing.assert_allclose(model(x), z @ model.head[...], rtol=1e-5)
    for name in ("w_bias", "v_bias"):
        shifted = nnx.clone(model)
        parameter = getattr(shifted.layers[0], name)
        parameter[...] = parameter[...] + 1
        assert not np.allclose(shifted(x), model(x))


def test_parameters_are_float32_and_the_computation_is_not():
    model = GLUClassifier(8, 3, width=8, hidden=8, bias=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    x = jax.random.normal(jax.random.key(1), (5, 8))
    assert model.hidden(x, 1).dtype == jnp.bfloat16
    assert model(x).dtype == jnp.float32
    full = GLUClassifier(8, 3, width=8, hidden=8, bias=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(model(x), full(x), atol=0.1)
    assert not np.array_equal(model(x), full(x))


def test_learnt_parameters_start_where_they_are_told_and_move():
    glu = GLU(4, 4, gate=SQS(0.02, 0.7, 2), learnable=True, rngs=nnx.Rngs(0))
    u = jnp.linspace(-2, 2, 9)
    np.testing.assert_allclose(glu.sigma(u), SQS(0.02, 0.7, 2)(u), rtol=1e-5, atol=1e-6)
    x = jax.random.normal(jax.random.key(1), (64, 4))
    target = GLU(4, 4, gate=SQS(0.4, 2.0, 2), rngs=nnx.Rngs(0))(x)
    optimizer = nnx.Optimizer(glu, optax.adam(0.05), wrt=nnx.Param)

    @nnx.jit
    def step(glu, optimizer):
        loss, gradient = nnx.value_and_grad(lambda glu: jnp.mean((glu(x) - target) ** 2))(glu)
        optimizer.update(glu, gradient)
        return loss

    losses = [float(step(glu, optimizer)) for _ in range(200)]
    assert losses[-1] < 0.3 * losses[0]
    assert float(jax.nn.softplus(glu.lam_raw[...])) > 1.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 0}, "`hidden` is 0"),
        ({"layers": 0}, "`layers` is 0"),
        ({"width": 0}, "`width` is 0"),
        ({"width": 4, "hidden": 8, "residual": True}, "8 is not 4"),
        ({"gate": "relu", "learnable": True}, "`learnable` needs the gate 'sqs'"),
        ({"gate": SQS(c=0), "learnable": True}, "`c` is 0"),
        ({"gate": "sqz"}, "did you mean 'sqs'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GLUClassifier(8, 3, rngs=nnx.Rngs(0), **arguments)


def test_modules_are_tabulated():
    network = GLUClassifier(8, 3, width=4, hidden=4, bias=True, learnable=True, rngs=nnx.Rngs(0))
    assert "Total Parameters: 89" in nnx.tabulate(network, jnp.ones((2, 8)))


def test_inputs_of_another_dtype_are_cast_to_that_of_the_parameters():
    glu = GLU(8, 4, bias=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 8), jnp.bfloat16)
    assert glu(x).dtype == jnp.float32
    np.testing.assert_array_equal(glu(x), glu(x.astype(jnp.float32)))


def test_where_float64_is_on_parameters_and_logits_are_float32():
    with jax.enable_x64(True):
        network = GLUClassifier(8, 3, width=4, hidden=4, bias=True, learnable=True, rngs=nnx.Rngs(0))
        config = TransformerConfig(vocab=20, context=8, layers=2, width=8, heads=2, tied=False)
        language = Transformer(config, rngs=nnx.Rngs(0))
        for module in (network, language):
            assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}
        assert network(jnp.ones((2, 8))).dtype == jnp.float32
        assert language(jnp.ones((1, 4), int)).dtype == jnp.float32
        wide = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(network))]
    plain = GLUClassifier(8, 3, width=4, hidden=4, bias=True, learnable=True, rngs=nnx.Rngs(0))
    for a, b in zip(wide, jax.tree.leaves(nnx.state(plain)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_learnt_gate_is_the_same_gate_each_time(caplog):
    glu = GLU(4, 3, learnable=True, rngs=nnx.Rngs(0))
    assert glu.sigma == glu.sigma
    assert hash(glu.sigma) == hash(glu.sigma)
    weights = GLUWeights(glu.w[...], glu.v[...], jnp.eye(3))
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    calibrate(weights, x, glu.sigma)
    with jax.log_compiles():
        calibrate(weights, x, glu.sigma)
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
    with jax.log_compiles():
        calibrate(weights, x, lambda u: glu.sigma(u))
    assert [record for record in caplog.records if "Compiling" in record.getMessage()]


def test_a_gate_of_arrays_runs_by_xla():
    x, w, v = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((5, 4), (4, 3), (4, 3))))

    def layer(c):
        return gated_linear(x, w, v, gate=SQS(c=c, lam=0.7))

    with kernels.interpreted("tpu"):  # where a kernel might be chosen
        np.testing.assert_allclose(jax.jit(layer)(0.1), layer(0.1), rtol=1e-6)
        assert np.all(np.isfinite(jax.grad(lambda c: layer(c).sum())(0.1)))
        with pytest.raises(NotImplementedError, match="`c` and `lam` are arrays"):
            jax.jit(lambda c: gated_linear(x, w, v, gate=SQS(c=c), implementation="pallas"))(0.1)
