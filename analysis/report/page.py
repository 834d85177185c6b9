"""The report's page: one HTML file that holds numbers, pictures and plotly, and asks the network for nothing."""

import base64
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

# Bytes for eigenvectors and for images: what a page may weigh beside plotly's five million.
_PICTURES, _IMAGES = 800_000, 1_400_000
_MOST_PICTURES, _MOST_LIKED = 24, 6


def render(content: dict[str, Any], texts: dict[str, str]) -> str:
    """The page. `content` is what page.js reads; `texts` are what page.html names: title, verdict and more."""
    from plotly.offline import get_plotlyjs

    parts = {name: html.escape(text) for name, text in texts.items()}
    folder = files("sqs_jax.analysis.report")
    parts |= {
        name: (folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "language.js", "sweep.js")
    }
    data = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    parts |= {"data": data.replace("<", "\\u003c"), "plotly": get_plotlyjs().replace("</script", "<\\/script")}
    pieces = (folder / "page.html").read_text(encoding="utf-8").split("{{")
    rest = [piece.split("}}", 1) for piece in pieces[1:]]
    return pieces[0] + "".join(parts[name] + after for name, after in rest)


def pictures(vectors: np.ndarray, shape: tuple[int, ...]) -> dict[str, Any]:
    """The leading eigenvectors (outputs, k, d) as pictures of a shape, each in the scale of its largest entry.

    As many as a page has room for, and at least one an output.
    """
    outputs, k, d = vectors.shape
    count = max(1, min(k, _MOST_PICTURES, _PICTURES // (outputs * d)))
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
    used, places = np.unique(liked[:, :, :count], return_inverse=True)
    return {
        "shape": _three(images.shape[1:]),
        "data": _base64(images[used]),
        "classes": [classes[label] for label in labels[used]],
        "liked": places.reshape(outputs, k, count).tolist(),
    }


def rounded(values) -> list[Any]:
    """Nested lists of numbers to six digits; None for NaN."""
    array = np.asarray(values, np.float64)
    if array.ndim > 1:
        return [rounded(row) for row in array]
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in array]


def _three(shape) -> list[int]:
    height, width, *channels = shape
    return [int(height), int(width), int(channels[0]) if channels else 1]


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
