"""Groups of a sweep's networks compared: the measures that the pages show."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.readings import stamps
from sqs_jax import display
from sqs_jax.analysis.runs.compare import compare_runs
from sqs_jax.files import write
from sqs_jax.train.run_folder import SweepFolder

_MEASURES = ("rank_cosine", "overlap")


def networks(folder: SweepFolder, **settings) -> dict[int, Path]:
    """The folders of the finished networks with these settings, by seed."""
    paths = {}
    for path in folder.members.iterdir():
        config = json.loads((path / "config.json").read_text())
        if (path / "summary.json").is_file() and all(config[name] == value for name, value in settings.items()):
            paths[config["seed"]] = path
    return dict(sorted(paths.items()))


def compared(path: Path, a: dict[int, Path], b: dict[int, Path], *, data_dir: Path | None = None) -> None:
    """Writes the measures of `compare_runs` for two groups of networks by seed, joint gains, if the file has others.

    They are None where nothing can be said: of no network, beside fewer than two, and where no seed is in both groups.
    """

    def measure():
        if len(b) < 2 or not a.keys() & b.keys():
            return None
        with display.stage(f"comparing {path.stem}", plain=True):
            measures = compare_runs([*a.values()], [*b.values()], method="joint", data_dir=data_dir)["measures"]
        return {name: measures[name] for name in _MEASURES}

    keep(path, [stamps([*group.values()]) for group in (a, b)], measure)


def keep(path: Path, trained: Any, measure: Callable[[], Any]) -> None:
    """Writes what `measure` finds of these trainings as `measures`; nothing where the file has it of the same."""
    if path.is_file() and json.loads(path.read_text()).get("trained") == trained:
        return
    record = {"trained": trained, "measures": measure()}
    path.parent.mkdir(exist_ok=True)
    write(path, json.dumps(record, allow_nan=False) + "\n")
