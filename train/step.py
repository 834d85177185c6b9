"""The state of training, its update by one gradient, its random keys, and how it lies on the devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sqs_jax.display import Stage
from sqs_jax.train import layout

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


def initial_rngs(seed: int) -> nnx.Rngs:
    """What initial weights are drawn from."""
    return nnx.Rngs(jax.random.fold_in(jax.random.key(seed), _PURPOSES["init"]))


def step_key(seed: int, purpose: str, step: jax.Array) -> jax.Array:
    """The key of a step, or of an epoch by its first step: for its "order" or its "noise"."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PURPOSES[purpose]), step)


def parameters(model: nnx.Module) -> Parameters:
    """The parameters of a model as nested dicts of arrays."""
    return nnx.to_pure_dict(nnx.state(model))


def size_of(params: Parameters) -> int:
    """The number of parameters, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def first_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, params: Parameters | None = None
) -> TrainState:
    """The state before the first step, of the model's own parameters or of others."""
    params = parameters(model) if params is None else params
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_begin(
    make_model: Callable[[], nnx.Module], optimizer: optax.GradientTransformation, placed: TrainState
) -> Callable[[Parameters | None], TrainState]:
    """The function that makes the state before the first step where it belongs, of the model's parameters or of others.

    `placed` has the sharding of every array; none is whole on one device before.
    """
    where: Any = placed
    own = jax.jit(lambda: first_state(make_model(), optimizer), out_shardings=placed)
    moments = jax.jit(optimizer.init, out_shardings=where.opt_state)

    def begin(params: Parameters | None) -> TrainState:
        if params is None:
            return own()
        here: Any = jax.tree.map(lambda array, place: layout.placed(np.asarray(array), place), params, where.params)
        return TrainState(here, moments(here), layout.placed(np.zeros((), np.int32), where.step))

    return begin


def with_parameters(model: nnx.Module, params: Parameters) -> Any:
    """A copy of the model with these parameters."""
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def run_steps(
    state: TrainState,
    end: int,
    stopping: Callable[[], Any],
    shown: Stage,
    advance: Callable[[TrainState, int], tuple[TrainState, Any]],
) -> tuple[TrainState, np.ndarray]:
    """Step by step up to the step `end`, until `stopping()`, or until a loss is not finite; the losses (steps,)."""
    losses = []
    for step in range(int(state.step), end):
        # The step before the last has ended: its loss costs no wait, and no more than two steps lie in the queue.
        if stopping() or (len(losses) > 1 and not np.isfinite(losses[-2])):
            break
        shown.at(step)
        state, loss = advance(state, step)
        losses.append(loss)
    return state, np.array([np.asarray(loss) for loss in losses], np.float32)


def accumulated(loss_of: Callable[..., jax.Array], params: Parameters, parts: Any) -> tuple[jax.Array, Parameters]:
    """The sums of `loss_of(params, *part)` and of its gradient over parts, stacked arrays, one after the other."""

    def add(total, part):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(params, *part)), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    return jax.lax.scan(add, zeros, parts)[0]


def updated(state: TrainState, gradient: Parameters, optimizer: optax.GradientTransformation) -> TrainState:
    """The state after a step of the optimizer."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    return TrainState(params, opt_state, state.step + 1)
