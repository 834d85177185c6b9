"""The language model of a run: its Transformer, its loss, and the compiled step of training."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from sqs_jax.messages import InputError
from sqs_jax.train.checkpoint import check_architecture, restore_params
from sqs_jax.train.config import TextConfig
from sqs_jax.train.config_check import check
from sqs_jax.train.layout import along_batch, parted, replicated
from sqs_jax.train.noise import add_embedding_noise, noise_key
from sqs_jax.train.records import Facts, read_record
from sqs_jax.train.run_folder import RunFolder, read_config
from sqs_jax.train.step import TrainState, accumulated, first_state, initial_rngs, parameters, updated, with_parameters
from sqs_jax.train.text.tokenizer import read_tokenizer
from sqs_jax.transformer import Transformer, TransformerConfig

_LOGITS = 2**24  # in memory at a time


def make_model(config: TextConfig, vocab: int) -> Transformer:
    """The Transformer of a configuration, its initial weights drawn from the run's seed."""
    sizes = TransformerConfig(
        vocab=vocab,
        context=config.context,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        hidden=config.hidden or None,
        gate=config.sigma,
        learnable=config.learnable,
        tied=config.tied,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        scan_layers=config.scan_layers,
    )
    return Transformer(sizes, rngs=initial_rngs(config.seed))


def load_language(run_dir: Path, number: int | None = None) -> tuple[Transformer, Any, TextConfig]:
    """The trained model of a run on text, its tokenizer and its configuration; no text is needed.

    Args:
      run_dir: folder of a run that has a checkpoint.
      number: the step of the checkpoint; by default the last.

    Raises InputError where that is no such run, or the tokenizer does not fit the checkpoint.
    """
    run = RunFolder(Path(run_dir))
    config = read_config(run)
    check(config)
    if not isinstance(config, TextConfig):
        raise InputError(f"{run.path} is no run on text: there is no language model in it")
    if not run.checkpoints.is_dir():
        raise InputError(f"{run.path} has no checkpoint: nothing was trained yet")
    tokenizer = read_tokenizer(run.tokenizer)
    params = restore_params(run.checkpoints, number)
    vocab = tokenizer.get_vocab_size()
    if "embedding" in params and len(params["embedding"]) != vocab:
        raise InputError(f"{run.tokenizer} has {vocab} tokens, and the checkpoint {len(params['embedding'])}")
    if read_facts(run).get("tokenizer", fingerprint(tokenizer)) != fingerprint(tokenizer):
        raise InputError(f"{run.tokenizer} is not the tokenizer that {run.text} says the run was trained with")
    model: Any = nnx.eval_shape(lambda: make_model(config, vocab))
    check_architecture(params, parameters(model), run.checkpoints)
    return with_parameters(model, params), tokenizer, config


def read_facts(run: RunFolder) -> Facts:
    """What the `text.json` of a run says. Raises InputError where it is missing or damaged."""
    return read_record(run.text, Facts)


def fingerprint(tokenizer: Any) -> str:
    """The checksum of a tokenizer."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def make_step(config: TextConfig, model: Transformer, optimizer: optax.GradientTransformation, mesh: Mesh):
    """The compiled step: (state, inputs, targets) → (state, loss), of windows (batch_size, context) each.

    The loss is the mean over all targets that are not -1, in nats. The step consumes the state that it is given, and
    parts it, gradient and moments alike, as `layout.parted` says. `model` may hold shapes alone.
    """
    shapes = jax.eval_shape(lambda: first_state(model, optimizer))
    placed = parted(shapes, mesh)

    def loss_of(params, inputs, targets, key):
        network = with_parameters(model, params)
        x = network.embed(inputs)
        x = add_embedding_noise(x, key, config.noise_std)
        return stream_loss(network, network.stream(x), targets)

    def gradient_of(params, inputs, targets, key):
        if config.accumulate == 1:
            return jax.value_and_grad(loss_of)(params, inputs, targets, key)
        parts = [array.reshape(config.accumulate, -1, config.context) for array in (inputs, targets)]
        parts = jax.lax.with_sharding_constraint(parts, along_batch(mesh, before=1))
        return accumulated(loss_of, params, (*parts, jax.random.split(key, config.accumulate)))

    @jax.jit(donate_argnums=0, out_shardings=(placed, replicated(mesh)))
    def step(state: TrainState, inputs, targets):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            nats, gradient = gradient_of(state.params, inputs, targets, noise_key(config.seed, state.step))
        gradient = jax.lax.with_sharding_constraint(gradient, placed.params)
        count = jnp.maximum(1, jnp.sum(targets >= 0))
        gradient = jax.tree.map(lambda array: array / count, gradient)
        return updated(state, gradient, optimizer), nats / count

    return step


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Sum of -log softmax(logits)[target], in nats, over the targets that are not negative."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.sum(losses, where=targets >= 0)


def stream_loss(network: Transformer, x: jax.Array, targets: jax.Array) -> jax.Array:
    """`cross_entropy` of the logits of a stream x (batch, length, d), in nats, for targets (batch, length).

    Logits of more than 64 MiB are computed in parts, and recomputed in the backward pass: one part is in memory at a
    time.
    """
    batch, length, _ = x.shape
    part = max(1, _LOGITS // (batch * network.config.vocab))
    if part >= length:
        return cross_entropy(network.logits(x), targets)
    fill = -length % part
    x, targets = jnp.pad(x, ((0, 0), (0, fill), (0, 0))), jnp.pad(targets, ((0, 0), (0, fill)), constant_values=-1)
    parts = (array.reshape(batch, -1, part, *array.shape[2:]).swapaxes(0, 1) for array in (x, targets))

    @jax.checkpoint
    def add(total, part):
        return total + cross_entropy(network.logits(part[0]), part[1]), None

    return jax.lax.scan(add, jnp.zeros((), jnp.float32), tuple(parts))[0]


def make_score(model: Transformer, mesh: Mesh):
    """The compiled (params, inputs, targets) → nats, summed over the targets."""

    @jax.jit(out_shardings=replicated(mesh))
    def score(params, inputs, targets):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            network = with_parameters(model, params)
            return stream_loss(network, network.stream(network.embed(inputs)), targets)

    return score
