"""The page of a sweep, drawn from its table: curves, final figures, and the effect of each value."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqs_jax.analysis.report import page
from sqs_jax.files import write
from sqs_jax.messages import InputError
from sqs_jax.train.run_folder import SweepFolder, provenance
from sqs_jax.train.sweep.grid import members
from sqs_jax.train.sweep.run_sweep import Grid, read_grid
from sqs_jax.train.sweep.table import RESULTS, Row, by_epoch, read_csv


def write_sweep_report(sweep_dir: str | Path) -> Path:
    """Writes `report.html` into the folder of a sweep, from its `results.csv`, and returns its path.

    Raises InputError where that is no sweep, or no network of it is finished.
    """
    folder = SweepFolder(Path(sweep_dir))
    grid, rows = read_grid(folder.path), read_csv(folder.results)
    if not rows:
        raise InputError(f"{folder.path} has no finished network yet")
    groups = by_configuration(rows)
    content = {
        "sweep": {"groups": _linked(groups, folder, grid), "axes": by_axis(groups), "noise": _has_noise(grid)},
        "cards": _cards(groups),
        "provenance": json.loads(folder.grid.read_text()) | provenance(),
    }
    count = sum(len(group["seeds"]) for group in groups)
    best = max((group for group in groups if group["accuracy"]), key=_accuracy, default=None)
    numbers = sorted({len(group["seeds"]) for group in groups})
    seeds = " to ".join(map(str, numbers[:: len(numbers) - 1 or 1]))
    verdict = (
        f"{count} network{'s' * (count > 1)} in {len(groups)} configuration{'s' * (len(groups) > 1)}, {seeds} "
        f"seed{'s' * (numbers[-1] > 1)} each."
    )
    if best:
        tied = [group for group in groups if group["accuracy"] and _accuracy(group) == _accuracy(best)]
        names = [group["name"] for group in tied]
        owner = f"that of {names[0]}" if len(tied) == 1 else f"a tie of {', '.join(names[:-1])} and {names[-1]}"
        verdict += f" The highest mean test accuracy, {_spread(best)}, is {owner}"
        others = [group for group in groups if group["accuracy"] and group not in tied]
        second = max(others, key=_accuracy, default=None)
        verdict += f"; {second['name']} follows with {_spread(second)}." if second else "."
        verdict += " ± is the standard deviation of seeds." * (len(best["accuracy"]) > 1)
    shared = " All networks drew the same noise: the spread between seeds leaves its share out." * grid.share_noise
    base = grid.base
    subtitle = (
        f"Unless varied: {base.layers} GLU layer{'s' * (base.layers > 1)} of {base.hidden} on an embedding of "
        f"{base.width}, noise {base.noise_std:g}, batch {base.batch_size}, {base.epochs} epochs, learning "
        f"rate {base.lr:g}.{shared}"
    )
    texts = page.texts(f"Sweep on {base.data}", subtitle, verdict, stored="Every number here lies in results.csv.")
    command = page.command(str(sweep_dir))
    write(folder.report, page.render(content, texts | {"command": command}))
    return folder.report


def _linked(groups: list[dict[str, Any]], folder: SweepFolder, grid: Grid) -> list[dict[str, Any]]:
    """The groups with their networks: the seed, and the page of each, None where there is none."""
    keys = {tuple(sorted(group["settings"])) for group in groups}
    found: dict[Any, list[Any]] = {}
    for name, config in members(grid.base, grid.axes).items():
        run = folder.member(name)
        if run.path.exists():
            page_of = quote(str(run.report.relative_to(folder.path))) if run.report.exists() else None
            link = [config.seed, page_of]
            for names in keys:
                found.setdefault((names, tuple(getattr(config, field) for field in names)), []).append(link)
    for group in groups:
        names = tuple(sorted(group["settings"]))
        links = found.get((names, tuple(group["settings"][field] for field in names)), [])
        group["members"] = [link for link in links if link[0] in group["seeds"]]
    return groups


def _has_noise(grid) -> bool:
    """Whether any network of the sweep is trained with noise."""
    return max(grid.axes.get("noise_std", (grid.base.noise_std,))) > 0


def by_configuration(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The networks grouped by configuration: mean and range of their curves over seeds, and how each ended.

    A mean is over the networks that reached that epoch. Diverged networks are counted.
    """
    fields = [name for name in rows[0] if name not in RESULTS and name != "seed"]
    varied = [name for name in fields if len({row[name] for row in rows if row[name] is not None}) > 1]
    by_settings: dict[tuple, list[Row]] = {}
    for row in rows:
        by_settings.setdefault(tuple(row[name] for name in fields), []).append(row)
    groups = []
    for values, own in by_settings.items():
        settings = {name: value for name, value in zip(fields, values, strict=True) if value is not None}
        last = [row for row in own if row["test_accuracy"] is not None]
        groups.append(
            {
                "name": _name(settings, varied),
                "settings": {name: settings[name] for name in varied if name in settings},
                "seeds": sorted({row["seed"] for row in own}),
                "train": _curve(own, "train_loss"),
                "validation": _curve(own, "validation_loss"),
                "loss": [row["test_loss"] for row in last],
                "accuracy": [row["test_accuracy"] for row in last],
                "diverged": sum(row["diverged_at"] is not None for row in own),
            }
        )
    return groups


