"""The report of a run on text: how each GLU reads, and what its eigenvectors mean in tokens."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax.analysis.as_json import as_json
from sqs_jax.analysis.calibration import Method
from sqs_jax.analysis.eigen import spectrum, top_eigenpairs
from sqs_jax.analysis.language import (
    METHODS,
    counted_streams,
    direction_r2,
    liked_places,
    liked_tokens,
    mlp_weights,
    read_mlps,
    token_directions,
    token_eigenpairs,
)
from sqs_jax.analysis.report import page, plots
from sqs_jax.analysis.spectrum_summary import effective_rank
from sqs_jax.files import npz, write
from sqs_jax.messages import InputError
from sqs_jax.pretrained.vocabulary import token_bytes_of
from sqs_jax.train.config import TextConfig, length_of
from sqs_jax.train.presets import name_of_text
from sqs_jax.train.records import Summary, Together, check_record, read_record, read_rows
from sqs_jax.train.run_folder import RunFolder, alone, provenance, read_config
from sqs_jax.train.text.language_model import load_language, read_facts
from sqs_jax.train.text.token_stream import Stream, Text, count_windows, load_text, windows
from sqs_jax.train.text.tokenizer import end_of
from sqs_jax.transformer import Transformer

CALIBRATION_TOKENS, TEST_TOKENS = 20_000, 8_192
_SHOWN, _PAIRS = 300, 4  # tokens whose eigenvectors are shown, and how many of each
_RANKED = 32  # tokens whose whole spectrum is taken
_LARGEST_WHOLE = 512  # width beyond which only the first eigenvalues are
_DECAY = 32
_COUNTED = 2**24  # tokens that are counted at a time
# Methods whose quadratic part is γ·a·u alone: the eigenvectors that are shown are its own.
_BY_GAIN = tuple(name for name in METHODS if name != "gaussian")


def write_language_report(
    run_dir: str | Path,
    *,
    data_dir: Path | None = None,
    method: Method = "joint",
    against: tuple[Path, ...] = (),
) -> Path:
    """Studies every block's GLU of a finished run on text, and writes into its folder what was found.

    `report.html`, the page; `spectrum.npz`: `tokens` (m,), `values` (layers, m, k), `vectors` (layers, m, k, d) in the
    normalised stream x̂, and `gain` (layers, h); `curves.png`; and in `summary.json` all figures, as `analysis`.

    Args:
      run_dir: the run's folder.
      data_dir: where the original files of its text lie, as for `train`.
      method: which gains the spectra are read with: any of `calibrate` but "gaussian".
      against: folders of other runs on text, reported before, whose spectra and fidelity are shown beside.

    Returns the page's path. Raises InputError where that is no finished run, or its text cannot be had or has changed.
    """
    if method not in _BY_GAIN:
        raise InputError(f"`method` is {method!r}: of a run on text, one of {', '.join(_BY_GAIN)} is needed")
    folder = RunFolder(Path(run_dir))
    model, tokenizer, config = load_language(folder.path)
    if not folder.summary.is_file():
        raise InputError(f"{folder.path} is not finished: go on with python -m train --run-dir {folder.path} --resume")
    summary: dict[str, Any] = {**read_record(folder.summary, Summary)}
    others = [_other(path) for path in against]
    text = load_text(config, data_dir, tokenizer=tokenizer)
    if read_facts(folder)["sha256"] != text.sha256:
        raise InputError(f"{folder.path} was trained on another text than {config.text or config.data} is now")
    figures, arrays, shown = study_language(model, text, config, method)
    summary |= {"analysis": figures | {"provenance": provenance()}}
    command = page.command(str(run_dir), method, against=[str(path) for path in against])
    content = _content(summary, shown, read_rows(folder.metrics), config, tokenizer, model)
    content["language"] |= {"others": others, "samples": _last_samples(folder)}
    words = _texts(config, figures, model, command, page.continued(folder, config.restarts))
    files = {folder.spectrum: npz(arrays), folder.curves: _curves(content["curves"], config)}
    files |= {folder.summary: page.json_file(summary), folder.report: page.render(content, words).encode()}
    with alone(folder.path):
        for path, data in files.items():
            write(path, data)
    return folder.report


def _curves(history, config: TextConfig) -> bytes:
    """The curves of training, as PNG."""
    title = f"{config.data}, {config.gate}, seed {config.seed}"
    return plots.png(plots.curves(history, title=title, noise_std=config.noise_std))


def study_language(
    model: Transformer, text: Text, config: TextConfig, method: Method = "joint"
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """All that is measured of a language model: figures as JSON has them, arrays to keep, and what a page shows."""
    train = drawn_windows(text.train, config.context, CALIBRATION_TOKENS)
    test, targets = drawn_windows(text.test, config.context, TEST_TOKENS)
    layers, together, calibrations = read_mlps(model, train, (test, targets))
    x = counted_streams(model, test, targets)
    tokens = frequent_tokens(text.test, _SHOWN, end_of(text.tokenizer))
    rows, values, vectors, residuals, r2, likes, places = [], [], [], [], [], [], []
    for layer in range(model.config.layers):
        calibration = calibrations[layer][method]
        weights, gate = mlp_weights(model, layer, token_directions(model, tokens)), model.block(layer).glu.sigma
        pairs = token_eigenpairs(model, layer, tokens, min(_PAIRS, model.config.width), gain=calibration.gain)
        values.append(np.asarray(pairs.values))
        vectors.append(np.asarray(pairs.vectors))
        residuals.append(np.asarray(pairs.residuals))
        r2.append(direction_r2(weights, x[layer], gate, calibration=calibration))
        likes.append(liked_tokens(vectors[-1], model))
        places.append(liked_places(vectors[-1], x[layer]))
        row = {
            name: {"r2": as_json(read.r2), "loss_rise": as_json(read.loss_rise)} for name, read in layers[layer].items()
        }
        rows.append({"gains": row} | _spectrum_figures(weights, calibration.gain))
    figures = {
        "method": method,
        "layers": rows,
        "together": {name: as_json(value) for name, value in together.items()},
        "calibration_tokens": int(np.sum(train[1] >= 0)),
        "test_tokens": int(np.sum(targets >= 0)),
        "largest_residual": as_json(max(float(np.max(residuals)), 0.0)),
    }
    gains = np.stack([np.asarray(calibration[method].gain) for calibration in calibrations])
    arrays = {"tokens": np.array(tokens), "values": np.stack(values), "vectors": np.stack(vectors), "gain": gains}
    shown = {
        "r2": np.stack(r2),
        "likes": np.stack(likes),
        "places": np.stack(places),
        "length": np.array(config.context),
        "text": test[targets >= 0],
        "next": targets[targets >= 0],
    }
    return figures, arrays, arrays | shown


def drawn_windows(stream: Stream, context: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of windows with about so many tokens, drawn once and for all, in the order of the text."""
    count = count_windows(stream, context)
    chosen = np.random.default_rng(0).permutation(count)[: max(1, -(-tokens // context))]
    return windows(stream, context, np.sort(chosen))


def frequent_tokens(stream: Stream, count: int, end: int) -> list[int]:
    """The most frequent tokens of a stream, the most frequent first, without `end`, the end of a story."""
    parts = range(0, len(stream.tokens), _COUNTED)
    length = 1 + max(int(np.max(stream.tokens[start : start + _COUNTED])) for start in parts)
    frequency = np.zeros(length, np.int64)
    for start in parts:
        frequency += np.bincount(stream.tokens[start : start + _COUNTED], minlength=length)
    order = np.argsort(-frequency, kind="stable")
    return [int(token) for token in order if frequency[token] and token != end][:count]


def _spectrum_figures(weights, gain) -> dict[str, Any]:
    """Means over the most frequent tokens: |λ_i| / |λ_1| by rank, and the effective rank."""
    few = weights._replace(out=weights.out[:, :_RANKED])
    d = len(few.w)
    if d <= _LARGEST_WHOLE:
        values = np.asarray(spectrum(few, basis="hidden", gain=gain).values)
    else:
        values = np.asarray(top_eigenpairs(few, 2 * _DECAY, basis="hidden", gain=gain).values)
    sizes = np.abs(values) / np.maximum(np.abs(values[:, :1]), np.finfo(np.float32).tiny)
    rank = np.asarray(effective_rank(jnp.asarray(values))).mean()
    return {
        "decay": as_json(sizes[:, :_DECAY].mean(0)),
        "participation_rank": as_json(rank),
        "eigenvalues": values.shape[1],
    }


def _other(path: Path) -> dict[str, Any]:
    """What another run's report says of its layers."""
    folder = RunFolder(path)
    if not folder.summary.is_file():
        raise InputError(f"`against` has {path}: no finished run")
    if not isinstance(read_config(folder), TextConfig):
        raise InputError(f"`against` has {path}: a run on images is not compared with one on text")
    figures = read_record(folder.summary, Summary).get("analysis", {})
    if "together" not in figures:
        raise InputError(f"`against` has {path}: it has no report yet, make it by: analysis report {path}")
    reading = check_record(folder.summary, figures, Together)
    return {
        "name": path.name,
        "method": reading["method"],
        "layers": reading["layers"],
        "together": reading["together"],
    }


def _last_samples(folder: RunFolder) -> list[str]:
    if not folder.samples.is_file():
        return []
    last = folder.samples.read_text(encoding="utf-8").split("\n\n==========\n\n")[-1]
    return last.partition("\n\n")[2].strip("\n").split("\n\n---\n\n")


def _content(summary, shown, history, config: TextConfig, tokenizer, model: Transformer) -> dict[str, Any]:
    figures, test = summary["analysis"], summary["test"]
    spelled = token_bytes_of(tokenizer)
    language = {
        "vocabulary": [spelling.decode(errors="backslashreplace") for spelling in spelled],
        "bytes": {token: list(spelling) for token, spelling in enumerate(spelled) if not _is_text(spelling)},
        "tokens": shown["tokens"].tolist(),
        "values": page.rounded(shown["values"]),
        "r2": page.rounded(np.round(shown["r2"], 3)),
        "likes": shown["likes"].tolist(),
        "places": shown["places"].tolist(),
        "text": shown["text"].tolist(),
        "next": shown["next"].tolist(),
        "length": int(shown["length"]),
        "name": f"{config.gate}",
    }
    read = [row["gains"][figures["method"]] for row in figures["layers"]]
    return {
        "language": language | {name: figures[name] for name in ("method", "layers", "together")},
        "curves": history,
        "provenance": {"config": dataclasses.asdict(config)} | figures["provenance"],
        "cards": [
            [f"{test['bits_per_byte']:.3f}", "bits per byte, test"],
            [f"{test['loss']:.3f}", "test loss, nats a token"],
            [f"{min(row['r2'] for row in read):.3f}", "R² of the layer that reads worst"],
            [f"{max(row['loss_rise'] for row in read):+.4f}", "largest rise of the loss, one layer replaced, nats"],
            [f"{figures['together'][figures['method']]:+.4f}", "rise of the loss, all layers replaced, nats"],
        ],
    }


def _is_text(spelling: bytes) -> bool:
    """Whether a token is whole letters, not a part of one."""
    try:
        spelling.decode()
    except UnicodeDecodeError:
        return False
    return True


def _texts(config: TextConfig, figures, model: Transformer, command: str, continued: str) -> dict[str, str]:
    method = figures["method"]
    rows = [row["gains"][method] for row in figures["layers"]]
    low, high = min(row["r2"] for row in rows), max(row["r2"] for row in rows)
    rise, plain = figures["together"][method], figures["together"]["identity"]
    verdict = (
        f"With “{method}” gains, quadratic forms explain {100 * low:.1f} to {100 * high:.1f} % of what a GLU "
        f"adds to the stream, on {figures['test_tokens']:,} tokens of held-out text. With a form in the place of every "
        f"GLU the model's loss rises by {rise:.3f} nats a token; with the gate read as the identity it rises by "
        f"{plain:.3f}."
    )
    gate = f"{config.gate} (c {config.c:g}, λ {config.lam:g}, p {config.p:g})" if config.gate == "sqs" else config.gate
    sizes = model.config
    length = f"{length_of(config)} {'steps' if config.steps else 'epochs'}{continued}"
    subtitle = (
        f"{sizes.layers} blocks of width {sizes.width} with GLUs of {sizes.glu_width}, {sizes.heads} heads, context "
        f"{sizes.context}, {sizes.vocab} tokens; {length}, seed {config.seed}."
    )
    name = name_of_text(config.text) if config.text else config.data
    return page.texts(f"{name}, {gate}", subtitle, verdict) | {"command": command}
