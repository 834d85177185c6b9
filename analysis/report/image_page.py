"""The report of a run, or of weights alone: its page, its pictures, and files with every number that they show."""

import dataclasses
import io
import json
import shlex
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis import interpret
from sqs_jax.analysis.calibration import Method
from sqs_jax.analysis.eigen import Eigenpairs, eigengaps, extremes, top_eigenpairs
from sqs_jax.analysis.interaction import GLUWeights, check_weights, input_size
from sqs_jax.analysis.report import page, plots
from sqs_jax.analysis.runs.load import Run, layer_weights, load_run
from sqs_jax.analysis.runs.study import (
    CALIBRATION_SAMPLES,
    Samples,
    drawn,
    kept_pairs,
    layer_fidelity,
    leading_masks,
    number,
    spectrum_figures,
    study,
)
from sqs_jax.files import appearing, visible, write
from sqs_jax.messages import quoted
from sqs_jax.train.records import Summary, read_record
from sqs_jax.train.run_folder import RunFolder, alone, provenance
from sqs_jax.train.step import scale_pixels

_GALLERY = 3
_MOST_OUTPUTS, _MOST_PAIRS = 64, 64  # of weights alone, which may be a language model's
_RESPONSE_SAMPLES = 4096


def report(
    run_dir: str | Path,
    *,
    data_dir: Path | None = None,
    method: Method = "joint",
    comparison: dict[str, Any] | None = None,
    outputs: tuple[int, ...] = (),
) -> Path:
    """Studies the last GLU layer of a finished run, and writes into its folder what was found.

    `report.html`, the page; `spectrum.npz`, the eigenpairs of the calibrated form, its gains, and the images that
    each eigenvector likes most; `eigenvectors.png` and `curves.png`; and in `summary.json` all figures, as `analysis`.
    A report that is there already is replaced, file by file, each whole.

    Args:
      run_dir: the run's folder.
      data_dir: where the original files of its data set lie, as for `train`.
      method: which gains the spectrum is read with, as in `calibrate`.
      comparison: what `compare_runs` returned, to be shown too.
      outputs: numbers of the classes to read, from 0; by default all, of more than 64 the first 64.

    Returns the page's path. Raises InputError as `load_run`, ValueError for outputs that there are not, OSError where
    the folder cannot be written.
    """
    run = load_run(run_dir, data_dir=data_dir)
    folder, model = RunFolder(run.path), run.model
    weights, gate = layer_weights(model), model.layers[-1].sigma
    count = len(run.data.classes)
    asked, outputs = outputs, _checked_outputs(outputs, count)
    if len(outputs) < 2:
        raise ValueError(f"`outputs` is {outputs}: 2 classes or more are needed, for figures that are of their softmax")
    samples = layer_samples(run)
    part = outputs if len(outputs) < count else None
    figures, pairs, calibrations = study(weights, gate, samples, method=method, outputs=part)
    figures["outputs"] = list(outputs)
    if len(model.layers) > 1:
        figures["layers"] = [_layer(run, layer) for layer in range(len(model.layers))]

    inputs = samples.test.shape[1]
    vectors = np.asarray(pairs.vectors[:, :, :inputs])
    shown = page.pictures(vectors, _flat_shape(run))["count"]
    images = _as_images(run, vectors[:, :shown])
    liked = interpret.most_activating(pairs.vectors[:, :shown, :inputs], samples.test, 8)
    figures["smoothness"] = _smoothness(images)
    gains = {name: np.asarray(found.gain) for name, found in calibrations.items()}
    arrays = pairs._asdict() | {
        "gain": gains[method],
        "liked": liked,
        "masks": leading_masks(pairs, inputs).astype(np.float32),
    }
    arrays |= {f"gain_{name}": gain for name, gain in gains.items()}
    command = ["python", "-m", "analysis", "report", str(run_dir), *([] if method == "joint" else ["--method", method])]
    command += ["--against", *comparison["runs"]["b"]] if comparison else []
    command += ["--outputs", *map(str, asked)] if asked else []

    classes = [run.data.classes[output] for output in outputs]
    with alone(run.path):
        summary = read_record(folder.summary, Summary) | {"analysis": figures | {"provenance": provenance()}}
        if comparison:
            summary["comparison"] = comparison
        # All is made before the first file is written.
        files = {folder.spectrum: _npz(arrays | {"outputs": np.array(outputs)})} | _pictures(
            run, pairs, method, classes
        )
        files[folder.summary] = (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode()
        content, texts = _content(run, summary, arrays, images, classes)
        files[folder.report] = page.render(content, texts | {"command": shlex.join(command)}).encode()
        for path, data in files.items():
            write(path, data)
    return folder.report


def report_weights(
    weights: GLUWeights,
    out_dir: Path,
    *,
    name: str,
    shape: tuple[int, ...] | None = None,
    outputs: tuple[int, ...] = (),
    command: str = "sqs_jax.analysis.report.image_page.report_weights",
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
    outputs = _checked_outputs(outputs, count)
    shape = shape or (1, inputs)
    fits = len(shape) in (2, 3) and min(shape) >= 1 and shape[2:] in ((), (3,)) and int(np.prod(shape)) == inputs
    if not fits:
        raise ValueError(f"`shape` is {shape}: (height, width) or (height, width, 3) with {inputs} entries is needed")
    if out_dir.exists() and (not out_dir.is_dir() or visible(out_dir)):
        raise ValueError(f"`out_dir` is {out_dir}: something is there already")
    weights = weights._replace(out=weights.out[:, np.array(outputs)], out_bias=None, skip=None)
    pairs = top_eigenpairs(weights, min(kept_pairs(weights), _MOST_PAIRS))
    vectors = np.asarray(pairs.vectors[:, :, :inputs])
    content: dict[str, Any] = {"outputs": list(map(str, outputs)), "spectrum": _spectrum_content(pairs)}
    content["pictures"] = page.pictures(vectors, shape)
    figures = spectrum_figures(weights, pairs)
    ranks = [value for value in figures["participation_rank"] if value is not None]
    content["cards"] = [
        [str(len(outputs)), f"of {count} outputs"],
        [str(inputs), "inputs"],
        [f"{np.mean(ranks):.1f}" if ranks else "–", f"mean effective rank of {_counted(figures)}"],
    ]
    content["provenance"] = provenance() | {"file": name}
    verdict = "Read from the weights alone, the gate as the identity: without data nothing says how well that is."
    texts = page_texts(name, f"{inputs} inputs, {weights.w.shape[1]} hidden units, {count} outputs", verdict)
    texts["command"] = command
    summary = {"spectrum": figures, "provenance": content["provenance"]}
    made = {
        "spectrum.npz": _npz(pairs._asdict()),
        "summary.json": (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode(),
        "report.html": page.render(content, texts).encode(),
    }
    if out_dir.is_dir():  # and empty
        for name, data in made.items():
            write(out_dir / name, data)
    else:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with appearing(out_dir) as partial:
            for name, data in made.items():
                (partial / name).write_bytes(data)
    return out_dir / "report.html"


def _checked_outputs(outputs: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The outputs that are read: those, or by default all, of many the first."""
    if wrong := [output for output in outputs if not 0 <= output < count]:
        raise ValueError(f"`outputs` has {quoted(wrong[0])}: numbers from 0 to {count - 1} are needed")
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"`outputs` is {outputs}: each of them once is needed")
    return outputs or tuple(range(min(count, _MOST_OUTPUTS)))


def layer_samples(run: Run, layer: int = -1) -> Samples:
    """The inputs of a GLU layer: pixels in [0, 1] for the first, which comes with the embedding; no noise."""
    data = run.data
    train, test = (layer_inputs(run, images, layer) for images in (data.train_images, data.test_images))
    return Samples(train, np.asarray(data.train_labels), test, np.asarray(data.test_labels))


def layer_inputs(run: Run, images, layer: int = -1) -> np.ndarray:
    """What a GLU layer reads of images uint8 (n, …): (n, inputs), float32."""
    layer %= len(run.model.layers)
    parts = []
    for start in range(0, len(images), 2048):
        x = scale_pixels(jnp.asarray(images[start : start + 2048]))
        parts.append(np.asarray(x if layer == 0 else run.model.hidden(x, layer).astype(jnp.float32)))
    return np.concatenate(parts)


def _layer(run: Run, layer: int) -> dict[str, float | None]:
    places = drawn(len(run.data.train_images), CALIBRATION_SAMPLES)
    x, test = (layer_inputs(run, images, layer) for images in (run.data.train_images[places], run.data.test_images))
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


def _smoothness(images: np.ndarray) -> list[list[float | None]]:
    """Of pictures (outputs, k, height, width) or with channels, whose mean is taken."""
    has_channels = images.ndim == 5
    values = interpret.smoothness(np.moveaxis(images, -1, 2) if has_channels else images)
    values = values.mean(-1) if has_channels else values
    return [[number(value) for value in row] for row in values]


def _spectrum_content(pairs: Eigenpairs) -> dict[str, Any]:
    return {"values": page.rounded(pairs.values), "gaps": page.rounded(eigengaps(jnp.asarray(pairs.values)))}


def _content(run: Run, summary, arrays, images, classes: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the page shows, from what was saved."""
    data, figures, config = run.data, summary["analysis"], dataclasses.asdict(run.config)
    pairs = Eigenpairs(arrays["values"], arrays["vectors"], arrays["residuals"])
    count = images.shape[1]
    content: dict[str, Any] = {"outputs": classes, "analysis": figures, "curves": run.history}
    content["spectrum"] = _spectrum_content(pairs) | {"smoothness": figures["smoothness"]}
    content["pictures"] = page.pictures(images.reshape(*images.shape[:2], -1), data.shape)
    content["images"] = page.liked_images(arrays["liked"][:, :count], data.test_images, data.test_labels, data.classes)
    if len(run.model.layers) == 1:
        content["masks"] = page.pictures(arrays["masks"][None], data.shape)
    content["layers"], content["comparison"] = figures.get("layers"), summary.get("comparison")
    content["provenance"] = {"config": config} | figures["provenance"]
    row, test = figures["fidelity"][figures["method"]], summary["test"]
    ranks = [value for value in figures["spectrum"]["participation_rank"] if value is not None]
    content["cards"] = [
        [f"{test['accuracy']:.4f}", "test accuracy of the network"],
        [_shown(row["accuracy"]), "accuracy of its quadratic forms"],
        [_shown(row["r2"]), "R² of the logits"],
        [_shown(row["agreement"]), "agreement"],
        [_shown(row["kl"]), "KL divergence, nats"],
        [f"{np.mean(ranks):.1f}" if ranks else "–", f"mean effective rank of {_counted(figures['spectrum'])}"],
    ]
    gate = f"{config['gate']} (c {config['c']:g}, λ {config['lam']:g}, p {config['p']:g})"
    gate = gate if config["gate"] == "sqs" else config["gate"]
    layers = f"{config['layers']} GLU layer" + ("s" if config["layers"] > 1 else "")
    size = f"{np.prod(data.shape)} inputs, {layers} of {config['hidden']}, {len(data.classes)} classes"
    subtitle = f"{size}; {config['epochs']} epochs with noise {config['noise_std']:g}, seed {config['seed']}."
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
    texts = page_texts(f"{data.name}, {gate}", subtitle, _verdict(figures), vectors)
    return content, texts


def _counted(figures: dict[str, Any]) -> str:
    """Which eigenpairs a figure is of."""
    return "all pairs" if figures["pairs"] == figures["rank"] else f"the first {figures['pairs']} pairs"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _verdict(figures) -> str:
    method, samples = figures["method"], figures["test_samples"]
    row, plain = figures["fidelity"][method], figures["fidelity"]["identity"]
    if row["r2"] is None or plain["r2"] is None:
        return f"The network's logits are the same for all {samples} test images: there is nothing to explain."
    explained = f"{100 * row['r2']:.1f} % of the logits' variance" if row["r2"] > 0 else f"nothing (R² {row['r2']:.2f})"
    return (
        f"Read with “{method}” gains, one matrix for each output explains {explained} on {samples} test images, and "
        f"names the network's own class for {100 * row['agreement']:.1f} % of them. Read with the gate as the "
        f"identity, R² is {plain['r2']:.2f} and agreement {100 * plain['agreement']:.1f} %."
    ).replace("-", "−")


_STORED = (
    "Every number here lies in the files beside this page: summary.json, spectrum.npz and, of a run, metrics.jsonl."
)


def page_texts(
    title, subtitle, verdict, vectors="Each is a direction among the inputs.", stored=_STORED
) -> dict[str, str]:
    """What the page says in words, but for the command that made it."""
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


def _npz(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(buffer, **plain)
    return buffer.getvalue()


def _pictures(run: Run, pairs: Eigenpairs, method: Method, classes: list[str]) -> dict[Path, bytes]:
    """The pictures of a run's folder, as PNG."""
    data, config, folder = run.data, run.config, RunFolder(run.path)
    name = f"{data.name}, {config.gate}, seed {config.seed}"
    shown = extremes(Eigenpairs(*map(jnp.asarray, pairs)), _GALLERY)
    inputs = int(np.prod(_flat_shape(run)))
    images = _as_images(run, np.asarray(shown.vectors[:, :, :inputs]))
    what = "eigenvectors" if len(run.model.layers) == 1 else "what the last layer's eigenvectors respond to"
    gallery = plots.gallery(shown.values, images, classes, title=f"{name}: {what}, {method} gains")
    return {folder.eigenvectors: plots.png(gallery), folder.curves: plots.png(plots.curves(run.history, title=name))}
