"""The training loop: from a configuration to a run's folder, whatever is trained."""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from sqs_jax import display
from sqs_jax.files import write
from sqs_jax.train import processes, run_folder
from sqs_jax.train.checkpoint import Checkpoints, Progress
from sqs_jax.train.config import TrainConfig
from sqs_jax.train.config_check import checked
from sqs_jax.train.config_file import to_json
from sqs_jax.train.extension import check_resumed, extend
from sqs_jax.train.interrupt import Stopped, StopSignals
from sqs_jax.train.keeping import BY_ROUNDS, Clock, Saving, check_saving
from sqs_jax.train.layout import REPLICATED, Layout
from sqs_jax.train.metrics import Divergence, divergence, metrics_row
from sqs_jax.train.records import Summary, read_record
from sqs_jax.train.run_folder import RunFolder
from sqs_jax.train.step import TrainState, all_finite
from sqs_jax.train.task import Task, make_task

_SAVE = -1  # why training pauses, beside the numbers of signals, which come before it
Report = Callable[[dict[str, Any], TrainConfig, float], None]


class NonFiniteLossError(ArithmeticError):
    """A loss that is infinite or NaN: the run has stopped, and its last checkpoint is from before."""


def train(
    config: TrainConfig,
    run_dir: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report: Report | None = None,
    layout: Layout = REPLICATED,
    saving: Saving = BY_ROUNDS,
) -> dict[str, Any]:
    """Trains a network, and writes configuration, metrics, checkpoints and summary of the run into `run_dir`.

    `sqs_jax.analysis.write_report` reads the weights of the finished run.

    Args:
      config: of the run: an ImageConfig or a TextConfig.
      run_dir: the folder; there must be nothing there, or with `resume` a run of the same configuration.
      data_dir: where the original files of the data set lie; default `SQS_DATA_DIR`, else they are downloaded.
      resume: goes on from the last checkpoint, to the same numbers as a run that was never stopped. `epochs` or
        `steps` may be more than the run was begun with: the cosine is then stretched, or with another of `restarts`
        begins again, and what was made of the earlier end is moved to `earlier/<length>/` of the folder.
      report: called after each evaluation with its row of `metrics.jsonl` (with `images_per_second` or
        `tokens_per_second`), the configuration and the seconds since the last, evaluation and saving included; by
        default a line is printed.
      layout: over how many devices parameters are parted; a resumed run may have another.
      saving: when a checkpoint is saved beside those of the configuration, and how many are kept.

    Returns:
      The content of `summary.json`: loss in nats and accuracy, or of text bits per byte, on the test set, and on
      validation if there is one.

    Raises:
      InputError: a field out of range, a data set that cannot be had or does not fit, a folder in the way.
      NonFiniteLossError: training diverged; the last checkpoint is kept.
      Stopped: SIGINT or SIGTERM; the epoch of images, or the step of text, was finished and saved.
      OSError: the folder cannot be written.
    """
    settings: dict[str, Any] = {"data_dir": data_dir, "resume": resume, "report": report}
    return train_checked(checked(config), Path(run_dir), **settings, layout=layout, saving=saving)


def train_checked(
    config: TrainConfig,
    run_dir: Path,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    report: Report | None = None,
    layout: Layout = REPLICATED,
    saving: Saving = BY_ROUNDS,
) -> dict[str, Any]:
    """`train` with a configuration that `checked` has returned."""
    check_saving(saving, config)
    run, is_longer = RunFolder(run_dir), False
    if resume:
        is_longer = check_resumed(run, config)
        if not is_longer and (summary := _summary(run)):
            return summary
    elif processes.is_main():
        run_folder.check_free(run.path)
    with display.stage("preparing"):
        task = make_task(config, Path(data_dir) if data_dir else None, layout)
    device = jax.devices()[0].device_kind
    display.about(f"{task.about}; on {jax.device_count()} × {device}")
    if resume:
        run_folder.check_same_files(run, task.files)
    elif processes.is_main():
        run_folder.create(run.path, task.files | {run.config.name: to_json(config)})
    processes.check_shared(run.path)
    with run_folder.alone(run.path) if processes.is_main() else nullcontext(), StopSignals() as signals:
        if is_longer and processes.is_main() and check_resumed(run, config):  # else one has made it longer meanwhile
            extend(run, config)
        processes.barrier("begin")
        if summary := _summary(run):  # another process finished it meanwhile
            return summary
        with display.stage("training", task.ends[-1] if task.ends else None, "steps") as shown:
            state, progress = _fit(config, task, run, report, signals, shown, saving)
        with display.stage("testing"):
            return _finish(task, run, state, progress)


def _summary(run: RunFolder) -> dict[str, Any]:
    """The summary of a run, empty where it is not finished."""
    return dict(read_record(run.summary, Summary)) if run.summary.is_file() else {}


