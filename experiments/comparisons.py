"""Groups of a sweep's networks compared, kept beside the sweep's table as `comparisons/<name>.json`."""

import json
from pathlib import Path
from typing import Any

from experiments.readings import stamp
from sqs_jax.analysis.comparison import compare_runs
from sqs_jax.train.run_folder import SweepFolder, write


def networks(folder: SweepFolder, **settings) -> list[Path]:
    """The folders of the finished networks with these settings, in the order of seeds."""
    found = []
    for path in folder.members.iterdir():
        config = json.loads((path / "config.json").read_text())
        if (path / "summary.json").is_file() and all(config[name] == value for name, value in settings.items()):
            found.append((config["seed"], path))
    return [path for _, path in sorted(found)]


def compared(
    folder: SweepFolder, name: str, a: list[Path], b: list[Path], *, data_dir: Path | None = None
) -> dict[str, Any]:
    """The measures of `compare_runs` for two groups of networks, joint gains; from its file if that is of these."""
    path = folder.path / "comparisons" / f"{name}.json"
    trained = [[stamp(run) for run in group] for group in (a, b)]
    found = json.loads(path.read_text()) if path.is_file() else {}
    if found.get("trained") != trained:
        print(f"comparing {name}", flush=True)
        found = compare_runs(a, b, method="joint", data_dir=data_dir) | {"trained": trained}
        path.parent.mkdir(exist_ok=True)
        write(path, json.dumps(found, allow_nan=False) + "\n")
    return found["measures"]
