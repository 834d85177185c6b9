"""Where stories come from: the embedded ones, a text file, or TinyStories. A checksum identifies them."""

import codecs
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqs_jax.files import write
from sqs_jax.messages import InputError
from sqs_jax.train.config import TextConfig
from sqs_jax.train.original_files import Examples, Original, Source, exclusive, find_originals, prepare
from sqs_jax.train.text.embedded_stories import stories
from sqs_jax.train.text.text_file import END_OF_TEXT, StoriesOf, files_of, text_checksum

_BATCH = 1000  # stories that are read at a time


# Stories of the training text and, where they have a file of their own, of the test.
Read = Callable[[], tuple[list[Any] | Any, list[Any] | Any | None]]


def read_corpus(config: TextConfig, data_dir: Path | None, cache_dir: Path) -> tuple[Any, Read]:
    """The identity of a text, for the key of the cache, and a function that reads its stories."""
    if config.data == "stories":
        embedded = stories()
        return _sha256("\n".join(embedded).encode()), lambda: (embedded, None)
    if config.data == "text":
        files = files_of(Path(config.text))
        checksums = [text_checksum(path, cache_dir) for path in files]
        identity = checksums[0] if len(files) == 1 else checksums
        return [identity, config.separator], lambda: (StoriesOf(files, config.separator), None)
    local = find_originals(TINYSTORIES, data_dir)
    files = {name: _text_sha256(path) for name, path in sorted(local.items())}
    # tensorflow-datasets knows a set by its name alone: other files go to another place.
    folder = cache_dir / "local" / _sha256(json.dumps(files).encode())[:16] if files else cache_dir

    @functools.cache
    def read():
        records = prepare(TINYSTORIES, data_dir, folder)
        return _Records(records["train"]), _Records(records["test"])

    checksum = folder / "tfds" / "tinystories.sha256"
    if not checksum.is_file():
        with exclusive(checksum):
            if not checksum.is_file():
                write(checksum, _records_sha256(read()))
    return ["tinystories", checksum.read_text()], read


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _records_sha256(splits) -> str:
    """The checksum of the stories of a prepared set. The caller keeps it in a file, since it takes a while."""
    checksum = hashlib.sha256()
    for split in splits:
        for story in split:
            checksum.update(story.encode() + b"\0")
        checksum.update(b"\0")
    return checksum.hexdigest()


class _Records:
    """The stories of a prepared set, read in batches."""

    def __init__(self, source):
        self._source = source

    def __len__(self):
        return len(self._source)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BATCH):
            records = self._source.__getitems__(range(start, min(start + _BATCH, len(self))))
            yield from (record["text"].decode() for record in records)


def _text_sha256(path: Path) -> str:
    """The checksum of a file of any size; InputError where it is empty or not UTF-8."""
    checksum, decoder, size, blank = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 0, True
    with path.open("rb") as file:
        while part := file.read(2**22):
            checksum.update(part)
            text = _decoded(path, decoder, part, size)
            blank = blank and not text.replace(END_OF_TEXT, "").strip()
            size += len(part)
    _decoded(path, decoder, b"", size)
    if blank:
        raise InputError(f"{path} is empty")
    return checksum.hexdigest()


def _decoded(path: Path, decoder, part: bytes, start: int) -> str:
    try:
        return decoder.decode(part, final=not part)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} near byte {start + error.start}") from None


def _read_tinystories(split, paths) -> Examples:
    """Stories with a line `<|endoftext|>` between them."""
    part = {"train": "train", "test": "valid"}[split]
    for story in read_stories(paths[f"TinyStories-{part}.txt"]):
        yield {"text": story}


def read_stories(path: Path, separator: str = END_OF_TEXT) -> Iterator[str]:
    """The stories of a UTF-8 file of any size, split at a separator, stripped, without empty ones.

    Raises UnicodeDecodeError for a file that is not UTF-8.
    """
    rest = ""
    with path.open(encoding="utf-8", newline="") as file:
        while part := file.read(2**20):
            *whole, rest = (rest + part).split(separator)
            yield from filter(None, map(str.strip, whole))
    if rest.strip():
        yield rest.strip()


_TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"
# Eldan and Li 2023 (arXiv 2305.07759). No checksum of its files is known here.
TINYSTORIES = Source(
    "tinystories",
    None,
    (),
    tuple(
        Original(name, None, None, _TINYSTORIES + name) for name in ("TinyStories-train.txt", "TinyStories-valid.txt")
    ),
    _read_tinystories,
    ("tinystories",),
)
