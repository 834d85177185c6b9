"""Surrogates: a bilinear layer that is fitted to what a gated layer reads and gives, whose eigenvectors are exact.

A surrogate's weights are not the layer's own. How far its forms are from the calibrated ones is part of the result.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sqs_jax.analysis import layer_fit
from sqs_jax.analysis.calibration import bilinear_layer, calibrate, check_concrete, network_logits
from sqs_jax.analysis.interaction import GLUWeights, at_least_float32, check_weights, input_size
from sqs_jax.analysis.layer_fit import Layer
from sqs_jax.gates import Gate, static_gate

_START_SAMPLES = 10_000  # for the gains that a fit starts from


class Surrogate(NamedTuple):
    """A bilinear layer that stands for a gated one."""

    weights: GLUWeights
    """((x W + b_w) ⊙ (x V + b_v)) P + x L + b: all of it is exact, so no calibration is needed."""
    r2: float
    """R² of the layer's outputs, on the samples that were held out."""
    start_r2: float
    """R² there of the bilinear layer that the fit starts from."""
    steps: int
    """The step with the best R²."""
    form_cosine: Float[np.ndarray, " outputs"]
    """Of the surrogate's forms and those of the start, ⟨A, B⟩ / ‖A‖‖B‖ in the metric of the centred data."""


