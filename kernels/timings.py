"""Tables of timings of XLA and the best kernel, by device, operation, dtype and class of shape.

A table is a JSON file a device kind: `{"device": …, "versions": …, "entries": [row, …]}`, each row the fields of
`Measurement`. The user's own, in the cache folder, goes before the one in this folder's `tuning/`.
"""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

from sqs_jax import files
from sqs_jax.cache import default_cache_dir

_NOISE = 1.03  # about what a second measurement of the same differs by
_OURS = Path(__file__).parent / "tuning"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Milliseconds of one operation, by pass ("forward", and "training" for forward and backward together)."""

    op: str
    """"gated_linear", "gated" or "sqs"."""
    gate: str
    dtype: str
    shape: tuple[int, ...]
    """(m, k, n), or (m, n) for the elementwise ones."""
    residuals: str
    """"save" or "recompute"; "save" where there is no choice."""
    tile: tuple[int, int, int] | None
    """The best tile of the kernel, where it has a choice."""
    xla_ms: dict[str, float]
    pallas_ms: dict[str, float]

    @property
    def wins(self) -> bool:
        """Whether the kernel is slower than XLA in no pass, and faster in one by more than the clock's noise."""
        gains = [time / self.pallas_ms[name] for name, time in self.xla_ms.items()]
        return min(gains) >= 1 and max(gains) > _NOISE


def lookup(kind: str, op: str, dtype: str, shape: tuple[int, ...], residuals: str, gate: str) -> Measurement | None:
    """The measurement for this shape's class, or None: sizes are of one class where log2 rounds to the same."""
    for path in (user_path(kind), _OURS / f"{slug(kind)}.json"):
        row = _read(path).get((op, gate, dtype, _shape_class(shape), residuals))
        if row:
            return row
    return None


def user_path(kind: str) -> Path:
    """The path of the user's table for a kind of device."""
    return default_cache_dir() / "tuning" / f"{slug(kind)}.json"


def write(kind: str, measurements: list[Measurement], versions: dict[str, str]) -> Path:
    """Writes the user's table, in which new rows replace old ones of the same class, and returns its path."""
    path = user_path(kind)
    try:
        old = _read(path)
    except ValueError:  # what cannot be read is measured again
        old = {}
    rows = old | _by_class(measurements)
    content = {"device": kind, "versions": versions, "entries": [dataclasses.asdict(row) for row in rows.values()]}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(content, indent=1) + "\n")
    _read.cache_clear()
    return path


Class = tuple[str, str, str, tuple[int, ...], str]


@functools.cache
def _read(path: Path) -> dict[Class, Measurement]:
    if not path.is_file():
        return {}
    try:
        return _by_class([_measurement(row) for row in json.loads(path.read_text())["entries"]])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"the tuning table {path} cannot be read ({error!r}): remove it, or measure again with "
            "python -m sqs_jax.kernels tune"
        ) from None


def _measurement(row: dict[str, Any]) -> Measurement:
    tile = row["tile"]
    sizes = {"shape": tuple(map(int, row["shape"])), "tile": tuple(map(int, tile)) if tile else None}
    times = {name: {key: float(time) for key, time in row[name].items()} for name in ("xla_ms", "pallas_ms")}
    if not all(min(part.values()) > 0 and part.keys() == times["xla_ms"].keys() for part in times.values()):
        raise ValueError("times > 0 are needed")
    fields: dict[str, Any] = row | sizes | times
    return Measurement(**fields)


def _by_class(measurements: list[Measurement]) -> dict[Class, Measurement]:
    return {(row.op, row.gate, row.dtype, _shape_class(row.shape), row.residuals): row for row in measurements}


def _shape_class(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(round(math.log2(size)) for size in shape)


def slug(kind: str) -> str:
    """The kind of a device as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")
