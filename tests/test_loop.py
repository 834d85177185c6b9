"""The loop from end to end, in real processes: what a run leaves, and what stopping, killing and bad input do to it."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sqs_jax import gated_linear
from sqs_jax.train import ImageConfig, InputError, loop, train
from sqs_jax.train.checkpoint import restore_params
from sqs_jax.train.cli.train import main
from sqs_jax.train.config_file import from_json
from sqs_jax.train.images import dataset, image_task
from sqs_jax.train.interrupt import Stopped
from sqs_jax.train.layout import REPLICATED
from sqs_jax.train.task import make_task
from tests.helpers import on_devices, quiet, trained

FLAGS = ["--no-report", "--epochs", "40", "--save-every", "1", "--width", "16", "--hidden", "16"]
CONFIG = ImageConfig(epochs=40, save_every=1, width=16, hidden=16)


def start(run_dir, *flags):
    command = [sys.executable, "-m", "train", *FLAGS, "--run-dir", str(run_dir), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def final_state(run_dir):
    """All that must not depend on whether a run was interrupted: parameters, optimizer state, step, and the metrics."""
    with ocp.CheckpointManager(run_dir.absolute() / "checkpoints") as manager:
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(), opt_state=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore()
        )
        result = manager.restore(manager.latest_step(), args=items)
    return (result.params, result.opt_state), result.progress["step"], (run_dir / "metrics.jsonl").read_bytes()


def assert_same_end(run_dir, reference):
    state, step, metrics = final_state(run_dir)
    expected_state, expected_step, expected_metrics = final_state(reference)
    assert step == expected_step
    assert metrics == expected_metrics
    assert len(jax.tree.leaves(state)) > 8
    chex.assert_trees_all_equal(state, expected_state)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return trained(CONFIG, tmp_path_factory.mktemp("runs") / "reference")


def test_a_run_leaves_all_its_files(reference):
    names = {path.name for path in reference.iterdir()} - {".lock"}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "summary.json"}
    assert from_json(reference / "config.json") == CONFIG
    rows = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 41))
    assert rows[-1]["step"] == 40 * (1237 // 128)
    summary = json.loads((reference / "summary.json").read_text())
    assert summary["validation"]["loss"] == rows[-1]["validation_loss"]
    assert summary["test"]["accuracy"] > 0.9
    assert {"jax", "flax", "optax", "sqs-jax"} <= set(summary["versions"])
    assert {"seconds", "device", "git"} <= set(summary)


def test_the_summary_is_that_of_the_last_checkpoint(reference):
    params = restore_params(reference / "checkpoints")
    digits = dataset.load("digits")
    x = digits.test_images.reshape(360, 64) / np.float32(255)
    layer = params["layers"]["0"] if "0" in params["layers"] else params["layers"][0]
    logits = gated_linear(x @ params["embed"], layer["w"], layer["v"]) @ params["head"]
    summary = json.loads((reference / "summary.json").read_text())
    accuracy = np.mean(np.asarray(logits).argmax(1) == digits.test_labels)
    np.testing.assert_allclose(summary["test"]["accuracy"], accuracy, rtol=1e-6)
    loss = -np.mean(np.asarray(jax.nn.log_softmax(logits))[np.arange(360), digits.test_labels])
    np.testing.assert_allclose(summary["test"]["loss"], loss, rtol=1e-4)


def test_last_and_best_on_validation_are_kept(reference):
    rows = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["validation_loss"])["epoch"]
    kept = {int(path.name) for path in (reference / "checkpoints").iterdir()}
    assert kept == {best, 40}
    assert restore_params(reference / "checkpoints", best)["head"].shape == (16, 10)
    with pytest.raises(InputError, match="holds no checkpoint of epoch 41"):
        restore_params(reference / "checkpoints", 41)


def test_the_last_epoch_is_kept_without_validation(tmp_path):
    train(dataclasses.replace(CONFIG, epochs=3, save_every=2, validation=0), tmp_path / "run", report=quiet)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["validation"] is None


def test_stopping_in_the_middle_and_resuming_is_exact(reference, tmp_path):
    run_dir = tmp_path / "run"

    def interrupt(row, config, seconds):
        if row["epoch"] == 17:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="SIGINT"):
        train(CONFIG, run_dir, report=interrupt)
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 18
    assert not (run_dir / "summary.json").exists()
    train(CONFIG, run_dir, resume=True, report=quiet)
    assert_same_end(run_dir, reference)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_say_how_to_go_on_and_exit(number, code, reference, tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    assert process.stdout is not None
    assert any(line.startswith("epoch") for line in process.stdout)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"python -m train --run-dir {run_dir} --resume" in errors
    assert "Traceback" not in errors
    assert list((run_dir / "checkpoints").iterdir())
    assert not (run_dir / "summary.json").exists()
    resumed = subprocess.run(
        [sys.executable, "-m", "train", "--run-dir", run_dir, "--resume", "--no-report"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "test loss" in resumed.stdout
    assert_same_end(run_dir, reference)


@pytest.mark.parametrize("moment", [".*.partial", ".*.partial/opt_state*", "*[0-9]"])
def test_a_killed_run_resumes_exactly_even_from_inside_a_checkpoint(moment, reference, tmp_path):
    # The file that is waited for may be gone when the kill arrives: then another run is tried.
    for attempt in range(10):
        run_dir = tmp_path / f"run{attempt}"
        checkpoints = run_dir / "checkpoints"
        process = start(run_dir)
        while process.poll() is None:
            if len(list(checkpoints.glob("[1-9]*"))) >= 2 and list(checkpoints.glob(moment)):
                process.kill()
                break
        process.communicate()
        if process.returncode == -signal.SIGKILL and list(checkpoints.glob(moment)):
            break
    assert list(checkpoints.glob(moment))
    assert not (run_dir / "summary.json").exists()
    train(CONFIG, run_dir, resume=True, report=quiet)
    assert_same_end(run_dir, reference)


def test_a_run_on_8_devices_gives_the_same_numbers(tmp_path):
    command = [
        sys.executable,
        "-m",
        "train",
        "--no-report",
        "--epochs",
        "3",
        "--width",
        "16",
        "--hidden",
        "16",
        "--run-dir",
    ]
    environment = on_devices(8)
    subprocess.run([*command, tmp_path / "eight"], env=environment, check=True, capture_output=True)
    refused = subprocess.run(
        [*command, tmp_path / "odd", "--batch-size", "100"], env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "`batch_size` is 100: a multiple of the 8 devices is needed" in refused.stderr
    assert json.loads((tmp_path / "eight" / "summary.json").read_text())["device"]["count"] == 8
    train(dataclasses.replace(CONFIG, epochs=3), tmp_path / "one", report=quiet)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "eight")
    ]
    for one, eight in zip(*rows, strict=True):
        for name in ("train_loss", "validation_loss"):
            np.testing.assert_allclose(one[name], eight[name], rtol=1e-4)


def test_a_run_killed_before_its_first_checkpoint_resumes_from_the_start(reference, tmp_path):
    run_dir = tmp_path / "run"
    process = start(run_dir)
    while not (run_dir / "config.json").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not list(run_dir.glob("checkpoints/[1-9]*"))
    train(CONFIG, run_dir, resume=True, report=quiet)
    assert_same_end(run_dir, reference)


def test_a_finished_run_resumes_to_its_summary(reference):
    before = {path: path.stat().st_mtime_ns for path in reference.iterdir()}
    summary = train(CONFIG, reference, resume=True, report=quiet)
    assert summary == json.loads((reference / "summary.json").read_text())
    assert before == {path: path.stat().st_mtime_ns for path in reference.iterdir()}


def test_a_second_run_of_one_configuration_compiles_no_program_again(tmp_path, caplog):
    config = dataclasses.replace(CONFIG, epochs=2, hidden=12)
    with jax.log_compiles():
        task = make_task(config, None, REPLICATED)
        assert "Finished XLA compilation of jit(epoch)" in caplog.text
        caplog.clear()
        task.test(task.begin(tmp_path, lambda: None).params)
        assert "of jit(evaluation)" not in caplog.text  # compiled beside the epoch, in another thread
        train(config, tmp_path / "run", report=quiet)
    assert "Finished XLA compilation of jit(epoch)" not in caplog.text
    assert "Finished XLA compilation of jit(evaluation)" not in caplog.text


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    real = image_task.programs

    def breaking(*args):
        epoch = real(*args).epoch

        def broken(state, *arrays):
            fourth = int(state.step) >= 3 * 9
            params = jax.tree.map(lambda a: a * (jnp.nan if fourth else 1), state.params)
            return epoch(state._replace(params=params), *arrays)

        broken.lower = epoch.lower
        return real(*args)._replace(epoch=broken)

    monkeypatch.setattr(image_task, "programs", breaking)
    with pytest.raises(loop.NonFiniteLossError, match="`train_loss` is nan at step 28"):
        train(CONFIG, tmp_path / "run", report=quiet)
    assert max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == 3
    monkeypatch.undo()
    summary = train(CONFIG, tmp_path / "run", resume=True, report=quiet)
    assert summary["epochs"] == 40


@pytest.mark.parametrize(
    ("lr", "decay", "validation", "metric"),
    [("3e38", "10", "0", "parameters"), ("1e38", "0", "200", "validation_loss")],
)
def test_a_last_step_to_infinity_is_not_saved_over_what_is_good(lr, decay, validation, metric, tmp_path, capsys):
    # One step an epoch: its loss is finite, what it makes of the parameters or of the next loss is not.
    flags = ["--gate", "bilinear", "--lr", lr, "--epochs", "1", "--batch-size", "1237", "--weight-decay", decay]
    with pytest.raises(SystemExit) as end:
        main([*flags, "--validation", validation, "--run-dir", str(tmp_path / "run")])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert f"`{metric}` is" in error
    assert "at step 1:" in error
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_divergence_is_told_in_one_line(tmp_path, capsys):
    flags = ["--gate", "bilinear", "--lr", "1e30", "--epochs", "3", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "`train_loss` is" in error
    assert "at step" in error
    assert error.count("\n") == 1


def test_a_checkpoint_of_another_architecture_is_refused(reference, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(InputError, match=r"`hidden` is 32, but the run .* has 16"):
        train(dataclasses.replace(CONFIG, hidden=32), reference, resume=True)
    train(dataclasses.replace(CONFIG, epochs=1), run_dir, report=quiet)
    (run_dir / "summary.json").unlink()
    changed = dataclasses.replace(CONFIG, hidden=32)
    (run_dir / "config.json").write_text(json.dumps(dataclasses.asdict(changed)))
    with pytest.raises(InputError, match=r"of another architecture: the configuration needs `.*` of shape"):
        train(changed, run_dir, resume=True)
    assert (run_dir / "checkpoints" / "1").is_dir()


def test_checkpoints_are_saved_as_often_as_asked_and_at_the_end(tmp_path, monkeypatch):
    numbers = []
    monkeypatch.setattr(loop.Checkpoints, "save", lambda self, number, state, progress: numbers.append(number))
    config = ImageConfig(epochs=7, width=8, hidden=8, validation=0, save_every=3)
    train(config, tmp_path / "run", report=quiet)
    assert numbers == [3, 6, 7]
