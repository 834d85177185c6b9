"""Least squares by Adam for a gated layer: it fits surrogates, and gives a layer of a model another gate."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sqs_jax.activation import sqs
from sqs_jax.analysis.interaction import GLUWeights

_LOOKS = 8  # how often the held-out samples are looked at
_HELD_OUT, _MOST_HELD_OUT = 0.1, 4096
_PATIENCE = 3  # looks that fall, one after the other, after which a fit ends
_SINKS_A_BATCH, _SINK_WEIGHT = 64, 0.1
_RIDGE = 1e-6
PART = 2048
"""Samples that are computed at a time."""


class Layer(NamedTuple):
    """The parameters of a fit: ((x W + b_w) ⊙ (σ(x V + b_v) + β)) P + x L + b; σ is SQS where there is a `c_raw`."""

    w: Any
    w_bias: Any
    v: Any
    v_bias: Any
    out: Any
    skip: Any
    """L, or None for none."""
    bias: Any
    c_raw: Any = None
    """c = softplus(c_raw),"""
    lam_raw: Any = None
    """and λ = softplus(lam_raw); both None where σ is the identity."""
    offset: Any = None
    """β, or None for none."""


class Samples(NamedTuple):
    """What a layer reads and gives, places that are sinks apart: there ‖y‖ is tens of times what it is elsewhere."""

    x: Any
    y: Any
    sink_x: Any
    sink_y: Any
    """Of every sink; of none (0, d)."""


class Fit(NamedTuple):
    """What a fit has come to."""

    layer: Layer
    """The parameters with the best R² on the held-out samples,"""
    r2: float
    """that R²,"""
    step: int
    """the step that they are of,"""
    start_r2: float
    """and the R² of the start."""


def predicted(layer: Layer, x):
    """What the layer gives for x (n, d)."""
    y = hidden(layer, x) @ layer.out + layer.bias[None]
    return y if layer.skip is None else y + x @ layer.skip


def hidden(layer: Layer, x):
    """The hidden units (n, h): (x W + b_w) ⊙ (σ(x V + b_v) + β)."""
    a, u = x @ layer.w + layer.w_bias[None], x @ layer.v + layer.v_bias[None]
    if layer.c_raw is not None:
        u = sqs(u, c=jax.nn.softplus(layer.c_raw), lam=jax.nn.softplus(layer.lam_raw), implementation="xla")
    if layer.offset is not None:
        u = u + layer.offset[None]
    return a * u


def balanced(layer: GLUWeights, x: np.ndarray, *, skip: bool = True) -> Layer:
    """A bilinear layer with each unit's three factors of one size on the data, so that one learning rate fits all."""
    d, h = layer.w.shape
    zeros = jnp.zeros(h)
    w_bias, v_bias = (zeros if bias is None else bias for bias in (layer.w_bias, layer.v_bias))
    few = jnp.asarray(x[:PART])
    a, u = (jnp.sqrt(jnp.mean((few @ m + b[None]) ** 2, axis=0)) for m, b in ((layer.w, w_bias), (layer.v, v_bias)))
    p = jnp.linalg.norm(layer.out, axis=1)
    alive = (a > 0) & (u > 0) & (p > 0)
    a, u, p = (jnp.where(alive, size, 1) for size in (a, u, p))
    size = (a * u * p) ** (1 / 3)
    outputs = layer.out.shape[1]
    linear = jnp.zeros((d, outputs)) if layer.skip is None else layer.skip
    return Layer(
        w=layer.w * (size / a)[None],
        w_bias=w_bias * size / a,
        v=layer.v * (size / u)[None],
        v_bias=v_bias * size / u,
        out=layer.out * (size / p)[:, None],
        skip=linear if skip else None,
        bias=jnp.zeros(outputs) if layer.out_bias is None else layer.out_bias,
    )