def by_axis(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number that varies: mean test accuracy and loss against it, a line for each setting of the rest."""
    names = dict.fromkeys(name for group in groups for name in group["settings"])
    axes = []
    for axis in names:
        lines: dict[str, list[Any]] = {}
        for group in groups:
            value = group["settings"].get(axis)
            if isinstance(value, int | float) and group["accuracy"]:
                rest = {name: other for name, other in group["settings"].items() if name != axis}
                point = (float(value), statistics.mean(group["accuracy"]), statistics.mean(group["loss"]))
                lines.setdefault(_name(rest, list(rest)), []).append(point)
        lines = {name: sorted(points) for name, points in lines.items() if len(points) > 1}
        if lines:
            axes.append({"name": axis, "lines": [{"name": name, "points": points} for name, points in lines.items()]})
    return axes


def _curve(rows, name) -> dict[str, list[Any]] | None:
    columns = by_epoch(rows, name)
    if not columns:
        return None
    return {
        "epoch": list(columns),
        "mean": page.rounded([statistics.mean(column) for column in columns.values()]),
        "low": page.rounded([min(column) for column in columns.values()]),
        "high": page.rounded([max(column) for column in columns.values()]),
    }


_SIGNS = {"lam": "λ", "noise_std": "noise", "noise_prob": "noise chance", "weight_decay": "weight decay"}


def _name(settings: dict[str, Any], varied: Sequence[str]) -> str:
    """The name of a configuration: its gate, then what else varies."""
    words = [str(settings["gate"])] if "gate" in settings else []
    words += [f"{_SIGNS.get(name, name)} {settings[name]}" for name in varied if name in settings and name != "gate"]
    return ", ".join(words) or "all"


def _accuracy(group) -> float:
    return statistics.mean(group["accuracy"])


def _spread(group) -> str:
    """The mean accuracy of a configuration's seeds, and their standard deviation."""
    deviation = f" ± {statistics.stdev(group['accuracy']):.4f}" if len(group["accuracy"]) > 1 else ""
    return f"{_accuracy(group):.4f}{deviation}"


def _cards(groups) -> list[list[str]]:
    ended = [group for group in groups if group["accuracy"]]
    cards = [[str(sum(len(group["seeds"]) for group in groups)), "networks"]]
    if ended:
        low, high = min(map(_accuracy, ended)), max(map(_accuracy, ended))
        cards += [[f"{high:.4f}", "highest mean test accuracy"], [f"{low:.4f}", "lowest mean test accuracy"]]
    diverged = sum(group["diverged"] for group in groups)
    return [*cards, [str(diverged), "diverged"]]
