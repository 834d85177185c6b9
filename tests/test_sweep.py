"""Sweeps: grids, many networks in one program, folders and tables, what stops them and what they refuse."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import filelock
import jax
import numpy as np
import pytest

from benchmarks.screenshot import opened, resize
from sqs_jax.analysis.cli import main as analyse
from sqs_jax.analysis.sweep_report import by_axis, by_configuration, write_sweep_report
from sqs_jax.train import PRESETS, InputError, members, train
from sqs_jax.train import sweep as sweeping
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.cli import main
from sqs_jax.train.images import load_images, place_images
from sqs_jax.train.members import epoch_seconds, memory_of, program_of, train_together
from sqs_jax.train.run_folder import SweepFolder
from sqs_jax.train.step import data_mesh, replicated
from sqs_jax.train.stop import Stopped
from sqs_jax.train.sweep import Grid, read_grid, sweep
from sqs_jax.train.table import read_csv, to_csv

BASE = dataclasses.replace(PRESETS["digits"], epochs=4, width=24, hidden=16)
AXES = {"gate": ("sqs", "silu"), "lam": (0.1, 0.5), "seed": (0, 1)}
NAMES = ["sqs-lam0.1-seed0", "sqs-lam0.1-seed1", "sqs-lam0.5-seed0", "sqs-lam0.5-seed1", "silu-seed0", "silu-seed1"]


def quiet(*_):
    """A report that says nothing."""


@pytest.fixture(scope="module")
def images():
    return place_images(BASE, load_images(BASE, None), replicated(data_mesh()))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep."""
    folder = tmp_path_factory.mktemp("sweeps") / "done"
    sweep(Grid(BASE, AXES), folder, report=quiet)
    return folder


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
    for found, expected in zip(member.history, rows, strict=True):
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-4, atol=1e-2 / 200)
    np.testing.assert_allclose(member.test["loss"], summary["test"]["loss"], rtol=2e-4)
    expected = jax.tree.leaves(restore_params(run_dir / "checkpoints"))
    for found, other in zip(jax.tree.leaves(member.state.params), expected, strict=True):
        np.testing.assert_allclose(found, other, atol=2e-4)


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
    found = train_together([wild, tame], images)
    assert found[0].test is None
    assert 1 < found[0].diverged <= 9 * 4
    assert len(found[0].history) < 4
    assert_as_alone(found[1], tmp_path / "tame")


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


_ON_DEVICES = """
import dataclasses, json
from sqs_jax.train import PRESETS
from sqs_jax.train.images import load_images, place_images
from sqs_jax.train.members import train_together
from sqs_jax.train.step import data_mesh, replicated
base = dataclasses.replace(PRESETS["digits"], epochs=4, width=24, hidden=16)
images = place_images(base, load_images(base, None), replicated(data_mesh()))
configs = [dataclasses.replace(base, seed=seed, lam=0.1 * (seed + 1)) for seed in range(3)]
found = train_together(configs, images)
print(json.dumps([[row["validation_loss"] for row in member.history] for member in found]))
"""


def test_a_group_is_spread_over_the_devices(images):
    configs = [dataclasses.replace(BASE, seed=seed, lam=0.1 * (seed + 1)) for seed in range(3)]
    one = [[row["validation_loss"] for row in member.history] for member in train_together(configs, images)]
    environment = dict(os.environ) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", _ON_DEVICES]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(run.stdout.splitlines()[-1]), one, rtol=2e-4)


def test_each_network_has_the_folder_of_a_run(done, tmp_path):
    folder = SweepFolder(done)
    assert sorted(path.name for path in folder.members.iterdir()) == sorted(NAMES)
    run = folder.member("sqs-lam0.1-seed1")
    config = dataclasses.replace(BASE, lam=0.1, seed=1)
    summary = train(config, run.path, resume=True)  # which reads it
    alone = train(config, tmp_path / "alone", report=quiet)
    np.testing.assert_allclose(summary["test"]["loss"], alone["test"]["loss"], rtol=2e-4)
    assert summary.keys() == alone.keys()
    analyse(["report", str(run.path)])
    assert run.report.stat().st_size > 10**6


