"""AdamW with a cosine schedule."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import optax

from sqs_jax.messages import InputError
from sqs_jax.train.config import TrainConfig, length_of


def learning_rate(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup` steps, then a cosine from `lr` to 0 at `total_steps`.

    Each of `restarts` ends a cosine and begins the next, with a warm-up of its own (Loshchilov and Hutter 2017, arXiv
    1608.03983, without growing periods).

    Raises InputError for a warm-up that is as long as the run, and for a run of more steps than an int32 counts.
    """
    if total_steps >= 2**31:
        raise InputError(f"the run has {total_steps} steps: fewer than {2**31} are needed")
    starts = [0, *(round(total_steps * at / length_of(config)) for at in config.restarts), total_steps]
    sizes = [end - start for start, end in pairwise(starts)]
    if config.warmup >= min(sizes):
        what = f"{min(sizes)} steps between two restarts" if config.restarts else f"run's {total_steps} steps"
        raise InputError(f"`warmup` is {config.warmup}: fewer than the {what} are needed")
    parts = [_rise_and_cosine(config, size) for size in sizes]
    schedule = optax.join_schedules(parts, starts[1:-1]) if config.restarts else parts[0]
    return lambda step: schedule(jnp.asarray(step, jnp.float32))  # where float64 is on, too


def _rise_and_cosine(config: TrainConfig, steps: int) -> optax.Schedule:
    cosine = optax.cosine_decay_schedule(config.lr, steps - config.warmup)
    if not config.warmup:
        return cosine
    rise = optax.linear_schedule(0.0, config.lr, config.warmup)
    return optax.join_schedules([rise, cosine], [config.warmup])


def make_optimizer(config: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW after optional clipping by the global norm; weight decay on matrices, not on biases, norms, c and λ."""
    adamw = optax.adamw(
        learning_rate(config, total_steps),
        weight_decay=config.weight_decay,
        mask=lambda params: jax.tree.map_with_path(_is_matrix, params),
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), adamw) if config.clip else adamw


def _is_matrix(path, value) -> bool:
    # The arrays of a Transformer's blocks have an axis more: that of the layers.
    return value.ndim - (path[0].key == "blocks") >= 2
