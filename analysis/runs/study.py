"""All that a report measures of one layer: spectrum, fidelity, and what the eigenvectors show."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sqs_jax import display
from sqs_jax.analysis import interpret
from sqs_jax.analysis.as_json import as_json
from sqs_jax.analysis.calibration import AFFINE, METHODS, Calibration, Method, calibrate_all, calibrated
from sqs_jax.analysis.eigen import Eigenpairs, dimension, rank_bound, spectrum, top_eigenpairs
from sqs_jax.analysis.fidelity import Fidelity, ablation, fidelity_all, linear_share, network_parts, truncation
from sqs_jax.analysis.interaction import GLUWeights, input_size
from sqs_jax.analysis.runs.load import CALIBRATION_SAMPLES, Samples, drawn
from sqs_jax.analysis.spectrum_summary import effective_rank, eigengaps
from sqs_jax.gates import Gate

_LARGEST_SPECTRUM = 2**28  # bytes of eigenvectors that are kept
_REFERENCE = 2048  # samples for the constants of cut-off forms
_CUT_OFF = 128  # the longest cut-off form; beyond it, little changes
_ABLATED = 16
_NORMS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
_FRECHET_RANKS = 10
_FRECHET_SAMPLES = 2000


def kept_pairs(weights: GLUWeights) -> int:
    """How many eigenpairs of each output are kept: all, or as many as fit into 256 MB."""
    d, outputs = dimension(weights, "input"), weights.out.shape[1]
    return max(1, min(rank_bound(weights, "input"), _LARGEST_SPECTRUM // (4 * outputs * d)))


def spectrum_figures(weights: GLUWeights, pairs: Eigenpairs) -> dict[str, Any]:
    """What the eigenvalues alone say, lists (outputs,): effective ranks, relative gap of the first, residual.

    They are of the pairs at hand, which may be fewer than `rank`, the largest possible rank.
    """
    return {
        "pairs": pairs.values.shape[1],
        "rank": rank_bound(weights, "input"),
        "participation_rank": as_json(effective_rank(pairs.values, "participation")),
        "entropy_rank": as_json(effective_rank(pairs.values, "entropy")),
        "first_gap": as_json(eigengaps(pairs.values)[:, 0]),
        "largest_residual": as_json(np.max(np.asarray(pairs.residuals), axis=1)),
    }


def study(
    weights: GLUWeights, gate: Gate, samples: Samples, *, method: Method = "joint", outputs: Sequence[int] | None = None
) -> tuple[dict[str, Any], Eigenpairs, dict[Method, Calibration]]:
    """Everything that is measured of one layer whose outputs are classes.

    Gains are found on 20,000 training samples; every figure of fidelity, selectivity and causality is
    of the test samples, which they have not seen. Of many classes, `outputs` names those whose eigenpairs are taken;
    what is measured of these is of the network with them alone, and of their samples.

    Returns:
      Figures as JSON has them, the eigenpairs of the form that `method` calibrates, in the input basis, and the
      calibrations by name.

    Raises ValueError for samples that do not fit the weights.
    """
    whole, all_samples = weights, samples
    if outputs is not None:
        weights, samples = chosen(weights, samples, outputs)
    test, labels = all_samples.test, all_samples.test_labels
    figures, calibrations = _gains_and_fidelity(whole, gate, all_samples.train, test, labels, method)
    with display.stage("finding eigenvectors"):
        pairs = spectrum(_form(whole, calibrations[method], outputs), count=kept_pairs(weights))
    with display.stage("cutting forms off"):
        figures["truncation"] = _truncation(weights, pairs, samples.train, samples.test, samples.test_labels, gate)
    figures["spectrum"] = spectrum_figures(weights, pairs)
    figures["leading"] = _leading(pairs)
    with display.stage("leaving eigenvectors out"):
        figures["ablation"] = _ablation(weights, pairs, samples, gate)
    with display.stage("comparing eigenvectors with images"):
        figures["eigenvectors"] = _eigenvectors(pairs, samples, input_size(weights))
    with display.stage("trying masks"):
        figures["masks"] = _masks(weights, pairs, samples, gate)
    return figures, pairs, calibrations


def layer_study(
    weights: GLUWeights,
    gate: Gate,
    x: np.ndarray,
    test_x: np.ndarray,
    *,
    method: Method = "joint",
    outputs: Sequence[int] | None = None,
    most_pairs: int = _CUT_OFF,
) -> tuple[dict[str, Any], Eigenpairs, dict[Method, Calibration]]:
    """What can be measured of a layer whose outputs are no classes: as `study`, with R² as the only fidelity.

    Gains are found on x (n, inputs), 20,000 of them at most; all figures are of test_x. `outputs` names those whose
    eigenpairs are taken, `most_pairs` of each at most.
    """
    part = weights if outputs is None else _with_outputs(weights, np.asarray(outputs))
    figures, calibrations = _gains_and_fidelity(weights, gate, x, test_x, None, method)
    with display.stage("finding eigenvectors"):
        pairs = top_eigenpairs(_form(weights, calibrations[method], outputs), min(kept_pairs(part), most_pairs))
    with display.stage("cutting forms off"):
        figures["truncation"] = _truncation(part, pairs, x, test_x, None, gate)
    figures["spectrum"] = spectrum_figures(part, pairs)
    figures["leading"] = _leading(pairs)
    return figures, pairs, calibrations


def _gains_and_fidelity(
    weights: GLUWeights, gate: Gate, x: np.ndarray, test: np.ndarray, labels: np.ndarray | None, method: Method
) -> tuple[dict[str, Any], dict[Method, Calibration]]:
    """Gains of every kind on some of x, and how faithful they are on the test samples."""
    x = x[drawn(len(x), CALIBRATION_SAMPLES)]
    with display.stage("finding gains"):
        calibrations = calibrate_all(weights, x, gate, methods=METHODS)
    figures: dict[str, Any] = {"method": method, "calibration_samples": len(x), "test_samples": len(test)}
    with display.stage("measuring fidelity"):
        measured = fidelity_all(weights, test, gate, calibrations=calibrations, labels=labels)
        figures["fidelity"] = {name: _fidelity_row(calibrations[name], row) for name, row in measured.items()}
        figures["linear_share"] = None if weights.skip is None else as_json(linear_share(weights, test, gate))
    return figures, calibrations


def gain_arrays(calibrations: dict[Method, Calibration]) -> dict[str, np.ndarray]:
    """Gains and linear terms by name, as a `spectrum.npz` holds them."""
    gains = {f"gain_{name}": np.asarray(each.gain) for name, each in calibrations.items()}
    return gains | {f"linear_{name}": np.asarray(calibrations[name].linear) for name in AFFINE}


def chosen(weights: GLUWeights, samples: Samples, outputs: Sequence[int]) -> tuple[GLUWeights, Samples]:
    """The network with some of its outputs only, and the samples of those classes, numbered from 0."""
    columns = np.asarray(outputs)
    number_of = np.full(weights.out.shape[1], -1)
    number_of[columns] = np.arange(len(columns))

    def part(x, labels):
        numbers = number_of[labels]
        return x[numbers >= 0], numbers[numbers >= 0]

    parts_of_samples = (*part(samples.train, samples.train_labels), *part(samples.test, samples.test_labels))
    return _with_outputs(weights, columns), Samples(*parts_of_samples)


def _form(weights: GLUWeights, calibration: Calibration, outputs: Sequence[int] | None) -> GLUWeights:
    """The layer as a calibration reads it, with some of its outputs only."""
    form = calibrated(weights, calibration)
    return form if outputs is None else _with_outputs(form, np.asarray(outputs))


def _with_outputs(weights: GLUWeights, columns: np.ndarray) -> GLUWeights:
    return weights._replace(
        out=weights.out[:, columns],
        out_bias=None if weights.out_bias is None else weights.out_bias[columns],
        skip=None if weights.skip is None else weights.skip[:, columns],
    )


def _leading(pairs: Eigenpairs) -> list[int | None]:
    """The rank of each output's largest positive eigenvalue; None where none is positive."""
    positive = np.any(np.asarray(pairs.values) > 0, axis=1)
    return [int(rank) if there else None for rank, there in zip(first_positive(pairs.values), positive, strict=True)]


