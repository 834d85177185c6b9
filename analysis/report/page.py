"""The page of a report: one HTML file with numbers, pictures and plotly in it, which needs no network."""

import base64
import html
import json
import shlex
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis import interpret
from sqs_jax.analysis.as_json import as_json
from sqs_jax.analysis.calibration import AFFINE
from sqs_jax.analysis.spectrum_summary import eigengaps
from sqs_jax.command_line import ANALYSIS
from sqs_jax.messages import quoted
from sqs_jax.train.run_folder import RunFolder, provenance

# Bytes for eigenvectors and for images: what a page may weigh beside plotly's five million.
_PICTURES, _IMAGES = 800_000, 1_400_000
_MOST_PICTURES, _MOST_LIKED = 24, 6
_MOST_OUTPUTS = 64  # shown unless others are asked for
_DIGITS = 6
_OVERFIT = 0.02  # what R² may lose from the samples of the fit to others


def render(content: dict[str, Any], words: dict[str, str]) -> str:
    """The page. `content` is what page.js reads; `words` is what page.html names: title, verdict and more."""
    from plotly.offline import get_plotlyjs

    parts = {name: html.escape(text) for name, text in words.items()}
    folder = files("sqs_jax.analysis.report")
    scripts = ("page.css", "words.js", "page.js", "language.js", "model.js", "adoption.js", "sweep.js", "downloads.js")
    parts |= {name: (folder / name).read_text(encoding="utf-8") for name in scripts}
    data = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    parts |= {"data": data.replace("<", "\\u003c"), "plotly": get_plotlyjs().replace("</script", "<\\/script")}
    pieces = (folder / "page.html").read_text(encoding="utf-8").split("{{")
    rest = [piece.split("}}", 1) for piece in pieces[1:]]
    return pieces[0] + "".join(parts[name] + after for name, after in rest)


