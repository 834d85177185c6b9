"""Runs that are damaged, used by two processes, or moved to other devices: one line, and nothing lost."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest

from sqs_jax.analysis import load_weights
from sqs_jax.analysis.cli import main as analysis
from sqs_jax.analysis.runs.load import load_run
from sqs_jax.train import ImageConfig, InputError, TextConfig, loop, train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.cli.train import main
from sqs_jax.train.records import Summary, read_record, read_rows
from sqs_jax.train.sweep.run_sweep import Grid, sweep
from sqs_jax.train.sweep.table import read_csv
from tests.helpers import quiet

CONFIG = ImageConfig(epochs=3, width=16, hidden=16, save_every=1)
# Of a summary: truncated, empty, of another shape, binary, with nulls.
DAMAGE = [
    b'{"test": {"loss": 0.1',
    b"",
    b"{}",
    b"[]",
    b"\x89PNG\r\n\xff",
    b'{"test": null, "seconds": null}',
    b"[" * 10**5,
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train(CONFIG, run_dir, report=quiet)
    return run_dir


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy of a finished run that may be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same run, stopped after its second epoch, with the checkpoints of both."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"

    def interrupt(row, config, seconds):
        if row["epoch"] == 1:  # the next epoch is the last
            shutil.copytree(run_dir / "checkpoints" / "1", run_dir / "one")
            signal.raise_signal(signal.SIGINT)

    with contextlib.suppress(loop.Stopped):
        train(CONFIG, run_dir, report=interrupt)
    shutil.rmtree(run_dir / "checkpoints" / "1", ignore_errors=True)
    (run_dir / "one").rename(run_dir / "checkpoints" / "1")
    assert not (run_dir / "summary.json").exists()
    return run_dir


@pytest.fixture
def unfinished(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "unfinished"))


def one_line_of(arguments, capsys, command=main):
    with pytest.raises(SystemExit) as end:
        command(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_summary_is_told_by_every_command(content, run_dir, capsys):
    (run_dir / "summary.json").write_bytes(content)
    assert "summary.json is damaged" in one_line_of(["--run-dir", str(run_dir), "--resume"], capsys)
    assert "summary.json is damaged" in one_line_of(["report", str(run_dir)], capsys, analysis)
    with pytest.raises(InputError, match=r"summary\.json is damaged"):
        load_run(run_dir)
    assert (run_dir / "summary.json").read_bytes() == content


@pytest.mark.parametrize("line", ['{"step": 1}', "{", '{"epoch": "1"}', '{"epoch": 1e999}', "\ud800"])
def test_damaged_metrics_are_told_with_their_line(line, run_dir, capsys):
    good = (run_dir / "metrics.jsonl").read_bytes()
    (run_dir / "metrics.jsonl").write_bytes(good + line.encode(errors="surrogatepass") + b"\n")
    assert "metrics.jsonl is damaged: line 4" in one_line_of(["report", str(run_dir)], capsys, analysis)
    with pytest.raises(InputError, match="line 4"):
        read_rows(run_dir / "metrics.jsonl")


def _spoil(checkpoint, how):
    arrays = sorted(path for path in checkpoint.glob("params/**/*") if path.is_file())
    if how == "truncated":
        for path in arrays:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "no parameters":
        shutil.rmtree(checkpoint / "params")
    elif how == "only the optimizer":  # what is left where an old version was killed as it removed a checkpoint
        shutil.rmtree(checkpoint / "params")
        shutil.rmtree(checkpoint / "progress")
    elif how == "no metadata":
        (checkpoint / "params" / "_METADATA").write_text('{"tree_metadata": 3}')
    elif how == "progress":
        (checkpoint / "progress" / "metadata").write_text("[null")
    elif how == "progress of another shape":
        (checkpoint / "progress" / "metadata").write_text('{"step": "9", "history": {}}')
    else:
        for path in checkpoint.glob("opt_state/**/d/*"):
            path.write_bytes(b"")


HOW = (
    "truncated", "no parameters", "only the optimizer", "no metadata", "progress", "progress of another shape",
    "optimizer",
)  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(how, finished, unfinished, capsys):
    first, last = sorted((unfinished / "checkpoints").iterdir())[-2:]
    assert (first.name, last.name) == ("1", "2")
    _spoil(last, how)
    capsys.readouterr()
    train(CONFIG, unfinished, resume=True, report=quiet)
    said = capsys.readouterr().out
    assert said.startswith("passed over: ")
    assert str(last) in said
    assert (unfinished / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(restore_params(unfinished / "checkpoints"), restore_params(finished / "checkpoints"))
    assert (unfinished / "checkpoints" / "2.damaged").is_dir()


@pytest.mark.parametrize("how", HOW)
def test_where_no_checkpoint_can_be_read_that_is_said_and_nothing_is_lost(how, unfinished, capsys):
    for checkpoint in (unfinished / "checkpoints").iterdir():
        _spoil(checkpoint, how)
    error = one_line_of(["--run-dir", str(unfinished), "--resume"], capsys)
    assert str(unfinished / "checkpoints" / "1") in error
    assert "is damaged" in error or "cannot read" in error
    assert (unfinished / "checkpoints" / "1").is_dir()


@pytest.mark.parametrize("how", ["truncated", "no parameters", "only the optimizer", "no metadata"])
def test_damaged_weights_are_told(how, run_dir):
    for checkpoint in (run_dir / "checkpoints").iterdir():
        _spoil(checkpoint, how)
    with pytest.raises(InputError, match="params is damaged"):
        load_weights(run_dir)
    with pytest.raises(InputError, match="params is damaged"):
        load_weights(run_dir, epoch=3)


def test_stray_files_of_a_system_stop_nothing(unfinished, finished):
    for folder in (unfinished, unfinished / "checkpoints", unfinished / "checkpoints" / "2"):
        for name in (".DS_Store", ".nfs0000000123", "._2"):
            (folder / name).write_text("x")
    (unfinished / "checkpoints" / ".Trash").mkdir()
    (unfinished / "checkpoints" / "notes").mkdir()
    train(CONFIG, unfinished, resume=True, report=quiet)
    assert (unfinished / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert (unfinished / "checkpoints" / ".DS_Store").exists()
    hidden = unfinished.parent / "hidden"
    hidden.mkdir()
    (hidden / ".DS_Store").write_text("x")
    train(dataclasses.replace(CONFIG, epochs=1), hidden, report=quiet)
    assert (hidden / "summary.json").exists()


def test_a_partial_checkpoint_of_a_killed_process_is_removed(unfinished):
    left = unfinished / "checkpoints" / f".3.{'a' * 16}.partial"
    (left / "params").mkdir(parents=True)
    train(CONFIG, unfinished, resume=True, report=quiet)
    assert not left.exists()


def test_of_several_processes_one_goes_on_and_the_others_say_why(unfinished):
    command = [sys.executable, "-m", "train", "--run-dir", str(unfinished), "--resume", "--no-report"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(*process.communicate(), process.returncode) for process in processes]
    assert 0 in {code for *_, code in ends}
    for _, error, code in ends:
        assert code in (0, 2)
        assert error == "" if code == 0 else error == f"error: another process is at work in {unfinished}\n"
    assert read_record(unfinished / "summary.json", Summary)["epochs"] == 3


def test_a_run_that_another_process_finished_meanwhile_is_not_finished_twice(finished, run_dir, monkeypatch):
    summary = run_dir / "summary.json"
    content = json.dumps(json.loads(summary.read_text()) | {"analysis": {"read": 1}})  # it was read already, too
    summary.unlink()
    real = loop.make_task

    def meanwhile(*args):
        task = real(*args)
        summary.write_text(content)
        return task

    monkeypatch.setattr(loop, "make_task", meanwhile)
    assert train(CONFIG, run_dir, resume=True, report=quiet) == json.loads(content)
    assert summary.read_text() == content


def test_a_quota_is_told_and_the_run_goes_on(tmp_path):
    flags = ["--epochs", "2", "--width", "128", "--hidden", "128", "--no-report", "--run-dir", str(tmp_path / "run")]
    command = f"ulimit -f 20; {sys.executable} -m train {' '.join(flags)}"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'run' / 'checkpoints'}: File too large\n"
    main([*flags, "--resume"])


def test_a_run_folder_that_is_removed_is_told(tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "train", "--epochs", "100000", "--save-every", "1", "--no-report"]
    process = subprocess.Popen([*command, "--run-dir", str(run_dir)], stderr=subprocess.PIPE, text=True)
    while not list(run_dir.glob("checkpoints/[1-9]*")):
        time.sleep(0.05)
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.rmtree(run_dir, ignore_errors=True)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert error.startswith(f"error: {run_dir}")
    assert error.count("\n") == 1


def test_other_settings_of_jax_are_recorded_and_said(unfinished, finished, capsys):
    flags = read_record(finished / "summary.json", dict)["flags"]
    assert flags["enable_x64"] is False
    record = unfinished / "checkpoints" / "2" / "progress" / "metadata"
    result = json.loads(record.read_text())
    result["flags"]["enable_x64"] = True
    record.write_text(json.dumps(result))
    train(CONFIG, unfinished, resume=True, report=quiet)
    assert "jax_enable_x64 was True and is False now: the run goes on to other numbers" in capsys.readouterr().out


def test_float64_changes_no_draw(tmp_path):
    flags = ["--epochs", "2", "--noise-prob", "0.5", "--bias", "--no-report", "--width", "16", "--hidden", "16"]
    for name, x64 in (("off", "0"), ("on", "1")):
        environment = dict(os.environ) | {"JAX_ENABLE_X64": x64}
        command = [sys.executable, "-m", "train", *flags, "--run-dir", str(tmp_path / name)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    off, on = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("off", "on"))
    for a, b in zip(off, on, strict=True):
        np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-5)  # rounding of the optimizer's sums
        assert a["learning_rate"] == b["learning_rate"]
    dtypes = {leaf.dtype for leaf in restore_leaves(tmp_path / "on")}
    assert dtypes == {np.dtype("float32")}


def restore_leaves(run_dir):
    import jax

    return jax.tree.leaves(restore_params(run_dir / "checkpoints"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    sweep_dir = tmp_path_factory.mktemp("swept") / "sweep"
    sweep(Grid(dataclasses.replace(CONFIG, epochs=1), {"seed": (0, 1)}), sweep_dir, report=quiet)
    return sweep_dir


def test_a_sweep_removes_nothing_that_is_not_its_own(swept, tmp_path):
    home, copy = tmp_path / "home", tmp_path / "sweep"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "key").write_text("mine")
    shutil.copytree(swept, copy)
    shutil.rmtree(copy / "members")
    (copy / "members").symlink_to(home)
    main(["sweep", "--sweep-dir", str(copy), "--resume", "--no-report"])
    assert (home / ".ssh" / "key").read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rstrip("\n") + ",1\n",
        lambda text: text + "x" * 200_000 + "\n",
        lambda text: text.replace("sqs", "\x00"),
        lambda text: text.splitlines()[0].replace("seed", "sead") + "\n",
        lambda text: text.replace(",1,", ",one,", 1),
        lambda text: text + "sqs\n",
    ],
)
def test_a_damaged_table_is_told(change, swept, tmp_path, capsys):
    copy = Path(shutil.copytree(swept, tmp_path / "sweep"))
    path = copy / "results.csv"
    path.write_text(change(path.read_text()))
    if "\x00" not in path.read_text():
        with pytest.raises(InputError, match="is damaged"):
            read_csv(path)
        assert "results.csv is damaged" in one_line_of(["report", str(copy)], capsys, analysis)


@pytest.mark.parametrize(
    "change",
    [{"axes": {"gate": [[None]]}}, {"axes": {"gate": [3]}}, {"axes": 3}, {"base": []}, {"share_noise": "yes"}],
)
def test_a_damaged_grid_is_told(change, swept, tmp_path, capsys):
    copy = Path(shutil.copytree(swept, tmp_path / "sweep"))
    path = copy / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    one_line_of(["sweep", "--sweep-dir", str(copy), "--resume"], capsys)


@pytest.fixture(scope="module")
def language_run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("text") / "run"
    config = TextConfig(steps=2, warmup=0, width=16, heads=2, layers=1, vocab=300, context=32, samples=0)
    train(config, run_dir, report=quiet)
    return run_dir


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", '{"version": "1.0"'),
        ("tokenizer.json", None),
        ("text.json", "{}"),
        ("text.json", "[]"),
        ("text.json", '{"sha256": 3}'),
        ("config.json", "{"),
    ],
)
def test_damaged_files_of_a_language_model_are_told(file, content, language_run, tmp_path, capsys):
    copy = Path(shutil.copytree(language_run, tmp_path / "run"))
    if content is None:  # a letter that is no byte
        content = (copy / file).read_text().replace('"!":', '"☃":')
    (copy / file).write_text(content)
    assert file in one_line_of(["sample", str(copy)], capsys)


@pytest.mark.parametrize("error", [MemoryError("full"), OSError(24, "Too many open files"), PermissionError(13, "no")])
def test_what_may_be_over_the_next_time_is_no_damage(error, unfinished, monkeypatch):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointHandler.restore", failing)
    with pytest.raises((MemoryError, OSError)):
        train(CONFIG, unfinished, resume=True, report=quiet)
    assert {path.name for path in (unfinished / "checkpoints").iterdir()} == {"1", "2"}
