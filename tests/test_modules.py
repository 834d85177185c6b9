import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sqs_jax import GLU, SQS, GLUClassifier


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
