"""The sections of both pages, from saved sweeps: trains what is missing, and reads the weights."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments import beyond, paper
from experiments.comparisons import compared, networks
from experiments.plan import BEYOND, FULL, GATES, QUICK, QUICK_BEYOND, trained
from experiments.readings import read_networks
from experiments.section import Section, column, with_settings
from sqs_jax.analysis import interpret
from sqs_jax.analysis.calibration import calibrate, calibrated
from sqs_jax.analysis.eigen import top_eigenpairs
from sqs_jax.analysis.load import layer_weights, load_run
from sqs_jax.analysis.report import layer_samples
from sqs_jax.analysis.study import CALIBRATION_SAMPLES, drawn
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.grid import members
from sqs_jax.train.images import load_images, place_images
from sqs_jax.train.members import epoch_seconds
from sqs_jax.train.run_folder import SweepFolder
from sqs_jax.train.step import data_mesh, replicated
from sqs_jax.train.table import Row, read_csv

_TEST_SAMPLES, _RANKS, _ROUNDS = 2000, 10, 24
_LEARNT = 0.5  # the accuracy that every network of a group has, or some did not learn


@dataclasses.dataclass(frozen=True)
class Sweeps:
    """Sweeps that are trained when they are asked for."""

    root: Path
    quick: bool = False
    data_dir: Path | None = None
    known: dict[str, SweepFolder] = dataclasses.field(default_factory=dict, compare=False)
    """Sweeps that were asked for; to find one complete takes its data set."""

    @property
    def plan(self) -> dict[str, Any]:
        """What there is to train."""
        return QUICK | QUICK_BEYOND if self.quick else FULL | BEYOND

    def folder(self, name: str) -> SweepFolder:
        """A sweep's folder, all of whose networks are trained."""
        if name not in self.known:
            self.known[name] = SweepFolder(trained(name, self.root, quick=self.quick, data_dir=self.data_dir))
        return self.known[name]

    def rows(self, name: str) -> list[Row]:
        """Its table."""
        return read_csv(self.folder(name).results)

    def readings(self, name: str) -> dict[str, Row]:
        """What is read from its weights, by network."""
        return read_networks(self.folder(name).path, data_dir=self.data_dir)

    def beside(self, name: str, settings: dict[str, Any], other: str, bilinear: dict[str, Any]) -> dict[str, Any]:
        """Networks of a sweep compared with bilinear ones of another, or of the same."""
        folder = self.folder(name)
        a = networks(folder, **settings)
        b = networks(self.folder(other), gate="bilinear", **bilinear)
        label = "-".join(f"{value}" if field == "gate" else f"{field}{value:g}" for field, value in settings.items())
        return compared(folder, label, a, b, data_dir=self.data_dir)


def paper_sections(sweeps: Sweeps, language: Path) -> Iterator[Section]:
    """The paper's claims, experiments and predicted failures."""
    images = [name for name in ("mnist", "fashion_mnist") if name in sweeps.plan]
    data = {name: sweeps.plan[name].base.data for name in images}
    claimed = ({"bilinear": 0.978, "sqs": 0.979}, {"bilinear": 0.846, "sqs": 0.862})
    for number, (name, figures) in enumerate(zip(images, claimed, strict=False), 1):
        yield paper.accuracy(data[name], sweeps.rows(name), figures, number)
    yield paper.loss({data[name]: sweeps.rows(name) for name in images})
    for name in images:
        yield paper.similarity(_gates_beside(sweeps, name), data[name])
    for name in images:
        yield paper.classes(sweeps.readings(name), data[name])
    yield paper.language(_bits_per_byte(language))
    yield paper.ablation(sweeps.rows("sensitivity"), sweeps.rows("mnist"))
    yield paper.sensitivity(sweeps.rows("sensitivity"), sweeps.readings("sensitivity"))
    yield paper.frechet({gate: _distances(sweeps, gate) for gate in GATES[:2]})
    if "cifar10_jpeg" in sweeps.plan:
        yield paper.stress(sweeps.rows("cifar10_jpeg"))
    cells = ((0.0, 0.01), (0.01, 0.01), (0.5, 0.01), (2.0, 0.01), (5.0, 0.01), (0.5, 0.3), (0.5, 1.0))
    axes = sweeps.plan["extremes"].axes
    beside = {
        (lam, c): _beside_cell(sweeps, "extremes", lam, c) for lam, c in cells if lam in axes["lam"] and c in axes["c"]
    }
    seconds = _seconds(sweeps.plan["mnist"].base, sweeps.data_dir)
    yield paper.failures(sweeps.rows("extremes"), sweeps.readings("extremes"), beside, seconds)


