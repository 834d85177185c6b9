"""The classifier of images and its compiled programs: an epoch as one scan over batches, and evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from sqs_jax.modules import GLUClassifier
from sqs_jax.sharding import devices_along
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.layout import along_batch, parted, replicated
from sqs_jax.train.noise import add_pixel_noise, noise_key
from sqs_jax.train.step import TrainState, first_state, initial_rngs, step_key, updated, with_parameters

_EVALUATION_BATCH = 2048


class Metrics(NamedTuple):
    """Mean cross-entropy in nats, and the share of right answers."""

    loss: jax.Array
    accuracy: jax.Array


def make_model(config: ImageConfig, inputs: int, outputs: int, *, implementation: str | None = None) -> GLUClassifier:
    """The classifier of a configuration, its initial weights drawn from the run's seed."""
    return GLUClassifier(
        inputs,
        outputs,
        width=config.width or None,
        hidden=config.hidden,
        layers=config.layers,
        gate=config.sigma,
        residual=config.residual,
        bias=config.bias,
        learnable=config.learnable,
        dtype=jnp.dtype(config.dtype),
        implementation=implementation,
        rngs=initial_rngs(config.seed),
    )


@jax.jit(inline=True)
def scale_pixels(images: jax.Array) -> jax.Array:
    """Images uint8 (n, …) as the network reads them: float32 (n, inputs) in [0, 1]."""
    return images.reshape(len(images), -1).astype(jnp.float32) / 255


Epoch = Callable[[TrainState, jax.Array, jax.Array, jax.Array], tuple[TrainState, jax.Array]]


def make_epoch(config: ImageConfig, model: GLUClassifier, optimizer: optax.GradientTransformation, mesh: Mesh) -> Epoch:
    """`epoch_function`, compiled, with each batch split over the devices. It consumes the state that it is given."""
    placed = parted(jax.eval_shape(lambda: first_state(model, optimizer)), mesh)
    epoch = epoch_function(config, model, optimizer, config.seed, (mesh, placed.params))
    return jax.jit(epoch, donate_argnums=0, out_shardings=(placed, replicated(mesh)))


def epoch_function(
    config: ImageConfig,
    model: GLUClassifier,
    optimizer: optax.GradientTransformation,
    noise_seed: Any,
    shared: tuple[Mesh, Any] | None = None,
) -> Epoch:
    """The function (state, images, labels, indices) → (state, losses (steps,)), to be compiled.

    A scan over batches. `indices` (n,) are shuffled; they point into uint8 images (m, …) and labels (m,) on the device.
    All randomness comes from the two seeds and the step. Seed, learning rate, weight decay, noise, c and λ of the
    configuration may be traced. `shared` are the mesh over which batches are split, and the shardings of parameters.
    """

    def loss_of(params, x, labels):
        logits = with_parameters(model, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def gradient_of(params, x, labels):
        if shared is None:
            return jax.value_and_grad(loss_of)(params, x, labels)
        mesh, placed = shared
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            loss, gradient = jax.value_and_grad(loss_of)(params, x, labels)
        return loss, jax.lax.with_sharding_constraint(gradient, placed)

    def epoch(state, images, labels, indices):
        steps = len(indices) // config.batch_size
        order = jax.random.permutation(step_key(config.seed, "order", state.step), indices)
        batches = order[: steps * config.batch_size].reshape(steps, config.batch_size)

        def step(state, batch):
            x = scale_pixels(images[batch])
            x = x if shared is None else jax.lax.with_sharding_constraint(x, along_batch(shared[0]))
            x = add_pixel_noise(x, noise_key(noise_seed, state.step), config.noise_std, config.noise_prob)
            loss, gradient = gradient_of(state.params, x, labels[batch])
            return updated(state, gradient, optimizer), loss

        return jax.lax.scan(step, state, batches)

    return epoch


def make_evaluation(model: GLUClassifier, mesh: Mesh) -> Callable[..., Metrics]:
    """`evaluation_function`, compiled, with each batch split over the devices."""
    measure = evaluation_function(model, devices_along(mesh), along_batch(mesh, before=1))

    @jax.jit(out_shardings=replicated(mesh))
    def evaluation(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return measure(*arguments)

    return evaluation


def evaluation_function(model: GLUClassifier, devices: int = 1, across: NamedSharding | None = None):
    """The function (params, images, labels, indices) → Metrics, without noise, to be compiled."""

    def evaluation(params, images, labels, indices):
        network = with_parameters(model, params)
        # Whole batches that every device shares evenly; what they lack is filled up and counts for nothing.
        batch = min(_EVALUATION_BATCH, -(-len(indices) // devices) * devices)
        batches = -(-len(indices) // batch)
        padded = jnp.pad(indices, (0, batches * batch - len(indices)), constant_values=-1).reshape(batches, batch)
        padded = padded if across is None else jax.lax.with_sharding_constraint(padded, across)

        def part(index):
            counts = index >= 0
            logits = network(scale_pixels(images[index]))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[index])
            right = logits.argmax(-1) == labels[index]
            return Metrics(jnp.sum(losses, where=counts), jnp.sum(right, where=counts))

        return jax.tree.map(lambda sums: sums.sum() / len(indices), jax.lax.map(part, padded))

    return evaluation
