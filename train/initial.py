"""The weights that training begins with, where they are those of another run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sqs_jax.messages import InputError
from sqs_jax.train.checkpoint import check_architecture, named, restore_params
from sqs_jax.train.config import TextConfig
from sqs_jax.train.run_folder import RunFolder, read_config
from sqs_jax.train.step import Parameters


def initial_run(run_dir: str, kind: type) -> RunFolder:
    """The run that training begins with. Raises InputError where it is none with this kind of configuration."""
    run = RunFolder(Path(run_dir))
    if not isinstance(read_config(run), kind):
        what = "text" if kind is TextConfig else "images"
        raise InputError(f"`init_from` is {run.path}: a run on {what} is needed")
    return run


def initial_params(run_dir: str, kind: type, needed: Parameters) -> Parameters | None:
    """The parameters of a run's last checkpoint, for a run of this kind of configuration that needs such shapes.

    None where no run is named. Raises InputError where that is no such run, or its network is another.
    """
    if not run_dir:
        return None
    run = initial_run(run_dir, kind)
    params = restore_params(run.checkpoints)
    check_architecture(params, needed, run.checkpoints)
    leaves = named(params)
    return jax.tree.unflatten(jax.tree.structure(needed), [leaves[name] for name in named(needed)])


def facts(run_dir: str, params: Parameters | None) -> dict[str, str]:
    """The file of a run that says what it begins with, so that it is not resumed with anything else."""
    if params is None:
        return {}
    checksum = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        checksum.update(np.asarray(leaf).tobytes())
    about: dict[str, Any] = {"run": run_dir, "sha256": checksum.hexdigest()}
    return {"init.json": json.dumps(about, indent=2) + "\n"}
