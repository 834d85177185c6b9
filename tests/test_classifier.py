"""What runs on the device: noise, the first step, the order of the images, evaluation, and several devices."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sqs_jax.messages import InputError
from sqs_jax.train import ImageConfig
from sqs_jax.train.images.classifier import make_epoch, make_evaluation, make_model
from sqs_jax.train.layout import make_mesh
from sqs_jax.train.noise import add_pixel_noise, noise_key
from sqs_jax.train.optimizer import learning_rate, make_optimizer
from sqs_jax.train.step import TrainState, initial_rngs, parameters, step_key, with_parameters
from tests.helpers import on_devices

GOLDEN_LOSS = 0.9916116
SMALL = ImageConfig(width=8, hidden=6, batch_size=16, lr=1e-2, noise_std=0.0, epochs=4, validation=0)


def images_and_labels(count, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (count, 3, 3)), jnp.uint8), jnp.asarray(
        rng.integers(0, 3, count), jnp.int32
    )


def start(config, steps):
    model = make_model(config, 9, 3)
    optimizer = make_optimizer(config, steps)
    params = jax.tree.map(jnp.copy, parameters(model))
    state = TrainState(params, optimizer.init(params), jnp.int32(0))
    return model, optimizer, state


def test_each_purpose_has_a_key_of_its_own_and_no_version_changes_it():
    """Runs that were begun before go on to the same numbers."""
    root = jax.random.key(3)
    for purpose, number in (("order", 1), ("noise", 2)):
        expected = jax.random.fold_in(jax.random.fold_in(root, number), 5)
        assert jnp.array_equal(jax.random.key_data(step_key(3, purpose, 5)), jax.random.key_data(expected))
    assert jnp.array_equal(jax.random.key_data(noise_key(3, 5)), jax.random.key_data(step_key(3, "noise", 5)))
    initial = initial_rngs(3).params()
    expected = nnx.Rngs(jax.random.fold_in(root, 0)).params()
    assert jnp.array_equal(jax.random.key_data(initial), jax.random.key_data(expected))


def test_noise_has_the_given_mean_deviation_and_share():
    x = jnp.full((4000, 50), 0.25)
    noise = np.asarray(add_pixel_noise(x, jax.random.key(0), 0.7, 0.3) - x)
    hit = np.any(noise != 0, axis=1)
    # Each bound is some five standard errors of the estimate.
    assert abs(hit.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)
    assert abs(noise[hit].mean()) < 5 * 0.7 / np.sqrt(hit.sum() * 50)
    assert abs(noise[hit].std() - 0.7) < 5 * 0.7 / np.sqrt(2 * hit.sum() * 50)
    assert abs(np.mean(noise[hit] ** 4) / 0.7**4 - 3) < 0.2  # Gaussian
    correlation = np.corrcoef(noise[hit].T)
    assert np.abs(correlation - np.eye(50)).max() < 0.2
    assert np.all(add_pixel_noise(x, jax.random.key(0), 0.7, 1.0) != x)
    for std, prob in ((0.0, 1.0), (0.7, 0.0)):
        np.testing.assert_array_equal(add_pixel_noise(x, jax.random.key(0), std, prob), x)


def first_step_in_float64(params, x, labels, config):
    """Loss and parameters after one step of AdamW, by hand: the classifier's gradient, and Loshchilov & Hutter 2019."""
    e, w, v, p = (np.asarray(a, np.float64) for a in params)
    z = x @ e
    a, u = z @ w, z @ v
    r = np.abs(u)
    gate, slope = (
        (u - config.c * np.sign(u)) / (1 + config.lam * r),
        (1 + config.lam * config.c) / (1 + config.lam * r) ** 2,
    )
    h = a * gate
    logits = h @ p
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probability = shifted / shifted.sum(1, keepdims=True)
    rows = np.arange(len(x))
    loss = -np.log(probability[rows, labels]).mean()
    probability[rows, labels] -= 1
    d_logits = probability / len(x)
    d_h = d_logits @ p.T
    d_a, d_u = d_h * gate, d_h * a * slope
    gradients = [x.T @ (d_a @ w.T + d_u @ v.T), z.T @ d_a, z.T @ d_u, h.T @ d_logits]
    # After one step Adam's bias-corrected moments are the gradient and its square.
    moved = [
        weights - config.lr * (g / (np.abs(g) + 1e-8) + config.weight_decay * weights)
        for weights, g in zip((e, w, v, p), gradients, strict=True)
    ]
    return loss, moved


