"""The same tables, measured when they are asked for: trains what is missing and reads the weights."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from experiments.comparisons import compared, keep, networks
from experiments.plan import trained
from experiments.readings import read_networks, stamps
from experiments.tables import Settings, Tables
from sqs_jax.analysis.calibration import calibrate, calibrated
from sqs_jax.analysis.eigen import top_eigenpairs
from sqs_jax.analysis.runs.load import CALIBRATION_SAMPLES, drawn, layer_samples, layer_weights, load_run
from sqs_jax.analysis.runs.study import frechet, frechet_features
from sqs_jax.files import write
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.images.image_task import load_images, place_images
from sqs_jax.train.layout import make_mesh, replicated
from sqs_jax.train.run_folder import SweepFolder, described, provenance
from sqs_jax.train.sweep.table import Row
from sqs_jax.train.sweep.together import epoch_seconds

_RANKS, _ROUNDS = 10, 24
_KEPT = ("results.csv", "readings.json", "machine.json", "seconds.json", "distances-*.json", "comparisons/*.json")


@dataclasses.dataclass(frozen=True)
class Sweeps(Tables):
    """Tables of sweeps that are trained when they are asked for."""

    data_dir: Path | None = None
    known: dict[str, SweepFolder] = dataclasses.field(default_factory=dict, compare=False)
    """Sweeps that were asked for; to find one complete takes its data set."""

    def folder(self, name: str) -> SweepFolder:
        """A sweep's folder, all of whose networks are trained."""
        if name not in self.known:
            folder = SweepFolder(trained(name, self.root, quick=self.quick, data_dir=self.data_dir))
            summaries = [json.loads(path.read_text()) for path in folder.members.glob("*/summary.json")]
            write(folder.path / "machine.json", json.dumps(sorted({described(each) for each in summaries})) + "\n")
            self.known[name] = folder
        return self.known[name]

    def rows(self, name: str) -> list[Row]:
        """As of `Tables`."""
        self.folder(name)
        return super().rows(name)

    def readings(self, name: str) -> dict[str, Row]:
        """As of `Tables`; networks that were trained anew are read again."""
        return read_networks(self.folder(name).path, data_dir=self.data_dir)

    def beside(self, name: str, settings: Settings, other: str, bilinear: Settings) -> dict[str, Any] | None:
        """As of `Tables`; networks that were trained anew are compared again."""
        a = networks(self.folder(name), **settings)
        b = networks(self.folder(other), gate="bilinear", **bilinear)
        compared(self._comparison(name, settings), a, b, data_dir=self.data_dir)
        return super().beside(name, settings, other, bilinear)

    def distances(self, gate: str) -> dict[str, list[float]]:
        """As of `Tables`, of the networks of noise 1.0."""
        runs = [*networks(self.folder("mnist"), gate=gate, noise_std=1.0).values()]
        keep(self._distances(gate), stamps(runs), lambda: _frechet(runs, self.data_dir))
        return super().distances(gate)

    def seconds(self) -> tuple[str, dict[float, list[float]]]:
        """As of `Tables`: measured once, on this machine."""
        self.folder("mnist")
        if not self._seconds.is_file():
            record = {"machine": described(provenance()), "seconds": _epochs(self.plan["mnist"].base, self.data_dir)}
            write(self._seconds, json.dumps(record) + "\n")
        return super().seconds()

    def export(self, to: Path) -> None:
        """Copies the tables of the sweeps that were asked for, for `Tables` to read, in the place of earlier ones."""
        for name, folder in self.known.items():
            shutil.rmtree(to / name, ignore_errors=True)
            for path in (path for pattern in _KEPT for path in folder.path.glob(pattern)):
                copy = to / name / path.relative_to(folder.path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                write(copy, path.read_text())


def _frechet(runs: list[Path], data_dir: Path | None) -> dict[str, list[float]]:
    """Mean Fréchet distance of each network's classes, by what the images are rebuilt from."""
    rows: dict[str, list[float]] = {"eigenvectors": [], "pca": [], "random": []}
    features = None
    for path in runs:
        run = load_run(path, data_dir=data_dir)
        weights, samples = layer_weights(run.model), layer_samples(run)
        train = samples.train[drawn(len(samples.train), CALIBRATION_SAMPLES)]
        gains = calibrate(weights, train, run.model.layers[-1].sigma, method="joint")
        vectors = np.asarray(top_eigenpairs(calibrated(weights, gains), _RANKS).vectors)
        features = features or frechet_features(samples)
        for name, values in frechet(vectors, samples, features, seed=run.config.seed).items():
            rows[name].append(float(np.nanmean(values)))
    return rows


def _epochs(base: ImageConfig, data_dir: Path | None) -> dict[float, list[float]]:
    """Seconds of an epoch for p = 1 and p = 2, in turns, each first in every second round."""
    images = place_images(base, load_images(base, data_dir), replicated(make_mesh()))
    configs = {p: dataclasses.replace(base, p=p) for p in (1.0, 2.0)}
    runs = {p: epoch_seconds([config], images) for p, config in configs.items()}
    seconds: dict[float, list[float]] = {p: [] for p in configs}
    for i in range(_ROUNDS + 1):
        for p in sorted(runs, reverse=i % 2 == 1):
            seconds[p].append(next(runs[p]))
    return {p: values[1:] for p, values in seconds.items()}  # the first compiles