def _fit(
    config: TrainConfig,
    task: Task,
    run: RunFolder,
    report: Report | None,
    signals: StopSignals,
    shown: display.Stage,
    saving: Saving,
) -> tuple[TrainState, Progress]:
    """Trains from the last checkpoint to the end."""
    clock = Clock(saving)
    pausing = processes.Agreement(lambda: signals.received or (_SAVE if clock.is_due() else None))
    with _checkpoints(config, run, saving) as checkpoints:
        state, progress = checkpoints.restore_last(task.begin(run.path, lambda: signals.received))
        _write_metrics(run, progress)
        saved, begun, before = int(state.step), time.perf_counter(), progress
        while (first := int(state.step)) < (task.ends or [0])[-1]:
            start, round_end = time.perf_counter(), next(end for end in task.ends if end > first)
            shown.at(first)
            state, losses = task.train(state, clock.end(first, round_end), pausing, shown)
            training = time.perf_counter() - start
            step = int(state.step)
            _check_finite(divergence(losses, step, parameters_finite=all_finite(state)), run)
            progress = trained = progress.trained(losses, training)
            if step < round_end:  # a pause, or a step after which is saved
                reason = pausing.now()
                if step > saved:
                    checkpoints.save(task.checkpoint_number(step), state, progress)
                    saved = step
                _go_on(reason, clock, pausing)
                continue
            row = metrics_row(task.epoch(step), step, task.learning_rate(step - 1), progress.losses)
            shown.at(step)
            with display.stage("evaluating"):
                row |= task.evaluate(state.params)
            _check_finite(divergence(losses, step, validation_loss=row.get("validation_loss", 0.0)), run)
            progress = progress.evaluated(row, time.perf_counter() - start - training)
            is_last = step == task.ends[-1]
            reason = pausing.now()  # read once: what comes later stops the next round, whose state is then saved
            if is_saved := is_last or reason or clock.is_at(step) or _is_kept(progress, config.save_every):
                checkpoints.save(task.checkpoint_number(step), state, progress)
                saved = step
            _write_metrics(run, progress)
            speed = _speed(task, len(trained.losses) - len(before.losses), trained.training - before.training)
            _show(config, task, report, shown, row | speed, time.perf_counter() - begun)
            begun, before = time.perf_counter(), progress
            if is_saved and not is_last:
                _go_on(reason, clock, pausing)
    return state, progress


def _checkpoints(config: TrainConfig, run: RunFolder, saving: Saving) -> Checkpoints:
    kept: dict[str, Any] = {"keep": saving.keep, "in_background": saving.async_checkpoints}
    return Checkpoints(run.checkpoints, has_validation=config.validation > 0, **kept)


def _is_kept(progress: Progress, every: int) -> bool:
    """Whether a round is saved: one of so many, or the best so far."""
    return progress.rounds % every == 0 or _is_best(progress.history)


def _go_on(reason: int | None, clock: Clock, pausing: processes.Agreement) -> None:
    """After a save, or a pause before anything new: raises Stopped where a signal asked for it."""
    if reason not in (None, _SAVE):
        raise Stopped(reason)
    clock.saved()
    pausing.forget()


def _show(
    config: TrainConfig, task: Task, report: Report | None, shown: display.Stage, row: dict[str, Any], seconds: float
) -> None:
    """Shows the figures of a round, which took so many seconds."""
    shown.at(row["step"], _figures(row, task.unit))
    if report:
        if processes.is_main():
            report(row, config, seconds)
    elif line := task.progress_line(row, seconds):
        display.line(line)


def _finish(task: Task, run: RunFolder, state: TrainState, progress: Progress) -> dict[str, Any]:
    """Tests the network, once; the summary says that the run is complete."""
    test = task.test(state.params)
    step = progress.history[-1]["step"] if progress.history else 0
    if not math.isfinite(test["loss"]):
        _check_finite(Divergence("test_loss", test["loss"], step), run)
    summary = run_folder.summary(test, progress.history, progress.seconds)
    summary |= _speed(task, step, progress.training) | task.chosen | run_folder.provenance()
    if processes.is_main():
        write(run.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _write_metrics(run: RunFolder, progress: Progress) -> None:
    if processes.is_main():
        run_folder.write_metrics(run, progress.history)


def _speed(task: Task, steps: int, seconds: float) -> dict[str, float]:
    """What this many steps in this many seconds make a second."""
    return {f"{task.unit}_per_second": task.per_step * steps / seconds} if steps and seconds else {}


def _figures(row: dict[str, Any], unit: str) -> str:
    """The figures beside the bar of a run."""
    parts = [f"epoch {row['epoch']:.4g}", f"loss {row.get('validation_loss', row['train_loss']):.4f}"]
    if "validation_accuracy" in row:
        parts.append(f"accuracy {row['validation_accuracy']:.4f}")
    if "validation_bits_per_byte" in row:
        parts.append(f"{row['validation_bits_per_byte']:.4f} bits per byte")
    if (speed := row.get(f"{unit}_per_second")) is not None:
        parts.append(f"{speed:,.0f} {unit}/s")
    return "  ".join(parts)


def _is_best(history: list[dict[str, Any]]) -> bool:
    losses = [row.get("validation_loss", math.inf) for row in history]
    return losses[-1] < min(losses[:-1], default=math.inf)


def _check_finite(divergence: Divergence | None, run: RunFolder) -> None:
    """Raises NonFiniteLossError for what diverged, before anything of it is saved."""
    if divergence:
        raise NonFiniteLossError(
            f"`{divergence.metric}` is {divergence.value} at step {divergence.step}: stopped, what {run.checkpoints} "
            "holds is from before; a lower `lr`, a larger `lam` or `clip` may help"
        )
