"""What runs on the device: the model's state, an epoch as one scan, and evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sqs_jax.modules import GLUClassifier
from sqs_jax.train.config import ImageConfig, InputError, known

# What a random number is for: folded into the run's key before the step or epoch.
_INIT, _ORDER, _NOISE = 0, 1, 2
_EVALUATION_BATCH = 2048

Parameters = dict[str, Any]


class TrainState(NamedTuple):
    """All that training goes on from: with the seed, it determines every later number."""

    params: Parameters
    opt_state: optax.OptState
    step: jax.Array


class Metrics(NamedTuple):
    """Mean cross-entropy in nats, and the share of right answers."""

    loss: jax.Array
    accuracy: jax.Array


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number in every array is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def data_mesh() -> Mesh:
    """All devices along one axis, `data`, over which each batch is split."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_devices(batch_size: int, name: str = "batch_size") -> None:
    """Raises InputError for a batch that the devices cannot share evenly."""
    devices = jax.device_count()
    if batch_size % devices:
        raise InputError(f"`{name}` is {batch_size}: a multiple of the {devices} devices is needed")


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device: how parameters and the data set lie."""
    return NamedSharding(mesh, PartitionSpec())


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


def initial_rngs(seed: int) -> nnx.Rngs:
    """What initial weights are drawn from."""
    return nnx.Rngs(jax.random.fold_in(jax.random.key(seed), _INIT))


def noise_key(seed: int, step: jax.Array) -> jax.Array:
    """The key of a step's noise."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _NOISE), step)


def parameters(model: nnx.Module) -> Parameters:
    """The parameters of a model as nested dicts of arrays."""
    return nnx.to_pure_dict(nnx.state(model))


def first_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = parameters(model)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def with_parameters(model: nnx.Module, params: Parameters) -> Any:
    """The same model, a new one, with these parameters."""
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def scale_pixels(images: jax.Array) -> jax.Array:
    """Images uint8 (n, …) as the network reads them: float32 (n, inputs) in [0, 1]."""
    return images.reshape(len(images), -1).astype(jnp.float32) / 255


def add_noise(x: jax.Array, key: jax.Array, std: float, prob: float) -> jax.Array:
    """x (n, d) plus Gaussian noise of this standard deviation, for each row with chance `prob`."""
    if (known(std) and std == 0) or (known(prob) and prob == 0):
        return x
    value_key, chance_key = jax.random.split(key)
    noise = std * jax.random.normal(value_key, x.shape, jnp.float32)
    if not known(prob) or prob < 1:
        noise *= jax.random.bernoulli(chance_key, jnp.float32(prob), (len(x), 1))
    return x + noise


Epoch = Callable[[TrainState, jax.Array, jax.Array, jax.Array], tuple[TrainState, jax.Array]]


def make_epoch(config: ImageConfig, model: GLUClassifier, optimizer: optax.GradientTransformation, mesh: Mesh) -> Epoch:
    """The compiled epoch, as `epoch_function`, each batch split over the devices. The state that goes in is used up."""
    across = NamedSharding(mesh, PartitionSpec("data"))
    return jax.jit(epoch_function(config, model, optimizer, config.seed, across), donate_argnums=0)


def epoch_function(
    config: ImageConfig,
    model: GLUClassifier,
    optimizer: optax.GradientTransformation,
    noise_seed: Any,
    across: NamedSharding | None = None,
) -> Epoch:
    """(state, images, labels, indices) → (state, losses (steps,)), a function to be compiled.

    One scan over the batches of a shuffle of `indices` (n,), which point into uint8 images (m, …) and
    labels (m,) on the device. Whatever is random comes from the two seeds and the step alone; seed, learning rate,
    weight decay, noise, c and λ of the configuration may be traced.
    """

    def loss_of(params, x, labels):
        logits = with_parameters(model, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def epoch(state, images, labels, indices):
        steps = len(indices) // config.batch_size
        key = jax.random.fold_in(jax.random.key(config.seed), _ORDER)
        order = jax.random.permutation(jax.random.fold_in(key, state.step), indices)
        batches = order[: steps * config.batch_size].reshape(steps, config.batch_size)

        def step(state, batch):
            x = scale_pixels(images[batch])
            x = x if across is None else jax.lax.with_sharding_constraint(x, across)
            x = add_noise(x, noise_key(noise_seed, state.step), config.noise_std, config.noise_prob)
            loss, gradient = jax.value_and_grad(loss_of)(state.params, x, labels[batch])
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            params: Any = optax.apply_updates(state.params, updates)
            return TrainState(params, opt_state, state.step + 1), loss

        return jax.lax.scan(step, state, batches)

    return epoch


def make_evaluation(model: GLUClassifier, mesh: Mesh) -> Callable[..., Metrics]:
    """The compiled evaluation, as `evaluation_function`, each batch split over the devices."""
    across = NamedSharding(mesh, PartitionSpec(None, "data"))
    return jax.jit(evaluation_function(model, mesh.size, across))


def evaluation_function(model: GLUClassifier, devices: int = 1, across: NamedSharding | None = None):
    """(params, images, labels, indices) → Metrics, without noise: a function to be compiled."""

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