def picture_count(shape: tuple[int, ...]) -> int:
    """How many eigenvectors of each output a page shows, of an array (outputs, k, d): at least one."""
    outputs, k, d = shape
    return max(1, min(k, _MOST_PICTURES, _PICTURES // (outputs * d)))


def pictures(vectors: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """The leading eigenvectors (outputs, k, d) as pictures of a shape, each in the scale of its largest entry.

    As many as `picture_count` says.
    """
    count = picture_count(vectors.shape)
    kept = vectors[:, :count]
    scale = np.max(np.abs(kept), axis=2, keepdims=True)
    pixels = np.round(127 * kept / np.where(scale > 0, scale, 1)).astype(np.int8)
    return {"count": count, "shape": _three(shape), "data": _base64(pixels)}


def liked_images(liked: np.ndarray, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Images uint8 (n, …) that eigenvectors respond to most, indices (outputs, k, count), each stored once."""
    outputs, k, count = liked.shape
    each = int(np.prod(images.shape[1:]))
    room = _IMAGES * (3 if images.ndim == 4 else 1)  # colours may weigh more
    count = max(1, min(count, _MOST_LIKED, room // (outputs * k * each)))
    used, indices = np.unique(liked[:, :, :count], return_inverse=True)
    return {
        "shape": _three(images.shape[1:]),
        "data": _base64(images[used]),
        "classes": [classes[label] for label in labels[used]],
        "liked": indices.reshape(outputs, k, count).tolist(),
    }


def rounded(values: Any) -> Any:
    """Numbers as a page holds them: six digits."""
    return as_json(values, _DIGITS)


def spectrum(values: Any) -> dict[str, Any]:
    """Eigenvalues (outputs, k) and their gaps."""
    return {"values": rounded(values), "gaps": rounded(eigengaps(jnp.asarray(values)))}


def chosen_outputs(outputs: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The outputs that are read: those, or by default all, of many the first."""
    if wrong := [output for output in outputs if not 0 <= output < count]:
        raise ValueError(f"`outputs` has {quoted(wrong[0])}: numbers from 0 to {count - 1} are needed")
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"`outputs` is {outputs}: each of them once is needed")
    return outputs or tuple(range(min(count, _MOST_OUTPUTS)))


def check_classes(outputs: tuple[int, ...]) -> None:
    """Raises ValueError for outputs that are too few to be classes."""
    if len(outputs) < 2:
        raise ValueError(f"`outputs` is {outputs}: 2 classes or more are needed, for figures that are of their softmax")


def rank_card(figures: dict[str, Any]) -> list[str]:
    """The card of the effective rank, of what `spectrum_figures` found."""
    ranks = [value for value in figures["participation_rank"] if value is not None]
    return [f"{np.mean(ranks):.1f}" if ranks else "–", f"mean effective rank of {counted(figures)}"]


def counted(figures: dict[str, Any]) -> str:
    """The eigenpairs that a figure is of, in words."""
    return "all pairs" if figures["pairs"] == figures["rank"] else f"the first {figures['pairs']} pairs"


def shown(value: float | None) -> str:
    """A figure on a card."""
    return "–" if value is None else f"{value:.4f}"


def explained(r2: float) -> str:
    """What R² says of variance, in words."""
    return f"{100 * r2:.1f} % of the outputs' variance" if r2 > 0 else f"nothing (R² {r2:.2f})"


def reading(method: str, r2: float) -> str:
    """How each output is read, and how much of it that explains, in words."""
    linear = method in AFFINE or method == "gaussian"
    what = "one matrix and a linear part for each output explain" if linear else "one matrix for each output explains"
    return f"With “{method}” gains, {what} {explained(r2)}"


def fit_hint(figures: dict[str, Any]) -> str:
    """A word of warning where gains follow the noise of the samples that they were fitted on."""
    row, count = figures["fidelity"][figures["method"]], figures["calibration_samples"]
    if row["r2"] is None or row["calibration_r2"] is None or row["calibration_r2"] - row["r2"] < _OVERFIT:
        return ""
    return (
        f" On the {count:,} samples that the gains were fitted on, R² is {row['calibration_r2']:.3f}: these samples "
        "are too few for so many gains. “output” fits each gain by itself, and needs fewer."
    )


def continued(run: RunFolder, restarts: Sequence[int]) -> str:
    """How a run went on beyond an earlier end, in words for its subtitle; empty where it did not."""
    ends = sorted(int(path.name) for path in run.earlier.glob("*") if path.name.isdigit())
    if not ends:
        return ""
    cosine = "begun again" if restarts else "stretched"
    return f", continued after {' and '.join(map(str, ends))} with the cosine {cosine}"


def smoothness(images: np.ndarray) -> list[list[float | None]]:
    """Total variation of pictures (outputs, k, height, width), or with channels, whose mean is taken."""
    has_channels = images.ndim == 5
    values = interpret.smoothness(np.moveaxis(images, -1, 2) if has_channels else images)
    return as_json(values.mean(-1) if has_channels else values)


def verdict(figures: dict[str, Any], samples: str = "images") -> str:
    """What `study` found, in two sentences, and a third where there is a doubt."""
    method, count = figures["method"], figures["test_samples"]
    row, plain = figures["fidelity"][method], figures["fidelity"]["identity"]
    if row["r2"] is None or plain["r2"] is None:
        return f"The network's outputs are the same for all {count} test {samples}: there is nothing to explain."
    return (
        f"{reading(method, row['r2'])} on {count:,} test {samples}, and these forms name the network's own class for "
        f"{100 * row['agreement']:.1f} % of them. With the gate read as the identity, R² is {plain['r2']:.2f} and "
        f"agreement {100 * plain['agreement']:.1f} %.{fit_hint(figures)}"
    ).replace("-", "−")


def json_file(content: dict[str, Any]) -> bytes:
    """The content of a .json file."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def command(path: str, method: str = "joint", outputs: Sequence[int] = (), against: Sequence[str] = ()) -> str:
    """The line of a shell that makes the page of a run or a sweep again."""
    flags = ["--method", method] if method != "joint" else []
    flags += ["--outputs", *map(str, outputs)] if outputs else []
    flags += ["--against", *against] if against else []
    return shlex.join([*ANALYSIS, "report", path, *flags])


_STORED = (
    "Every number here lies in the files beside this page: summary.json, spectrum.npz and, of a run, metrics.jsonl."
)


def texts(title, subtitle, verdict, vectors="Each is a direction among the inputs.", stored=_STORED) -> dict[str, str]:
    """The words of the page, without the command that made it."""
    seen = provenance()
    versions = ", ".join(f"{name} {seen['versions'][name]}" for name in ("sqs-jax", "jax") if name in seen["versions"])
    device = f"{seen['device']['count']} × {seen['device']['kind']}"
    source = f"{versions}, on {device}" + (f", code at {seen['git'][:12]}" if seen["git"] else "")
    return {
        "title": title,
        "subtitle": subtitle,
        "verdict": verdict,
        "vectors": vectors,
        "provenance": f"{stored} {source}.",
    }


def _three(shape) -> list[int]:
    height, width, *channels = shape
    return [int(height), int(width), int(channels[0]) if channels else 1]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
