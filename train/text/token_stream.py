"""Text as tokens: stories → tokenizer, trained once → one memory-mapped stream → windows."""

import dataclasses
import functools
import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sqs_jax import display, files
from sqs_jax.cache import default_cache_dir
from sqs_jax.messages import InputError, first_line
from sqs_jax.train.config import TextConfig
from sqs_jax.train.initial import initial_run
from sqs_jax.train.original_files import exclusive
from sqs_jax.train.records import read_record
from sqs_jax.train.text.corpus import TINYSTORIES, read_corpus
from sqs_jax.train.text.tokenizer import END, read_tokenizer, train_tokenizer

# Part of the cache's path: a change of what is stored there raises it.
_VERSION = "2"
_BATCH = 1000  # stories that are tokenized at a time


class Stream(NamedTuple):
    """Stories as one row of tokens: END, the first story, END, the second, …, END."""

    tokens: np.ndarray
    """uint16 (n,), memory-mapped."""
    bytes: int
    """UTF-8 bytes of the stories, and one for the end of each: what bits per byte are counted by."""
    stories: int


@dataclasses.dataclass(frozen=True)
class Text:
    """A text, its tokenizer, and its three parts. Validation and test are cut from the end of the text."""

    name: str
    sha256: str
    """Identifies stories, split and size of the vocabulary."""
    tokenizer: Any
    """A `tokenizers.Tokenizer`: byte-level BPE, so that any text goes there and back."""
    train: Stream
    validation: Stream
    test: Stream


def load_text(
    config: TextConfig, data_dir: Path | None = None, cache_dir: Path | None = None, *, tokenizer: Any = None
) -> Text:
    """The text of a configuration, tokenized; from the cache if it is there.

    Args:
      config: of the run.
      data_dir: for tinystories, folder with its original files, as in `sqs_jax.train.images.dataset.load`.
      cache_dir: where prepared texts are kept, under a hash of their content.
      tokenizer: of a run that exists. One that began with another run has its tokenizer, and needs that run no more.

    Raises InputError for a file that is missing, empty or not UTF-8, that has fewer stories than are held out, and for
    a tinystories that cannot be had.
    """
    cache_dir = cache_dir or default_cache_dir()
    if not data_dir and os.environ.get("SQS_DATA_DIR"):
        data_dir = Path(os.environ["SQS_DATA_DIR"])
    if data_dir and not data_dir.is_dir():
        raise InputError(f"`data_dir` is {data_dir}: no such folder")
    identity, read = read_corpus(config, data_dir, cache_dir)
    held = [config.validation, 0 if config.data == TINYSTORIES.name else config.test]
    given = None
    if config.init_from:
        given = tokenizer or read_tokenizer(initial_run(config.init_from, TextConfig).tokenizer)
    vocab = given.to_str() if given else config.vocab
    key = json.dumps([identity, vocab, *held, _VERSION])
    key = hashlib.sha256(key.encode()).hexdigest()
    folder = cache_dir / "text" / key[:32]
    if not folder.is_dir():
        with exclusive(folder):
            if not folder.is_dir():
                files.clean(folder.parent, folder.name)
                _tokenize(folder, config, given, *read())
    return _open(config, key, folder)


def count_windows(stream: Stream, context: int) -> int:
    """How many windows of `context` tokens a stream has; the last may be shorter."""
    return max(0, -(-(len(stream.tokens) - 1) // context))


def windows(stream: Stream, context: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows of a stream by number: inputs and targets, the next tokens, int32 (len(numbers), context) each.

    Window i has the targets i·context + 1 to (i + 1)·context, so that each token but the first is a target of just
    one window. A target is -1 beyond the end of the stream, and for a number below 0, which stands for no window.
    """
    positions = np.maximum(numbers, 0)[:, None] * context + np.arange(context + 1)
    tokens = stream.tokens[np.minimum(positions, len(stream.tokens) - 1)].astype(np.int32)
    targets = np.where((positions[:, 1:] < len(stream.tokens)) & (numbers[:, None] >= 0), tokens[:, 1:], -1)
    return tokens[:, :-1], targets


def batch_numbers(step: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """The windows of a step (batch_size,). Each epoch takes all `count` windows once, in an order of its own."""
    positions = step * batch_size + np.arange(batch_size)
    return np.array([_order(seed, position // count, count)[position % count] for position in positions.tolist()])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _tokenize(folder: Path, config: TextConfig, tokenizer: Any, training, test):
    """Trains the tokenizer, unless there is one, and writes it and the stream."""
    held = config.validation + (config.test if test is None else 0)
    if len(training) <= held:
        what = "`validation` and `test` hold" if test is None else "`validation` holds"
        raise InputError(f"{config.text or config.data} has {len(training)} stories, and {what} {held} of them out")
    display.line(f"tokenizing {config.text or config.data}, once, into {folder}")
    if tokenizer is None:
        with display.stage("training the tokenizer"):
            tokenizer = train_tokenizer(islice(training, len(training) - held), config.vocab)
    total = len(training) + len(test or ())
    with files.appearing(folder) as partial, display.stage("tokenizing", total, "stories") as shown:
        _write_streams(partial, config, tokenizer, training, test, shown)


def _write_streams(partial: Path, config: TextConfig, tokenizer: Any, training, test, shown: display.Stage) -> None:
    starts, sizes = array("q", [0]), array("q")
    with (partial / "tokens.bin").open("wb") as file:
        file.write(np.array([END], np.uint16).tobytes())
        for part in (training, test or ()):
            for batch in _batches(part):
                for story, encoding in zip(batch, tokenizer.encode_batch(batch), strict=True):
                    file.write(np.array([*encoding.ids, END], np.uint16).tobytes())
                    starts.append(starts[-1] + len(encoding.ids) + 1)
                    sizes.append(len(story.encode()) + 1)
                shown.advance(len(batch))
    np.savez(partial / "stories.npz", starts=np.array(starts), bytes=np.array(sizes))
    tokenizer.save(str(partial / "tokenizer.json"))
    end = len(training) if test is not None else len(training) - config.test
    (partial / "splits.json").write_text(json.dumps([0, end - config.validation, end, len(sizes)]))


def _batches(part) -> Iterator[list[str]]:
    rest = iter(part)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def _open(config: TextConfig, key: str, folder: Path) -> Text:
    try:
        tokens = np.memmap(folder / "tokens.bin", np.uint16, mode="r")
        with np.load(folder / "stories.npz") as file:
            starts, sizes = file["starts"], file["bytes"]
        bounds = read_record(folder / "splits.json", list[int])
        fit = len(tokens) == starts[-1] + 1 and len(starts) == len(sizes) + 1
        if not (fit and len(bounds) == 4 and bounds == sorted(bounds) and (bounds[0], bounds[3]) == (0, len(sizes))):
            raise ValueError("its files do not fit each other")
    except Exception as error:  # whatever the reader of a damaged header may raise
        raise InputError(f"{folder} is damaged ({first_line(error)}): remove it, and it is made anew") from None
    parts = [
        Stream(tokens[starts[first] : starts[last] + 1], int(sizes[first:last].sum()), last - first)
        for first, last in pairwise(bounds)
    ]
    return Text(config.data, key, read_tokenizer(folder / "tokenizer.json"), *parts)
