"""Training a language model, as the loop wants it: a compiled step, called for each batch of windows."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sqs_jax.generation import Sampling, generate
from sqs_jax.train.config import InputError, TextConfig, check
from sqs_jax.train.memory import check_model, check_program, shapes_of
from sqs_jax.train.optimizer import learning_rate, make_optimizer
from sqs_jax.train.records import Facts, read_record
from sqs_jax.train.run_folder import RunFolder
from sqs_jax.train.step import (
    TrainState,
    check_devices,
    data_mesh,
    first_state,
    initial_rngs,
    noise_key,
    replicated,
    with_parameters,
)
from sqs_jax.train.task import Task
from sqs_jax.train.text.tokens import (
    END,
    Stream,
    batch_numbers,
    count_windows,
    decode,
    load_text,
    read_tokenizer,
    windows,
)
from sqs_jax.transformer import Transformer, TransformerConfig

_LOGITS = 2**24  # that are there at a time
# How stories are sampled unless asked otherwise: without the tail, of which a story of some hundred tokens draws a few.
SAMPLING = Sampling(temperature=0.8, top_p=0.95)


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
    from sqs_jax.train.checkpoint import check_architecture, restore_params
    from sqs_jax.train.run_folder import read_config
    from sqs_jax.train.step import parameters

    run = RunFolder(Path(run_dir))
    config = read_config(run)
    check(config)
    if not isinstance(config, TextConfig):
        raise InputError(f"{run.path} is a run on images ({config.data}), not on text")
    if not run.checkpoints.is_dir():
        raise InputError(f"{run.path} has no checkpoint: nothing was trained yet")
    tokenizer = read_tokenizer(run.tokenizer)
    params = restore_params(run.checkpoints, number)
    vocab = tokenizer.get_vocab_size()
    if "embedding" in params and len(params["embedding"]) != vocab:
        raise InputError(f"{run.tokenizer} has {vocab} tokens, and the checkpoint {len(params['embedding'])}")
    if read_facts(run).get("tokenizer", _fingerprint(tokenizer)) != _fingerprint(tokenizer):
        raise InputError(f"{run.tokenizer} is not the tokenizer that {run.text} says the run was trained with")
    model = make_model(config, vocab)
    check_architecture(params, parameters(model), run.checkpoints)
    return with_parameters(model, params), tokenizer, config


def read_facts(run: RunFolder) -> Facts:
    """What the `text.json` of a run says. Raises InputError where it is missing or damaged."""
    return read_record(run.text, Facts)


def _fingerprint(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def make_task(config: TextConfig, data_dir: Path | None) -> Task:
    """Loads the text, builds and lays out all that is trained. Raises InputError for what does not fit."""
    check_devices(config.batch_size // config.accumulate, "batch_size` / `accumulate")
    text = load_text(config, data_dir)
    count = count_windows(text.train, config.context)
    steps = config.steps or -(-config.epochs * count // config.batch_size)
    optimizer = make_optimizer(config, steps)
    mesh = data_mesh()
    check_model(lambda: make_model(config, text.tokenizer.get_vocab_size()))
    model = make_model(config, text.tokenizer.get_vocab_size())
    train_step, score = make_step(config, model, optimizer, mesh), make_score(model)
    across = NamedSharding(mesh, PartitionSpec("data"))
    state = jax.eval_shape(lambda: first_state(model, optimizer))
    windows_shape = jax.ShapeDtypeStruct((config.batch_size, config.context), jnp.int32, sharding=across)
    check_program(train_step, shapes_of(state, replicated(mesh)), windows_shape, windows_shape)

    def run(state, end, stopping):
        losses = []
        for step in range(int(state.step), end):
            # The step before the last has ended: its loss costs no wait, and no more than two steps lie in the queue.
            if stopping() or (len(losses) > 1 and not np.isfinite(losses[-2])):
                break
            numbers = batch_numbers(step, config.batch_size, count, config.seed)
            batch = jax.device_put(windows(text.train, config.context, numbers), across)
            state, loss = train_step(state, *batch)
            losses.append(loss)
        return state, np.array([np.asarray(loss) for loss in losses], np.float32)

    def measure(params, stream: Stream) -> dict[str, float]:
        nats = stream_nats(lambda *batch: score(params, *batch), stream, config, mesh)
        return {"loss": nats / (len(stream.tokens) - 1), "bits_per_byte": nats / math.log(2) / stream.bytes}

    def evaluate(params) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if config.validation:
            row = {f"validation_{name}": value for name, value in measure(params, text.validation).items()}
        if config.samples:
            row["samples"] = _samples(with_parameters(model, params), text.tokenizer, config)
        return row

    facts: dict[str, Any] = {"sha256": text.sha256, "vocab": text.tokenizer.get_vocab_size()}
    facts["tokenizer"] = _fingerprint(text.tokenizer)
    for part in ("train", "validation", "test"):
        stream = getattr(text, part)
        facts[part] = {"stories": stream.stories, "tokens": len(stream.tokens) - 1, "bytes": stream.bytes}
    ends = [*range(config.evaluate_every, steps, config.evaluate_every), steps]
    return Task(
        begin=lambda: jax.device_put(first_state(model, optimizer), replicated(mesh)),
        rate=learning_rate(config, steps),
        ends=ends,
        epoch=lambda step: round(step * config.batch_size / count, 4),
        checkpoint=lambda step: step,
        run=run,
        evaluate=evaluate,
        test=lambda params: measure(params, text.test),
        files={"tokenizer.json": text.tokenizer.to_str(), "text.json": json.dumps(facts, indent=2) + "\n"},
        tokens=config.batch_size * config.context,
    )


def make_step(config: TextConfig, model: Transformer, optimizer: optax.GradientTransformation, mesh: Mesh):
    """The compiled step: (state, inputs, targets) → (state, loss), of windows (batch_size, context) each.

    The loss is the mean over all targets that are not -1, in nats; the state that goes in is used up.
    """
    across = NamedSharding(mesh, PartitionSpec(None, "data"))

    def loss_of(params, inputs, targets, key):
        network = with_parameters(model, params)
        x = network.embed(inputs)
        if config.noise_std:
            size = jax.lax.stop_gradient(jnp.sqrt(jnp.mean(x.astype(jnp.float32) ** 2)))
            x += (config.noise_std * size * jax.random.normal(key, x.shape, jnp.float32)).astype(x.dtype)
        return stream_loss(network, network.stream(x), targets)

    def gradient_of(params, inputs, targets, key):
        if config.accumulate == 1:
            return jax.value_and_grad(loss_of)(params, inputs, targets, key)
        parts = [array.reshape(config.accumulate, -1, config.context) for array in (inputs, targets)]
        parts = jax.lax.with_sharding_constraint(parts, across)

        def add(total, part):
            found = jax.value_and_grad(loss_of)(params, *part)
            return jax.tree.map(jnp.add, total, found), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
        return jax.lax.scan(add, zeros, (*parts, jax.random.split(key, config.accumulate)))[0]

    @jax.jit(donate_argnums=0)
    def step(state: TrainState, inputs, targets):
        nats, gradient = gradient_of(state.params, inputs, targets, noise_key(config.seed, state.step))
        count = jnp.maximum(1, jnp.sum(targets >= 0))
        gradient = jax.tree.map(lambda array: array / count, gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, state.step + 1), nats / count

    return step


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Sum of -log softmax(logits)[target], in nats, over the targets that are not negative."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.sum(losses, where=targets >= 0)


def stream_loss(network: Transformer, x: jax.Array, targets: jax.Array) -> jax.Array:
    """`cross_entropy` of the logits of a stream x (batch, length, d), in nats, for targets (batch, length).

    Where all logits are more than 64 MiB they are made part by part, and made again in the backward pass: one part of
    them is there at a time.
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


def make_score(model: Transformer):
    """The compiled (params, inputs, targets) → nats, summed over the targets."""

    @jax.jit
    def score(params, inputs, targets):
        network = with_parameters(model, params)
        return stream_loss(network, network.stream(network.embed(inputs)), targets)

    return score


def stream_nats(score, stream: Stream, config: TextConfig, mesh: Mesh) -> float:
    """The nats of a whole stream, window by window: each token but the first counts once. `score`: a batch → nats."""
    across = NamedSharding(mesh, PartitionSpec("data"))
    count, batch = count_windows(stream, config.context), config.batch_size // config.accumulate
    total = 0.0
    for start in range(0, count, batch):
        numbers = np.arange(start, start + batch)
        numbers = np.where(numbers < count, numbers, -1)
        total += float(score(*jax.device_put(windows(stream, config.context, numbers), across)))
    return total


def _samples(model: Transformer, tokenizer: Any, config: TextConfig) -> list[str]:
    found = generate(model, [[END]] * config.samples, seed=config.seed, stop=END, sampling=SAMPLING)
    return [decode(tokenizer, tokens) for tokens in found]