def first_positive(values) -> np.ndarray:
    """Rank (outputs,) of the largest positive eigenvalue among values (outputs, k).

    0 where none is positive.
    """
    return np.argmax(np.asarray(values) > 0, axis=1)


def leading_vectors(pairs: Eigenpairs) -> np.ndarray:
    """The eigenvector (outputs, d) of each output's largest positive eigenvalue; of |λ₁| where none is positive."""
    ranks = first_positive(pairs.values)
    return np.asarray(pairs.vectors)[np.arange(len(ranks)), ranks]


def leading_masks(pairs: Eigenpairs, inputs: int) -> np.ndarray:
    """The adversarial mask (outputs, inputs) of each output, by its leading vector without the constant coordinate."""
    return interpret.adversarial_masks(leading_vectors(pairs)[:, :inputs])


def layer_fidelity(weights: GLUWeights, gate: Gate, x: np.ndarray, test_x: np.ndarray) -> dict[str, float | None]:
    """R² of a layer's own output on test samples, for each gain that needs no class: of a layer inside a network."""
    alone = weights._replace(skip=None, out_bias=None)
    calibrations = calibrate_all(alone, x, gate, methods=("identity", "bussgang", "output"))
    measured = fidelity_all(alone, test_x, gate, calibrations=calibrations, labels=None)
    return {name: as_json(row.r2) for name, row in measured.items()}