def beyond_sections(sweeps: Sweeps) -> Iterator[Section]:
    """What the paper does not ask."""
    for name in ("mnist", "fashion_mnist"):
        for noise in paper.NOISES if name in sweeps.plan else ():
            gates = {gate: with_settings(sweeps.readings(name), gate=gate, noise_std=noise) for gate in GATES}
            yield beyond.calibration(gates, _gates_beside(sweeps, name, noise), sweeps.plan[name].base.data, noise)
    cells = _cells(sweeps)
    others = {gate: with_settings(sweeps.readings("mnist"), gate=gate, noise_std=1.0) for gate in GATES[1:]}
    yield beyond.defaults({cell: own for cell, (_, own) in cells.items()}, others)
    for name, label, place in (("lam", "λ", 0), ("c", "c", 1), ("p", "p", 2)):
        along = sorted(cell for cell in cells if all(cell[i] == beyond.DEFAULT[i] for i in range(3) if i != place))
        points = [
            beyond.Point(cell[place], cells[cell][1], _beside_cell(sweeps, cells[cell][0], *cell)) for cell in along
        ]
        yield beyond.along(name, f"Along {label}", label, {"sqs": points}, _AT_DEFAULT)
    yield beyond.along("noise", "Along the noise", "noise", _lines(sweeps, ("noise", "mnist"), "noise_std"), _NOISE)
    chances = _lines(sweeps, ("noise_prob", "mnist"), "noise_prob")
    yield beyond.along("noise_prob", "Along the chance of noise", "chance", chances, _CHANCE)
    yield beyond.along("depth", "Along the depth", "layers", _lines(sweeps, ("depth", "mnist"), "layers"), _DEEP)
    widths = [name for name in sweeps.plan if name.startswith("width")]
    yield beyond.along("width", "Along the width", "width", _lines(sweeps, (*widths, "mnist"), "width"), _WIDE)
    starts = sweeps.plan["learnable"].axes["lam"]
    learnt = {lam: with_settings(sweeps.readings("learnable"), lam=lam) for lam in starts}
    yield beyond.learnable(learnt, {lam: cells[lam, 0.01, 1.0][1] for lam in starts})


_AT_DEFAULT = "The other two of λ = 0.5, c = 0.01, p = 1 as they are; noise 1.0."
_NOISE = "Standard deviation of the noise on training images, whose pixels lie in [0, 1]; test images have none."
_CHANCE = "The chance with which an image gets the noise, of standard deviation 1.0, in a step."
_DEEP = (
    "Every GLU is replaced by its quadratic layer, and each reads what the one before it gives. Similarity is of the "
    "last layer's forms, in the coordinates of its input: those of two deep networks need not be the same. It is left "
    "out where a bilinear network did not learn its classes, so that there is nothing to be like."
)
_WIDE = "Embedding and GLU are of one width."


def _cells(sweeps: Sweeps) -> dict[beyond.Setting, tuple[str, dict[int, Row]]]:
    """The sweep and the readings of every (λ, c, p) of noise 1.0, the default among them."""
    found: dict[beyond.Setting, tuple[str, dict[int, Row]]] = {}
    for name in ("extremes", "sensitivity"):
        grid, readings = sweeps.plan[name], sweeps.readings(name)
        for config in members(grid.base, grid.axes).values():
            own = with_settings(readings, lam=config.lam, c=config.c, p=config.p)
            if own:  # none where all diverged
                found[config.lam, config.c, config.p] = name, own
    return found


def _usual(sweeps: Sweeps) -> dict[str, Any]:
    """What a network has where nothing else is asked for."""
    return {"noise_std": 1.0, "noise_prob": 1.0, "layers": 1, "width": sweeps.plan["mnist"].base.width}


