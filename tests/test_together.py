"""Groups: what one program trains at once, beside each network alone."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from sqs_jax.train import train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.images.image_task import load_images, place_images
from sqs_jax.train.layout import make_mesh, replicated
from sqs_jax.train.sweep import together
from sqs_jax.train.sweep.together import compile_programs, epoch_seconds, memory_of, program_of, train_together
from tests.helpers import on_devices
from tests.test_sweep import BASE, quiet


@pytest.fixture(scope="module")
def images():
    return place_images(BASE, load_images(BASE, None), replicated(make_mesh()))


# Members that differ in all that one program can be given; with them, one of another depth.
MIXED = [
    dataclasses.replace(BASE, seed=3, lam=0.5, c=0.01, lr=3e-3, noise_std=0.5, noise_prob=0.5, weight_decay=0.1),
    dataclasses.replace(BASE, seed=5, lam=0.0, c=0.1, lr=1e-3, noise_std=0.1, noise_prob=0.9, weight_decay=0.0),
]


def assert_as_alone(member, run_dir):
    """To rounding: sums are taken in another order, and Adam divides by their size."""
    summary = train(member.config, run_dir, report=quiet)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == len(member.history)
    for result, expected in zip(member.history, rows, strict=True):
        assert result.keys() == expected.keys()
        np.testing.assert_allclose(list(result.values()), list(expected.values()), rtol=2e-4, atol=1e-2 / 200)
    np.testing.assert_allclose(member.test["loss"], summary["test"]["loss"], rtol=2e-4)
    expected = jax.tree.leaves(restore_params(run_dir / "checkpoints"))
    for result, other in zip(jax.tree.leaves(member.state.params), expected, strict=True):
        np.testing.assert_allclose(result, other, atol=2e-4)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_networks_trained_together_come_to_the_numbers_of_each_alone(images, tmp_path, p):
    configs = [dataclasses.replace(config, p=p) for config in MIXED]
    assert len({program_of(config) for config in configs}) == 1
    for i, member in enumerate(train_together(configs, images)):
        assert member.config == configs[i]
        assert_as_alone(member, tmp_path / str(i))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 2, "residual": True, "width": 16, "bias": True},
        {"learnable": True, "noise_std": 0.0},
    ],
)
def test_so_do_networks_of_one_seed_and_one_alone(images, tmp_path, change):
    configs = [dataclasses.replace(BASE, lr=lr, **change) for lr in (1e-3, 3e-3)]
    pair, single = train_together(configs, images), train_together(configs[:1], images)
    assert_as_alone(pair[1], tmp_path / "pair")
    np.testing.assert_allclose(pair[0].test["loss"], single[0].test["loss"], rtol=2e-4)


@pytest.mark.parametrize(
    "change", [{"gate": "silu"}, {"p": 2.0}, {"layers": 2}, {"noise_std": 0.0}, {"learnable": True}, {"epochs": 5}]
)
def test_what_changes_the_program_is_another(change):
    assert program_of(dataclasses.replace(BASE, **change)) != program_of(BASE)


@pytest.mark.parametrize("count", [1, 2])
def test_the_second_epoch_compiles_nothing(images, caplog, count):
    configs = [dataclasses.replace(BASE, seed=seed, width=20) for seed in range(count)]
    epochs = epoch_seconds(configs, images)
    with jax.log_compiles():
        next(epochs)
        assert "Compiling" in caplog.text
        caplog.clear()
        next(epochs)
    assert "Compiling" not in caplog.text


def test_shared_noise_is_that_of_one_seed(images):
    configs = [dataclasses.replace(BASE, seed=seed) for seed in (0, 1)]
    alone, shared = train_together(configs, images), train_together(configs, images, noise_seed=0)
    np.testing.assert_allclose(shared[0].test["loss"], alone[0].test["loss"], rtol=2e-4)
    assert abs(shared[1].test["loss"] - alone[1].test["loss"]) > 1e-4
    # Of two seeds, the initial weights and the order of the images still differ.
    assert abs(shared[1].test["loss"] - shared[0].test["loss"]) > 1e-3


def test_one_that_diverges_leaves_the_others_alone(images, tmp_path):
    wild = dataclasses.replace(BASE, gate="bilinear", lr=1e12)
    tame = dataclasses.replace(BASE, gate="bilinear")
    result = train_together([wild, tame], images)
    assert result[0].test is None
    assert 1 < result[0].diverged <= 9 * 4
    assert len(result[0].history) < 4
    assert_as_alone(result[1], tmp_path / "tame")


def test_memory_grows_with_the_networks_and_costs_no_program(images, caplog):
    small, large = (memory_of([dataclasses.replace(BASE, hidden=hidden)], images) for hidden in (16, 512))
    parameters = 64 * 24 + 2 * 24 * 16 + 16 * 10
    assert 3 * 4 * parameters < small < large
    pair = [dataclasses.replace(BASE, lr=lr, hidden=24) for lr in (1e-3, 2e-3)]
    with jax.log_compiles():
        assert memory_of(pair, images) > memory_of(pair[:1], images)
        assert "Finished XLA compilation of jit(epoch)" in caplog.text
        memory_of(pair, images)
        caplog.clear()
        next(epoch_seconds(pair, images))
    assert "Finished XLA compilation of jit(epoch)" not in caplog.text


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_compiled_ahead_is_not_compiled_again(images, caplog, count):
    configs = [dataclasses.replace(BASE, seed=seed, hidden=28) for seed in range(count)]
    with jax.log_compiles():
        compile_programs(configs, images)
        assert "Finished XLA compilation" in caplog.text
        caplog.clear()
        train_together(configs, images)
    left = set(re.findall(r"Finished XLA compilation of jit\(([\w<>]+)\)", caplog.text))
    assert left.isdisjoint({"<lambda>", "call", "epoch", "evaluation", "all_finite"})


_ON_DEVICES = """
import dataclasses, json
from sqs_jax.train import PRESETS
from sqs_jax.train.images.image_task import load_images, place_images
from sqs_jax.train.sweep.together import train_together
from sqs_jax.train.layout import make_mesh, replicated
base = dataclasses.replace(PRESETS["digits"], epochs=4, width=24, hidden=16)
images = place_images(base, load_images(base, None), replicated(make_mesh()))
configs = [dataclasses.replace(base, seed=seed, lam=0.1 * (seed + 1)) for seed in range(3)]
found = train_together(configs, images)
print(json.dumps([[row["validation_loss"] for row in member.history] for member in found]))
"""


def test_a_group_is_spread_over_the_devices(images):
    configs = [dataclasses.replace(BASE, seed=seed, lam=0.1 * (seed + 1)) for seed in range(3)]
    one = [[row["validation_loss"] for row in member.history] for member in train_together(configs, images)]
    command = [sys.executable, "-c", _ON_DEVICES]
    run = subprocess.run(command, env=on_devices(2), capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(run.stdout.splitlines()[-1]), one, rtol=2e-4)


def test_a_state_that_is_not_finite_has_diverged_though_the_weights_are(images):
    configs = [dataclasses.replace(BASE, lr=lr) for lr in (1e-3, 2e-3)]
    values, programs = together._prepared(configs, images, None)
    state = programs.begin(values["seed"])
    full = jax.tree.map(
        lambda leaf: leaf.at[1].set(np.inf) if leaf.dtype == np.float32 and leaf.ndim > 1 else leaf, state.opt_state
    )
    assert np.asarray(programs.finite((state.params, state.opt_state))).tolist() == [True, True]
    assert np.asarray(programs.finite((state.params, full))).tolist() == [True, False]