def test_the_table_says_all_and_says_it_again(done, tmp_path):
    rows = read_csv(done / "results.csv")
    assert list(rows[0]) == [
        "gate", "lam", "c", "p", "seed", "epoch", "step", "train_loss",
        "validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "diverged_at",
    ]  # fmt: skip
    assert len(rows) == 6 * 4
    assert [row["epoch"] for row in rows[:4]] == [1, 2, 3, 4]
    for row in rows:
        assert (row["lam"] is None) == (row["gate"] == "silu")
        assert (row["test_accuracy"] is not None) == (row["epoch"] == 4)
    summary = json.loads((done / "members" / "silu-seed1" / "summary.json").read_text())
    assert rows[-1]["test_loss"] == summary["test"]["loss"]
    assert to_csv(rows) == (done / "results.csv").read_text()
    sweep(Grid(BASE, AXES), tmp_path / "again", report=quiet)
    assert (tmp_path / "again" / "results.csv").read_bytes() == (done / "results.csv").read_bytes()


def test_a_diverged_network_has_its_place_in_the_table(tmp_path):
    grid = Grid(dataclasses.replace(BASE, gate="bilinear"), {"lr": (1e12, 3e-3)})
    rows = sweep(grid, tmp_path / "sweep", report=quiet)
    ends = [row for row in rows if row["diverged_at"] or row["test_loss"]]
    assert len(ends) == 2
    assert ends[0]["diverged_at"] > 0
    assert ends[0]["test_loss"] is None
    assert [row["lr"] for row in ends] == [1e12, 3e-3]
    assert read_csv(tmp_path / "sweep" / "results.csv") == rows
    assert by_configuration(rows)[0]["diverged"] == 1
    before = (tmp_path / "sweep" / "results.csv").read_bytes()
    sweep(grid, tmp_path / "sweep", resume=True, report=lambda *_: pytest.fail("trained again"))
    assert (tmp_path / "sweep" / "results.csv").read_bytes() == before
    # As after a kill between the last network and the table.
    (tmp_path / "sweep" / "results.csv").write_bytes(before.splitlines(keepends=True)[0])
    assert sweep(grid, tmp_path / "sweep", resume=True, report=quiet) == rows
    assert (tmp_path / "sweep" / "results.csv").read_bytes() == before


def test_a_table_is_written_before_it_is_told_of(tmp_path):
    class Closed(Exception):
        """As where the output is a pipe that nobody reads any more."""

    def closed(*_):
        raise Closed

    with pytest.raises(Closed):
        sweep(Grid(BASE, {"seed": (0, 1)}), tmp_path / "sweep", report=closed)
    assert len(read_csv(tmp_path / "sweep" / "results.csv")) == BASE.epochs


def test_a_state_that_is_not_finite_has_diverged_though_the_weights_are(images):
    configs = [dataclasses.replace(BASE, lr=lr) for lr in (1e-3, 2e-3)]
    values, programs = members._prepared(configs, images, None)
    state = programs.begin(values["seed"].repeat(2))
    full = jax.tree.map(
        lambda leaf: leaf.at[1].set(np.inf) if leaf.dtype == np.float32 and leaf.ndim > 1 else leaf, state.opt_state
    )
    assert np.asarray(programs.finite((state.params, state.opt_state))).tolist() == [True, True]
    assert np.asarray(programs.finite((state.params, full))).tolist() == [True, False]


