"""Checkpoints by Orbax: the last and the best on validation, each whole or absent."""

import dataclasses
import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sqs_jax.train.config import InputError
from sqs_jax.train.step import Parameters, TrainState

logging.getLogger("absl").setLevel(logging.ERROR)

# What a checkpoint needs beside its arrays: metadata, and blocks that are not filled.
_OVERHEAD = 2**18


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
        found = [*self.losses, *np.asarray(losses, np.float64).tolist()]
        return dataclasses.replace(self, training=self.training + seconds, losses=found)

    def evaluated(self, row: dict[str, Any], seconds: float) -> "Progress":
        """After the evaluation that ends a round."""
        return Progress(self.rounds + 1, self.training, self.evaluating + seconds, [*self.history, row])


class Checkpoints:
    """The folder `checkpoints/`: <n>/params, <n>/opt_state and <n>/progress, n the epoch or, of text, the step.

    A checkpoint is written beside its place and moved there, so a process killed at any moment leaves the
    ones before it. Saving is not asynchronous: the next epoch reuses the memory of the state.
    """

    def __init__(self, folder: Path, *, has_validation: bool):
        keep: list[Any] = [preservation_policy.LatestN(1)]
        if has_validation:
            keep.append(preservation_policy.BestN(get_metric_fn=_loss, n=1, reverse=True))
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "opt_state": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                enable_async_checkpointing=False,
                best_fn=_loss if has_validation else None,
                best_mode="min",
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
            ),
        )

    def save(self, number: int, state: TrainState, progress: Progress) -> None:
        """Writes the checkpoint `number`, and removes those that are neither the last nor the best.

        Raises OSError where the disk has no room for it, before anything is written.
        """
        self._check_space(state)
        evaluated = not progress.losses and "validation_loss" in progress.history[-1]
        metrics = {"loss": progress.history[-1]["validation_loss"]} if evaluated else None
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            progress=ocp.args.JsonSave(dataclasses.asdict(progress) | {"step": int(state.step)}),
        )
        self._manager.save(number, args=items, metrics=metrics)

    def restore_last(self, state: TrainState) -> tuple[TrainState, Progress]:
        """The last checkpoint, laid out as `state` is; `state` itself where there is none yet.

        Raises InputError for a checkpoint of another architecture.
        """
        number = self._manager.latest_step()
        if number is None:
            return state, Progress()
        self._check_architecture(number, state.params)
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, (state.params, state.opt_state))
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(wanted[0]),
            opt_state=ocp.args.StandardRestore(wanted[1]),
            progress=ocp.args.JsonRestore(),
        )
        found: Any = self._manager.restore(number, args=items)
        progress = dict(found.progress)
        step = jax.device_put(jnp.asarray(progress.pop("step"), state.step.dtype), state.step.sharding)
        if unknown := progress.keys() - {field.name for field in dataclasses.fields(Progress)}:
            raise InputError(f"{self._manager.directory / str(number)} has {min(unknown)!r}: it is of another version")
        return TrainState(found.params, found.opt_state, step), Progress(**progress)

    def close(self) -> None:
        """Ends the manager's threads; checkpoints stay."""
        self._manager.close()

    def _check_space(self, state: TrainState):
        # Asked first, for Orbax writes in threads that each report a full disk on their own.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
        if shutil.disk_usage(self._manager.directory).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._manager.directory))

    def _check_architecture(self, number: int, params: Parameters):
        metadata: Any = self._manager.item_metadata(number)
        check_architecture(metadata["params"].tree, params, self._manager.directory / str(number))


def check_architecture(found: Any, wanted: Parameters, checkpoint: Any) -> None:
    """Raises InputError where the parameters found in a checkpoint are not those that the configuration needs."""
    shapes = _shapes(found)
    for name, shape in _shapes(wanted).items():
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


def restore_params(folder: Path, epoch: int | None = None) -> Parameters:
    """The parameters of one checkpoint below `folder`, the last by default, as nested dicts of arrays.

    Raises InputError where there is no such checkpoint.
    """
    with ocp.CheckpointManager(folder.absolute()) as manager:
        epoch = manager.latest_step() if epoch is None else epoch
        if epoch is None or epoch not in manager.all_steps():
            raise InputError(f"{folder} holds no checkpoint" + (f" of epoch {epoch}" if epoch is not None else ""))
        return manager.restore(epoch, args=ocp.args.Composite(params=ocp.args.StandardRestore())).params


def _loss(metrics) -> float:
    return metrics["loss"]


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
