"""The report of weights from any framework: their spectra and, with recorded inputs, how faithful they are."""

from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.analysis import interpret
from sqs_jax.analysis.calibration import Method
from sqs_jax.analysis.eigen import top_eigenpairs
from sqs_jax.analysis.interaction import GLUWeights, check_weights, input_size
from sqs_jax.analysis.recorded import Recorded
from sqs_jax.analysis.report import page
from sqs_jax.analysis.runs.load import Samples
from sqs_jax.analysis.runs.study import gain_arrays, kept_pairs, layer_study, spectrum_figures, study
from sqs_jax.files import npz, visible, write_folder
from sqs_jax.gates import get_gate
from sqs_jax.train.run_folder import provenance

_MOST_PAIRS = 64  # of an output: the weights may be a language model's
_LIKED = 8
_QUIET = 0.1  # of the inputs' spread, root mean square: what varies less hardly varies
_ALONE = "Read from the weights alone, the gate as the identity. Without data, nothing says how faithful this is."


def write_weights_report(
    weights: GLUWeights,
    out_dir: Path,
    *,
    name: str,
    shape: tuple[int, ...] | None = None,
    outputs: tuple[int, ...] = (),
    recorded: Recorded | None = None,
    gate: Any = None,
    method: Method | None = None,
    command: str = "sqs_jax.analysis.write_weights_report",
) -> Path:
    """The report of a layer's weights: `report.html`, `summary.json` and `spectrum.npz` in a folder.

    Of weights alone, spectra of the form with γ = 1. With recorded inputs, gains and how faithful they are, R² of the
    truncated forms, and the inputs that each eigenvector likes; with labels, too, all that is measured of a classifier.

    Args:
      weights: of the layer.
      out_dir: a folder that does not exist yet, or is empty; it appears whole.
      name: title of the page.
      shape: of the inputs as an image, (height, width) or (height, width, 3); by default one row.
      outputs: numbers of those to read, from 0; by default all, of more than 64 the first 64.
      recorded: inputs of the layer, from `read_recorded`.
      gate: σ of the layer, as in `gated_linear`; method: gains that the spectrum is read with, by default "joint", or
        "joint_affine" where σ is not odd. Both go with `recorded`.
      command: what made the report, for its footer.

    Returns the page's path. Raises ValueError for weights, inputs, a shape or outputs that do not fit, or a folder in
    the way.
    """
    check_weights(weights)
    if (recorded is None) != (gate is None) or (method and recorded is None):
        raise ValueError(f"`gate` is {gate!r}: it goes with `recorded`, and `method` with both")
    inputs = input_size(weights)
    outputs = page.chosen_outputs(outputs, weights.out.shape[1])
    shape = shape or (1, inputs)
    _check(shape, inputs, out_dir)
    if recorded is not None and recorded.test_labels is not None:
        _check_classes(recorded, outputs)
    method = method or ("joint" if gate in ("bilinear", "sqs") else "joint_affine")
    made = _made(weights, name, shape, outputs, (recorded, gate, method), command)
    write_folder(out_dir, made)
    return out_dir / "report.html"


def _made(weights: GLUWeights, name: str, shape: tuple[int, ...], outputs: tuple[int, ...], data, command: str):
    """The files of a report by name."""
    recorded, gate, method = data
    inputs, count = input_size(weights), weights.out.shape[1]
    content: dict[str, Any] = {"outputs": list(map(str, outputs)), "provenance": provenance() | {"file": name}}
    subtitle = f"{inputs} inputs, {weights.w.shape[1]} hidden units, {count} outputs"
    if recorded is None:
        part = weights._replace(out=weights.out[:, np.array(outputs)], out_bias=None, skip=None)
        pairs = top_eigenpairs(part, min(kept_pairs(part), _MOST_PAIRS))
        figures, arrays, verdict = spectrum_figures(part, pairs), pairs._asdict(), _ALONE
        summary, cards = {"spectrum": figures}, [[str(len(outputs)), f"of {count} outputs"], [str(inputs), "inputs"]]
    else:
        studied, arrays = _studied(weights, recorded, gate, method, outputs)
        figures, verdict = studied["spectrum"], _verdict(studied, labelled=recorded.test_labels is not None)
        verdict += _quiet_inputs(recorded.train, arrays["vectors"], studied["leading"])
        summary, cards = {"analysis": studied}, _cards(studied, labelled=recorded.test_labels is not None)
        subtitle += f"; {len(recorded.train):,} inputs to fit gains on, {len(recorded.test):,} held out"
        content |= {"analysis": studied} | _liked(arrays, recorded, shape)
    content["spectrum"] = page.spectrum(arrays["values"])
    vectors = np.asarray(arrays["vectors"][:, :, :inputs])
    content["pictures"] = page.pictures(vectors, shape)
    if shape[0] > 1:
        shown = vectors[:, : content["pictures"]["count"]]
        content["spectrum"]["smoothness"] = page.smoothness(shown.reshape(*shown.shape[:2], *shape))
    content["cards"] = [*cards, page.rank_card(figures)]
    texts = page.texts(name, subtitle, verdict) | {"command": command}
    return {
        "spectrum.npz": npz(arrays),
        "summary.json": page.json_file(summary | {"provenance": content["provenance"]}),
        "report.html": page.render(content, texts).encode(),
    }