def fit_surrogate(
    weights: GLUWeights,
    x: Float[Any, "n inputs"],
    gate: str | Gate,
    *,
    start: GLUWeights | None = None,
    width: int | None = None,
    steps: int = 300,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Surrogate:
    """The bilinear layer that is nearest to a gated layer on its inputs: least squares by Adam.

        ŷ = ((x W' + b) ⊙ (x V' + c)) P' + x L' + o,      the mean of ‖y - ŷ‖² is made small

    It starts from the layer's own weights with joint affine gains, without which it finds other layers and worse ones.
    The learning rate falls by a cosine. A tenth of the samples is held out; the parameters with the best R² there are
    kept, and the fit ends when R² falls three looks in a row, of eight.

    Args:
      weights: of the layer, without an embedding. For a language model `mlp_weights`, whose outputs are the stream's.
      x: its inputs (n, inputs), n ≥ 20; places that are not to count, such as attention sinks, left out.
      gate: σ.
      start: the bilinear layer that it starts from; by default `bilinear_layer` of the "joint_affine" calibration on at
        most 10,000 of the samples.
      width: hidden units of the surrogate, by default those of its start; more are random ones that give 0 at first.
      steps: of Adam, 1 or more; batch_size: samples a step; learning_rate: at the start; seed: of the batches.

    Host code. Raises ValueError for weights, inputs or numbers that do not fit.

    Source: this project's own; the nearest published reading is the best quadratic form for Gaussian inputs (Belrose
    and Rigg 2025), which `calibrate` has as "gaussian".
    """
    check_concrete("fit_surrogate", weights=weights, x=x)
    check_weights(weights)
    x = np.asarray(x, np.float32)
    _check(weights, x, start or weights, width, steps=steps, batch_size=batch_size)
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` is {learning_rate}: a number > 0 is needed")
    weights, sigma = at_least_float32(weights), static_gate(gate)
    train, test = (x[part] for part in layer_fit.parted(len(x), seed))
    y, test_y = (_outputs(weights, part, sigma) for part in (train, test))
    start = _start(weights, train, sigma) if start is None else start
    params = _widened(layer_fit.balanced(start, train), width, seed)
    settings = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    samples = layer_fit.Samples(train, y, train[:0], y[:0]), (test, test_y)
    best, best_r2, best_step, start_r2 = layer_fit.fit(params, *samples, **settings)
    result = GLUWeights(best.w, best.v, best.out, None, best.w_bias, best.v_bias, best.bias, best.skip)
    return Surrogate(result, best_r2, start_r2, best_step, _form_cosines(result, start, train))


def _start(weights: GLUWeights, x: np.ndarray, gate: Gate) -> GLUWeights:
    few = x[:: max(1, len(x) // _START_SAMPLES)]
    return bilinear_layer(weights, calibrate(weights, few, gate, method="joint_affine", precision="float32", r2=False))


def _check(weights: GLUWeights, x: np.ndarray, start: GLUWeights, width: int | None, **counts: int) -> None:
    inputs, h = input_size(weights), start.w.shape[1]
    if weights.embed is not None:
        raise ValueError("`weights` has an embedding: a layer that reads its input itself is needed")
    check_weights(start)
    ends = [(input_size(layer), layer.out.shape[1]) for layer in (weights, start)]
    if start.embed is not None or ends[0] != ends[1]:
        raise ValueError(
            f"`start` has {ends[1][0]} inputs and {ends[1][1]} outputs, or an embedding: a bilinear layer of "
            f"{ends[0][0]} inputs and {ends[0][1]} outputs without one is needed"
        )
    if x.ndim != 2 or x.shape[1] != inputs:
        raise ValueError(f"`x` has shape {x.shape}: (n, {inputs}) is needed")
    if len(x) < 20 or not np.all(np.isfinite(x)):
        raise ValueError(f"`x` has {len(x)} samples, or some are not finite: 20 finite ones or more are needed")
    if width is not None and width < h:
        raise ValueError(f"`width` is {width}: {h}, that of the start, or more is needed")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` is {count}: a whole number ≥ 1 is needed")


@functools.partial(jax.jit, static_argnums=2)
def _network(weights, x, gate):
    with jax.default_matmul_precision("highest"):
        return network_logits(weights, x, gate)


def _outputs(weights: GLUWeights, x: np.ndarray, gate: Gate) -> jax.Array:
    return jnp.concatenate(
        [_network(weights, x[i : i + layer_fit.PART], gate) for i in range(0, len(x), layer_fit.PART)]
    )


def _widened(layer: Layer, width: int | None, seed: int) -> Layer:
    """With random hidden units beside its own that give 0 at first."""
    d, h = layer.w.shape
    more = 0 if width is None else width - h
    if not more:
        return layer
    keys = jax.random.split(jax.random.key(seed))
    w, v = (
        jnp.concatenate([own, jnp.std(own) * jax.random.normal(key, (d, more))], axis=1)
        for own, key in zip((layer.w, layer.v), keys, strict=True)
    )
    w_bias, v_bias = (jnp.pad(bias, (0, more)) for bias in (layer.w_bias, layer.v_bias))
    return layer._replace(w=w, v=v, w_bias=w_bias, v_bias=v_bias, out=jnp.pad(layer.out, ((0, more), (0, 0))))


def _form_cosines(a: GLUWeights, b: GLUWeights, x: np.ndarray) -> np.ndarray:
    """Cosine (outputs,) of the forms of two layers in the metric of the covariance of x."""
    centred = x - x.mean(0)
    covariance = jnp.asarray(centred.T @ centred / len(x))
    return np.asarray(form_cosines(a, b, covariance))


@jax.jit
def form_cosines(a: GLUWeights, b: GLUWeights, metric: jax.Array) -> jax.Array:
    """⟨A_o, B_o⟩ / ‖A_o‖‖B_o‖ (outputs,) of two layers' forms, without biases, with ⟨A, B⟩ = tr(A M B M).

    With M the covariance of Gaussian inputs it is the correlation of the two forms about their mean. By the factors: no
    matrix is formed.
    """

    def inner(x, y):
        products = [(x.w.T @ metric @ left) * (x.v.T @ metric @ right) for left, right in ((y.w, y.v), (y.v, y.w))]
        return jnp.einsum("ho,hk,ko->o", x.out, products[0] + products[1], y.out)

    with jax.default_matmul_precision("highest"):
        size = jnp.sqrt(inner(a, a) * inner(b, b))
        return jnp.where(size > 0, inner(a, b) / jnp.where(size > 0, size, 1), jnp.nan)
