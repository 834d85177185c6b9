"""Sweeps: grids, groups, folders and tables, what stops them and what they refuse."""

import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import jax
import numpy as np
import pytest

from benchmarks.screenshot import opened
from sqs_jax.analysis.cli import main as analyse
from sqs_jax.analysis.report.sweep_page import by_axis, by_configuration, write_sweep_report
from sqs_jax.train import PRESETS, InputError, train
from sqs_jax.train.cli.train import main
from sqs_jax.train.images.image_task import load_images, place_images
from sqs_jax.train.interrupt import Stopped
from sqs_jax.train.layout import make_mesh, replicated
from sqs_jax.train.run_folder import SweepFolder
from sqs_jax.train.sweep import run_sweep
from sqs_jax.train.sweep.run_sweep import Grid, read_grid, sweep
from sqs_jax.train.sweep.table import read_csv, to_csv
from sqs_jax.train.sweep.together import memory_of
from tests.helpers import check_page, quiet

BASE = dataclasses.replace(PRESETS["digits"], epochs=4, width=24, hidden=16)
AXES = {"gate": ("sqs", "silu"), "lam": (0.1, 0.5), "seed": (0, 1)}
NAMES = ["sqs-lam0.1-seed0", "sqs-lam0.1-seed1", "sqs-lam0.5-seed0", "sqs-lam0.5-seed1", "silu-seed0", "silu-seed1"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep."""
    folder = tmp_path_factory.mktemp("sweeps") / "done"
    sweep(Grid(BASE, AXES), folder, report=quiet)
    return folder


def test_programs_are_compiled_beside_training_and_not_again(tmp_path, caplog):
    """What other threads compile is not in the log of this one."""
    grid = Grid(dataclasses.replace(BASE, epochs=1, hidden=18), {"gate": ("sqs", "relu", "silu"), "seed": (0, 1)})
    with jax.log_compiles():
        sweep(grid, tmp_path / "sweep", report=quiet)
    assert "Finished XLA compilation of" in caplog.text
    assert not re.search(r"Finished XLA compilation of jit\((call|epoch|evaluation|<lambda>)\)", caplog.text)


def test_each_network_has_the_folder_of_a_run(done, tmp_path):
    folder = SweepFolder(done)
    assert sorted(path.name for path in folder.members.iterdir()) == sorted(NAMES)
    run = folder.member("sqs-lam0.1-seed1")
    config = dataclasses.replace(BASE, lam=0.1, seed=1)
    summary = train(config, run.path, resume=True)  # which reads it
    alone = train(config, tmp_path / "alone", report=quiet)
    np.testing.assert_allclose(summary["test"]["loss"], alone["test"]["loss"], rtol=2e-4)
    assert summary.keys() == alone.keys() - {"images_per_second"}  # a group has no speed of one network
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
    real = run_sweep.train_together

    def interrupting(configs, *args, **settings):
        if configs[0].gate == "silu":
            signal.raise_signal(signal.SIGTERM)
        return real(configs, *args, **settings)

    monkeypatch.setattr(run_sweep, "train_together", interrupting)
    with pytest.raises(Stopped, match="SIGTERM"):
        sweep(Grid(BASE, AXES), tmp_path / "sweep", report=quiet)
    assert len(list((tmp_path / "sweep" / "members").iterdir())) == 4
    assert len(read_csv(tmp_path / "sweep" / "results.csv")) == 4 * 4


@pytest.mark.parametrize(("asked", "taken"), [(0, 8), (1, 1), (3, 3)])
def test_no_more_are_trained_at_once_than_asked_for_on_many_devices(asked, taken, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    configs = [dataclasses.replace(BASE, seed=seed) for seed in range(4)]
    assert run_sweep._at_once(configs, None, None, asked, 0.0) == taken


def test_too_many_at_once_are_halved(tmp_path, monkeypatch, capsys):
    real, sizes = run_sweep.train_together, []

    def short(configs, *args, **settings):
        sizes.append(len(configs))
        if len(configs) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.")
        return real(configs, *args, **settings)

    monkeypatch.setattr(run_sweep, "train_together", short)
    grid = Grid(BASE, {"lr": (1e-3, 2e-3, 3e-3, 4e-3, 5e-3)})
    rows = sweep(grid, tmp_path / "sweep", report=quiet)
    assert sizes == [5, 3, 2, 2, 1]
    assert "out of memory with 5 networks at once: going on with 3" in capsys.readouterr().out
    assert len(rows) == 5 * 4


def test_a_limit_on_memory_makes_smaller_groups(tmp_path, monkeypatch):
    real, sizes = run_sweep.train_together, []

    def counted(configs, *args, **settings):
        sizes.append(len(configs))
        return real(configs, *args, **settings)

    monkeypatch.setattr(run_sweep, "train_together", counted)
    grid = Grid(dataclasses.replace(BASE, epochs=1), {"lr": (1e-3, 2e-3, 3e-3, 4e-3, 5e-3)})
    five = [dataclasses.replace(grid.base, lr=lr) for lr in grid.axes["lr"]]
    images = place_images(BASE, load_images(BASE, None), replicated(make_mesh()))
    limit = 2.5 * memory_of(five, images) / 5 / 2**30
    sweep(grid, tmp_path / "a", memory=limit, report=quiet)
    assert sizes == [2, 2, 1]
    sizes.clear()
    sweep(grid, tmp_path / "b", at_once=4, report=quiet)
    assert sizes == [3, 2]
    sizes.clear()
    sweep(grid, tmp_path / "c", at_once=4, memory=limit, report=quiet)
    assert sizes == [2, 2, 1]


def test_two_sweeps_on_one_folder(done):
    with filelock.FileLock(done / ".lock"), pytest.raises(InputError, match="another process is at work in"):
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
    links = [link.get_attribute("href") for link in browser.find_elements("css selector", "#sweep-table a")]
    reports = [path.as_uri() for path in done.glob("members/*/report.html")]
    assert sorted(links) == sorted(reports)  # of networks without a report there is only the seed
    script = "return document.querySelectorAll('#plot-sweep-validation .scatterlayer .trace').length"
    assert browser.execute_script(script) == 9  # a mean and the two edges of a band for each
    check_page(browser, 0)


def test_markup_in_a_table_is_text_on_the_page(done, tmp_path, browser):
    copy = Path(shutil.copytree(done, tmp_path / "sweep"))
    hostile = '<a href="javascript:alert(1)">x</a><b>sqs</b> & %{x}'
    with (copy / "results.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    place = rows[0].index("gate")
    for row in rows[1:]:
        row[place] = hostile if row[place] == "sqs" else row[place]
    with (copy / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for run in (copy / "members").iterdir():
        (run / "report.html").touch()
    page = write_sweep_report(copy)
    opened(browser, page)
    assert browser.execute_script("return document.querySelectorAll('svg a, svg b, main b b').length") == 0
    links = [link.get_attribute("href") for link in browser.find_elements("css selector", "main a")]
    assert links
    assert all(link.startswith(f"{copy.as_uri()}/members/silu-seed") for link in links)
    texts = browser.execute_script(
        "return [...document.querySelectorAll('.legendtext, .ytick text')].map(x => x.textContent)"
    )
    assert any(hostile in text for text in texts), texts
