"""The table of a sweep: a row a network and epoch, as a .csv file."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sqs_jax.messages import InputError, quoted
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.records import Diverged, Summary, TableRow, read_record, read_rows
from sqs_jax.train.run_folder import RunFolder
from sqs_jax.train.sweep.grid import SQS_FIELDS

_FIRST = ("gate", "lam", "c", "p", "seed")
_TEXTS = ("gate", "dtype")
# What was measured; the columns before it say of what.
RESULTS = (
    "epoch", "step", "train_loss", "validation_loss", "validation_accuracy",
    "test_loss", "test_accuracy", "diverged_at",
)  # fmt: skip

Row = dict[str, Any]
_EXCESS = "more than the columns"


def member_rows(run: RunFolder, config: ImageConfig, varied: Sequence[str]) -> list[Row]:
    """The rows of one network: what it is, an epoch's losses, and on the last row how it ended.

    One that diverged before the end of its first epoch has a row of epoch 0.
    """
    names = [*_FIRST, *(name for name in varied if name not in _FIRST)]
    fields = {name: getattr(config, name) for name in names}
    if config.gate != "sqs":
        fields |= {name: None for name in SQS_FIELDS if name in fields}
    rows = read_rows(run.metrics) or [{"epoch": 0, "step": 0}]
    if run.summary.is_file():
        test = read_record(run.summary, Summary)["test"]
        rows[-1] |= {f"test_{name}": value for name, value in test.items()}
    else:
        rows[-1] |= read_record(run.diverged, Diverged)
    return [fields | {name: row.get(name) for name in RESULTS} for row in rows]


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as the text of a `results.csv`. A missing value is an empty cell."""
    names = list(rows[0]) if rows else [*_FIRST, *RESULTS]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_csv(path: Path) -> list[Row]:
    """The rows of a `results.csv`, numbers as numbers and None for what is empty.

    Raises InputError where the file is missing, or lacks a column that every such table has.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restkey=_EXCESS)
            rows = [{name: _value(name, text) for name, text in row.items()} for row in reader]
        for name in ("gate", "seed", *RESULTS):
            if name not in (reader.fieldnames or ()):
                raise ValueError(f"it has no column {name!r}")
        msgspec.convert(rows, list[TableRow])
    except OSError as error:
        raise InputError(f"cannot read the table {path}: {error.strerror}") from None
    except (ValueError, csv.Error, msgspec.MsgspecError) as error:
        raise InputError(f"the table {path} is damaged: {error}") from None
    return rows


def _value(name, text):
    if name == _EXCESS:
        raise ValueError("a row has more cells than there are columns")
    if not text:
        return None
    if name in _TEXTS:
        return text
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        raise ValueError(f"it has {quoted(text)} as its {quoted(name)}: a number is needed") from None


def by_epoch(rows: Iterable[Row], name: str) -> dict[int, list[Any]]:
    """The values of a column by epoch; rows without a value are left out."""
    columns: dict[int, list[Any]] = {}
    for row in rows:
        if row[name] is not None:
            columns.setdefault(row["epoch"], []).append(row[name])
    return dict(sorted(columns.items()))
