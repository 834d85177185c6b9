"""`python -m experiments`: trains what is missing, reads the weights, and writes the page of verdicts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.train import processor
from experiments import paper
from experiments.plan import FULL, GATES, QUICK, trained
from experiments.readings import read_networks
from experiments.section import Section, write_page
from sqs_jax.analysis import interpret
from sqs_jax.analysis.calibration import calibrate, calibrated
from sqs_jax.analysis.comparison import compare_runs
from sqs_jax.analysis.eigen import top_eigenpairs
from sqs_jax.analysis.load import layer_weights, load_run
from sqs_jax.analysis.report import layer_samples
from sqs_jax.analysis.study import CALIBRATION_SAMPLES, drawn
from sqs_jax.train.images import load_images, place_images
from sqs_jax.train.members import epoch_seconds
from sqs_jax.train.run_folder import SweepFolder, provenance
from sqs_jax.train.step import data_mesh, replicated
from sqs_jax.train.table import read_csv
from sqs_jax.train.terminal import one_line_errors

DOCS = Path(__file__).parent.parent / "docs"
_TEST_SAMPLES, _RANKS = 2000, 10


@dataclasses.dataclass(frozen=True)
class Options:
    """The claims, experiments and predicted failures of arXiv 2509.01874, each with a verdict."""

    quick: bool = False
    """Small networks on the embedded digits: a minute or two, and answers that are not those of the paper's setting."""
    sweeps: Path = Path("sweeps/paper")
    """Folder of the sweeps; what is trained there is not trained again."""
    language: Path = Path("runs/language")
    """Folder of the runs of python -m benchmarks.language, for claim 6."""
    out: Path | None = None
    """Folder for paper.md and its pictures; default docs/results and docs/images, for --quick <sweeps>."""
    data_dir: Path | None = None
    """Folder with the original files; default SQS_DATA_DIR."""


def main() -> None:
    """Runs the experiments of the paper."""
    options = tyro.cli(Options, prog="python -m experiments")
    with one_line_errors(ValueError, interrupted="interrupted; the same command goes on"):
        print(run(options))


def run(options: Options) -> Path:
    """Trains, reads and writes; returns the page's path."""
    plan = QUICK if options.quick else FULL
    sweeps = options.sweeps / "quick" if options.quick else options.sweeps
    folders = {
        name: SweepFolder(trained(name, sweeps, quick=options.quick, data_dir=options.data_dir)) for name in plan
    }
    rows = {name: read_csv(folder.results) for name, folder in folders.items()}
    readings = {
        name: read_networks(folder.path, data_dir=options.data_dir)
        for name, folder in folders.items()
        if name != "cifar10_jpeg"
    }
    data = plan["mnist"].base.data
    sections: list[Section] = [paper.accuracy(data, rows["mnist"], {"bilinear": 0.978, "sqs": 0.979}, 1)]
    if "fashion_mnist" in rows:
        sections.append(paper.accuracy("fashion_mnist", rows["fashion_mnist"], {"bilinear": 0.846, "sqs": 0.862}, 2))
    sections.append(
        paper.loss({plan[name].base.data: rows[name] for name in ("mnist", "fashion_mnist") if name in rows})
    )
    for name in ("mnist", "fashion_mnist"):
        if name in folders:
            found = {
                gate: _beside_bilinear(folders[name], gate, options.data_dir)
                for gate in ("sqs", "relu", "gelu", "silu")
            }
            sections.append(paper.similarity(found, plan[name].base.data))
    sections += [
        paper.classes(readings[name], plan[name].base.data) for name in ("mnist", "fashion_mnist") if name in readings
    ]
    if runs := _language_runs(options.language):
        sections.append(paper.language(runs))
    sections.append(paper.ablation(rows["sensitivity"], rows["mnist"]))
    sections.append(paper.sensitivity(rows["sensitivity"], readings["sensitivity"]))
    sections.append(
        paper.frechet({gate: _distances(folders["mnist"], gate, options.data_dir) for gate in ("sqs", "bilinear")})
    )
    if "cifar10_jpeg" in rows:
        sections.append(paper.stress(rows["cifar10_jpeg"]))
    extremes = _extremes(folders["extremes"], folders["mnist"], options)
    sections.append(
        paper.failures(rows["extremes"], readings["extremes"], extremes, _seconds(plan["mnist"].base, options))
    )
    return _write(options, sections)


