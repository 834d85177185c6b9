"""The training loop: from a configuration to a run's folder, whatever is trained."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.files import write
from sqs_jax.train import run_folder
from sqs_jax.train.checkpoint import Checkpoints, Progress
from sqs_jax.train.config import TextConfig, TrainConfig, check, located, to_json
from sqs_jax.train.interrupt import Stopped, StopSignals
from sqs_jax.train.records import Summary, read_record
from sqs_jax.train.run_folder import RunFolder
from sqs_jax.train.step import TrainState, all_finite
from sqs_jax.train.task import Task

Report = Callable[[dict[str, Any], TrainConfig, float], None]


class NonFiniteLossError(ArithmeticError):
    """A loss that is infinite or NaN: the run has stopped, and its last checkpoint is from before."""


def print_row(row: dict[str, Any], config: TrainConfig, seconds: float) -> None:
    """Prints a round, its losses and how long it took; of a long run on images, some twenty epochs."""
    if isinstance(config, TextConfig):
        line = f"step {row['step']:>6}  epoch {row['epoch']:.2f}  train loss {row['train_loss']:.4f}"
        if "validation_loss" in row:
            line += f"  validation loss {row['validation_loss']:.4f}"
            line += f"  {row['validation_bits_per_byte']:.4f} bits per byte"
        print(f"{line}  {row['tokens_per_second']:,.0f} tokens/s", flush=True)
        return
    if row["epoch"] % max(1, config.epochs // 20) and row["epoch"] != config.epochs:
        return
    line = f"epoch {row['epoch']:>{len(str(config.epochs))}}/{config.epochs}  train loss {row['train_loss']:.4f}"
    if "validation_loss" in row:
        line += f"  validation loss {row['validation_loss']:.4f}  accuracy {row['validation_accuracy']:.4f}"
    print(f"{line}  {seconds:.2f} s", flush=True)


def train(
    config: TrainConfig,
    run_dir: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report: Report = print_row,
) -> dict[str, Any]:
    """Trains a network, and writes configuration, metrics, checkpoints and summary of the run into `run_dir`.

    `sqs_jax.analysis.report.image_page.report` reads the weights of the finished run.

    Args:
      config: of the run: an ImageConfig or a TextConfig.
      run_dir: the folder; there must be nothing there, or with `resume` a run of the same configuration.
      data_dir: where the original files of the data set lie; default `SQS_DATA_DIR`, else they are downloaded.
      resume: goes on from the last checkpoint, to the same numbers as a run that was never stopped.
      report: called after each evaluation with its row of `metrics.jsonl` (of text, with `tokens_per_second`), the
        configuration and the seconds since the last, evaluation and saving included.

    Returns:
      The content of `summary.json`: loss in nats and accuracy, or of text bits per byte, on the test set, and on
      validation if there is one.

    Raises:
      InputError: a field out of range, a data set that cannot be had or does not fit, a folder in the way.
      NonFiniteLossError: training diverged; the last checkpoint is kept.
      Stopped: SIGINT or SIGTERM; the epoch of images, or the step of text, was finished and saved.
      OSError: the folder cannot be written.
    """
    check(config)
    config = located(config)
    run = RunFolder(Path(run_dir))
    if resume:
        run_folder.check_same_config(run, config)
        if finished := _summary(run):
            return finished
    else:
        run_folder.check_free(run.path)
    task = _make_task(config, Path(data_dir) if data_dir else None)
    if resume:
        run_folder.check_same_files(run, task.files)
    else:
        run_folder.create(run.path, task.files | {run.config.name: to_json(config)})
    with run_folder.alone(run.path), StopSignals() as signals:
        if finished := _summary(run):  # by another process, meanwhile
            return finished
        state, progress = _fit(config, task, run, report, signals)
        return _finish(config, task, run, state, progress)


def _summary(run: RunFolder) -> dict[str, Any]:
    """The summary of a run, empty where it is not finished."""
    return dict(read_record(run.summary, Summary)) if run.summary.is_file() else {}


def _make_task(config: TrainConfig, data_dir: Path | None) -> Task:
    if isinstance(config, TextConfig):
        from sqs_jax.train.text import language_model

        return language_model.make_task(config, data_dir)
    from sqs_jax.train.images import image_task

    return image_task.make_task(config, data_dir)  # pyright: ignore[reportArgumentType] - checked


def _fit(config: TrainConfig, task: Task, run: RunFolder, report: Report, signals) -> tuple[TrainState, Progress]:
    """Trains from the last checkpoint to the end."""
    checkpoints = Checkpoints(run.checkpoints, has_validation=config.validation > 0)
    state, progress = checkpoints.restore_last(task.begin())
    run_folder.write_metrics(run, progress.history)
    while progress.rounds < len(task.ends):
        start, first, end = time.perf_counter(), int(state.step), task.ends[progress.rounds]
        state, losses = task.run(state, end, lambda: signals.received)
        training = time.perf_counter() - start
        for i in np.flatnonzero(~np.isfinite(losses))[:1]:
            raise _not_finite("train_loss", losses[i], first + int(i) + 1, run)
        progress = progress.trained(losses, training)
        step = int(state.step)
        if step < end:
            _check_parameters(state, run)
            if step > first:
                checkpoints.save(task.checkpoint(step), state, progress)
            raise Stopped(signals.received)
        row = _row(task, state, progress.losses, run)
        progress = progress.evaluated(row, time.perf_counter() - start - training)
        last = progress.rounds == len(task.ends)
        stop = signals.received  # read once: what comes later stops the next round, whose state is then saved
        if last or stop or progress.rounds % config.save_every == 0 or _is_best(progress.history):
            checkpoints.save(task.checkpoint(step), state, progress)
        run_folder.write_metrics(run, progress.history)
        speed = {"tokens_per_second": task.tokens * len(losses) / training} if task.tokens else {}
        report(row | speed, config, time.perf_counter() - start)
        if stop and not last:
            raise Stopped(stop)
    return state, progress


def _row(task: Task, state: TrainState, losses: list[float], run: RunFolder) -> dict[str, Any]:
    """The row of a round; raises NonFiniteLossError before anything of it could be saved."""
    step = int(state.step)
    row = {"epoch": task.epoch(step), "step": step, "learning_rate": float(np.asarray(task.rate(step - 1)))}
    row["train_loss"] = float(np.mean(losses))
    _check_parameters(state, run)
    row |= task.evaluate(state.params)
    if not math.isfinite(row.get("validation_loss", 0)):
        raise _not_finite("validation_loss", row["validation_loss"], step, run)
    return row


def _finish(config: TrainConfig, task: Task, run: RunFolder, state: TrainState, progress: Progress) -> dict[str, Any]:
    """Tests the network, once; the summary says that the run is complete."""
    test = task.test(state.params)
    if not math.isfinite(test["loss"]):
        raise _not_finite("test_loss", test["loss"], int(state.step), run)
    summary = run_folder.summary(test, progress.history, progress.seconds)
    if task.tokens:
        last = progress.history[-1]
        summary |= {"steps": last["step"], "tokens_per_second": task.tokens * last["step"] / progress.training}
    summary |= run_folder.provenance()
    write(run.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _is_best(history: list[dict[str, Any]]) -> bool:
    losses = [row.get("validation_loss", math.inf) for row in history]
    return losses[-1] < min(losses[:-1], default=math.inf)


def _check_parameters(state: TrainState, run: RunFolder):
    if not all_finite(state):
        raise _not_finite("parameters", "not finite", int(state.step), run)


def _not_finite(metric: str, value, step: int, run: RunFolder) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"`{metric}` is {value} at step {step}: stopped, what {run.checkpoints} holds is from before; "
        "a lower `lr`, a larger `lam` or `clip` may help"
    )
