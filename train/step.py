"""The state of training, its update by one gradient, its random keys, and how it lies on the devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sqs_jax.messages import InputError

# What a random number is for: folded into the run's key before the step or epoch.
_PURPOSES = {"init": 0, "order": 1, "noise": 2}

Parameters = dict[str, Any]


class TrainState(NamedTuple):
    """The state of training. With the seed, it determines every later number."""

    params: Parameters
    opt_state: optax.OptState
    step: jax.Array


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
    """The sharding of parameters and data sets: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def initial_rngs(seed: int) -> nnx.Rngs:
    """What initial weights are drawn from."""
    return nnx.Rngs(jax.random.fold_in(jax.random.key(seed), _PURPOSES["init"]))


def step_key(seed: int, purpose: str, step: jax.Array) -> jax.Array:
    """The key of a step, or of an epoch by its first step: for its "order" or its "noise"."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PURPOSES[purpose]), step)


def parameters(model: nnx.Module) -> Parameters:
    """The parameters of a model as nested dicts of arrays."""
    return nnx.to_pure_dict(nnx.state(model))


def first_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = parameters(model)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def with_parameters(model: nnx.Module, params: Parameters) -> Any:
    """A copy of the model with these parameters."""
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def updated(state: TrainState, gradient: Parameters, optimizer: optax.GradientTransformation) -> TrainState:
    """The state after a step of the optimizer."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.step + 1)
