"""Checkpoints by Orbax: the last and the best on validation, each whole or absent."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sqs_jax import display, files
from sqs_jax.messages import InputError, quoted
from sqs_jax.train import processes
from sqs_jax.train.device_memory import free_memory
from sqs_jax.train.layout import Layout, make_mesh, parted, placed
from sqs_jax.train.orbax_errors import DamagedError, read_errors, write_errors
from sqs_jax.train.records import Row, UnreadableError, read_record
from sqs_jax.train.run_folder import number_flags
from sqs_jax.train.step import Parameters, TrainState

# What a checkpoint needs beside its arrays: metadata, and blocks that are not filled.
_OVERHEAD = 2**18
_PROGRESS = "progress/metadata"
_FOREVER = 10**6  # seconds: a disk may be slow


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come, beside its state."""

    rounds: int = 0
    """Rounds done, each with its evaluation: of images, epochs."""
    training: float = 0.0
    """Seconds of training."""
    evaluating: float = 0.0
    """Seconds of evaluation."""
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The rounds' rows of metrics."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """Of the steps since the last round."""

    @property
    def seconds(self) -> float:
        """Seconds in all."""
        return self.training + self.evaluating

    def trained(self, losses, seconds: float) -> "Progress":
        """After more steps."""
        all_losses = [*self.losses, *np.asarray(losses, np.float64).tolist()]
        return dataclasses.replace(self, training=self.training + seconds, losses=all_losses)

    def evaluated(self, row: dict[str, Any], seconds: float) -> "Progress":
        """After the evaluation that ends a round."""
        return Progress(self.rounds + 1, self.training, self.evaluating + seconds, [*self.history, row])


