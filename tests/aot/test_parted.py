"""What the real compiler of a TPU makes of a network that is parted over eight chips."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from sqs_jax.train.layout import Layout, along_batch, make_mesh, parted, replicated
from sqs_jax.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(
    vocab=4096, context=512, layers=3, width=768, heads=12, hidden=1536, dtype=jnp.bfloat16, remat="block"
)
CHIPS = 8


@pytest.fixture(scope="module", params=[(4, 1), (4, 2)], ids=["data2-fsdp4", "fsdp4-model2"])
def compiled(request):
    """A step of AdamW on a slice of eight chips, its mesh, and the shapes of the parameters."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: make test-aot")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = make_mesh(Layout(*request.param), devices)
    model = nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    optimizer = optax.adamw(1e-3)
    opt_state = jax.eval_shape(optimizer.init, params)
    placed = parted((params, opt_state), mesh)

    def loss_of(params, tokens):
        network_state = nnx.split(model)[1]
        nnx.replace_by_pure_dict(network_state, params)
        logits = nnx.merge(graph, network_state)(tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    def step(params, opt_state, tokens):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            loss, gradient = jax.value_and_grad(loss_of)(params, tokens)
        gradient = jax.lax.with_sharding_constraint(gradient, placed[0])
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def shapes(tree, where):
        return jax.tree.map(lambda leaf, own: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own), tree, where)

    tokens = jax.ShapeDtypeStruct((16, CONFIG.context), jnp.int32, sharding=along_batch(mesh))
    program = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*placed, replicated(mesh)))
    return program.lower(*shapes((params, opt_state), placed), tokens).compile(), mesh, params


def test_a_chip_holds_its_part_and_gathers_the_rest(compiled):
    program, mesh, params = compiled
    text, parts = program.as_text(), mesh.shape["fsdp"] * mesh.shape["model"]
    assert "all-gather" in text
    whole = 3 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    assert program.memory_analysis().argument_size_in_bytes < 1.2 * whole / parts


def test_attention_keeps_no_square_of_the_length(compiled):
    program, *_ = compiled
    assert "tpu_custom_call" in program.as_text()
    assert not re.search(rf"\[(\d+,)*{CONFIG.context},{CONFIG.context}\]", program.as_text())


def test_a_mesh_fits_any_slice():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: make test-aot")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name="v6e:8x8").devices
    mesh = make_mesh(Layout(fsdp=16), devices)  # of each of the slice's axes a part
    assert mesh.devices.shape == (4, 16, 1)
    assert len(set(mesh.devices.flat)) == 64


def test_no_parameter_is_whole_on_a_chip(compiled):
    program, _, params = compiled
    shapes = set(re.findall(r"f32\[([\d,]+)\]", program.as_text()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["blocks"]):
        if leaf.ndim == 3:
            assert ",".join(map(str, leaf.shape)) not in shapes, jax.tree_util.keystr(path)