def _write(options: Options, sections: list[Section]) -> Path:
    out = options.out or (options.sweeps / "quick" if options.quick else DOCS / "results")
    pictures = DOCS / "images" / "paper" if out == DOCS / "results" else out / "pictures"
    versions = ", ".join(f"{name} {version}" for name, version in provenance()["versions"].items())
    tail = f"Machine: {processor()}, CPU.\n\nVersions: {versions}."
    head = _QUICK if options.quick else _HEAD
    page = out / "paper.md"
    write_page(page, "The paper's claims, measured", head, sections, tail, pictures)
    return page


_HEAD = """`python -m experiments` trains what is missing in `sweeps/paper`, reads the weights and writes this page.
Networks have one GLU layer of 512 on an embedding of 512, batch 2048, 20 epochs, AdamW with a peak learning rate of
0.001 and a cosine, weight decay 0.1; 5,000 training images are held out for validation. Seeds are 0 to 4, of the
sensitivity, extreme and CIFAR sweeps 0 to 2. Nothing was tuned for a gate. A verdict is *shown* where the whole 95 %
interval of its figure meets the criterion, *refuted* where the whole interval misses it, and *not decided* otherwise;
of some fifty criteria, two or three intervals are expected to miss the truth."""
_QUICK = """`python -m experiments --quick`: the same questions of networks of width 32 on scikit-learn's digits, 15
epochs. It shows that everything runs; its verdicts say nothing of the paper's setting."""


def _members(folder: SweepFolder, **settings) -> list[Path]:
    """The folders of the networks with these settings, in the order of seeds."""
    found = []
    for path in folder.members.iterdir():
        config = json.loads((path / "config.json").read_text())
        if (path / "summary.json").is_file() and all(config[name] == value for name, value in settings.items()):
            found.append((config["seed"], path))
    return [path for _, path in sorted(found)]


def _beside_bilinear(folder: SweepFolder, gate: str, data_dir) -> dict[str, Any]:
    a, b = (_members(folder, gate=name, noise_std=1.0) for name in (gate, "bilinear"))
    return _compared(folder, a, b, f"{gate}-noise1", data_dir)


def _extremes(
    folder: SweepFolder, bilinear: SweepFolder, options: Options
) -> dict[tuple[float, float], dict[str, Any]]:
    b = _members(bilinear, gate="bilinear", noise_std=1.0)
    found = {}
    for lam, c in ((0.0, 0.01), (0.01, 0.01), (0.5, 0.01), (2.0, 0.01), (5.0, 0.01), (0.5, 0.3), (0.5, 1.0)):
        if a := _members(folder, lam=lam, c=c):
            found[lam, c] = _compared(folder, a, b, f"lam{lam:g}-c{c:g}", options.data_dir)
    return found


def _compared(folder: SweepFolder, a: list[Path], b: list[Path], name: str, data_dir) -> dict[str, Any]:
    """The comparison of two groups of networks, kept in the sweep's folder."""
    path = folder.path / "comparisons" / f"{name}.json"
    if not path.is_file():
        print(f"comparing {name}", flush=True)
        found = compare_runs(a, b, method="joint", data_dir=data_dir)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, allow_nan=False) + "\n")
    return json.loads(path.read_text())


def _distances(folder: SweepFolder, gate: str, data_dir) -> dict[str, list[float]]:
    """Mean Fréchet distance of each network's classes, by what the images are rebuilt from."""
    rows: dict[str, list[float]] = {"eigenvectors": [], "pca": [], "random": []}
    features = None
    for path in _members(folder, gate=gate, noise_std=1.0):
        run = load_run(path, data_dir=data_dir)
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
            vectors, features, train, labels, samples.test[tested], samples.test_labels[tested]
        )
        for name, values in found.items():
            rows[name].append(float(np.nanmean(values)))
    return rows


def _seconds(base, options: Options) -> dict[float, list[float]]:
    """Seconds of an epoch for p = 1 and p = 2, in turns."""
    images = place_images(base, load_images(base, options.data_dir), replicated(data_mesh()))
    configs = {p: dataclasses.replace(base, p=p) for p in (1.0, 2.0)}
    runs = {p: epoch_seconds([config], images) for p, config in configs.items()}
    found: dict[float, list[float]] = {p: [] for p in configs}
    for _ in range(6):
        for p, seconds in runs.items():
            found[p].append(next(seconds))
    return {p: values[1:] for p, values in found.items()}  # the first compiles


def _language_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The summaries of the language runs by gate, a seed each; nothing where there are none."""
    found = {
        gate: [json.loads(path.read_text()) for path in sorted(folder.glob(f"{gate}-[0-9]*/summary.json"))]
        for gate in GATES
    }
    return found if all(found.values()) else {}


if __name__ == "__main__":
    main()