class Checkpoints:
    """The folder `checkpoints/`: <n>/params, <n>/opt_state and <n>/progress, n the epoch or, of text, the step.

    A checkpoint is written under a temporary name and then renamed, and renamed before it is removed. A process that is
    killed at any moment therefore leaves whole checkpoints. The next step reuses the memory of the state: `save`
    returns when all is written or, with `in_background`, when it is copied to the host. Leaving the block waits for the
    last.

    Args:
      folder: where they lie.
      has_validation: whether the best on validation is kept.
      keep: how many of the last are kept.
      in_background: whether `save` returns early; what fails is then raised by the next `save`, or at the end.
    """

    def __init__(self, folder: Path, *, has_validation: bool, keep: int = 1, in_background: bool = False):
        self._folder, self._has_validation = folder.absolute(), has_validation
        self._keep, self._in_background = keep, in_background
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        if processes.is_main():
            self._folder.mkdir(exist_ok=True)
            files.clean(self._folder)
        processes.barrier("checkpoints")
        self._losses = {number: _validation_loss(self._folder / str(number)) for number in numbers(self._folder)}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def save(self, number: int, state: TrainState, progress: Progress) -> None:
        """Writes the checkpoint `number`, and removes those that are neither of the last nor the best on validation.

        Raises OSError where it, or one before it, cannot be written; those before are then untouched.
        """
        self.wait()
        self._check_space(state)
        record = dataclasses.asdict(progress) | {"step": int(state.step), "flags": number_flags()}
        with contextlib.ExitStack() as stack:
            partial = stack.enter_context(_appearing(self._folder / str(number)))
            if processes.is_main():
                (partial / "progress").mkdir()
                (partial / _PROGRESS).write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
            trees = {"params": state.params, "opt_state": state.opt_state}
            if self._in_background:
                for name, tree in trees.items():
                    stack.enter_context(_writing(partial / name, tree))
                self._pending = self._pool.submit(self._finish, stack.pop_all(), number, _last_loss(record))
                return
            for name, tree in trees.items():
                _write_arrays(partial / name, tree)
        self._keep_best(number, _last_loss(record))

    def wait(self) -> None:
        """Waits until what was saved is written. Raises OSError where it could not be."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _finish(self, writing: contextlib.ExitStack, number: int, loss: float) -> None:
        with writing:
            pass
        self._keep_best(number, loss)

    def _keep_best(self, number: int, loss: float) -> None:
        """Removes the checkpoints that are not to be kept beside a new one of this loss on validation."""
        self._losses[number] = loss
        best = min(self._losses, key=lambda number: (self._losses[number], -number))
        kept = {*sorted(self._losses)[-self._keep :]} | ({best} if self._has_validation else set())
        for old in self._losses.keys() - kept:
            if processes.is_main():
                files.remove(self._folder / str(old))
            del self._losses[old]

    def restore_last(self, state: TrainState) -> tuple[TrainState, Progress]:
        """The last checkpoint that can be read, laid out as `state` is; `state` itself where there is none yet.

        A damaged one is skipped with a message, and moved to `checkpoints/<n>.damaged`. Raises InputError for a
        checkpoint of another architecture, and where there are checkpoints but none can be read.
        """
        saved = numbers(self._folder)
        for number in reversed(saved):
            path = self._folder / str(number)
            try:
                return _restore(path, state)
            except DamagedError as error:
                if number == saved[0]:
                    raise
                display.line(f"passed over: {error}")
                damaged = path.with_name(f"{number}.damaged")
                processes.barrier("damaged")  # until all have read
                if processes.is_main():
                    path.rename(damaged if not damaged.exists() else f"{damaged}.{secrets.token_hex(4)}")
                del self._losses[number]
        return state, Progress()

    def _check_space(self, state: TrainState):
        # Asked first, for Orbax writes in threads that each report a full disk on their own.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
        if shutil.disk_usage(self._folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        if needed > _largest_file():
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self._folder))


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """`files.appearing` of one folder that all processes fill."""
    if processes.is_main():
        with files.appearing(path) as partial:
            processes.from_main(lambda: str(partial), "checkpoint")
            yield partial
            processes.barrier("saved")
    else:
        yield Path(processes.from_main(str, "checkpoint"))
        processes.barrier("saved")
    processes.barrier("renamed")


def _largest_file() -> float:
    """The size limit, in bytes, of a file of this process."""
    try:
        import resource  # not on Windows
    except ModuleNotFoundError:
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return math.inf if limit == resource.RLIM_INFINITY else limit


def numbers(folder: Path) -> list[int]:
    """The checkpoints below `folder` by number, in order."""
    names = [path.name for path in files.visible(folder) if path.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch(r"\d{1,10}", name, re.ASCII))


def _restore(path: Path, state: TrainState) -> tuple[TrainState, Progress]:
    """A checkpoint, laid out as `state` is."""
    progress: dict[str, Any] = {**_progress(path)}
    _check_flags(progress.pop("flags", {}))
    with read_errors(path / "params"), _reader() as reader:
        shapes: Any = reader.metadata(path / "params").item_metadata.tree
    check_architecture(shapes, state.params, path)
    arrays = []
    for name, tree in (("params", state.params), ("opt_state", state.opt_state)):
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
        with read_errors(path / name), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            arrays.append(reader.restore(path / name, args=ocp.args.StandardRestore(target)))
    step = placed(np.asarray(progress.pop("step"), state.step.dtype), state.step.sharding)
    if unknown := progress.keys() - {field.name for field in dataclasses.fields(Progress)}:
        raise InputError(f"{path} has {quoted(min(unknown))}: it is of another version")
    params, opt_state = arrays
    return TrainState(params, opt_state, step), Progress(**progress)


def _check_flags(flags: dict[str, Any]) -> None:
    for name, value in number_flags().items():
        if flags.get(name, value) != value:
            display.line(f"jax_{name} was {flags[name]} and is {value} now: the run goes on to other numbers")


def restore_params(folder: Path, epoch: int | None = None, *, spread: bool = True) -> Parameters:
    """The parameters of one checkpoint below `folder`, the last by default, as nested dicts of arrays.

    They lie on one device, whatever devices they were trained on; with `spread`, where they would take more than half
    of what it has free, in parts on all devices of this process. Raises InputError where there is no such checkpoint,
    or it is damaged.
    """
    saved = numbers(folder)
    if not saved or epoch not in (None, *saved):
        raise InputError(f"{folder} holds no checkpoint" + (f" of epoch {epoch}" if epoch is not None else ""))
    path = folder.absolute() / str(saved[-1] if epoch is None else epoch)
    with read_errors(path / "params"), _reader() as reader:
        shapes: Any = reader.metadata(path / "params").item_metadata.tree
        devices = jax.local_devices()
        needed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(shapes))
        if spread and len(devices) > 1 and 2 * needed > free_memory():
            shardings = parted(shapes, make_mesh(Layout(fsdp=len(devices)), devices))
            wanted = jax.tree.map(lambda sharding: ocp.ArrayRestoreArgs(sharding=sharding), shardings)
        else:
            wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        arrays = reader.restore(path / "params", args=ocp.args.PyTreeRestore(restore_args=wanted))
        return jax.tree.map(jnp.asarray, arrays)


class _Record(TypedDict):
    """<n>/progress/metadata: `Progress`, and the step."""

    rounds: int
    training: float
    evaluating: float
    history: list[Row]
    losses: list[float]
    step: int
    flags: NotRequired[dict[str, Any]]


def _progress(path: Path) -> _Record:
    try:
        return read_record(path / _PROGRESS, _Record)
    except UnreadableError:
        raise
    except InputError as error:
        raise DamagedError(str(error)) from None


def _validation_loss(path: Path) -> float:
    """The loss on validation at a checkpoint; inf where it was saved between two evaluations, or is damaged."""
    try:
        return _last_loss(_progress(path))
    except DamagedError:
        return math.inf


def _last_loss(record: Mapping[str, Any]) -> float:
    return (
        math.inf
        if record["losses"] or not record["history"]
        else record["history"][-1].get("validation_loss", math.inf)
    )


def _reader() -> ocp.Checkpointer:
    """A reader for this process alone: the others need not read, too."""
    own = jax.process_index() if processes.are_several() else 0
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _write_arrays(path: Path, tree: Any) -> None:
    with write_errors(path), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(path, args=ocp.args.StandardSave(tree))


@contextlib.contextmanager
def _writing(path: Path, tree: Any) -> Iterator[None]:
    """Copies arrays to the host, and writes them in threads. Leaving waits for these."""
    forever = ocp.options.AsyncOptions(timeout_secs=_FOREVER)
    with (
        write_errors(path),
        contextlib.closing(ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=forever)) as writer,
    ):
        writer.save(path, args=ocp.args.StandardSave(tree))
        yield
        writer.wait_until_finished()


def check_architecture(saved: Any, needed: Parameters, checkpoint: Any) -> None:
    """Raises InputError where the parameters found in a checkpoint are not those that the configuration needs."""
    shapes = _shapes(saved)
    for name, shape in _shapes(needed).items():
        if shapes.pop(name, None) != shape:
            raise InputError(
                f"the checkpoint {checkpoint} is of another architecture: "
                f"the configuration needs `{name}` of shape {shape}"
            )
    if shapes:
        name, shape = next(iter(shapes.items()))
        raise InputError(
            f"the checkpoint {checkpoint} is of another architecture: "
            f"it has `{name}` of shape {shape}, which the configuration does not"
        )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named(tree).items()}


def named(params: Any) -> dict[str, Any]:
    """Parameters, or their shapes, by name. A checkpoint has the numbers of layers as text: names are the same."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
