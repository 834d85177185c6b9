"""What is read from the weights of a sweep's networks, kept beside its table as `readings.json`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sqs_jax import display
from sqs_jax.analysis import interpret
from sqs_jax.analysis.as_json import as_json
from sqs_jax.analysis.calibration import Calibration, Method, calibrate, calibrated
from sqs_jax.analysis.eigen import spectrum
from sqs_jax.analysis.fidelity import deep_fidelity
from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.analysis.runs.load import CALIBRATION_SAMPLES, Run, drawn, layer_inputs, layer_weights, load_run
from sqs_jax.analysis.runs.study import first_positive
from sqs_jax.files import write
from sqs_jax.modules import GLU
from sqs_jax.train.run_folder import RunFolder, SweepFolder
from sqs_jax.train.sweep.grid import members
from sqs_jax.train.sweep.run_sweep import read_grid

METHODS: tuple[Method, ...] = ("identity", "joint")
_PAIRS = 10
_SETTINGS = ("gate", "lam", "c", "p", "learnable", "seed", "noise_std", "noise_prob", "layers", "width")


def read_networks(sweep_dir: Path, *, data_dir: Path | None = None) -> dict[str, dict[str, Any]]:
    """The readings of every network of a sweep that did not diverge, by name.

    One that was trained anew is read again. Of each: its settings and its accuracy on the test set; of the quadratic
    network with both kinds of gains, every GLU replaced, R² (`r2_joint`, …) and `agreement`. With learnt c and λ, what
    they came to. Of a network of one layer also, read with joint gains, means over the classes of their leading
    eigenvector: |correlation| with the class's mean image (`template`) and with other classes' (`template_others`),
    AUC for the class (`auc`), and total variation over that of shuffled pixels (`variation`).
    """
    folder, grid = SweepFolder(sweep_dir), read_grid(sweep_dir)
    path = folder.path / "readings.json"
    text = path.read_text() if path.is_file() else "{}"
    known, rows = json.loads(text), {}
    configs = members(grid.base, grid.axes)
    with display.stage(f"reading {folder.path}", len(configs), "networks") as shown:
        for name, config in configs.items():
            shown.advance()
            run = folder.member(name)
            if not run.summary.is_file():
                continue
            (trained,) = stamps([run.path])
            rows[name] = known.get(name, {})
            if rows[name].get("trained") != trained:
                display.line(f"reading {run.path}")
                settings = {field: getattr(config, field) for field in _SETTINGS}
                known[name] = rows[name] = settings | _reading(run.path, data_dir) | {"trained": trained}
                write(path, _text(known))  # what was read so far is kept if this is stopped
    if _text(rows) != text:
        write(path, _text(rows))
    return rows


def _text(rows: dict[str, Any]) -> str:
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def stamps(runs: Sequence[Path]) -> list[str]:
    """What tells one training of each network from another: its summary, which has its seconds, in short."""
    return [hashlib.sha256(RunFolder(run).summary.read_bytes()).hexdigest()[:16] for run in runs]


def _reading(run_dir: Path, data_dir: Path | None) -> dict[str, float | None]:
    run = load_run(run_dir, data_dir=data_dir)
    count = len(run.model.layers)
    layers, gates = [layer_weights(run.model, layer) for layer in range(count)], [x.sigma for x in run.model.layers]
    images = run.data.train_images[drawn(len(run.data.train_images), CALIBRATION_SAMPLES)]
    inputs = [layer_inputs(run, images, layer) for layer in range(count)]
    test, labels = layer_inputs(run, run.data.test_images, 0), np.asarray(run.data.test_labels)
    figures: dict[str, Any] = {}
    gains: dict[Method, list[Calibration]] = {}
    for method in METHODS:
        gains[method] = [calibrate(*each, method=method) for each in zip(layers, inputs, gates, strict=True)]
        measured = deep_fidelity(layers, test, gates, calibrations=gains[method], labels=labels)
        figures |= {f"{name}_{method}": getattr(measured, name) for name in ("r2", "agreement")}
        figures["accuracy"] = measured.network_accuracy
    if run.config.learnable:
        figures |= learnt(run.model.layers[0])
    if count == 1:
        figures |= _leading(run, calibrated(layers[0], gains["joint"][0]), test)
    return {name: as_json(value) for name, value in figures.items()}


def learnt(glu: GLU) -> dict[str, float]:
    """The c and λ that a layer came to."""
    return {f"learnt_{name}": float(jax.nn.softplus(getattr(glu, f"{name}_raw")[...])) for name in ("c", "lam")}


def _leading(run: Run, read: GLUWeights, test: np.ndarray) -> dict[str, float]:
    """Means over the classes of what each one's leading eigenvector shows."""
    x, labels = layer_inputs(run, run.data.train_images, 0), np.asarray(run.data.train_labels)
    pairs = spectrum(read, count=_PAIRS)
    ranks = first_positive(pairs.values)
    vectors = np.asarray(pairs.vectors)[np.arange(len(ranks)), ranks][:, None, : x.shape[1]]
    correlations, others = template_matches(vectors[:, 0], x, labels)
    images = vectors.reshape(len(vectors), *run.data.shape)
    images = np.moveaxis(images, -1, 1) if images.ndim == 4 else images[:, None]
    return {
        "template": correlations,
        "template_others": others,
        "auc": float(np.mean(interpret.selectivity(vectors, test, np.asarray(run.data.test_labels)))),
        "variation": float(np.mean(interpret.smoothness(images))),
    }


def template_matches(vectors: np.ndarray, x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean |correlation| of each class's vector (outputs, d) with its own template, and with those of other classes.

    The template of a class is its mean minus the mean of all.
    """
    classes = range(len(vectors))
    turned = [interpret.template_correlations(np.roll(vectors, k, axis=0)[:, None], x, labels)[:, 0] for k in classes]
    return float(np.nanmean(turned[0])), float(np.nanmean(turned[1:]))
