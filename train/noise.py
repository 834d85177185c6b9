"""The noise that is added to training inputs: to pixels, and to embedded tokens."""

import jax
import jax.numpy as jnp

from sqs_jax.train.config import known
from sqs_jax.train.step import step_key


def noise_key(seed: int, step: jax.Array) -> jax.Array:
    """The key that the noise of a step is drawn from."""
    return step_key(seed, "noise", step)


def add_pixel_noise(x: jax.Array, key: jax.Array, std: float, prob: float) -> jax.Array:
    """x (n, d) plus Gaussian noise of this standard deviation, for each row with chance `prob`."""
    if (known(std) and std == 0) or (known(prob) and prob == 0):
        return x
    value_key, chance_key = jax.random.split(key)
    noise = std * jax.random.normal(value_key, x.shape, jnp.float32)
    if not known(prob) or prob < 1:
        noise *= jax.random.bernoulli(chance_key, jnp.float32(prob), (len(x), 1))
    return x + noise


def add_embedding_noise(x: jax.Array, key: jax.Array, std: float) -> jax.Array:
    """x (batch, length, d) plus Gaussian noise of `std` times the root mean square of x."""
    if not std:
        return x
    size = jax.lax.stop_gradient(jnp.sqrt(jnp.mean(x.astype(jnp.float32) ** 2)))
    return x + (std * size * jax.random.normal(key, x.shape, jnp.float32)).astype(x.dtype)
