"""AdamW with a cosine schedule."""

import jax
import jax.numpy as jnp
import optax

from sqs_jax.messages import InputError
from sqs_jax.train.config import TrainConfig


def learning_rate(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over `warmup` steps, then a cosine from `lr` to 0 at `total_steps`.

    Raises InputError for a warm-up that is as long as the run, and for a run of more steps than an int32 counts.
    """
    if total_steps >= 2**31:
        raise InputError(f"the run has {total_steps} steps: fewer than {2**31} are needed")
    if config.warmup >= total_steps:
        raise InputError(f"`warmup` is {config.warmup}: fewer than the run's {total_steps} steps are needed")
    cosine = optax.cosine_decay_schedule(config.lr, total_steps - config.warmup)
    schedule = cosine
    if config.warmup:
        rise = optax.linear_schedule(0.0, config.lr, config.warmup)
        schedule = optax.join_schedules([rise, cosine], [config.warmup])
    return lambda step: schedule(jnp.asarray(step, jnp.float32))  # where float64 is on, too


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
