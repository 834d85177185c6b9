"""The tables that the pages are drawn from: small files, a folder a sweep."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.plan import BEYOND, FULL, QUICK, QUICK_BEYOND
from sqs_jax.train.run_folder import SweepFolder
from sqs_jax.train.sweep.table import Row, read_csv

MEASURED = Path(__file__).parent / "measured"
"""Tables of the full sweeps, as the pages in docs show them."""
LANGUAGE = Path(__file__).parent.parent / "benchmarks" / "results" / "language.json"

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tables:
    """Saved tables of sweeps."""

    root: Path = MEASURED
    quick: bool = False

    @property
    def plan(self) -> dict[str, Any]:
        """The sweeps."""
        return QUICK | QUICK_BEYOND if self.quick else FULL | BEYOND

    def rows(self, name: str) -> list[Row]:
        """A sweep's table: a row an epoch of each network."""
        return read_csv(_there(SweepFolder(self.root / name).results))

    def readings(self, name: str) -> dict[str, Row]:
        """What is read from its networks' weights, by network: see `experiments.readings`."""
        return _read(self.root / name / "readings.json")

    def beside(self, name: str, settings: Settings, other: str, bilinear: Settings) -> dict[str, Any] | None:
        """Networks of a sweep compared with bilinear ones of another, or of the same: see `experiments.comparisons`."""
        del other, bilinear  # of which networks, the file says
        return _read(self._comparison(name, settings))["measures"]

    def distances(self, gate: str) -> dict[str, list[float]]:
        """Fréchet distance of each network's rebuilt images, by what they are rebuilt from."""
        return _read(self._distances(gate))["measures"]

    def seconds(self) -> tuple[str, dict[float, list[float]]]:
        """A machine, and its seconds of epochs for p = 1 and p = 2, in pairs."""
        record = _read(self._seconds)
        return record["machine"], {float(p): values for p, values in record["seconds"].items()}

    def machines(self) -> list[str]:
        """On what the networks were trained."""
        paths = (self.root / name / "machine.json" for name in self.plan)
        return sorted({machine for path in paths if path.is_file() for machine in _read(path)})

    def bits_per_byte(self) -> tuple[str, dict[str, dict[int, float]]]:
        """A machine, and the bits per byte of language models trained there, by gate and seed."""
        record = _read(LANGUAGE, "python -m benchmarks.language")
        rows = record["bits_per_byte"].items()
        return record["machine"], {gate: {int(seed): value for seed, value in row.items()} for gate, row in rows}

    def _comparison(self, name: str, settings: Settings) -> Path:
        label = "-".join(f"{value}" if field == "gate" else f"{field}{value:g}" for field, value in settings.items())
        return self.root / name / "comparisons" / f"{label}.json"

    def _distances(self, gate: str) -> Path:
        return self.root / "mnist" / f"distances-{gate}.json"

    @property
    def _seconds(self) -> Path:
        return self.root / "mnist" / "seconds.json"


def _there(path: Path, command: str = "the same command without --tables") -> Path:
    if not path.is_file():
        raise ValueError(f"no table at {path}: {command} measures it")
    return path


def _read(path: Path, *command: str) -> Any:
    text = _there(path, *command).read_text()
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}): delete it to have it measured again") from None
