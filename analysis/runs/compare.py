"""Two groups of runs compared: their spectra read, measured by `compare`, and shown."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis.calibration import Method, calibrate, calibrated
from sqs_jax.analysis.eigen import rank_bound, top_eigenpairs
from sqs_jax.analysis.fidelity import points
from sqs_jax.analysis.interaction import branches
from sqs_jax.analysis.report import plots
from sqs_jax.analysis.report.image_page import layer_inputs
from sqs_jax.analysis.runs.load import Run, layer_weights, load_comparable, untrained
from sqs_jax.analysis.runs.study import CALIBRATION_SAMPLES, drawn
from sqs_jax.analysis.similarity import LEAST_SEEDS, Reading, compare
from sqs_jax.files import write
from sqs_jax.gates import Gate
from sqs_jax.train.config import InputError
from sqs_jax.train.run_folder import provenance

_RANKS = 10


def compare_runs(
    a: list[Path], b: list[Path], *, method: Method = "joint", k: int | None = 10, data_dir: Path | None = None
) -> dict[str, Any]:
    """Compares the spectra of runs `a` with those of runs `b`, one network a seed: last layer, input basis.

    Args:
      a, b: folders of finished runs of one data set; 1 or more of a, 2 or more of b.
      method: gains that every network is read with, as in `calibrate`; initial weights are read as they are.
      k: eigenvectors for each output; None for 10, or as many as every network has.
      data_dir: where the original files of the data set lie.

    Returns what `compare` measures, as `measures`, with a note, the runs and the provenance.

    Raises InputError as `load_run`, for runs of different data sets, and for one that is in both groups; ValueError
    for a `k` beyond the rank, and as `compare`.
    """
    if len(b) < 2:
        raise InputError(f"{len(b)} network to compare with: 2 or more are needed, {LEAST_SEEDS} to tell much")
    if both := {path.resolve() for path in a} & {path.resolve() for path in b}:
        raise InputError(f"{both.pop()} is in both groups: a network is not compared with itself")
    runs = load_comparable([*a, *b], data_dir=data_dir)
    k = k if k is not None else min(_RANKS, *(rank_bound(layer_weights(run.model), "input") for run in runs))
    readings = [_reading(run, method, k) for run in runs]
    initial = [_initial(run, k) for run in runs[: len(a)]]
    samples = _calibration_inputs(runs[0])
    x = np.asarray(points(layer_weights(runs[0].model), jnp.asarray(samples), "input"))
    measures = compare(readings[: len(a)], readings[len(a) :], initial, x.T @ x / len(x))
    names = [" and ".join(sorted({run.config.gate for run in group})) for group in (runs[: len(a)], runs[len(a) :])]
    note = (
        f"{len(a)} {names[0]} and {len(b)} {names[1]} networks on {runs[0].config.data}, read with “{method}” gains: "
        f"the first {k} eigenvectors of each output, means over outputs and pairs, 95 % intervals over seeds."
    )
    if min(len(a), len(b)) < LEAST_SEEDS:
        note += f" Fewer than {LEAST_SEEDS} seeds: the intervals say little."
    places = {"a": [str(path) for path in a], "b": [str(path) for path in b]}
    found = {"note": note, "data": runs[0].config.data, "names": names, "method": method, "k": k}
    return found | {"runs": places, "measures": measures} | provenance()


def write_comparison(found: dict[str, Any], out_dir: Path) -> list[Path]:
    """Writes `comparison.json` and `comparison.png`. Raises InputError where one of them is there already."""
    paths = free_places(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    title = f"{found['data']}: {found['names'][0]} beside {found['names'][1]}, {found['method']} gains"
    write(paths[1], plots.png(plots.similarity(found["measures"], title=title)))
    write(paths[0], json.dumps(found, indent=2, allow_nan=False) + "\n")
    return paths


def free_places(out_dir: Path) -> list[Path]:
    """Where a comparison's two files will lie. Raises InputError where one of them is there already."""
    paths = [out_dir / "comparison.json", out_dir / "comparison.png"]
    for path in paths:
        if path.exists():
            raise InputError(f"{path} exists already: choose another --out-dir")
    return paths


def table(found: dict[str, Any]) -> str:
    """The comparison as text, an arm a column: of vectors the first rank, of spans the largest."""
    arms = ("shared", "disjoint", "ceiling", "fraction", "classes", "untrained", "random")
    places = {
        "rank_cosine": 0,
        "matched_cosine": 0,
        "overlap": -1,
        "angle": -1,
        "form_cosine": None,
        "data_form_cosine": None,
    }
    lines = [f"{'':<16}" + "".join(f"{arm:>22}" for arm in arms)]
    for name, place in places.items():
        cells = [cell(found["measures"][name].get(arm), place) for arm in arms]
        lines.append(f"{name:<16}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def cell(arm: dict[str, Any] | None, place: int | None) -> str:
    """An arm's mean and interval as text: at a place of its list, or of its one number."""
    if arm is None:
        return "-"
    mean, low, high = (arm[name] if place is None else arm[name][place] for name in ("mean", "low", "high"))
    if mean is None:
        return "-"
    mean, *interval = (f"{round(x, 2) + 0.0:.2f}" for x in (mean, low, high) if x is not None)  # no -0.00
    return mean + (f" [{', '.join(interval)}]" if interval else "")


def _reading(run: Run, method: Method, k: int) -> Reading:
    weights, gate = layer_weights(run.model), run.model.layers[-1].sigma
    samples = None if method == "identity" else _calibration_inputs(run)
    return _read(run, weights, gate, samples, method, k)


def _calibration_inputs(run: Run) -> np.ndarray:
    images = run.data.train_images
    return layer_inputs(run, images[drawn(len(images), CALIBRATION_SAMPLES)])


def _initial(run: Run, k: int) -> Reading:
    return _read(run, untrained(run), run.model.layers[-1].sigma, None, "identity", k)


def _read(run: Run, weights, gate: Gate, samples, method: Method, k: int) -> Reading:
    if samples is not None:
        weights = calibrated(weights, calibrate(weights, samples, gate, method=method))
    pairs, config = top_eigenpairs(weights, k, method="dense"), run.config
    w, v = (np.asarray(branch) for branch in branches(weights, "input"))
    start = (config.seed, config.width, config.hidden)
    return Reading(start, np.asarray(pairs.vectors), w, v, np.asarray(weights.out))
