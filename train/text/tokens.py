"""Text as tokens: stories → byte-level BPE, trained once → one memory-mapped stream → windows."""

import codecs
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sqs_jax import files
from sqs_jax.cache import default_cache_dir
from sqs_jax.files import write
from sqs_jax.messages import first_line, quoted
from sqs_jax.train.config import InputError, TextConfig
from sqs_jax.train.images.image_sources import END_OF_TEXT, TINYSTORIES
from sqs_jax.train.originals import exclusive, find_originals, prepare
from sqs_jax.train.records import read_record
from sqs_jax.train.text.stories import stories

# Part of the cache's path: a change of what is stored there raises it.
_VERSION = "2"
END = 0  # the token of END_OF_TEXT
_TOKENIZER_BYTES = 64 * 2**20  # text that a tokenizer is trained on, at most
_WORD = 128  # letters of a word, at most
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
    """A text, its tokenizer, and its three parts; those of `validation` and `test` come last in it."""

    name: str
    sha256: str
    """Of what the stories are, how they are parted and the size of the vocabulary."""
    tokenizer: Any
    """A `tokenizers.Tokenizer`: byte-level BPE, so that any text goes there and back."""
    train: Stream
    validation: Stream
    test: Stream


def load_text(config: TextConfig, data_dir: Path | None = None, cache_dir: Path | None = None) -> Text:
    """The text of a configuration, tokenized; from the cache if it is there.

    Args:
      config: of the run.
      data_dir: for tinystories, folder with its original files, as in `sqs_jax.train.images.dataset.load`.
      cache_dir: where prepared texts are kept, under a hash of their content.

    Raises InputError for a file that is missing, empty or not UTF-8, that has fewer stories than are held out, and for
    a tinystories that cannot be had.
    """
    cache_dir = cache_dir or default_cache_dir()
    if not data_dir and os.environ.get("SQS_DATA_DIR"):
        data_dir = Path(os.environ["SQS_DATA_DIR"])
    if data_dir and not data_dir.is_dir():
        raise InputError(f"`data_dir` is {data_dir}: no such folder")
    identity, read = _stories_of(config, data_dir, cache_dir)
    held = [config.validation, 0 if config.data == TINYSTORIES.name else config.test]
    key = json.dumps([identity, config.vocab, *held, _VERSION])
    key = hashlib.sha256(key.encode()).hexdigest()
    folder = cache_dir / "text" / key[:32]
    if not folder.is_dir():
        with exclusive(folder):
            if not folder.is_dir():
                files.clean(folder.parent, folder.name)
                _tokenize(folder, config, *read())
    return _open(config, key, folder)


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """What a token stands for: byte-level BPE spells each byte by a letter of its own."""
    return bytes(_BYTES[letter] for letter in tokenizer.id_to_token(token))


