"""An adopted model beside its original: both read on the same text, layer by layer, and how far their forms agree."""

import dataclasses
from typing import NamedTuple

import numpy as np

from sqs_jax import display
from sqs_jax.analysis.language import stream_directions, token_directions
from sqs_jax.analysis.layer_reading import agreement
from sqs_jax.analysis.reading_kinds import Reading
from sqs_jax.analysis.runs.model_reading import (
    ModelReading,
    ReadingOptions,
    frequent_words,
    layer_path,
    load_layer,
    read_windows,
)
from sqs_jax.pretrained.loading import load_pretrained
from sqs_jax.pretrained.model import LanguageModel
from sqs_jax.pretrained.vocabulary import token_bytes_of
from sqs_jax.train.adoption.adoption_task import fitting_windows, windows_of
from sqs_jax.train.config import AdoptConfig
from sqs_jax.train.run_folder import RunFolder

_LAYERS = 6  # read by surrogates, which take a minute each in a model of some size
_WORDS = 24
_BEFORE: tuple[Reading, ...] = ("affine", "surrogate")


class AdoptionReading(NamedTuple):
    """Two models of an adoption, read on held-out text, m words of k pairs in each of n layers."""

    original: LanguageModel
    before: ModelReading
    after: ModelReading
    cosines: np.ndarray
    """⟨A, B⟩ / ‖A‖‖B‖ of each word's forms (n, m) in the surrogate of the original and in the adopted layer,"""
    overlaps: np.ndarray
    """and the overlap of the spans of their five leading eigenvectors."""


def read_adoption(run: RunFolder, config: AdoptConfig) -> AdoptionReading:
    """Reads a finished adoption: the original by affine readings and surrogates, the other as its gate allows.

    A bilinear model is read exactly, by "identity"; one of SQS by "joint" and "affine" gains. Both are fitted on the
    text that GLUs were fitted on, and measured on the test windows of the run. What is fitted stays in `reading/` of
    the run, from which another call goes on.
    """
    original, adopted = load_pretrained(config.model), load_pretrained(run.model)
    train, _, test = windows_of(original, config)
    windows = fitting_windows(original, train, config), test
    count = min(original.layers, _LAYERS)
    layers = tuple(int(layer) for layer in np.unique(np.linspace(0, original.layers - 1, count).round()))
    options = ReadingOptions(layers=layers, words=_words(original, test), seed=config.seed)
    folder = run.path / "reading"
    folder.mkdir(exist_ok=True)
    after = readings_of(config.gate)
    models: dict[str, tuple[LanguageModel, tuple[Reading, ...]]] = {"before": (original, _BEFORE)}
    models["after"] = adopted, after
    found = {}
    for name, (model, readings) in models.items():
        with display.stage("reading the " + ("original" if model is original else "adopted model"), plain=True):
            found[name] = read_windows(model, windows, dataclasses.replace(options, readings=readings), folder / name)
    cosines, overlaps = [], []
    directions = token_directions(original, options.words)
    for layer in layers:
        sides = [load_layer(layer_path(folder / name, layer)).layers for name in models]
        along = stream_directions(original, layer, directions)
        both = agreement(sides[0]["surrogate"], sides[1][after[-1]], along)
        cosines.append(both["form_cosine"])
        overlaps.append(both["overlap"])
    return AdoptionReading(original, found["before"], found["after"], np.array(cosines), np.array(overlaps))


def readings_of(gate: str) -> tuple[Reading, ...]:
    """How a model with this gate is read; its eigenvectors are those of the last."""
    if gate == "own":
        return _BEFORE
    return ("identity",) if gate == "bilinear" else ("joint", "affine")


def _words(model: LanguageModel, test: np.ndarray) -> tuple[int, ...]:
    """Frequent tokens that are words of three letters or more; where there are none, frequent tokens."""
    frequent, spelled = frequent_words(model, test, 10 * _WORDS), token_bytes_of(model.tokenizer)
    texts = [spelled[token].decode(errors="replace").strip() for token in frequent]
    words = [token for token, text in zip(frequent, texts, strict=True) if len(text) > 2 and text.isalpha()]
    return tuple((words or frequent)[:_WORDS])
