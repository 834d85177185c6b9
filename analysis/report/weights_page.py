"""The report of weights alone, from any framework: their spectra, without data and so without fidelity."""

from pathlib import Path
from typing import Any

import numpy as np

from sqs_jax.analysis.eigen import top_eigenpairs
from sqs_jax.analysis.interaction import GLUWeights, check_weights, input_size
from sqs_jax.analysis.report import page
from sqs_jax.analysis.runs.study import kept_pairs, spectrum_figures
from sqs_jax.files import npz, visible, write_folder
from sqs_jax.train.run_folder import provenance

_MOST_PAIRS = 64  # of an output: the weights may be a language model's
_VERDICT = "Read from the weights alone, the gate as the identity. Without data, nothing says how faithful this is."


def write_weights_report(
    weights: GLUWeights,
    out_dir: Path,
    *,
    name: str,
    shape: tuple[int, ...] | None = None,
    outputs: tuple[int, ...] = (),
    command: str = "sqs_jax.analysis.write_weights_report",
) -> Path:
    """The report of weights alone: spectra of the form with γ = 1, without data and so without fidelity.

    Args:
      weights: of the layer.
      out_dir: a folder that does not exist yet, or is empty; it appears whole.
      name: title of the page.
      shape: of the inputs as an image, (height, width) or (height, width, 3); by default one row.
      outputs: numbers of those to read, from 0; by default all, of more than 64 the first 64.
      command: what made the report, for its footer.

    Returns the page's path. Raises ValueError for weights, a shape or outputs that do not fit, or a folder in the way.
    """
    check_weights(weights)
    inputs, count = input_size(weights), weights.out.shape[1]
    outputs = page.chosen_outputs(outputs, count)
    shape = shape or (1, inputs)
    _check(shape, inputs, out_dir)
    weights = weights._replace(out=weights.out[:, np.array(outputs)], out_bias=None, skip=None)
    pairs = top_eigenpairs(weights, min(kept_pairs(weights), _MOST_PAIRS))
    vectors = np.asarray(pairs.vectors[:, :, :inputs])
    content: dict[str, Any] = {"outputs": list(map(str, outputs)), "spectrum": page.spectrum(pairs.values)}
    content["pictures"] = page.pictures(vectors, shape)
    figures = spectrum_figures(weights, pairs)
    ranks = [value for value in figures["participation_rank"] if value is not None]
    content["cards"] = [
        [str(len(outputs)), f"of {count} outputs"],
        [str(inputs), "inputs"],
        [f"{np.mean(ranks):.1f}" if ranks else "–", f"mean effective rank of {page.counted(figures)}"],
    ]
    content["provenance"] = provenance() | {"file": name}
    texts = page.texts(name, f"{inputs} inputs, {weights.w.shape[1]} hidden units, {count} outputs", _VERDICT)
    texts["command"] = command
    summary = {"spectrum": figures, "provenance": content["provenance"]}
    made = {
        "spectrum.npz": npz(pairs._asdict()),
        "summary.json": page.json_file(summary),
        "report.html": page.render(content, texts).encode(),
    }
    write_folder(out_dir, made)
    return out_dir / "report.html"


def _check(shape: tuple[int, ...], inputs: int, out_dir: Path) -> None:
    """Raises ValueError for a shape that does not fit, and for a folder that is not free."""
    fits = len(shape) in (2, 3) and min(shape) >= 1 and shape[2:] in ((), (3,)) and int(np.prod(shape)) == inputs
    if not fits:
        raise ValueError(f"`shape` is {shape}: (height, width) or (height, width, 3) with {inputs} entries is needed")
    if out_dir.exists() and (not out_dir.is_dir() or visible(out_dir)):
        raise ValueError(f"`out_dir` is {out_dir}: something is there already")