def test_the_first_step_is_golden():
    images, labels = images_and_labels(16)
    model, optimizer, state = start(SMALL, 4)
    flat = [state.params["embed"], *(state.params["layers"][0][k] for k in "wv"), state.params["head"]]
    x = np.asarray(images, np.float64).reshape(16, 9) / 255
    loss, moved = first_step_in_float64(flat, x, np.asarray(labels), SMALL)
    state, losses = make_epoch(SMALL, model, optimizer, make_mesh())(state, images, labels, jnp.arange(16))
    np.testing.assert_allclose(losses, [loss], rtol=1e-5)
    flat = [state.params["embed"], *(state.params["layers"][0][k] for k in "wv"), state.params["head"]]
    for result, expected in zip(flat, moved, strict=True):
        np.testing.assert_allclose(result, expected, atol=1e-5)
    assert int(state.step) == 1
    # Drawn from seed 0 alone: a change of the initial weights or of the order of random numbers shows here.
    np.testing.assert_allclose(losses, [GOLDEN_LOSS], rtol=1e-5)


def test_an_epoch_sees_every_image_once_and_each_epoch_in_another_order():
    # The network only sees its input: one pixel that tells the images apart. With weights that do not move, the losses
    # of batches of one image are those of all images, in the order in which they came.
    config = dataclasses.replace(SMALL, batch_size=1)
    images, labels = jnp.arange(1, 41, dtype=jnp.uint8).reshape(40, 1, 1), jnp.zeros(40, jnp.int32)
    model = make_model(config, 1, 3)
    still = optax.set_to_zero()
    epoch = make_epoch(config, model, still, make_mesh())
    params = parameters(model)
    x = images.reshape(40, 1) / jnp.float32(255)
    each = -jax.nn.log_softmax(with_parameters(model, params)(x))[:, 0]
    indices = jnp.arange(5, 40)
    orders = []
    for step in (0, 35):
        state = TrainState(jax.tree.map(jnp.copy, params), still.init(params), jnp.int32(step))
        _, losses = epoch(state, images, labels, indices)
        orders.append(np.abs(losses[:, None] - each[None, :]).argmin(1))
        np.testing.assert_array_equal(np.sort(orders[-1]), indices)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], indices)


def test_evaluation_matches_numpy_whatever_the_padding():
    config = dataclasses.replace(SMALL, gate="relu")
    images, labels = images_and_labels(5000)
    model, _, state = start(config, 4)
    logits = np.asarray(with_parameters(model, state.params)(images.reshape(5000, 9) / jnp.float32(255)), np.float64)
    log_sum = np.log(np.exp(logits).sum(1))
    evaluate = make_evaluation(model, make_mesh())
    for indices in (np.arange(5000), np.arange(7), np.arange(100, 2149)):
        result = evaluate(state.params, images, labels, jnp.asarray(indices))
        chosen = np.asarray(labels)[indices]
        np.testing.assert_allclose(result.loss, (log_sum[indices] - logits[indices, chosen]).mean(), rtol=1e-5)
        np.testing.assert_allclose(result.accuracy, (logits[indices].argmax(1) == chosen).mean(), rtol=1e-6)


def test_same_seed_same_numbers_other_seed_others():
    images, labels = images_and_labels(64)

    def losses(**change):
        config = dataclasses.replace(SMALL, noise_std=0.5, **change)
        model, optimizer, state = start(config, 16)
        return make_epoch(config, model, optimizer, make_mesh())(state, images, labels, jnp.arange(64))[1]

    np.testing.assert_array_equal(losses(), losses())
    assert not np.array_equal(losses(), losses(seed=1))


def test_weight_decay_spares_biases_and_learnt_parameters():
    config = dataclasses.replace(SMALL, bias=True, learnable=True, weight_decay=0.5, lr=0.1)
    _, optimizer, state = start(config, 10)
    still = jax.tree.map(jnp.zeros_like, state.params)
    ones = jax.tree.map(jnp.ones_like, state.params)
    updates, _ = optimizer.update(still, optimizer.init(ones), ones)
    flat = {jax.tree_util.keystr(path): u for path, u in jax.tree_util.tree_leaves_with_path(updates)}
    decayed = {name for name, update in flat.items() if np.any(update != 0)}
    assert decayed == {"['embed']", "['head']", "['layers'][0]['v']", "['layers'][0]['w']"}
    np.testing.assert_allclose(flat["['head']"], -0.1 * 0.5, rtol=1e-6)