def _studied(weights: GLUWeights, recorded: Recorded, gate: Any, method: Method, outputs: tuple[int, ...]):
    """The figures of a layer on its recorded inputs, and the arrays of its `spectrum.npz`."""
    sigma, count = get_gate(gate), weights.out.shape[1]
    part = None if outputs == tuple(range(count)) else outputs
    if recorded.train_labels is None or recorded.test_labels is None:
        figures, pairs, calibrations = layer_study(
            weights, sigma, recorded.train, recorded.test, method=method, outputs=part, most_pairs=_MOST_PAIRS
        )
    else:
        samples = Samples(recorded.train, recorded.train_labels, recorded.test, recorded.test_labels)
        figures, pairs, calibrations = study(weights, sigma, samples, method=method, outputs=part)
    figures["outputs"] = list(outputs)
    shown, inputs = page.picture_count(pairs.vectors.shape), recorded.test.shape[1]
    liked = interpret.most_activating(pairs.vectors[:, :shown, :inputs], recorded.test, _LIKED)
    arrays: dict[str, Any] = pairs._asdict() | {"liked": recorded.test_rows[liked]}
    return figures, arrays | gain_arrays(calibrations) | {"outputs": np.array(outputs)}


def _liked(arrays: dict[str, Any], recorded: Recorded, shape: tuple[int, ...]) -> dict[str, Any]:
    """The inputs that each eigenvector likes: as pictures where they have a shape, and the numbers of their rows."""
    if shape[0] == 1:
        return {"liked_rows": arrays["liked"].tolist()}
    test = recorded.test.reshape(len(recorded.test), *shape)
    low, high = float(test.min()), float(test.max())
    pictures = np.round(255 * (test - low) / (high - low if high > low else 1)).astype(np.uint8)
    rows = [f"row {row}" for row in recorded.test_rows]
    if recorded.test_labels is not None:
        rows = [f"class {label}, {row}" for label, row in zip(recorded.test_labels, rows, strict=True)]
    liked = np.searchsorted(recorded.test_rows, arrays["liked"])
    return {"images": page.liked_images(liked, pictures, np.arange(len(rows)), rows)}


def _quiet_inputs(x: np.ndarray, vectors: np.ndarray, leading: list[int | None]) -> str:
    """A word of warning where the leading eigenvectors lie along inputs that hardly vary."""
    spread = x.std(axis=0)
    quiet = spread < _QUIET * np.sqrt(np.mean(spread**2))
    rows = [vectors[i, rank or 0, : len(spread)] for i, rank in enumerate(leading)]
    share = float(np.mean([np.sum(row[quiet] ** 2) for row in rows]))
    if share < 0.5:
        return ""
    return (
        f" {int(quiet.sum())} of the {len(spread)} inputs hardly vary, and the leading eigenvectors lie along them: "
        "nothing in training held these weights. Leave these inputs and their rows of the weights out."
    )


def _cards(studied: dict[str, Any], *, labelled: bool) -> list[list[str]]:
    row, plain = studied["fidelity"][studied["method"]], studied["fidelity"]["identity"]
    cards = [[page.shown(row["r2"]), "R² of the outputs"], [page.shown(plain["r2"]), "R², gate as identity"]]
    if labelled:
        cards += [[page.shown(row["agreement"]), "agreement"], [page.shown(row["accuracy"]), "accuracy of the forms"]]
        cards.append([page.shown(row["network_accuracy"]), "accuracy of the layer"])
    return cards


def _verdict(studied: dict[str, Any], *, labelled: bool) -> str:
    if labelled:
        return page.verdict(studied, "inputs")
    method, count = studied["method"], studied["test_samples"]
    row, plain = studied["fidelity"][method], studied["fidelity"]["identity"]
    if row["r2"] is None:
        return f"The layer's outputs are the same for all {count:,} held-out inputs: there is nothing to explain."
    return (
        (
            f"{page.reading(method, row['r2'])} on {count:,} held-out inputs. With the gate read as the identity, R² "
            f"is {plain['r2']:.2f}.{page.fit_hint(studied)}"
        )
        .replace("-", "−")
        .replace("held−out", "held-out")
    )


def _check_classes(recorded: Recorded, outputs: tuple[int, ...]) -> None:
    """Raises ValueError for outputs that no network of classes can be made of."""
    page.check_classes(outputs)
    for labels, part in ((recorded.train_labels, "fitted on"), (recorded.test_labels, "held out")):
        if labels is not None and (missing := sorted({*outputs} - {*labels.tolist()})):
            raise ValueError(f"`outputs` has {missing[0]}: no input of that class is {part}")


def _check(shape: tuple[int, ...], inputs: int, out_dir: Path) -> None:
    """Raises ValueError for a shape that does not fit, and for a folder that is not free."""
    fits = len(shape) in (2, 3) and min(shape) >= 1 and shape[2:] in ((), (3,)) and int(np.prod(shape)) == inputs
    if not fits:
        raise ValueError(f"`shape` is {shape}: (height, width) or (height, width, 3) with {inputs} entries is needed")
    if out_dir.exists() and (not out_dir.is_dir() or visible(out_dir)):
        raise ValueError(f"`out_dir` is {out_dir}: something is there already")