def parted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the samples that are fitted on, and of a tenth that is held out."""
    order = np.random.default_rng(seed).permutation(count)
    held = min(_MOST_HELD_OUT, max(2, int(count * _HELD_OUT)))
    return np.sort(order[held:]), np.sort(order[:held])


def fit(
    start: Layer, train: Samples, test: tuple[Any, Any], *, steps: int, batch_size: int, learning_rate: float, seed: int
) -> Fit:
    """Makes the mean of ‖y - ŷ‖² over the variance of y small, by Adam with a cosine, from a start.

    Sinks count by their relative error, ‖y - ŷ‖² / ‖y‖², in a term of its own with weight 1/10: by their absolute one
    they would be all that is fitted. The parameters with the best R² on the samples `test`, (x, y), are kept, looked at
    eight times; the fit ends when R² has fallen three looks in a row.
    """
    optimizer = _optimizer(learning_rate, steps)
    state, train, key = optimizer.init(start), Samples(*map(jnp.asarray, train)), jax.random.key(seed)
    first_r2 = r2(start, *test)
    best, best_r2, best_step, last_r2 = start, first_r2, 0, first_r2
    layer = jax.tree.map(jnp.array, start)  # a copy: each advance consumes what it gets
    each, done, worse = max(1, steps // _LOOKS), 0, 0
    while done < steps and worse < _PATIENCE:
        count = min(each, steps - done)
        layer, state = _advance(
            layer, state, train, key, jnp.int32(done), count=count, batch_size=batch_size, optimizer=optimizer
        )
        done += count
        now = r2(layer, *test)
        worse, last_r2 = 0 if now > last_r2 else worse + 1, now
        if now > best_r2:
            best, best_r2, best_step = jax.tree.map(jnp.array, layer), now, done
    return Fit(best, best_r2, best_step, first_r2)


@functools.partial(jax.jit, static_argnames=("count", "batch_size", "optimizer"), donate_argnums=(0, 1))
def _advance(layer: Layer, state, train: Samples, key, first, *, count: int, batch_size: int, optimizer):
    """`count` steps of the fit; the loss is in units of the outputs' variance."""
    x, y, sink_x, sink_y = train
    scale = jnp.mean((y - y.mean(0)[None]) ** 2)

    def loss_of(layer, rows, sinks):
        loss = jnp.mean((predicted(layer, x[rows]) - y[rows]) ** 2) / scale
        if not len(sink_x):
            return loss
        missed = jnp.sum((predicted(layer, sink_x[sinks]) - sink_y[sinks]) ** 2, axis=1)
        return loss + _SINK_WEIGHT * jnp.mean(missed / jnp.sum(sink_y[sinks] ** 2, axis=1))

    def step(carry, number):
        layer, state = carry
        own = jax.random.fold_in(key, number)
        rows = jax.random.randint(own, (batch_size,), 0, len(x))
        sinks = jax.random.randint(jax.random.fold_in(own, 1), (_SINKS_A_BATCH,), 0, max(1, len(sink_x)))
        updates, state = optimizer.update(jax.grad(loss_of)(layer, rows, sinks), state, layer)
        return (optax.apply_updates(layer, updates), state), None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, (layer, state), first + jnp.arange(count, dtype=jnp.int32))[0]


@functools.lru_cache
def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


def with_best_readout(layer: Layer, samples: Samples) -> Layer:
    """The layer with the P and b that minimise the loss of `fit` over all samples, in closed form.

    It also reaches sinks, whose hidden units are so large that Adam's steps throw them about. A ridge of 1e-6 of the
    mean square of hidden units keeps P from what the samples do not decide.
    """
    h, outputs = layer.out.shape
    gram, right = np.zeros((h + 1, h + 1)), np.zeros((h + 1, outputs))
    y = np.asarray(samples.y)
    plain = 1 / (len(y) * np.mean(np.sum((y - y.mean(0)) ** 2, axis=1, dtype=np.float64)))
    sizes = np.sum(np.square(samples.sink_y, dtype=np.float64), axis=1)
    for x, wanted, weight in (
        (samples.x, y, np.full(len(y), plain)),
        (samples.sink_x, np.asarray(samples.sink_y), _SINK_WEIGHT / np.maximum(sizes, 1e-30) / max(1, len(sizes))),
    ):
        for i in range(0, len(x), PART):
            part = slice(i, i + PART)
            left = wanted[part] if layer.skip is None else wanted[part] - np.asarray(x[part]) @ np.asarray(layer.skip)
            root = np.sqrt(weight[part])[:, None]
            units = np.pad(np.asarray(_hidden(layer, x[part])), ((0, 0), (0, 1)), constant_values=1) * root
            gram += units.T @ units
            right += units.T @ (left * root)
    gram[np.diag_indices(h + 1)] += _RIDGE * np.trace(gram) / (h + 1)
    best = np.linalg.solve(gram, right)
    return layer._replace(out=jnp.asarray(best[:-1], jnp.float32), bias=jnp.asarray(best[-1], jnp.float32))


@jax.jit
def _hidden(layer: Layer, x):
    with jax.default_matmul_precision("highest"):
        return hidden(layer, x)


_predict = jax.jit(predicted)


def outputs_of(layer: Layer, x: np.ndarray) -> np.ndarray:
    """`predicted` on the host, part by part."""
    with jax.default_matmul_precision("highest"):
        return np.concatenate([np.asarray(_predict(layer, x[i : i + PART])) for i in range(0, len(x), PART)])


def r2(layer: Layer, x: np.ndarray, y: Any) -> float:
    """R² of what the layer gives; NaN where y does not vary."""
    wide = np.asarray(y, np.float64)
    spread = np.sum((wide - wide.mean(0)) ** 2)
    return (
        float(1 - np.sum((wide - outputs_of(layer, x).astype(np.float64)) ** 2) / spread)
        if spread > 0
        else float("nan")
    )
