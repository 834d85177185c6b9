"""What `compare_runs` measured, as files and as a table of text."""

import json
from pathlib import Path
from typing import Any

from sqs_jax.analysis.report import plots
from sqs_jax.files import write
from sqs_jax.messages import InputError


def write_comparison(comparison: dict[str, Any], out_dir: Path) -> list[Path]:
    """Writes `comparison.json` and `comparison.png`. Raises InputError where one of them is there already."""
    paths = free_paths(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    title = (
        f"{comparison['data']}: {comparison['names'][0]} beside {comparison['names'][1]}, {comparison['method']} gains"
    )
    write(paths[1], plots.png(plots.similarity(comparison["measures"], title=title)))
    write(paths[0], json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    return paths


def free_paths(out_dir: Path) -> list[Path]:
    """The paths of the two files. Raises InputError where one of them exists already."""
    paths = [out_dir / "comparison.json", out_dir / "comparison.png"]
    for path in paths:
        if path.exists():
            raise InputError(f"{path} exists already: choose another --out-dir")
    return paths


def table(comparison: dict[str, Any]) -> str:
    """The comparison as text, an arm a column: the first rank of vectors, the largest of spans."""
    arms = {
        "shared": "one initialisation",
        "disjoint": "different seeds",
        "ceiling": "ceiling",
        "fraction": "of the ceiling",
        "classes": "other outputs",
        "untrained": "before training",
        "random": "random vectors",
    }
    ranks = {
        "rank_cosine": ("|cos|, rank 1", 0),
        "matched_cosine": ("|cos|, rank 1, matched", 0),
        "overlap": ("overlap of all spans", -1),
        "angle": ("largest principal angle", -1),
        "form_cosine": ("cosine of forms", None),
        "data_form_cosine": ("cosine, data metric", None),
    }
    lines = [f"{'':<24}" + "".join(f"{name:>22}" for name in arms.values())]
    for measure, (name, rank) in ranks.items():
        cells = [cell(comparison["measures"][measure].get(arm), rank) for arm in arms]
        lines.append(f"{name:<24}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join([*lines, *_TERMS])


_TERMS = (
    "ceiling: the networks of the second group with each other; of the ceiling: different seeds over it.",
    "other outputs, before training, random vectors: what chance gives.",
)


def cell(arm: dict[str, Any] | None, rank: int | None) -> str:
    """An arm's mean and interval as text: at a rank, or of its one number."""
    if arm is None:
        return "-"
    mean, low, high = (arm[name] if rank is None else arm[name][rank] for name in ("mean", "low", "high"))
    if mean is None:
        return "-"
    mean, *interval = (f"{round(x, 2) + 0.0:.2f}" for x in (mean, low, high) if x is not None)  # no -0.00
    return mean + (f" [{', '.join(interval)}]" if interval else "")