def test_only_networks_of_the_grid_have_to_fit_the_data(tmp_path):
    base = dataclasses.replace(BASE, epochs=1, warmup=20)  # of 9 steps, which no network has
    rows = sweep(Grid(base, {"epochs": (3, 4)}), tmp_path / "sweep", report=quiet)
    assert len(rows) == 3 + 4
    with pytest.raises(InputError, match="warmup"):
        sweep(Grid(base, {"epochs": (1, 4)}), tmp_path / "refused", report=quiet)
    assert not (tmp_path / "refused").exists()


def test_a_killed_sweep_goes_on_without_redoing_what_is_done(done, tmp_path):
    folder = SweepFolder(tmp_path / "sweep")
    grid, small = ("--gate=sqs,silu", "--lam=0.1,0.5", "--seeds=2"), ("--epochs=4", "--width=24", "--hidden=16")
    command = [sys.executable, "-m", "train", "sweep", "digits", *grid, *small, f"--sweep-dir={folder.path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("[2/6]"):
                break
        process.kill()
    finished = {path: path.stat().st_mtime_ns for path in folder.members.glob("[a-z]*/summary.json")}
    assert 2 <= len(finished) < 6
    main(["sweep", "--sweep-dir", str(folder.path), "--resume", "--no-report"])
    for path, time_ns in finished.items():
        assert path.stat().st_mtime_ns == time_ns
    assert len(list(folder.members.glob("*/summary.json"))) == 6
    assert not list(folder.members.glob(".*"))
    a, b = (read_csv(path / "results.csv") for path in (folder.path, done))
    assert len(a) == len(b)
    for row, expected in zip(a, b, strict=True):
        for name, value in expected.items():
            assert row[name] == (pytest.approx(value, rel=2e-4) if isinstance(value, float) else value)


def test_a_signal_stops_after_the_epoch_and_keeps_finished_groups(tmp_path, monkeypatch):
    real = sweeping.train_together

    def interrupting(configs, *args, **settings):
        if configs[0].gate == "silu":
            signal.raise_signal(signal.SIGTERM)
        return real(configs, *args, **settings)

    monkeypatch.setattr(sweeping, "train_together", interrupting)
    with pytest.raises(Stopped, match="SIGTERM"):
        sweep(Grid(BASE, AXES), tmp_path / "sweep", report=quiet)
    assert len(list((tmp_path / "sweep" / "members").iterdir())) == 4
    assert len(read_csv(tmp_path / "sweep" / "results.csv")) == 4 * 4


@pytest.mark.parametrize(("asked", "taken"), [(0, 8), (1, 1), (3, 3)])
def test_no_more_are_trained_at_once_than_asked_for_on_many_devices(asked, taken, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    configs = [dataclasses.replace(BASE, seed=seed) for seed in range(4)]
    assert sweeping._at_once(configs, None, None, asked, 0.0) == taken


def test_too_many_at_once_are_halved(tmp_path, monkeypatch, capsys):
    real, sizes = sweeping.train_together, []

    def short(configs, *args, **settings):
        sizes.append(len(configs))
        if len(configs) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.")
        return real(configs, *args, **settings)

    monkeypatch.setattr(sweeping, "train_together", short)
    grid = Grid(BASE, {"lr": (1e-3, 2e-3, 3e-3, 4e-3, 5e-3)})
    rows = sweep(grid, tmp_path / "sweep", report=quiet)
    assert sizes == [5, 3, 2, 2, 1]
    assert "out of memory with 5 networks at once: going on with 3" in capsys.readouterr().out
    assert len(rows) == 5 * 4


def test_a_limit_on_memory_makes_smaller_groups(tmp_path, monkeypatch, images):
    real, sizes = sweeping.train_together, []

    def counted(configs, *args, **settings):
        sizes.append(len(configs))
        return real(configs, *args, **settings)

    monkeypatch.setattr(sweeping, "train_together", counted)
    grid = Grid(dataclasses.replace(BASE, epochs=1), {"lr": (1e-3, 2e-3, 3e-3, 4e-3, 5e-3)})
    five = [dataclasses.replace(grid.base, lr=lr) for lr in grid.axes["lr"]]
    limit = 2.5 * memory_of(five, images) / 5 / 2**30
    sweep(grid, tmp_path / "a", memory=limit, report=quiet)
    assert sizes == [2, 2, 1]
    assert sweeping._at_once(five, images, None, 4, limit) == 2
    assert sweeping._at_once(five, images, None, 4, 0.0) == 4
    assert sweeping._even(5, 4) == 3


def test_two_sweeps_on_one_folder(done):
    with filelock.FileLock(done / ".lock"), pytest.raises(InputError, match="another process is at work on the sweep"):
        sweep(Grid(BASE, AXES), done, resume=True, report=quiet)
    with pytest.raises(InputError, match=r"exists already: go on with it by --resume, or choose another --sweep-dir"):
        sweep(Grid(BASE, AXES), done, report=quiet)
    with pytest.raises(InputError, match="has another grid"):
        sweep(Grid(BASE, AXES | {"seed": (0, 1, 2)}), done, resume=True, report=quiet)
    assert read_grid(done) == Grid(BASE, AXES)


def planted(gate, lam, seed, epoch, loss, accuracy=None, diverged=None):
    return {
        "gate": gate, "lam": lam, "c": 0.01, "p": 1.0, "seed": seed, "epoch": epoch, "step": epoch, "train_loss": loss,
        "validation_loss": None, "validation_accuracy": None, "test_loss": accuracy and 1 - accuracy,
        "test_accuracy": accuracy, "diverged_at": diverged,
    }  # fmt: skip


def test_the_page_is_of_the_table_alone():
    rows = [
        planted("sqs", 0.1, 0, 1, 2.0), planted("sqs", 0.1, 0, 2, 1.0, 0.9),
        planted("sqs", 0.1, 1, 1, 4.0), planted("sqs", 0.1, 1, 2, 3.0, 0.7),
        planted("sqs", 0.5, 0, 1, 1.0), planted("sqs", 0.5, 0, 2, 0.5, 0.6),
        planted("sqs", 0.5, 1, 1, 7.0, diverged=2),
    ]  # fmt: skip
    first, second = by_configuration(rows)
    assert (first["name"], second["name"]) == ("sqs, λ 0.1", "sqs, λ 0.5")
    assert first["train"] == {"epoch": [1, 2], "mean": [3.0, 2.0], "low": [2.0, 1.0], "high": [4.0, 3.0]}
    assert first["validation"] is None
    assert (first["accuracy"], first["diverged"]) == ([0.9, 0.7], 0)
    assert (second["accuracy"], second["diverged"], second["seeds"]) == ([0.6], 1, [0, 1])
    (axis,) = by_axis([first, second])
    assert axis["name"] == "lam"
    points = axis["lines"][0]["points"]
    assert [point[0] for point in points] == [0.1, 0.5]
    np.testing.assert_allclose([point[1] for point in points], [0.8, 0.6])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gate,seed\nsqs,0\n", "has no column 'epoch'"),
        (None, "cannot read the table"),
    ],
)
def test_a_damaged_table_is_told(done, tmp_path, content, message):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "sweep.json").write_text((done / "sweep.json").read_text())
    if content:
        (folder / "results.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        write_sweep_report(folder)
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(InputError, match="is damaged"):
        read_grid(folder)


def test_the_page_in_a_real_browser(done, browser):
    page = write_sweep_report(done)
    opened(browser, page)
    time.sleep(0.1)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#sweep-table tbody tr')].map(r => r.innerText)"
    )
    assert [row.split("\t")[0] for row in rows] == ["sqs, λ 0.1", "sqs, λ 0.5", "silu"]
    script = "return document.querySelectorAll('#plot-sweep-validation .scatterlayer .trace').length"
    assert browser.execute_script(script) == 9  # a mean and the two edges of a band for each
    for width in (1280, 360):
        resize(browser, width, 800)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
