"""The training loop: from a configuration to a run's folder."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sqs_jax.modules import GLUClassifier
from sqs_jax.train import run_folder
from sqs_jax.train.checkpoint import Checkpoints, Progress
from sqs_jax.train.config import InputError, TrainConfig, check
from sqs_jax.train.data import Dataset, load, split_validation
from sqs_jax.train.optimizer import learning_rate, make_optimizer
from sqs_jax.train.step import (
    Epoch,
    Metrics,
    TrainState,
    all_finite,
    data_mesh,
    make_epoch,
    make_evaluation,
    make_model,
    parameters,
    replicated,
)
from sqs_jax.train.stop import Stopped, StopSignals

Report = Callable[[dict[str, Any], TrainConfig, float], None]


class NonFiniteLossError(ArithmeticError):
    """A loss that is infinite or NaN: the run has stopped, and its last checkpoint is from before."""


def print_row(row: dict[str, Any], config: TrainConfig, seconds: float) -> None:
    """Prints an epoch, its losses and how long it took; of a long run, some twenty epochs."""
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
    """Trains a classifier, and writes configuration, metrics, checkpoints and summary of the run into `run_dir`.

    `sqs_jax.analysis.report.report` reads the weights of the finished run.

    Args:
      config: of the run.
      run_dir: the folder; there must be nothing there, or with `resume` a run of the same configuration.
      data_dir: where the original files of the data set lie; default `SQS_DATA_DIR`, else they are downloaded.
      resume: goes on from the last checkpoint, to the same numbers as a run that was never stopped.
      report: called after each epoch with its row of `metrics.jsonl`, the configuration and the seconds
        it took, evaluation and saving included.

    Returns:
      The content of `summary.json`: loss in nats and accuracy on the test set, and on validation if there is one.

    Raises:
      InputError: a field out of range, a data set that cannot be had or does not fit, a folder in the way.
      NonFiniteLossError: training diverged; the last checkpoint is kept.
      Stopped: SIGINT or SIGTERM; the epoch was finished and saved.
      OSError: the folder cannot be written.
    """
    check(config)
    run = run_folder.RunFolder(Path(run_dir))
    if resume:
        run_folder.check_same_config(run, config)
        if run.summary.is_file():
            return json.loads(run.summary.read_text())
    else:
        run_folder.check_free(run)
    data = load(config.data, Path(data_dir) if data_dir else None)
    _check_sizes(config, data)
    _check_memory(data)
    program = _prepare(config, data)
    if not resume:
        run_folder.create(run, config)
    with StopSignals() as signals:
        state, progress = _fit(config, data, program, run, report, signals)
        return _finish(config, data, program, run, state, progress)


class _Program(NamedTuple):
    """What is compiled for a run, and how arrays are laid out for it."""

    model: GLUClassifier
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    epoch: Epoch
    evaluate: Callable[..., Metrics]
    everywhere: jax.sharding.NamedSharding


def _prepare(config: TrainConfig, data: Dataset) -> _Program:
    mesh = data_mesh()
    steps = (len(data.train_labels) - config.validation) // config.batch_size * config.epochs
    model = make_model(config, math.prod(data.shape), len(data.classes))
    optimizer = make_optimizer(config, steps)
    epoch, evaluate = make_epoch(config, model, optimizer, mesh), make_evaluation(model, mesh)
    return _Program(model, optimizer, learning_rate(config, steps), epoch, evaluate, replicated(mesh))


def _fit(config, data: Dataset, program: _Program, run, report: Report, signals) -> tuple[TrainState, Progress]:
    """Trains from the last checkpoint to the last epoch."""
    params = parameters(program.model)
    state = TrainState(params, program.optimizer.init(params), jnp.zeros((), jnp.int32))
    checkpoints = Checkpoints(run.checkpoints, has_validation=config.validation > 0)
    state, progress = checkpoints.restore_last(jax.device_put(state, program.everywhere))
    run_folder.write_metrics(run, progress.history)

    indices = split_validation(len(data.train_labels), config.validation)
    arrays = (np.asarray(data.train_images), np.asarray(data.train_labels), *indices)
    arrays = jax.device_put(arrays, program.everywhere)
    while progress.epoch < config.epochs:
        start = time.perf_counter()
        state, row = _one_epoch(program, state, arrays, progress.epoch + 1, run)
        seconds = time.perf_counter() - start
        progress = Progress(progress.epoch + 1, progress.seconds + seconds, [*progress.history, row])
        last = progress.epoch == config.epochs
        stop = signals.received  # read once: what comes later stops the next epoch, whose state is then saved
        if last or stop or progress.epoch % config.save_every == 0 or _is_best(progress.history):
            checkpoints.save(state, progress)
        run_folder.write_metrics(run, progress.history)
        report(row, config, time.perf_counter() - start)
        if stop and not last:
            raise Stopped(stop)
    return state, progress


def _one_epoch(program: _Program, state: TrainState, arrays, number: int, run) -> tuple[TrainState, dict[str, Any]]:
    """An epoch and its evaluation; raises NonFiniteLossError before anything of it could be saved."""
    images, labels, training, validation = arrays
    first_step = int(state.step)
    state, losses = program.epoch(state, images, labels, training)
    losses, step = np.asarray(losses), int(state.step)
    for i in np.flatnonzero(~np.isfinite(losses))[:1]:
        raise _not_finite("train_loss", losses[i], first_step + int(i) + 1, run)
    row = {"epoch": number, "step": step, "learning_rate": float(np.asarray(program.rate(step - 1)))}
    row["train_loss"] = float(losses.mean(dtype=np.float64))
    if not all_finite(state):
        raise _not_finite("parameters", "not finite", step, run)
    if len(validation):
        found = program.evaluate(state.params, images, labels, validation)
        row |= {"validation_loss": float(found.loss), "validation_accuracy": float(found.accuracy)}
        if not math.isfinite(row["validation_loss"]):
            raise _not_finite("validation_loss", row["validation_loss"], step, run)
    return state, row


def _finish(config, data: Dataset, program: _Program, run, state: TrainState, progress: Progress) -> dict[str, Any]:
    """Tests the network, once; the summary says that the run is complete."""
    arrays = (np.asarray(data.test_images), np.asarray(data.test_labels), np.arange(len(data.test_labels)))
    test = program.evaluate(state.params, *jax.device_put(arrays, program.everywhere))
    if not math.isfinite(test.loss):
        raise _not_finite("test_loss", float(test.loss), int(state.step), run)
    summary: dict[str, Any] = {"test": {"loss": float(test.loss), "accuracy": float(test.accuracy)}}
    last, parts = progress.history[-1], ("loss", "accuracy")
    summary["validation"] = {part: last[f"validation_{part}"] for part in parts} if config.validation else None
    summary |= {"seconds": round(progress.seconds, 3), "epochs": progress.epoch, **run_folder.provenance()}
    run_folder.write(run.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _is_best(history: list[dict[str, Any]]) -> bool:
    losses = [row.get("validation_loss", math.inf) for row in history]
    return losses[-1] < min(losses[:-1], default=math.inf)


def _not_finite(metric: str, value, step: int, run) -> NonFiniteLossError:
    return NonFiniteLossError(
        f"`{metric}` is {value} at step {step}: stopped, what {run.checkpoints} holds is from before; "
        "a lower `lr`, a larger `lam` or `clip` may help"
    )


def _check_sizes(config: TrainConfig, data: Dataset):
    """Raises InputError where the configuration does not fit the data set, before the run's folder is made."""
    size = len(data.train_labels)
    if config.validation >= size:
        raise InputError(f"`validation` is {config.validation}: fewer than the {size} training images are needed")
    inputs = math.prod(data.shape)
    if config.residual and config.width == 0 and config.hidden != inputs:
        raise InputError(
            f"`residual` without an embedding needs `hidden` = {inputs}, the inputs; it is {config.hidden}"
        )
    if config.batch_size > size - config.validation:
        raise InputError(
            f"`batch_size` is {config.batch_size}: at most the {size - config.validation} training images are needed"
        )
    learning_rate(config, (size - config.validation) // config.batch_size * config.epochs)
    devices = jax.device_count()
    if config.batch_size % devices:
        raise InputError(f"`batch_size` is {config.batch_size}: a multiple of the {devices} devices is needed")


def _check_memory(data: Dataset):
    """Raises InputError where the images are more than what a device has free."""
    needed, free = data.train_images.nbytes + data.test_images.nbytes, _free_memory()
    if needed > free:
        raise InputError(f"{data.name} takes {needed / 2**20:.1f} MiB, and the device has {free / 2**20:.1f} MiB free")


def _free_memory() -> int:
    """Bytes free on a device; where it does not tell (a CPU), the whole memory of the machine."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