def _lines(sweeps: Sweeps, names: tuple[str, ...], field: str) -> dict[str, list[beyond.Point]]:
    """The networks of some sweeps along a field, all else as usual."""
    lines: dict[str, list[beyond.Point]] = {}
    for gate in GATES[:2]:
        points = []
        for name in names:
            grid, readings = sweeps.plan[name], sweeps.readings(name)
            for value in grid.axes.get(field, (getattr(grid.base, field),)):
                settings = _usual(sweeps) | {field: value}
                if own := with_settings(readings, gate=gate, **settings):
                    other = with_settings(readings, gate="bilinear", **settings)
                    learnt = min(column(other, "accuracy").values(), default=0.0) > _LEARNT
                    beside = sweeps.beside(name, {"gate": gate} | settings, name, settings) if learnt else None
                    points.append(beyond.Point(value, own, beside if gate == "sqs" else None))
        lines[gate] = sorted(points, key=lambda point: point.value)
    return lines


def _gates_beside(sweeps: Sweeps, name: str, noise: float = 1.0) -> dict[str, dict[str, Any]]:
    """Every other gate compared with bilinear networks of the same noise, all else as usual."""
    usual = _usual(sweeps) | {"noise_std": noise}
    return {gate: sweeps.beside(name, {"gate": gate} | usual, name, usual) for gate in GATES if gate != "bilinear"}


def _beside_cell(sweeps: Sweeps, name: str, lam: float, c: float, p: float = 1.0) -> dict[str, Any]:
    return sweeps.beside(name, {"lam": lam, "c": c, "p": p}, "mnist", _usual(sweeps))


def _distances(sweeps: Sweeps, gate: str) -> dict[str, list[float]]:
    """Mean Fréchet distance of each network's classes, by what the images are rebuilt from."""
    rows: dict[str, list[float]] = {"eigenvectors": [], "pca": [], "random": []}
    features = None
    for path in networks(sweeps.folder("mnist"), gate=gate, noise_std=1.0):
        run = load_run(path, data_dir=sweeps.data_dir)
        weights, samples = layer_weights(run.model), layer_samples(run)
        seen, tested = (
            drawn(len(part), count)
            for part, count in ((samples.train, CALIBRATION_SAMPLES), (samples.test, _TEST_SAMPLES))
        )
        train, labels = samples.train[seen], samples.train_labels[seen]
        gains = calibrate(weights, train, run.model.layers[-1].sigma(), method="joint")
        vectors = np.asarray(top_eigenpairs(calibrated(weights, gains), _RANKS).vectors)
        features = features or interpret.train_features(train, labels)
        found = interpret.reconstruction_distances(
            vectors, features, train, labels, samples.test[tested], samples.test_labels[tested], seed=run.config.seed
        )
        for name, values in found.items():
            rows[name].append(float(np.nanmean(values)))
    return rows


def _seconds(base: ImageConfig, data_dir: Path | None) -> dict[float, list[float]]:
    """Seconds of an epoch for p = 1 and p = 2, in turns, each first in every second round."""
    images = place_images(base, load_images(base, data_dir), replicated(data_mesh()))
    configs = {p: dataclasses.replace(base, p=p) for p in (1.0, 2.0)}
    runs = {p: epoch_seconds([config], images) for p, config in configs.items()}
    found: dict[float, list[float]] = {p: [] for p in configs}
    for i in range(_ROUNDS + 1):
        for p in sorted(runs, reverse=i % 2 == 1):
            found[p].append(next(runs[p]))
    return {p: values[1:] for p, values in found.items()}  # the first compiles


def _bits_per_byte(folder: Path) -> dict[str, dict[int, float]]:
    """Of the finished language runs, by gate and seed; there may be none."""
    found: dict[str, dict[int, float]] = {gate: {} for gate in GATES}
    for path in folder.glob("*/summary.json"):
        config = json.loads((path.parent / "config.json").read_text())
        if config["gate"] in found:
            found[config["gate"]][config["seed"]] = json.loads(path.read_text())["test"]["bits_per_byte"]
    return {gate: dict(sorted(row.items())) for gate, row in found.items()}
