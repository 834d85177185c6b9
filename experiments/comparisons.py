"""Groups of a sweep's networks compared: the measures that the pages show."""

import json
from pathlib import Path

from experiments.readings import stamps
from sqs_jax.analysis.comparison import compare_runs
from sqs_jax.train.run_folder import SweepFolder, write

_MEASURES = ("rank_cosine", "overlap")


def networks(folder: SweepFolder, **settings) -> list[Path]:
    """The folders of the finished networks with these settings, in the order of seeds."""
    found = []
    for path in folder.members.iterdir():
        config = json.loads((path / "config.json").read_text())
        if (path / "summary.json").is_file() and all(config[name] == value for name, value in settings.items()):
            found.append((config["seed"], path))
    return [path for _, path in sorted(found)]


def compared(path: Path, a: list[Path], b: list[Path], *, data_dir: Path | None = None) -> None:
    """Writes the measures of `compare_runs` for two groups of networks, joint gains, if the file is not of these."""
    trained = [stamps(group) for group in (a, b)]
    if path.is_file() and json.loads(path.read_text())["trained"] == trained:
        return
    print(f"comparing {path.stem}", flush=True)
    measures = compare_runs(a, b, method="joint", data_dir=data_dir)["measures"]
    path.parent.mkdir(exist_ok=True)
    found = {"trained": trained, "measures": {name: measures[name] for name in _MEASURES}}
    write(path, json.dumps(found, allow_nan=False) + "\n")
