"""The report of a run on images: its page, its pictures, and files with every number that they show."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax import display
from sqs_jax.analysis import interpret
from sqs_jax.analysis.calibration import Method
from sqs_jax.analysis.eigen import Eigenpairs
from sqs_jax.analysis.report import page, plots
from sqs_jax.analysis.runs.load import (
    CALIBRATION_SAMPLES,
    Run,
    drawn,
    layer_inputs,
    layer_samples,
    layer_weights,
)
from sqs_jax.analysis.runs.study import gain_arrays, layer_fidelity, leading_masks, study
from sqs_jax.analysis.spectrum_summary import extremes
from sqs_jax.files import npz, write
from sqs_jax.train.images.classifier import scale_pixels
from sqs_jax.train.records import Summary, read_record
from sqs_jax.train.run_folder import RunFolder, alone, provenance

_GALLERY = 3
_RESPONSE_SAMPLES = 4096
_LIKED = 8
_ROUGH = 0.9  # of the variation of shuffled pixels: hardly smoother than noise


def write_image_report(
    run: Run,
    *,
    method: Method = "joint",
    comparison: dict[str, Any] | None = None,
    outputs: tuple[int, ...] = (),
) -> Path:
    """Studies the last GLU layer of a finished run, and writes into its folder what it finds.

    `report.html`, the page; `spectrum.npz`, the eigenpairs of the calibrated form, its gains, and the images that
    each eigenvector likes most; `eigenvectors.png` and `curves.png`; and in `summary.json` all figures, as `analysis`.
    A report that is there already is replaced, file by file, each whole.

    Args:
      run: from `load_run`.
      method: which gains the spectrum is read with, as in `calibrate`.
      comparison: what `compare_runs` returned, to be shown too.
      outputs: numbers of the classes to read, from 0; by default all, of more than 64 the first 64.

    Returns the page's path. Raises ValueError for outputs that there are not, OSError where it cannot be written.
    """
    folder, chosen = RunFolder(run.path), page.chosen_outputs(outputs, len(run.data.classes))
    page.check_classes(chosen)
    figures, arrays, images = _studied(run, method, chosen)
    against = comparison["runs"]["b"] if comparison else ()
    command = page.command(str(run.path), method, outputs, against)
    with alone(run.path):
        summary = {**read_record(folder.summary, Summary), "analysis": figures | {"provenance": provenance()}}
        if comparison:
            summary["comparison"] = comparison
        # All is made before the first file is written.
        with display.stage("drawing"):
            files = _files(run, summary, arrays, images, command)
        for path, content in files.items():
            write(path, content)
    return folder.report


def _studied(run: Run, method: Method, outputs: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """The figures of a run, the arrays of its `spectrum.npz`, and its eigenvectors as images."""
    model, samples = run.model, layer_samples(run)
    part = None if outputs == tuple(range(len(run.data.classes))) else outputs
    weights, gate = layer_weights(model), model.layers[-1].sigma
    figures, pairs, calibrations = study(weights, gate, samples, method=method, outputs=part)
    figures["outputs"] = list(outputs)
    if len(model.layers) > 1:
        figures["layers"] = [_layer(run, layer) for layer in range(len(model.layers))]
    inputs = samples.test.shape[1]
    vectors = np.asarray(pairs.vectors[:, :, :inputs])
    shown = page.picture_count(vectors.shape)
    images = _as_images(run, vectors[:, :shown])
    figures["smoothness"] = page.smoothness(images)
    arrays = pairs._asdict() | {
        "gain": np.asarray(calibrations[method].gain),
        "liked": interpret.most_activating(pairs.vectors[:, :shown, :inputs], samples.test, _LIKED),
        "masks": leading_masks(pairs, inputs).astype(np.float32),
    }
    return figures, arrays | gain_arrays(calibrations) | {"outputs": np.array(outputs)}, images


def _files(run: Run, summary: dict[str, Any], arrays, images: np.ndarray, command: str) -> dict[Path, bytes]:
    """The files of a report, by path."""
    folder, figures = RunFolder(run.path), summary["analysis"]
    classes = [run.data.classes[output] for output in figures["outputs"]]
    pairs = Eigenpairs(arrays["values"], arrays["vectors"], arrays["residuals"])
    content = _content(run, summary, arrays, images, classes)
    texts = _texts(run, figures, classes) | {"command": command}
    return (
        {folder.spectrum: npz(arrays)}
        | _pictures(run, pairs, figures["method"], classes)
        | {
            folder.summary: page.json_file(summary),
            folder.report: page.render(content, texts).encode(),
        }
    )


def _layer(run: Run, layer: int) -> dict[str, float | None]:
    chosen = drawn(len(run.data.train_images), CALIBRATION_SAMPLES)
    x, test = (layer_inputs(run, images, layer) for images in (run.data.train_images[chosen], run.data.test_images))
    return layer_fidelity(layer_weights(run.model, layer), run.model.layers[layer].sigma, x, test)


def _flat_shape(run: Run) -> tuple[int, ...]:
    """The shape of the layer's inputs: an image's, or one row of hidden units."""
    return run.data.shape if len(run.model.layers) == 1 else (1, run.model.layers[-1].w.shape[0])


def _as_images(run: Run, vectors: np.ndarray) -> np.ndarray:
    """Eigenvectors (outputs, k, d) as pictures (outputs, k, *image): themselves, or what they respond to.

    The eigenvectors of a deep network's last layer have no pixels of their own: theirs is the covariance of
    (z·v)² with the pixels, over training images.
    """
    if len(run.model.layers) == 1:
        return vectors.reshape(*vectors.shape[:2], *run.data.shape)
    x = scale_pixels(jnp.asarray(run.data.train_images[drawn(len(run.data.train_images), _RESPONSE_SAMPLES)]))
    z = run.model.hidden(x, len(run.model.layers) - 1).astype(jnp.float32)
    response = jnp.einsum("nd,okd->nok", z, jnp.asarray(vectors)) ** 2
    response, x = response - response.mean(0, keepdims=True), x - x.mean(0, keepdims=True)
    images = jnp.einsum("nok,ni->oki", response, x) / len(x)
    return np.asarray(images).reshape(*vectors.shape[:2], *run.data.shape)


def _content(run: Run, summary, arrays, images, classes: list[str]) -> dict[str, Any]:
    """What the page shows, from what was saved."""
    data, figures, config = run.data, summary["analysis"], dataclasses.asdict(run.config)
    count = images.shape[1]
    content: dict[str, Any] = {"outputs": classes, "analysis": figures, "curves": run.history}
    content["spectrum"] = page.spectrum(arrays["values"]) | {"smoothness": figures["smoothness"]}
    content["pictures"] = page.pictures(images.reshape(*images.shape[:2], -1), data.shape)
    content["images"] = page.liked_images(arrays["liked"][:, :count], data.test_images, data.test_labels, data.classes)
    if len(run.model.layers) == 1:
        content["masks"] = page.pictures(arrays["masks"][None], data.shape)
    content["layers"], content["comparison"] = figures.get("layers"), summary.get("comparison")
    content["provenance"] = {"config": config} | figures["provenance"]
    row, test = figures["fidelity"][figures["method"]], summary["test"]
    content["cards"] = [
        [f"{test['accuracy']:.4f}", "test accuracy of the network"],
        [page.shown(row["accuracy"]), "accuracy of its quadratic forms"],
        [page.shown(row["r2"]), "R² of the logits"],
        [page.shown(row["agreement"]), "agreement"],
        [page.shown(row["kl"]), "KL divergence, nats"],
        page.rank_card(figures["spectrum"]),
    ]
    return content


def _texts(run: Run, figures, classes: list[str]) -> dict[str, str]:
    """What the page says in words."""
    data, config = run.data, dataclasses.asdict(run.config)
    gate = f"{config['gate']} (c {config['c']:g}, λ {config['lam']:g}, p {config['p']:g})"
    gate = gate if config["gate"] == "sqs" else config["gate"]
    layers = f"{config['layers']} GLU layer" + ("s" if config["layers"] > 1 else "")
    size = f"{np.prod(data.shape)} inputs, {layers} of {config['hidden']}, {len(data.classes)} classes"
    more = page.continued(RunFolder(run.path), config["restarts"])
    more += "," * bool(more)
    subtitle = f"{size}; {config['epochs']} epochs{more} with noise {config['noise_std']:g}, seed {config['seed']}."
    vectors = (
        "Each is a direction among the pixels."
        if config["layers"] == 1
        else "The last layer reads hidden units: the pictures show which pixels its eigenvectors respond to."
    )
    if len(classes) < len(data.classes):
        vectors += (
            f" Shown are {len(classes)} of {len(data.classes)} classes, others by --outputs; all but the first table "
            "is of the network with these outputs alone, on their own images."
        )
    verdict = page.verdict(figures) + _hint(figures)
    return page.texts(f"{data.name}, {gate}", subtitle, verdict, vectors)


def _hint(figures) -> str:
    """A word of warning where the leading eigenvectors are as rough as noise."""
    rows = zip(figures["smoothness"], figures["leading"], strict=True)
    found = [row[rank or 0] for row, rank in rows if (rank or 0) < len(row) and row[rank or 0] is not None]
    if not found or np.mean(found) < _ROUGH:
        return ""
    return (
        f" The leading eigenvectors are as rough as noise (total variation {np.mean(found):.2f} of shuffled pixels): "
        "trained for longer, or with more noise on its inputs, the network may show more."
    )


def _pictures(run: Run, pairs: Eigenpairs, method: Method, classes: list[str]) -> dict[Path, bytes]:
    """The pictures of a run's folder, as PNG."""
    data, config, folder = run.data, run.config, RunFolder(run.path)
    name = f"{data.name}, {config.gate}, seed {config.seed}"
    shown = extremes(Eigenpairs(*map(jnp.asarray, pairs)), _GALLERY)
    inputs = int(np.prod(_flat_shape(run)))
    images = _as_images(run, np.asarray(shown.vectors[:, :, :inputs]))
    what = "eigenvectors" if len(run.model.layers) == 1 else "what the last layer's eigenvectors respond to"
    gallery = plots.gallery(shown.values, images, classes, title=f"{name}: {what}, {method} gains")
    curves = plots.curves(run.history, title=name, noise_std=config.noise_std)
    return {folder.eigenvectors: plots.png(gallery), folder.curves: plots.png(curves)}