def test_schedule_warms_up_then_follows_a_cosine_to_zero():
    rate = learning_rate(dataclasses.replace(SMALL, lr=2.0, warmup=10), 110)
    result = [float(rate(step)) for step in (0, 5, 10, 35, 60, 110)]
    np.testing.assert_allclose(result, [0, 1, 2, 1 + np.cos(np.pi / 4), 1, 0], atol=1e-6)
    with pytest.raises(InputError, match="`warmup` is 110"):
        learning_rate(dataclasses.replace(SMALL, warmup=110), 110)


def test_clipping_bounds_the_gradient():
    config = dataclasses.replace(SMALL, clip=1e-3, weight_decay=0.0)
    _, optimizer, state = start(config, 10)
    big = jax.tree.map(lambda a: 1e3 * jnp.ones_like(a), state.params)
    _, opt_state = optimizer.update(big, state.opt_state, state.params)
    first_moment = optax.tree.get(opt_state, "mu")
    np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1 * 1e-3, rtol=1e-4)


_ON_DEVICES = """
    import json, sys
    import jax, numpy as np
    sys.path.insert(0, "tests")
    import test_classifier
    import dataclasses
    from sqs_jax.train.layout import make_mesh, replicated
    from sqs_jax.train.images.classifier import make_epoch, make_evaluation
    config = dataclasses.replace(test_classifier.SMALL, noise_std=0.3, noise_prob=0.5)
    images, labels = test_classifier.images_and_labels(100)
    model, optimizer, state = test_classifier.start(config, 24)
    mesh = make_mesh()
    everywhere = replicated(mesh)
    state, images, labels, indices = jax.device_put((state, images, labels, np.arange(100)), everywhere)
    epoch = make_epoch(config, model, optimizer, mesh)
    losses = []
    for _ in range(4):
        state, some = epoch(state, images, labels, indices)
        losses += some.tolist()
    found = make_evaluation(model, mesh)(state.params, images, labels, indices)
    assert state.params["head"].sharding.is_fully_replicated
    print(json.dumps([jax.device_count(), losses, float(found.loss), np.asarray(state.params["head"]).tolist()]))
"""


def test_the_same_numbers_on_1_and_on_8_devices():
    results = []
    for count in (1, 8):
        command = [sys.executable, "-c", textwrap.dedent(_ON_DEVICES)]
        done = subprocess.run(command, env=on_devices(count), capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
    assert [result[0] for result in results] == [1, 8]
    for one, eight in zip(results[0][1:], results[1][1:], strict=True):
        np.testing.assert_allclose(one, eight, rtol=2e-5, atol=2e-6)


def test_each_step_has_noise_of_its_own():
    # Images and labels are all the same, and weights do not move: what differs between two losses is the noise.
    config = dataclasses.replace(SMALL, batch_size=5, noise_std=1.0)
    images, labels = jnp.full((40, 3, 3), 100, jnp.uint8), jnp.zeros(40, jnp.int32)
    still = optax.set_to_zero()
    model = make_model(config, 9, 3)
    epoch = make_epoch(config, model, still, make_mesh())
    params = parameters(model)
    losses = []
    for first in (0, 8):
        state = TrainState(jax.tree.map(jnp.copy, params), still.init(params), jnp.int32(first))
        losses += np.asarray(epoch(state, images, labels, jnp.arange(40))[1]).tolist()
    assert len(losses) == 16
    assert np.min(np.diff(np.sort(losses))) > 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_logits_of_16_bit_networks_are_not_rounded_to_16_bits(dtype):
    model = make_model(dataclasses.replace(SMALL, dtype=dtype, width=32, hidden=32), 9, 50)
    x = jax.random.normal(jax.random.key(0), (200, 9))
    logits, hidden = model(x), model.hidden(x, 1)
    assert (logits.dtype, hidden.dtype) == (jnp.float32, dtype)
    exact = np.asarray(hidden, np.float64) @ np.asarray(model.head[...].astype(dtype), np.float64)
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)
    assert np.any(logits.astype(dtype).astype(jnp.float32) != logits)