def _spelled_bytes() -> dict[str, int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # printable in Latin-1: they spell themselves
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _spelled_bytes()


def decode(tokenizer: Any, tokens) -> str:
    """Tokens as text; an END is not shown."""
    return tokenizer.decode([int(token) for token in tokens if token != END], skip_special_tokens=False)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Text as tokens, after the END that every story begins with. "<|endoftext|>" in it is text like any other."""
    return [END, *tokenizer.encode(text).ids]


def read_tokenizer(path: Path) -> Any:
    """The tokenizer in a `tokenizer.json`. Raises InputError where that is none of ours: byte-level, with an END."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"the tokenizer {path} is damaged: {first_line(error)}") from None
    names = tokenizer.get_vocab()
    if names.get(END_OF_TEXT) != END or sorted(names.values()) != list(range(len(names))):
        raise InputError(f"the tokenizer {path} is damaged: {END_OF_TEXT} is not its first token, or one is missing")
    for name in names:
        if name != END_OF_TEXT and not _BYTES.keys() >= set(name):
            raise InputError(f"the tokenizer {path} is damaged: {quoted(name)} spells no bytes")
    return _literal(tokenizer)


def _literal(tokenizer: Any) -> Any:
    """The tokenizer, to which "<|endoftext|>" in a text or a prompt is text: the token stands where a story ends."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def count_windows(stream: Stream, context: int) -> int:
    """How many windows of `context` tokens a stream has; the last may be shorter."""
    return max(0, -(-(len(stream.tokens) - 1) // context))


def windows(stream: Stream, context: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows of a stream by number: inputs and targets, the next tokens, int32 (len(numbers), context) each.

    Window i has the targets i·context + 1 to (i + 1)·context, so that each token but the first is a target of just
    one window. A target is -1 beyond the end of the stream, and for a number below 0, which stands for no window.
    """
    places = np.maximum(numbers, 0)[:, None] * context + np.arange(context + 1)
    tokens = stream.tokens[np.minimum(places, len(stream.tokens) - 1)].astype(np.int32)
    targets = np.where((places[:, 1:] < len(stream.tokens)) & (numbers[:, None] >= 0), tokens[:, 1:], -1)
    return tokens[:, :-1], targets


def batch_numbers(step: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """The windows of a step (batch_size,), from the step alone: each epoch takes all `count` in an order of its own."""
    places = step * batch_size + np.arange(batch_size)
    return np.array([_order(seed, place // count, count)[place % count] for place in places.tolist()])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


# Stories of the training text and, where they have a file of their own, of the test.
_Read = Callable[[], tuple[list[Any] | Any, list[Any] | Any | None]]


def _stories_of(config: TextConfig, data_dir: Path | None, cache_dir: Path) -> tuple[Any, _Read]:
    """What a text is, as JSON has it, and what reads it."""
    if config.data == "stories":
        found = stories()
        return _sha256("\n".join(found).encode()), lambda: (found, None)
    if config.data == "text":
        content = _read_file(Path(config.text))
        return [_sha256(content.encode()), config.separator], lambda: (_parted(content, config.separator), None)
    local = find_originals(TINYSTORIES, data_dir)
    files = {name: _text_sha256(path) for name, path in sorted(local.items())}
    # tensorflow-datasets knows a set by its name alone: other files go to another place.
    place = cache_dir / "local" / _sha256(json.dumps(files).encode())[:16] if files else cache_dir

    @functools.cache
    def read():
        records = prepare(TINYSTORIES, data_dir, place)
        return _Records(records["train"]), _Records(records["test"])

    checksum = place / "tfds" / "tinystories.sha256"
    if not checksum.is_file():
        with exclusive(checksum):
            if not checksum.is_file():
                write(checksum, _records_sha256(read()))
    return ["tinystories", checksum.read_text()], read


def _records_sha256(splits) -> str:
    """The checksum of a prepared set's stories, wherever its files came from; kept in a file, for it takes a while."""
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
            found = self._source.__getitems__(range(start, min(start + _BATCH, len(self))))
            yield from (record["text"].decode() for record in found)


def _read_file(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"`text` is {path}: {error.strerror}") from None
    try:
        found = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"`text` is {path}: not UTF-8, byte {content[error.start]:#04x} at {error.start}") from None
    if not found.strip():
        raise InputError(f"`text` is {path}: it is empty")
    return found


def _text_sha256(path: Path) -> str:
    """The checksum of a file of any size; InputError where it is empty or not UTF-8."""
    checksum, decoder, size, blank = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 0, True
    with path.open("rb") as file:
        while part := file.read(2**22):
            checksum.update(part)
            found = _decoded(path, decoder, part, size)
            blank = blank and not found.replace(END_OF_TEXT, "").strip()
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


_PATTERNS = {
    "endoftext": re.escape(END_OF_TEXT),
    "blank_line": r"\r?\n[ \t]*\r?\n",
    "newline": r"(?<!\n)\n(?!\n)",
}


def _parted(content: str, separator: str) -> list[str]:
    content = content.replace("\r\n", "\n").strip()
    if separator == "auto":
        separator = next((name for name, pattern in _PATTERNS.items() if re.search(pattern, content)), "newline")
    # A literal end inside of a story would become the token that ends it.
    parts = [part.replace(END_OF_TEXT, "").strip() for part in re.split(_PATTERNS[separator], content)]
    return [part for part in parts if part]


def _tokenize(folder: Path, config: TextConfig, training, test):
    """Trains the tokenizer, and writes it and the stream."""
    held = config.validation + (config.test if test is None else 0)
    if len(training) <= held:
        what = "`validation` and `test` hold" if test is None else "`validation` holds"
        raise InputError(f"{config.text or config.data} has {len(training)} stories, and {what} {held} of them out")
    print(f"tokenizing {config.text or config.data}, once, into {folder}", flush=True)
    tokenizer = _train_tokenizer(islice(training, len(training) - held), config.vocab)
    with files.appearing(folder) as partial:
        _write_streams(partial, config, tokenizer, training, test)


def _write_streams(partial: Path, config: TextConfig, tokenizer: Any, training, test) -> None:
    starts, sizes = [0], []
    with (partial / "tokens.bin").open("wb") as file:
        file.write(np.array([END], np.uint16).tobytes())
        for part in (training, test or ()):
            for batch in _batches(part):
                for story, found in zip(batch, tokenizer.encode_batch(batch), strict=True):
                    file.write(np.array([*found.ids, END], np.uint16).tobytes())
                    starts.append(starts[-1] + len(found.ids) + 1)
                    sizes.append(len(story.encode()) + 1)
    np.savez(partial / "stories.npz", starts=np.array(starts), bytes=np.array(sizes))
    tokenizer.save(str(partial / "tokenizer.json"))
    end = len(training) if test is not None else len(training) - config.test
    (partial / "splits.json").write_text(json.dumps([0, end - config.validation, end, len(sizes)]))


def _train_tokenizer(training: Iterator[str], vocab: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    def part():
        size = 0
        for story in training:
            size += len(story.encode())
            yield story
            if size > _TOKENIZER_BYTES:
                return

    tokenizer = Tokenizer(models.BPE())
    # Training and encoding are quadratic in the length of a word: longer ones are cut, blanks as well as letters.
    cut = pre_tokenizers.Split(Regex(rf"\S{{{_WORD}}}|\s{{{_WORD}}}"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,  # pyright: ignore
        special_tokens=[END_OF_TEXT],  # pyright: ignore
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # pyright: ignore
        show_progress=False,  # pyright: ignore
    )
    tokenizer.train_from_iterator(part(), trainer=trainer)
    assert tokenizer.token_to_id(END_OF_TEXT) == END
    return _literal(tokenizer)


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


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
