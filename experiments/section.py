"""What every experiment gives: a section with its verdicts, table and figure; and the page that they make."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.common import markdown_table
from experiments.verdicts import Interval, Verdict, interval
from sqs_jax.analysis.report.plots import png
from sqs_jax.files import write
from sqs_jax.train.sweep.table import Row


class Section(NamedTuple):
    """One experiment."""

    name: str
    """Of its picture."""
    title: str
    text: str
    """What was done."""
    verdicts: list[Verdict]
    tables: list[str]
    """As Markdown."""
    figure: Figure | None


def final(rows: Sequence[Row], **settings) -> dict[int, Row]:
    """The last row of each network with these settings, by seed; without those that diverged."""
    return {row["seed"]: row for row in rows if row["test_loss"] is not None and _fits(row, settings)}


def at_epoch(rows: Sequence[Row], epoch: int, **settings) -> dict[int, Row]:
    """The row of an epoch of each network with these settings, by seed."""
    return {row["seed"]: row for row in rows if row["epoch"] == epoch and _fits(row, settings)}


def diverged(rows: Sequence[Row], **settings) -> int:
    """How many networks with these settings diverged."""
    return sum(row["diverged_at"] is not None and _fits(row, settings) for row in rows)


def column(rows: Mapping[int, Row], name: str) -> dict[int, float]:
    """One value of each network, by seed."""
    return {seed: row[name] for seed, row in rows.items() if row[name] is not None}


def with_settings(readings: Mapping[str, Row], **settings) -> dict[int, Row]:
    """The readings of the networks with these settings, by seed."""
    return {row["seed"]: row for row in readings.values() if _fits(row, settings)}


_SHARE = (0.0, 1.0)
_RANGES = {
    "accuracy": _SHARE,
    "agreement": _SHARE,
    "template": _SHARE,
    "auc": _SHARE,
    "r2": (-math.inf, 1.0),
    "loss": (0.0, math.inf),
    "variation": (0.0, math.inf),
    "learnt": (0.0, math.inf),
}
"""Of a value whose name has this word."""


def average(rows: Mapping[int, Row], name: str) -> Interval:
    """One value of some networks: mean and interval, cut to what the value can be."""
    (ends,) = (_RANGES[word] for word in name.split("_") if word in _RANGES)
    return interval(column(rows, name).values(), *ends)


def mean(rows: Mapping[int, Row], name: str, digits: int = 4) -> str:
    """One value of some networks, its mean and interval as tables show them."""
    return average(rows, name).text(digits)


def at(arm: Mapping[str, Any], rank: int) -> Interval:
    """|cos| or overlap of an arm of a comparison at a rank, from 0: by Student's t where its pairs are independent."""
    if "values" in arm:
        return interval((values[rank] for values in arm["values"]), *_SHARE)
    return Interval(*(float("nan") if arm[part][rank] is None else arm[part][rank] for part in ("mean", "low", "high")))


def _fits(row: Row, settings) -> bool:
    return all(row[name] == value for name, value in settings.items())


_CLAIMS = ("claim", "criterion", "found, 95 % interval", "verdict")


def write_page(path: Path, title: str, head: str, sections: Sequence[Section], tail: str, pictures: Path) -> None:
    """Writes the page of some sections as Markdown, the summary of verdicts first, and their pictures beside it."""
    rows = [
        (f"[{v.claim}](#{_anchor(s.title)})", v.criterion, v.found.text(), f"**{v.outcome}**")
        for s in sections
        for v in s.verdicts
    ]
    parts = [f"# {title}", head, "## Verdicts", markdown_table(_CLAIMS, rows)]
    pictures.mkdir(parents=True, exist_ok=True)
    for section in sections:
        parts += [f"## {section.title}", section.text, *section.tables]
        if section.verdicts:
            parts.append(
                "\n".join(f"* {v.claim}: **{v.outcome}** ({v.criterion}; {v.found.text()})" for v in section.verdicts)
            )
        if section.figure is not None:
            picture = pictures / f"{section.name}.png"
            write(picture, png(section.figure))
            parts.append(f"![{section.title}]({os.path.relpath(picture, path.parent)})")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, "\n\n".join([*parts, tail]) + "\n")


def _anchor(title: str) -> str:
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")
