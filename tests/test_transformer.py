import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sqs_jax import sqs
from sqs_jax.train.step import parameters, with_parameters
from sqs_jax.transformer import Transformer, TransformerConfig, rms_norm, rotate

SMALL = TransformerConfig(vocab=50, context=16, layers=3, width=16, heads=2, hidden=24)


def make(**changes):
    return Transformer(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(0))


def draw(shape=(2, 16), vocab=50, seed=0):
    return jax.random.randint(jax.random.key(seed), shape, 0, vocab)


def reference(params, tokens, heads, base=10_000.0):
    """The whole network in numpy and float64, one sequence and one position after the other."""
    params = jax.tree.map(lambda array: np.asarray(array, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2) + 1e-6) * scale

    def turned(x, position):
        half = len(x) // 2
        angle = position * base ** (-np.arange(half) / half)
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag])

    stream = [params["embedding"][token] for token in tokens]
    blocks = params["blocks"]
    for layer in range(len(blocks["qkv"])):
        block = jax.tree.map(lambda array, layer=layer: array[layer], blocks)
        d = len(stream[0])
        qkv = [norm(x, block["attention_norm"]) @ block["qkv"] for x in stream]
        read = []
        for i in range(len(stream)):
            parts = []
            for head in range(heads):
                at = slice(head * d // heads, (head + 1) * d // heads)
                q = turned(qkv[i][:d][at], i)
                scores = [q @ turned(qkv[j][d : 2 * d][at], j) / np.sqrt(len(q)) for j in range(i + 1)]
                share = np.exp(scores - np.max(scores))
                share /= share.sum()
                parts.append(sum(s * qkv[j][2 * d :][at] for j, s in enumerate(share)))
            read.append(np.concatenate(parts))
        stream = [x + r @ block["project"] for x, r in zip(stream, read, strict=True)]
        for i, x in enumerate(stream):
            z = norm(x, block["glu_norm"])
            u = z @ block["glu"]["v"]
            gated = (z @ block["glu"]["w"]) * (u - 0.01 * np.sign(u)) / (1 + 0.5 * np.abs(u))
            stream[i] = x + gated @ block["down"]
    out = params["unembedding"] if "unembedding" in params else params["embedding"].T
    return np.array([norm(x, params["norm"]) @ out for x in stream])


@pytest.mark.parametrize("tied", [True, False])
def test_equals_an_independent_implementation(tied):
    model = make(tied=tied)
    # Weights far from their first values, so that norms and scales matter.
    keys = iter(jax.random.split(jax.random.key(1), 100))
    params = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(next(keys), a.shape), parameters(model))
    tokens = draw()
    logits = with_parameters(model, params)(tokens)
    assert logits.dtype == jnp.float32
    for row in range(2):
        np.testing.assert_allclose(logits[row], reference(params, np.asarray(tokens[row]), 2), atol=2e-4, rtol=2e-4)


def test_no_position_sees_those_after_it():
    model = make()
    x = model.embed(draw())
    jacobian = jax.jacrev(lambda x: model.logits(model.stream(x))[0].sum(-1))(x)[:, 0]  # (to, from, d)
    size = np.abs(np.asarray(jacobian)).max(-1)
    assert np.all(size[np.triu_indices(16, 1)] == 0)
    assert np.all(size[np.tril_indices(16)] > 0)
    other = np.abs(np.asarray(jax.jacrev(lambda x: model.stream(x)[0].sum(-1))(x)[:, 1]))
    assert other.max() == 0  # nor another sequence


def test_rotated_products_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def product(i, j):
        return float(jnp.sum(rotate(q, jnp.array([[i]])) * rotate(k, jnp.array([[j]]))))

    for distance in (0, 1, 5):
        values = [product(start + distance, start) for start in (0, 3, 100)]
        np.testing.assert_allclose(values, values[0], atol=1e-4)
    assert abs(product(1, 0) - product(5, 0)) > 1e-2
    np.testing.assert_allclose(product(7, 7), float(jnp.sum(q * k)), rtol=1e-5)


