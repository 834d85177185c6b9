"""The folder of a run: its files, and how a run is begun, locked and found again."""

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from sqs_jax import files
from sqs_jax.messages import InputError, is_text, quoted
from sqs_jax.train.config import TrainConfig
from sqs_jax.train.config_file import from_json
from sqs_jax.versions import versions


class RunFolder:
    """The paths of the files in the folder of a run."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.checkpoints = path / "checkpoints"
        self.spectrum = path / "spectrum.npz"
        self.eigenvectors = path / "eigenvectors.png"
        self.curves = path / "curves.png"
        self.report = path / "report.html"
        self.tokenizer = path / "tokenizer.json"
        self.text = path / "text.json"
        self.samples = path / "samples.txt"
        self.diverged = path / "diverged.json"
        self.distilled = path / "distilled"
        self.before = path / "before.json"
        self.model = path / "model"
        self.control = path / "control"
        self.earlier = path / "earlier"

    @property
    def ends(self) -> tuple[Path, ...]:
        """What is there once a run has ended, and what is made of it then."""
        made = (self.summary, self.report, self.spectrum, self.eigenvectors, self.curves, self.model)
        return (*made, self.path / "reading")


class SweepFolder:
    """The paths of the files in the folder of a sweep."""

    def __init__(self, path: Path):
        self.path = path
        self.grid = path / "sweep.json"
        self.members = path / "members"
        self.results = path / "results.csv"
        self.report = path / "report.html"

    def member(self, name: str) -> RunFolder:
        """The folder of one network, that of an ordinary run."""
        return RunFolder(self.members / name)


def check_free(path: Path, flag: str = "--run-dir") -> None:
    """Raises InputError where a folder that is to be made holds something already. `flag` names it in the message."""
    check_path(path, flag)
    if path.exists() and (not path.is_dir() or files.visible(path)):
        raise InputError(f"{path} exists already: go on with it by --resume, or choose another {flag}")


def check_path(path: Path, flag: str = "--run-dir") -> None:
    """Raises InputError for a path that not every library can write: it must be UTF-8, without a NUL."""
    if not is_text(os.fspath(path)):
        raise InputError(f"{flag} is {quoted(os.fspath(path))}: a path in UTF-8 is needed")


def create(path: Path, content: dict[str, str], flag: str = "--run-dir") -> None:
    """Makes the folder of a run or a sweep, with these files in it. Raises as `check_free`.

    The last file is the one by which the folder is known as a run or a sweep.
    """
    check_free(path, flag)
    try:
        files.write_folder(path, content)
    except FileExistsError:  # another process was faster
        check_free(path, flag)
        raise


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds the lock of a folder, and removes half-written files that killed processes left in it.

    Raises InputError where another process holds it.
    """
    with files.locked(path / ".lock", wait=False) as held:
        if not held:
            raise InputError(f"another process is at work in {path}")
        files.clean(path)
        yield


def read_config(run: RunFolder) -> TrainConfig:
    """The configuration of an existing run; InputError where there is none."""
    if not run.config.is_file():
        raise InputError(f"{run.path} is not the folder of a run: it has no {run.config.name}")
    return from_json(run.config)


def check_same_files(run: RunFolder | SweepFolder, files: dict[str, str]) -> None:
    """Raises InputError where the files that a run or a sweep was begun with differ from these."""
    for name, content in files.items():
        path = run.path / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            if name == "text.json" and path.is_file() and '"order"' not in path.read_text(encoding="utf-8"):
                raise InputError(f"{path} names no order: the run was begun by a version that took windows in another")
            if name == "init.json":
                raise InputError(f"{path} names other weights: the run of `init_from` was changed, or this file was")
            raise InputError(f"{path} is not what the data gives: the run was begun with other data, or it was changed")


def write_metrics(run: RunFolder, history: list[dict[str, Any]]) -> None:
    """The whole `metrics.jsonl`, a row an evaluation, and where there are samples the whole `samples.txt`."""
    rows = [{name: value for name, value in row.items() if name != "samples"} for row in history]
    files.write(run.metrics, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    if any(row.get("samples") for row in history):
        parts = [f"step {row['step']}\n\n" + "\n\n---\n\n".join(row["samples"]) for row in history]
        files.write(run.samples, "\n\n==========\n\n".join(parts) + "\n")


def summary(test: dict[str, float], history: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The content of `summary.json` of a finished run, without its provenance."""
    last = history[-1] if history else {"epoch": 0.0, "step": 0}
    validated = {part: last[f"validation_{part}"] for part in test if f"validation_{part}" in last}
    return {"test": test, "validation": validated or None, "seconds": round(seconds, 3), "epochs": last["epoch"]} | {
        "steps": last["step"]
    }


def provenance() -> dict[str, Any]:
    """Where a figure comes from: versions of packages, device, machine, settings of JAX, commit of the code."""
    devices = jax.devices()
    device = {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}
    machine = {"processor": _processor(), "cores": os.cpu_count()}
    return {"versions": versions(), "device": device, "machine": machine, "flags": number_flags(), "git": _commit()}


def number_flags() -> dict[str, Any]:
    """The settings of JAX on which the numbers depend."""
    names = ("enable_x64", "default_matmul_precision", "default_prng_impl", "threefry_partitionable")
    return {name: getattr(jax.config, f"jax_{name}") for name in names}


def described(about: dict[str, Any]) -> str:
    """Device and versions of a provenance, in one line."""
    device, machine = about["device"], about["machine"]
    cpu = device["platform"] == "cpu"
    hardware = f"{machine['processor']}, {machine['cores']} cores" if cpu else f"{device['count']} × {device['kind']}"
    return f"{hardware}; {', '.join(f'{name} {version}' for name, version in about['versions'].items())}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the clone that the code runs from, "-dirty" where it was changed; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
