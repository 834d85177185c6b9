"""Text as tokens: stories → tokenizer, trained once → one memory-mapped stream → windows."""

import dataclasses
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from sqs_jax import display, files
from sqs_jax.cache import default_cache_dir
from sqs_jax.messages import InputError, first_line
from sqs_jax.train.config import TextConfig
from sqs_jax.train.initial import initial_run
from sqs_jax.train.original_files import exclusive
from sqs_jax.train.records import read_record
from sqs_jax.train.text.corpus import TINYSTORIES, read_corpus
from sqs_jax.train.text.tokenizer import read_tokenizer, train_tokenizer
from sqs_jax.train.text.tokenizing import dtype_of, write_stream

# Part of the cache's path: a change of what is stored there raises it.
_VERSION = "3"
_IDENTITY = "2"  # part of a text's checksum, which runs quote: it stays


class Stream(NamedTuple):
    """Stories as one row of tokens: an end, the first story, an end, the second, …, an end."""

    tokens: np.ndarray
    """uint16 or, of more than 65,536 tokens, uint32 (n,), memory-mapped."""
    bytes: int
    """UTF-8 bytes of the stories, and one for the end of each: what bits per byte are counted by."""
    stories: int


class _Part(TypedDict):
    """`splits.json` has one for each of the three parts: its stories, first token, that behind its last, and bytes."""

    stories: int
    start: int
    end: int
    bytes: int


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
      tokenizer: of a run that exists. One that was given another's tokenizer needs its file no more.

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
    if config.init_from or config.tokenizer:
        given = tokenizer or read_tokenizer(_tokenizer_of(config))
    vocab = given.to_str() if given else config.vocab
    key = hashlib.sha256(json.dumps([identity, vocab, *held, _IDENTITY]).encode()).hexdigest()
    folder = cache_dir / "text" / f"{key[:32]}-{_VERSION}"
    if not folder.is_dir() or any(folder.parent.glob(f"*{folder.name}.*part*")):  # what a killed process left
        with exclusive(folder):
            files.clean(folder.parent, folder.name)
            if not folder.is_dir():
                _tokenize(folder, config, given, *read())
            elif (parts := _parts(folder)).is_dir():
                files.remove(parts)
    return _open(config, key, folder)


def _tokenizer_of(config: TextConfig) -> Path:
    """The file of the tokenizer that a configuration names."""
    return Path(config.tokenizer) if config.tokenizer else initial_run(config.init_from, TextConfig).tokenizer


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


def _tokenize(folder: Path, config: TextConfig, tokenizer: Any, training, test):
    """Trains the tokenizer, unless there is one, and writes it and the stream."""
    held = config.validation, config.test if test is None else 0
    if next(_all_but_last(training, sum(held)), None) is None:
        what = "`validation` and `test` hold" if test is None else "`validation` holds"
        count = sum(1 for _ in training)
        raise InputError(f"{config.text or config.data} has {count} stories, and {what} {sum(held)} of them out")
    display.line(f"tokenizing {config.text or config.data}, once, into {folder}")
    parts = _parts(folder)
    if tokenizer is None and (parts / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(parts / "tokenizer.json")  # it was begun with this one
    elif tokenizer is None:
        with display.stage("training the tokenizer"):
            tokenizer = train_tokenizer(_all_but_last(training, sum(held)), config.vocab)
    with files.appearing(folder) as partial:
        write_stream(partial, parts, tokenizer, training, test or (), held)
    files.remove(parts)


def _parts(folder: Path) -> Path:
    """Where the chunks of a text lie until all are there."""
    return folder.with_name(f"{folder.name}.parts")


def _all_but_last(stories: Iterable[str], count: int) -> Iterator[str]:
    """The stories but for the last so many, which alone are in memory."""
    kept: deque[str] = deque()
    for story in stories:
        kept.append(story)
        if len(kept) > count:
            yield kept.popleft()


def _open(config: TextConfig, key: str, folder: Path) -> Text:
    try:
        tokenizer = read_tokenizer(folder / "tokenizer.json")
        tokens = np.memmap(folder / "tokens.bin", dtype_of(tokenizer), mode="r")
        parts = read_record(folder / "splits.json", list[_Part])
        bounds = [0, *(part["start"] for part in parts[1:]), len(tokens) - 1]
        fit = (
            len(parts) == 3
            and bounds == sorted(bounds)
            and min(min(part["stories"], part["bytes"]) for part in parts) >= 0
        )
        if not fit or [(part["start"], part["end"]) for part in parts] != [*pairwise(bounds)]:
            raise ValueError("its files do not fit each other")
    except Exception as error:  # whatever the reader of a damaged file may raise
        raise InputError(f"{folder} is damaged ({first_line(error)}): remove it, and it is made anew") from None
    streams = [Stream(tokens[part["start"] : part["end"] + 1], part["bytes"], part["stories"]) for part in parts]
    return Text(config.data, key, tokenizer, *streams)
