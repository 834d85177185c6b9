"""The first figures of a run: its curves, and the spectrum of its last GLU layer."""

import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from sqs_jax.analysis import plots
from sqs_jax.analysis.eigen import extremes, spectrum
from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.modules import GLUClassifier
from sqs_jax.train import run_folder
from sqs_jax.train.config import TrainConfig
from sqs_jax.train.data import Dataset
from sqs_jax.train.step import Parameters, scale_pixels, with_parameters

# Bytes of the eigenvectors; beyond this, only the pairs that are largest in size are kept.
_LARGEST_SPECTRUM = 2**28
_PROBE_IMAGES = 4096
_SHOWN = 3


def classifier_weights(model: GLUClassifier) -> GLUWeights:
    """The weights of a classifier's last GLU layer; with the embedding, where that layer is the only one."""
    glu = model.layers[-1]
    embed = model.embed if len(model.layers) == 1 else None
    return GLUWeights(glu.w[...], glu.v[...], model.head[...], None if embed is None else embed[...])


def write(
    config: TrainConfig,
    data: Dataset,
    run: run_folder.RunFolder,
    model: GLUClassifier,
    params: Parameters,
    history: list[dict[str, Any]],
) -> None:
    """Writes `spectrum.npz`, `eigenvectors.png` and `curves.png` into the run's folder."""
    model = with_parameters(model, params)
    weights = classifier_weights(model)
    outputs, d = weights.out.shape[1], len(weights.w if weights.embed is None else weights.embed)
    count = max(1, min(d, _LARGEST_SPECTRUM // (4 * outputs * d)))
    pairs = spectrum(weights, count=count)
    buffer = io.BytesIO()
    np.savez(buffer, values=pairs.values, vectors=pairs.vectors)
    run_folder.write(run.spectrum, buffer.getvalue())

    name = f"{data.name}, {config.gate}, seed {config.seed}"
    shown = extremes(pairs, _SHOWN)
    if len(model.layers) == 1:
        images, what = shown.vectors.reshape(*shown.values.shape, *data.shape), "eigenvectors"
    else:
        images, what = _responses(model, data, shown.vectors), "what the last layer's eigenvectors respond to"
    title = f"{name}: {what}"
    _save(run.eigenvectors, plots.gallery(shown.values, images, data.classes, title=title))
    _save(run.curves, plots.curves(history, title=name))


def _responses(model: GLUClassifier, data: Dataset, vectors: jax.Array) -> np.ndarray:
    """Eigenvectors v (outputs, k, d) of a deep layer, as images: the covariance of (z·v)² with the pixels.

    z is the layer's input for a sample of training images; the eigenvectors of later layers have no pixels
    of their own.
    """
    x = scale_pixels(jnp.asarray(data.train_images[:_PROBE_IMAGES]))
    z = model.hidden(x, len(model.layers) - 1).astype(vectors.dtype)
    response = jnp.einsum("nd,okd->nok", z, vectors) ** 2
    images = jnp.einsum("nok,ni->oki", response - response.mean(0, keepdims=True), x - x.mean(0, keepdims=True)) / len(
        x
    )
    return np.asarray(images).reshape(*vectors.shape[:2], *data.shape)


def _save(path: Path, figure: Figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    run_folder.write(path, buffer.getvalue())