@pytest.mark.parametrize("change", [{"scan_layers": False}, {"remat": "dots"}, {"remat": "block"}])
def test_layout_of_the_computation_changes_no_number(change):
    tokens = draw()

    def loss(config):
        model = Transformer(config, rngs=nnx.Rngs(0))
        return jax.value_and_grad(lambda p: jnp.mean(with_parameters(model, p)(tokens) ** 2))(parameters(model))

    value, gradient = loss(SMALL)
    other_value, other_gradient = loss(dataclasses.replace(SMALL, **change))
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


WIDE = dataclasses.replace(SMALL, context=64, width=32, hidden=96)


def gradient_memory(layers, remat):
    """Bytes that the compiled gradient takes beside what goes in and comes out."""
    model = Transformer(dataclasses.replace(WIDE, layers=layers, remat=remat), rngs=nnx.Rngs(0))
    tokens = draw((8, 64))
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(with_parameters(model, p)(tokens))))
    return gradient.lower(parameters(model)).compile().memory_analysis().temp_size_in_bytes


def saved_activations():
    """Bytes that reverse mode keeps of one block, beside its parameters."""
    graph, params = nnx.split(Transformer(WIDE, rngs=nnx.Rngs(0)).block(0))
    x = jnp.zeros((8, 64, 32))
    backward = jax.eval_shape(lambda p, x: jax.vjp(lambda p, x: nnx.merge(graph, p)(x), p, x)[1], params, x)
    kept, own = (sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in (backward, params))
    return kept - own


def test_memory_grows_with_a_layer_by_what_it_keeps():
    grown = {remat: (gradient_memory(12, remat) - gradient_memory(4, remat)) / 8 for remat in ("none", "block")}
    assert grown["none"] <= saved_activations()
    assert grown["block"] == 8 * 64 * 32 * 4  # the block's input alone


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
    model, exact = make(dtype=jnp.bfloat16), make()
    tokens = draw()
    assert model.stream(model.embed(tokens)).dtype == jnp.bfloat16
    assert model(tokens).dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(parameters(model)))
    np.testing.assert_allclose(model(tokens), exact(tokens), atol=0.03)


def test_a_block_by_itself_is_a_layer_of_the_whole():
    model = make()
    x = model.embed(draw())
    expected = model.stream(x)
    for layer in range(3):
        block = model.block(layer)
        y = block.attend(x)[0]
        z = rms_norm(y, block.glu_norm[...])
        x = y + (z @ block.glu.w[...] * sqs(z @ block.glu.v[...])) @ block.down[...]
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_the_default_width_of_the_glu():
    assert TransformerConfig().glu_width == 704  # ⅔·4·256 = 682.7
    assert TransformerConfig(width=768).glu_width == 2048
    assert TransformerConfig(hidden=100).glu_width == 100


def test_learnable_gates_have_parameters_a_layer():
    params = parameters(make(learnable=True))
    assert params["blocks"]["glu"]["c_raw"].shape == (3,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab": 0}, "`vocab` is 0"),
        ({"heads": 3}, "`heads` is 3: `width` 16 must be an even multiple"),
        ({"heads": 16}, "`heads` is 16"),
        ({"hidden": 0}, "`hidden` is 0"),
        ({"remat": "all"}, "`remat` is 'all': one of none, dots, block"),
        ({"rotary_base": 1.0}, "`rotary_base` is 1.0"),
        ({"gate": "gleu"}, "gleu"),
    ],
)
def test_a_configuration_out_of_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 17), np.int32), r"`tokens` has shape \(1, 17\): \(batch, 1 to 16\)"),
        (np.zeros((1, 0), np.int32), r"`tokens` has shape \(1, 0\)"),
        (np.zeros(4, np.int32), r"`tokens` has shape \(4,\)"),
        (np.zeros((1, 4)), "`tokens` has dtype float32: integers"),
        (np.array([[3, 50]]), "`tokens` has values from 3 to 50: 0 to 49 are needed"),
        (np.array([[-1, 4]]), "`tokens` has values from -1 to 4"),
    ],
)
def test_tokens_that_do_not_fit_are_named(tokens, message):
    with pytest.raises(ValueError, match=message):
        make()(tokens)
