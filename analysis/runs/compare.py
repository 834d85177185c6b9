"""Two groups of runs compared: their spectra, read and measured by `similarity.compare`."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis.calibration import Method, calibrate, calibrated
from sqs_jax.analysis.eigen import dimension, rank_bound, top_eigenpairs
from sqs_jax.analysis.fidelity import points
from sqs_jax.analysis.interaction import branches
from sqs_jax.analysis.runs.load import (
    CALIBRATION_SAMPLES,
    Run,
    drawn,
    layer_inputs,
    layer_weights,
    load_comparable,
    untrained,
)
from sqs_jax.analysis.similarity import LEAST_SEEDS, Reading, compare
from sqs_jax.gates import Gate
from sqs_jax.messages import InputError
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
    if begun := [run for run in runs if run.config.init_from]:
        raise InputError(
            f"{begun[0].path} began with the weights of another run: seeds do not tell such networks apart"
        )
    k = k if k is not None else min(_RANKS, *(rank_bound(layer_weights(run.model), "input") for run in runs))
    readings = [_reading(run, method, k) for run in runs]
    size = readings[0].vectors.shape[2]
    initial = [_initial(run, k, size) for run in runs[: len(a)]]
    samples = _calibration_inputs(runs[0])
    x = np.asarray(points(layer_weights(runs[0].model), jnp.asarray(samples), "input", size))
    measures = compare(readings[: len(a)], readings[len(a) :], initial, x.T @ x / len(x))
    names = [" and ".join(sorted({run.config.gate for run in group})) for group in (runs[: len(a)], runs[len(a) :])]
    note = (
        f"{len(a)} {names[0]} and {len(b)} {names[1]} networks on {runs[0].config.data}, read with “{method}” gains: "
        f"the first {k} eigenvectors of each output, means over outputs and pairs, 95 % intervals over seeds."
    )
    if min(len(a), len(b)) < LEAST_SEEDS:
        note += f" Fewer than {LEAST_SEEDS} seeds: the intervals say little."
    paths = {"a": [str(path) for path in a], "b": [str(path) for path in b]}
    about = {"note": note, "data": runs[0].config.data, "names": names, "method": method, "k": k}
    return about | {"runs": paths, "measures": measures} | provenance()


def _reading(run: Run, method: Method, k: int) -> Reading:
    weights, gate = layer_weights(run.model), run.model.layers[-1].sigma
    samples = None if method == "identity" else _calibration_inputs(run)
    return _read(run, weights, gate, samples, method, k)


def _calibration_inputs(run: Run) -> np.ndarray:
    images = run.data.train_images
    return layer_inputs(run, images[drawn(len(images), CALIBRATION_SAMPLES)])


def _initial(run: Run, k: int, size: int) -> Reading:
    """The network before training, read as it is, in the `size` coordinates of the other readings."""
    weights = untrained(run)
    if dimension(weights, "input") < size:  # they have a constant coordinate, for a linear term
        weights = weights._replace(v_bias=jnp.zeros(weights.v.shape[1], weights.v.dtype))
    return _read(run, weights, run.model.layers[-1].sigma, None, "identity", k)


def _read(run: Run, weights, gate: Gate, samples, method: Method, k: int) -> Reading:
    if samples is not None:
        weights = calibrated(weights, calibrate(weights, samples, gate, method=method))
    pairs, config = top_eigenpairs(weights, k, method="dense"), run.config
    w, v = (np.asarray(branch) for branch in branches(weights, "input"))
    start = (config.seed, config.width, config.hidden)
    return Reading(start, np.asarray(pairs.vectors), w, v, np.asarray(weights.out))
