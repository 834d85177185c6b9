"""The reading of a pretrained language model, layer by layer, in a folder that a later call goes on from.

reading.json          what is read, of which model and text; another call has to ask for the same
layers/layer-NN.npz   what was fitted of a layer; whole or absent
losses.json           the losses with layers replaced
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from sqs_jax import display, files
from sqs_jax.analysis.interaction import GLUWeights
from sqs_jax.analysis.language import layer_r2
from sqs_jax.analysis.layer_reading import (
    FittedLayer,
    HeldOut,
    WordPairs,
    default_steps,
    default_tokens,
    fit_layer,
    held_out,
    layer_form,
    read_words,
)
from sqs_jax.analysis.reading_kinds import Order, Reading
from sqs_jax.analysis.streams import LayerStream, layer_streams, losses
from sqs_jax.messages import InputError
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.tensor_files import read_json
from sqs_jax.pretrained.vocabulary import first_tokens, one_token
from sqs_jax.pretrained.windows import next_tokens, text_windows
from sqs_jax.train.run_folder import alone

_TEST_TOKENS = 8192
_WORDS = 200


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """What is read of a model, and of which text."""

    readings: tuple[Reading, ...] = ("affine",)
    """Beside each other; the last is the one whose eigenvectors are shown."""
    layers: tuple[int, ...] = ()
    """Numbers from 0; all by default."""
    words: tuple[int, ...] = ()
    """Tokens; by default the most frequent ones of the text."""
    tokens: int = 0
    """That readings are fitted on; 0 for 20,000, of surrogates 40,000, and more for a width of 160 or less."""
    test_tokens: int = _TEST_TOKENS
    """That all is measured on, none of which is fitted on."""
    pairs: int = 4
    """Eigenpairs a word."""
    order: Order = "size"
    """By |λ|, or by what a pair adds on the data."""
    seed: int = 0


@dataclasses.dataclass
class ModelReading:
    """What was measured of a model."""

    loss: float
    """Of the model itself on the held-out text, in nats a token."""
    layers: list[dict[str, Any]]
    """For each layer that was read: "layer", "sinks", "effective_rank", "readings": {name: {"r2", "loss_rise"}}, …"""
    all: dict[str, float]
    """Rise of the loss with all those layers replaced, by reading."""
    words: list[int]
    pairs: list[WordPairs]
    """One for each layer."""
    tokens: int
    test_tokens: int
    text: np.ndarray
    """The held-out windows (n, length)."""
    seconds: dict[str, int]
    """That "layers" and "losses" took in this call."""


def text_words(model: LanguageModel, words: Sequence[str]) -> tuple[int, ...]:
    """The tokens of words. Raises InputError, with its pieces, for one that is not a single token."""
    return tuple(dict.fromkeys(one_token(model.tokenizer, word) for word in words))


def read_model(
    model: LanguageModel,
    text: str,
    options: ReadingOptions,
    folder: Path | None = None,
    report: Callable[[str], None] = display.line,
) -> ModelReading:
    """Reads layers of a language model on a text: fits, fidelity, losses with layers replaced, eigenvectors of words.

    Args:
      model: from `load_pretrained`.
      text: what it is read on.
      options: what is read.
      folder: where fits and losses are kept, and taken from where they are there already.
      report: called with a line for each layer that is done.

    Raises InputError for a layer that the model does not have, a text that is too short, and a folder that holds the
    reading of something else.
    """
    tokens = options.tokens or default_tokens(model, options.readings)
    return read_windows(model, text_windows(model, text, tokens, options.test_tokens), options, folder, report)


def read_windows(
    model: LanguageModel,
    windows: tuple[np.ndarray, np.ndarray],
    options: ReadingOptions,
    folder: Path | None = None,
    report: Callable[[str], None] = display.line,
) -> ModelReading:
    """As `read_model`, on windows (n, length) of tokens: some that readings are fitted on, and held-out ones."""
    train, test = windows
    layers = options.layers or tuple(range(model.layers))
    if wrong := [layer for layer in layers if not 0 <= layer < model.layers]:
        raise InputError(f"layer {wrong[0]}: {model.name} has layers 0 to {model.layers - 1}")
    options = dataclasses.replace(options, pairs=min(options.pairs, model.architecture.width))
    words = list(options.words) or frequent_words(model, test, _WORDS)
    with alone(folder) if folder else contextlib.nullcontext():
        if folder:
            _claim(folder, _identity(model, train, test, options))
        return _read(model, train, test, options, layers, words, folder, report)


def _read(model, train, test, options: ReadingOptions, layers, words: list[int], folder: Path | None, report):
    fits, start = {}, time.monotonic()

    def measured(stream: LayerStream) -> tuple[WordPairs, dict[str, Any]]:
        fitted, unseen = fits[stream.layer], held_out(fits[stream.layer], stream)
        pairs = read_words(model, fitted, options.readings[-1], unseen, words, k=options.pairs, order=options.order)
        row = _figures(fitted, unseen, pairs)
        figures = ", ".join(f"{name} {part['r2']:.3f}" for name, part in row["readings"].items())
        report(f"layer {stream.layer}: R² {figures}; {fitted.sinks} sinks; {time.monotonic() - start:.0f} s")
        return pairs, row

    missing = [layer for layer in layers if not (folder and layer_path(folder, layer).is_file())]
    to_fit = layer_streams(model, train) if missing else itertools.repeat(None)
    # Words are read beside the fit of the next layer: either alone leaves cores idle.
    done: list[Future] = []
    with ThreadPoolExecutor(1) as pool, display.stage("reading layers", len(layers), "layers") as shown:
        for seen, unseen in zip(to_fit, layer_streams(model, test), strict=False):
            if unseen.layer in layers:
                fits[unseen.layer] = _fitted(model, unseen.layer, seen, options, folder)
                for earlier in done[-1:]:
                    earlier.result()  # so that two layers at most are in memory
                done.append(pool.submit(measured, unseen))
                shown.at(len(done) - 1)
            if unseen.layer == max(layers):
                break
    pairs, rows = (list(parts) for parts in zip(*(each.result() for each in done), strict=True))
    read = time.monotonic()
    loss, rises, all_rises = _losses(model, test, fits, options, folder, report)
    seconds = {"layers": round(read - start), "losses": round(time.monotonic() - read)}
    for row in rows:
        for name, figures in row["readings"].items():
            figures["loss_rise"] = rises[f"{row['layer']} {name}"]
    return ModelReading(loss, rows, all_rises, words, pairs, int(train.size), int(test.size), test, seconds)


def frequent_words(model: LanguageModel, windows: np.ndarray, count: int) -> list[int]:
    """The most frequent tokens of windows, the most frequent first, without those that begin every window."""
    frequency = np.bincount(windows.ravel(), minlength=model.architecture.vocab)
    frequency[first_tokens(model.tokenizer)] = 0
    order = np.argsort(-frequency, kind="stable")
    return [int(token) for token in order[:count] if frequency[token]]


def _figures(fitted: FittedLayer, unseen: HeldOut, pairs: WordPairs) -> dict[str, Any]:
    r2 = {name: layer_r2(unseen.y, given) for name, given in unseen.given.items()}
    row: dict[str, Any] = {"layer": unseen.layer, "sinks": fitted.sinks, "test_sinks": unseen.sinks}
    row |= {"effective_rank": pairs.effective_rank, "readings": {name: {"r2": value} for name, value in r2.items()}}
    if fitted.form_cosine is not None:
        row["form_cosine"] = fitted.form_cosine
    shares = {"linear_share": pairs.linear_share, "share": pairs.share, "word_r2": pairs.r2}
    return row | {name: float(np.nanmean(values)) for name, values in shares.items()}


def _losses(model, test, fits: dict[int, FittedLayer], options: ReadingOptions, folder: Path | None, report):
    """The model's loss; its rises with one layer replaced, by layer and reading; and with all, by reading."""
    key = json.dumps(sorted(fits))
    path = folder / "losses.json" if folder else None
    if path and path.is_file():
        kept = read_json(path)
        if kept.get("layers") == key:
            return kept["loss"], kept["rises"], kept["all"]
    names = options.readings
    single = {f"{layer} {name}": {layer: layer_form(fits[layer], name)} for layer in fits for name in names}
    together = [{layer: layer_form(fits[layer], name) for layer in fits} for name in names]
    report(f"losses with layers replaced: {len(single) + len(together)} of them")
    windows = (test, next_tokens(test))
    whole, *rest = losses(model, windows, [{}, *together])
    all_rises: dict[str, float] = {name: loss - whole for name, loss in zip(names, rest, strict=True)}
    # One layer changes little, and all layers by themselves cost most: half of the windows, spread over all, will do.
    half = windows[0][::2], windows[1][::2]
    own, *rest = losses(model, half, [{}, *single.values()])
    each = {name: loss - own for name, loss in zip(single, rest, strict=True)}
    report(f"loss {whole:.4f} nats a token; all replaced: " + ", ".join(f"{n} {r:+.3f}" for n, r in all_rises.items()))
    if path:
        files.write(path, json.dumps({"layers": key, "loss": whole, "rises": each, "all": all_rises}, indent=1) + "\n")
    return whole, each, all_rises


