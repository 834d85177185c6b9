"""Experiments: what is measured and when it is measured anew, which tables a page takes, and quick runs of both."""

import dataclasses
import json
import re
import signal
import subprocess
import sys

import pytest

from experiments import __main__ as command
from experiments import comparisons, gather, plan, readings, section, tables
from experiments.gather import beyond_sections, paper_sections
from experiments.plan import GATES
from experiments.tables import Tables
from sqs_jax.train.run_folder import SweepFolder
from sqs_jax.train.sweep.grid import members
from sqs_jax.train.sweep.run_sweep import Grid, sweep
from tests.test_sweep import BASE, quiet

PAGES = {
    "paper": (32, ["accuracy_digits", "loss", "similarity_digits", "classes_digits", "ablation", "sensitivity"]),
    "beyond": (
        46,
        ["calibration_digits_1.0", "calibration_digits_0.5", "defaults", "lam", "noise", "depth", "learnable"],
    ),
}
SECTIONS = {"paper": paper_sections, "beyond": beyond_sections}


def experiments(*arguments, check=True):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *map(str, arguments)], capture_output=True, text=True, check=check
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Both pages of the quick version, from the command line; the second takes the networks of the first."""
    sweeps = tmp_path_factory.mktemp("experiments")
    for page in PAGES:
        done = experiments(page, "--quick", "--sweeps", sweeps)
        assert done.stdout.splitlines()[-1] == str(sweeps / "quick" / f"{page}.md")
    return sweeps


@pytest.mark.parametrize("page", PAGES)
def test_a_quick_run_writes_a_page_with_its_verdicts_and_pictures(page, quick):
    verdicts, pictures = PAGES[page]
    text = (quick / "quick" / f"{page}.md").read_text()
    # Each twice: in the summary and in its section.
    result = sum(text.count(f"**{outcome}**") for outcome in ("shown", "refuted", "not decided"))
    assert result == 2 * verdicts
    assert f"Of the {verdicts} criteria of this page" in " ".join(text.split())
    for name in pictures:
        assert (quick / "quick" / "pictures" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize("page", PAGES)
def test_a_page_drawn_from_the_saved_tables_is_the_one_that_was_measured(page, quick, tmp_path, monkeypatch):
    """With the quick plans for the full ones, whose networks are trained already."""
    for module in (plan, tables):
        monkeypatch.setattr(module, "FULL", plan.QUICK)
        monkeypatch.setattr(module, "BEYOND", plan.QUICK_BEYOND)
    measured, docs = tmp_path / "measured", tmp_path / "docs"
    monkeypatch.setattr(command, "MEASURED", measured)
    monkeypatch.setattr(command, "DOCS", docs)
    monkeypatch.setattr(section, "png", lambda figure: b"a picture")
    stale = measured / "mnist" / "comparisons" / "of-an-earlier-plan.json"
    stale.parent.mkdir(parents=True)
    stale.touch()
    options = command.Options(page, sweeps=quick / "quick")
    text = command.run(options).read_text()
    assert {path.name for path in measured.glob("mnist/*")} >= {"results.csv", "readings.json", "machine.json"}
    assert not stale.exists()
    assert not list(measured.rglob("members"))
    assert len(list((docs / "images" / page).iterdir())) == text.count("](../images/")
    assert text.count("Networks trained on: ") == 1
    again = command.run(dataclasses.replace(options, tables=True, sweeps=tmp_path / "none"))
    assert again == docs / "results" / f"{page}.md"
    assert again.read_text() == text


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_in_docs_are_those_of_the_saved_tables(page):
    text = (command.DOCS / "results" / f"{page}.md").read_text()
    sections = list(SECTIONS[page](Tables()))
    assert text.count("\n## ") == 1 + len(sections)
    for each in sections:
        for shown in each.tables:
            assert shown in text
        for verdict in each.verdicts:
            assert f"* {verdict.claim}: **{verdict.outcome}** ({verdict.criterion}; {verdict.found.text()})" in text


def test_drawing_from_tables_takes_no_network_and_names_a_table_that_is_not_there(tmp_path):
    refused = experiments("--quick", "--tables", "--sweeps", tmp_path, check=False)
    assert refused.returncode == 2
    path = tmp_path / "quick" / "mnist" / "results.csv"
    assert refused.stderr.splitlines() == [f"error: no table at {path}: the same command without --tables measures it"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["papers"], "papers"),
        (["--tables", "--data-dir", "data"], "`data_dir` is data: --tables reads no data"),
        (["--quik"], "did you mean --quick?"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, words):
    refused = experiments(*arguments, check=False)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert words in refused.stderr


def test_a_broken_table_is_named(tmp_path):
    (tmp_path / "mnist").mkdir()
    broken = tmp_path / "mnist" / "readings.json"
    broken.write_text('{"a": ')
    with pytest.raises(ValueError, match=re.escape(str(broken))):
        Tables(tmp_path).readings("mnist")


def test_a_run_that_is_stopped_says_so_in_a_line(tmp_path):
    """A real process, by a real signal, while it trains."""
    flags = ["--quick", "--sweeps", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "test loss" in process.stdout.readline()  # the first network is trained
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert said.splitlines()[-1] == "stopped by SIGTERM; the same command goes on"
    assert "Traceback" not in said


class Recording(Tables):
    """Readings that are planted, and comparisons that are noted."""

    def __init__(self):
        super().__init__(quick=True)
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "accuracy", {})

    def readings(self, name):
        grid = self.plan[name]
        return {
            key: {field: getattr(config, field) for field in readings._SETTINGS}
            | {"accuracy": self.accuracy.get((name, config.gate), 0.9)}
            for key, config in members(grid.base, grid.axes).items()
        }

    def beside(self, *arguments):
        self.asked.append(arguments)
        return {"of": arguments}


USUAL = {"noise_std": 1.0, "noise_prob": 1.0, "layers": 1, "width": 32}


def test_a_line_has_the_networks_of_every_sweep_and_their_bilinear_peers():
    tables = Recording()
    lines = gather._lines(tables, ("noise", "mnist"), "noise_std")
    assert {gate: [point.value for point in points] for gate, points in lines.items()} == {
        "sqs": [0.25, 0.5, 1.0],
        "bilinear": [0.25, 0.5, 1.0],
    }
    assert all(sorted(point.readings) == [0, 1] for points in lines.values() for point in points)
    assert all(point.beside is None for point in lines["bilinear"])
    for point, name in zip(lines["sqs"], ("noise", "mnist", "mnist"), strict=True):
        own = USUAL | {"noise_std": point.value}
        assert point.beside == {"of": (name, {"gate": "sqs"} | own, name, own)}
    assert {arguments[1]["gate"] for arguments in tables.asked} == {"sqs"}


def test_networks_beside_which_nothing_was_learnt_have_no_similarity():
    tables = Recording()
    tables.accuracy["depth", "bilinear"] = 0.1
    one, two = gather._lines(tables, ("depth", "mnist"), "layers")["sqs"]
    assert one.beside is not None
    assert two.beside is None
    assert all(arguments[1]["layers"] == 1 for arguments in tables.asked)


def test_gates_are_compared_at_one_noise():
    tables = Recording()
    result = gather._gates_beside(tables, "mnist", 0.5)
    assert set(result) == set(GATES) - {"bilinear"}
    own = USUAL | {"noise_std": 0.5}
    assert tables.asked == [("mnist", {"gate": gate} | own, "mnist", own) for gate in result]


def test_cells_are_those_of_both_sweeps_by_their_values():
    cells = gather._cells(Recording())
    assert set(cells) == {(lam, c, p) for p in (1.0, 2.0) for lam in (0.1, 0.5, 1.0) for c in (0.01, 0.1)} | {
        (lam, c, 1.0) for lam in (0.0, 0.5, 2.0) for c in (0.01, 0.3)
    }
    for (lam, c, p), (name, own) in cells.items():
        assert name in ("sensitivity", "extremes")
        assert {(row["lam"], row["c"], row["p"]) for row in own.values()} == {(lam, c, p)}


@pytest.fixture
def trained(tmp_path):
    base = dataclasses.replace(BASE, epochs=1, warmup=0)
    sweep(Grid(base, {"gate": ("sqs", "bilinear"), "seed": (0, 1)}), tmp_path / "sweep", report=quiet)
    return SweepFolder(tmp_path / "sweep")


def retrain(path):
    """As if it had been: its summary has other seconds."""
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps(summary | {"seconds": -1.0}))


def test_a_network_that_was_trained_anew_is_read_again(trained, monkeypatch):
    read = []
    monkeypatch.setattr(readings, "_reading", lambda path, _: read.append(path) or {"accuracy": float(len(read))})
    first = readings.read_networks(trained.path)
    assert [row["accuracy"] for row in first.values()] == [1, 2, 3, 4]
    assert readings.read_networks(trained.path) == first
    retrain(read[2])
    again = readings.read_networks(trained.path)
    assert read[4:] == [read[2]]
    assert {name for name in first if again[name] != first[name]} == {read[2].name}
    (read[0] / "summary.json").unlink()  # as of one that diverged when it was trained anew
    assert read[0].name not in readings.read_networks(trained.path)
    assert json.loads((trained.path / "readings.json").read_text()).keys() == first.keys() - {read[0].name}


def test_networks_that_were_trained_anew_are_compared_again(trained, monkeypatch, tmp_path):
    compared = []

    def compare(a, b, **_):
        compared.append((a, b))
        return {"measures": {"rank_cosine": len(compared), "overlap": 0, "more": 0}}

    monkeypatch.setattr(comparisons, "compare_runs", compare)
    sqs, bilinear = (comparisons.networks(trained, gate=gate) for gate in ("sqs", "bilinear"))
    assert {seed: json.loads((path / "config.json").read_text())["seed"] for seed, path in sqs.items()} == {0: 0, 1: 1}
    path = tmp_path / "comparisons" / "sqs.json"
    for _ in range(2):
        comparisons.compared(path, sqs, bilinear)
    assert compared == [([*sqs.values()], [*bilinear.values()])]
    assert json.loads(path.read_text())["measures"] == {"rank_cosine": 1, "overlap": 0}
    retrain(bilinear[1])
    comparisons.compared(path, sqs, bilinear)
    assert json.loads(path.read_text())["measures"]["rank_cosine"] == 2
    # Of too few, or of no common start, nothing is said.
    for a, b in (({}, bilinear), (sqs, {0: bilinear[0]}), ({2: sqs[0]}, bilinear)):
        comparisons.compared(path, a, b)
        assert json.loads(path.read_text())["measures"] is None
    assert len(compared) == 2
