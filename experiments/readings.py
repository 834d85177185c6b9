"""What is read from the weights of a sweep's networks, kept beside its table as `readings.json`."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.analysis import interpret
from sqs_jax.analysis.calibration import calibrate, calibrated
from sqs_jax.analysis.eigen import spectrum
from sqs_jax.analysis.fidelity import fidelity
from sqs_jax.analysis.load import layer_weights, load_run
from sqs_jax.analysis.report import layer_samples
from sqs_jax.analysis.study import CALIBRATION_SAMPLES, drawn, first_positive, number
from sqs_jax.train.grid import members
from sqs_jax.train.run_folder import SweepFolder, write
from sqs_jax.train.sweep import read_grid

METHODS = ("identity", "joint")
_PAIRS = 10


def read_networks(sweep_dir: Path, *, data_dir: Path | None = None) -> dict[str, dict[str, Any]]:
    """The readings of every network of a sweep that did not diverge, by name; what was read before is not read again.

    Of each: its `gate`, `lam`, `c`, `p`, `seed` and `noise_std`; R² and agreement with both kinds of gains, as
    `r2_joint`; and of the last layer's form, read with joint gains, means over the classes of their leading
    eigenvector: |correlation| with the class's mean image (`template`) and with other classes' (`template_others`),
    AUC for the class (`auc`), and total variation over that of shuffled pixels (`variation`).
    """
    folder, grid = SweepFolder(sweep_dir), read_grid(sweep_dir)
    path = folder.path / "readings.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    rows: dict[str, dict[str, Any]] = {}
    for name, config in members(grid.base, grid.axes).items():
        run = folder.member(name)
        if not run.summary.is_file():
            continue
        if name not in known:
            print(f"reading {run.path}", flush=True)
            settings = {field: getattr(config, field) for field in ("gate", "lam", "c", "p", "seed", "noise_std")}
            known[name] = settings | _reading(run.path, data_dir)
            write(path, json.dumps(known, indent=1, allow_nan=False) + "\n")
        rows[name] = known[name]
    return rows


def _reading(run_dir: Path, data_dir: Path | None) -> dict[str, float | None]:
    run = load_run(run_dir, data_dir=data_dir)
    weights, gate, samples = layer_weights(run.model), run.model.layers[-1].sigma(), layer_samples(run)
    seen = samples.train[drawn(len(samples.train), CALIBRATION_SAMPLES)]
    found: dict[str, Any] = {}
    gains = {}
    for method in METHODS:
        gains[method] = calibrate(weights, seen, gate, method=method)
        measured = fidelity(weights, gains[method], samples.test, samples.test_labels, gate)
        found |= {f"{name}_{method}": getattr(measured, name) for name in ("r2", "agreement")}
    pairs = spectrum(calibrated(weights, gains["joint"]), count=_PAIRS)
    places = first_positive(pairs.values)
    vectors = np.asarray(pairs.vectors)[np.arange(len(places)), places][:, None, : samples.train.shape[1]]
    own, others = template_matches(vectors[:, 0], samples.train, samples.train_labels)
    found |= {"template": own, "template_others": others}
    found["auc"] = np.mean(interpret.selectivity(vectors, samples.test, samples.test_labels))
    images = vectors.reshape(len(vectors), *run.data.shape)
    images = np.moveaxis(images, -1, 1) if images.ndim == 4 else images[:, None]
    found["variation"] = np.mean(interpret.smoothness(images))
    return {name: number(value) for name, value in found.items()}


def template_matches(vectors: np.ndarray, x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean |correlation| of each class's vector (outputs, d) with its own template, and with those of other classes.

    The template of a class is its mean minus the mean of all.
    """
    classes = range(len(vectors))
    turned = [interpret.template_correlations(np.roll(vectors, k, axis=0)[:, None], x, labels)[:, 0] for k in classes]
    return float(np.nanmean(turned[0])), float(np.nanmean(turned[1:]))