def _identity(model: LanguageModel, train: np.ndarray, test: np.ndarray, options: ReadingOptions) -> dict[str, Any]:
    """What has to be the same for fits to be taken from a folder."""
    text = hashlib.sha256(train.tobytes() + test.tobytes()).hexdigest()
    weights = hashlib.sha256(np.asarray(model.embedding[:: max(1, len(model.embedding) // 64)]).tobytes()).hexdigest()
    about = {"model": model.name, "embedding": weights, "layers": model.layers, "tokens": text}
    return about | {"readings": list(options.readings), "seed": options.seed, "version": 1}


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Writes what a folder holds. Raises InputError where it holds something else."""
    path = folder / "reading.json"
    if path.is_file():
        held = read_json(path)
        if held != identity:
            other = next(name for name in identity if held.get(name) != identity[name])
            raise InputError(f"{folder} holds another reading (its {other} differ): another --out-dir is needed")
        return
    if folder.exists() and (not folder.is_dir() or files.visible(folder)):
        raise InputError(f"{folder} is no reading, and not empty: another --out-dir is needed")
    (folder / "layers").mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(identity, indent=1) + "\n")


def layer_path(folder: Path, layer: int) -> Path:
    """The file of what was fitted of a layer."""
    return folder / "layers" / f"layer-{layer:02}.npz"


def _fitted(model, layer: int, seen: LayerStream | None, options: ReadingOptions, folder: Path | None) -> FittedLayer:
    path = layer_path(folder, layer) if folder else None
    if path and path.is_file():
        return load_layer(path)
    assert seen  # what is not in the folder is fitted
    fitted = fit_layer(model, seen, options.readings, steps=default_steps(model), seed=options.seed)
    if path:
        files.write(path, _layer_file(fitted))
    return fitted


def _layer_file(fitted: FittedLayer) -> bytes:
    arrays: dict[str, Any] = {"limit": fitted.limit, "sinks": fitted.sinks, "mean": fitted.mean}
    arrays["form_cosine"] = np.nan if fitted.form_cosine is None else fitted.form_cosine
    for name, layer in fitted.layers.items():
        arrays |= {f"{name}/{part}": np.asarray(array) for part, array in layer._asdict().items() if array is not None}
    return files.npz(arrays)


def load_layer(path: Path) -> FittedLayer:
    """What was fitted of a layer, from its file. Raises InputError for a damaged one."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
        parts: dict[str, dict[str, Any]] = {}
        for name, array in arrays.items():
            if "/" in name:
                reading, _, part = name.partition("/")
                parts.setdefault(reading, {})[part] = jnp.asarray(array)
        layers = {name: GLUWeights(**part) for name, part in parts.items()}
        cosine = float(arrays["form_cosine"])
        return FittedLayer(
            float(arrays["limit"]), int(arrays["sinks"]), arrays["mean"], layers, None if np.isnan(cosine) else cosine
        )
    except Exception as error:  # whatever a damaged archive leads to
        raise InputError(f"{path} is damaged ({type(error).__name__}): remove it, and the layer is read anew") from None