def _fidelity_row(calibration: Calibration, measured: Fidelity) -> dict[str, Any]:
    gain = np.asarray(calibration.gain)
    row: dict[str, Any] = {name: as_json(value) for name, value in measured._asdict().items()}
    return row | {"calibration_r2": _mean(calibration.r2), "gain_range": [float(gain.min()), float(gain.max())]}


def _truncation(weights, pairs, train: np.ndarray, test: np.ndarray, labels, gate) -> dict[str, Any]:
    longest = min(pairs.values.shape[1], _CUT_OFF)
    ks = (*(k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96) if k < longest), longest)
    reference = train[drawn(len(train), _REFERENCE)]
    cut = truncation(weights, test, gate, pairs=pairs, calibration_x=reference, labels=labels, ks=ks)
    return {"k": list(ks)} | {name: as_json(values) for name, values in cut._asdict().items()}


def _ablation(weights, pairs, samples: Samples, gate) -> dict[str, Any]:
    leading = Eigenpairs(*(array[:, :_ABLATED] for array in pairs))
    rise = ablation(weights, samples.test, gate, pairs=leading, labels=samples.test_labels)
    sizes = np.abs(np.asarray(leading.values))
    correlation: Any = spearmanr
    rank = correlation(sizes.ravel(), rise.ravel()).statistic if sizes.size > 2 and np.ptp(sizes) > 0 else np.nan
    return {"rise": as_json(rise), "spearman": as_json(rank)}


def _eigenvectors(pairs, samples: Samples, inputs: int) -> dict[str, Any]:
    vectors = np.asarray(pairs.vectors[:, :_ABLATED, :inputs])
    figures = {
        "template_correlation": interpret.template_correlations(vectors, samples.train, samples.train_labels),
        "selectivity": interpret.selectivity(vectors, samples.test, samples.test_labels),
    }
    k = min(_FRECHET_RANKS, vectors.shape[1])
    distances = frechet(_orthonormal(vectors[:, :k]), samples, frechet_features(samples))
    rows: dict[str, Any] = {name: as_json(values) for name, values in figures.items()}
    return rows | {"frechet": {name: as_json(values) for name, values in distances.items()} | {"k": k}}


def frechet_features(samples: Samples) -> Callable[[np.ndarray], np.ndarray]:
    """What `interpret.train_features` gives for the images that `frechet` takes."""
    indices = drawn(len(samples.train), CALIBRATION_SAMPLES)
    return interpret.train_features(samples.train[indices], samples.train_labels[indices])


def frechet(vectors: np.ndarray, samples: Samples, features: Callable, *, seed: int = 0) -> dict[str, np.ndarray]:
    """`interpret.reconstruction_distances` of orthonormal vectors (outputs, k, d), with fewer images of either part."""
    seen, tested = drawn(len(samples.train), CALIBRATION_SAMPLES), drawn(len(samples.test), _FRECHET_SAMPLES)
    train = samples.train[seen], samples.train_labels[seen]
    test = samples.test[tested], samples.test_labels[tested]
    return interpret.reconstruction_distances(vectors, features, *train, *test, seed=seed)


def _orthonormal(rows):
    """The same spans: where a constant coordinate was cut off, rows are no longer orthonormal."""
    return np.linalg.qr(rows.transpose(0, 2, 1))[0].transpose(0, 2, 1)


def _masks(weights, pairs, samples: Samples, gate) -> dict[str, Any]:
    masks = leading_masks(pairs, input_size(weights))
    random = np.random.default_rng(0).normal(size=masks.shape)
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    length = float(np.mean(np.linalg.norm(samples.test, axis=1)))
    indices = np.random.default_rng(1).permutation(drawn(len(samples.test), _FRECHET_SAMPLES))  # halves of all classes
    test, labels = samples.test[indices], samples.test_labels[indices]
    before, classes, slopes = network_parts(weights, gate)
    x = before(test)
    norms = [share * length for share in _NORMS]
    success = {
        name: interpret.mask_success(classes, slopes(rows), x, labels, norms)
        for name, rows in (("eigenvectors", masks), ("random", random))
    }
    figures: dict[str, Any] = {name: as_json(rows) for name, rows in success.items()}
    return figures | {"norm_share": list(_NORMS), "mean_input_norm": length}


def _mean(values) -> float | None:
    return as_json(np.mean(np.asarray(values)))
