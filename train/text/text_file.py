"""Texts of any size, read in pieces: the files that a path names, their checksums, and their stories."""

import codecs
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import msgspec

from sqs_jax.files import write
from sqs_jax.messages import InputError, first_line, one_line
from sqs_jax.train.records import read_record

END_OF_TEXT = "<|endoftext|>"
_PIECE = 2**22  # bytes that are read at a time
_FRESH = 2.0  # seconds: a file that changed so lately may change again without another time of change
SEPARATORS = {
    "endoftext": re.escape(END_OF_TEXT),
    "blank_line": r"\r?\n[ \t]*\r?\n",
    "newline": r"(?<!\n)\n(?!\n)",
}


_TEXTS = (".txt", ".jsonl", ".parquet")


def files_of(path: Path) -> list[Path]:
    """The files that a path names: itself; of a folder those below it that are texts; of a pattern those that fit.

    Raises InputError where there is none.
    """
    if path.is_dir():
        found = [each for each in path.rglob("*") if each.suffix in _TEXTS]
        wanted = f"a file that ends in {', '.join(_TEXTS)} is needed below it"
    elif not path.exists() and re.search(r"[*?\[]", str(path)):
        found = [*Path(path.anchor).glob(str(path.relative_to(path.anchor)))]
        wanted = "no file fits the pattern"
    else:
        return [path]
    if not (files := sorted(each for each in found if each.is_file() and not each.name.startswith("."))):
        raise InputError(f"`text` is {path}: {wanted}")
    return files


class _Known(TypedDict):
    """What is remembered of a file, by its path."""

    size: int
    changed: int
    sha256: str


def text_checksum(path: Path, cache_dir: Path) -> str:
    """The SHA-256 of a file's text, of .parquet that of its bytes; remembered in the cache while it does not change.

    Raises InputError for a file that is missing, empty or not UTF-8.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"`text` is {path}: {error.strerror}") from None
    name = hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()
    record = cache_dir / "checksums" / f"{name[:32]}.json"
    if record.is_file():
        try:
            known = read_record(record, _Known)
        except InputError:  # damaged: it is made anew
            known = None
        if known and (known["size"], known["changed"]) == (state.st_size, state.st_mtime_ns):
            return known["sha256"]
    result = _sha256(path)
    if time.time() - state.st_mtime > _FRESH:
        record.parent.mkdir(parents=True, exist_ok=True)
        known = _Known(size=state.st_size, changed=state.st_mtime_ns, sha256=result)
        write(record, msgspec.json.encode(known))
    return result


def _sha256(path: Path) -> str:
    if path.suffix == ".parquet":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    result, blank = hashlib.sha256(), True
    for piece in _pieces(path):
        result.update(piece.encode())
        blank = blank and not piece.strip()
    if blank:
        raise InputError(f"`text` is {path}: it is empty")
    return result.hexdigest()


class StoriesOf:
    """The stories of some files, in order: stripped, without empty ones.

    Of a text, what stands between separators; of .jsonl and .parquet, the `text` of each record. They are read anew
    whenever they are asked for; one story and some MiB of text are in memory at a time.
    """

    def __init__(self, files: Sequence[Path], separator: str):
        self._files, self._separator = files, separator
        self._found: dict[Path, str] = {}
        self.size = sum(path.stat().st_size for path in files)
        """Bytes of all files."""

    def __iter__(self) -> Iterator[str]:
        for path in self._files:
            for part in self._parts(path):
                # A literal end inside of a story would become the token that ends it.
                if story := part.replace(END_OF_TEXT, "").strip():
                    yield story

    def _parts(self, path: Path) -> Iterator[str]:
        if path.suffix == ".jsonl":
            return _of_json_lines(path)
        if path.suffix == ".parquet":
            return _of_parquet(path)
        separator = self._separator
        if separator == "auto":
            separator = self._found[path] = self._found.get(path) or _first_of(path)
        return _parted(_unix(_pieces(path)), SEPARATORS[separator])


class _Record(TypedDict):
    """A line of a .jsonl file; it may hold more."""

    text: str


def _of_json_lines(path: Path) -> Iterator[str]:
    rest, number = "", 0
    for piece in [_pieces(path), ["\n"]]:
        for text in piece:
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                number += 1
                if line.strip():
                    try:
                        yield msgspec.json.decode(line, type=_Record)["text"]
                    except msgspec.MsgspecError as error:
                        raise InputError(f"`text` is {path}: line {number}: {one_line(error)}") from None


def _of_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            kinds = {field.name: field.type for field in file.schema_arrow}
            if kinds.get("text") not in (pyarrow.string(), pyarrow.large_string()):
                raise InputError(f"`text` is {path}: a column `text` of strings is needed, it has {', '.join(kinds)}")
            for batch in file.iter_batches(1000, columns=["text"]):
                yield from (text for text in batch.column(0).to_pylist() if text)
    except pyarrow.ArrowException as error:
        raise InputError(f"`text` is {path}: {first_line(error)}") from None


def _first_of(path: Path) -> str:
    """The first of the separators that a file has; a text without any has stories of a line."""
    end, blank_line = (re.compile(SEPARATORS[name]) for name in ("endoftext", "blank_line"))
    has_blank_line, rest = False, ""
    for piece in _unix(_pieces(path)):
        text = rest + piece if rest else piece.lstrip()
        safe = _safe(text)
        if end.search(text, 0, safe):
            return "endoftext"
        has_blank_line = has_blank_line or bool(blank_line.search(text, 0, safe))
        rest = text[max(0, safe - len(END_OF_TEXT)) :]
    if end.search(rest):
        return "endoftext"
    return "blank_line" if has_blank_line or blank_line.search(rest.rstrip()) else "newline"


def _parted(pieces: Iterator[str], pattern: str) -> Iterator[str]:
    """The parts of a text between matches of a pattern that begins with blanks, or is END_OF_TEXT."""
    separator, rest, searched, begun = re.compile(pattern), "", 0, False
    for piece in pieces:
        rest += piece if begun else piece.lstrip()
        begun = begun or bool(rest)
        safe, start = _safe(rest), 0
        for match in separator.finditer(rest, searched, safe):
            yield rest[start : match.start()]
            start = match.end()
        searched = max(0, safe - len(END_OF_TEXT) - start) if safe > start else 0
        rest = rest[start:]
    yield from separator.split(rest.rstrip())


def _safe(text: str) -> int:
    """Up to where a match of a separator cannot change with what follows: the last letter that is no blank."""
    return max(0, len(text.rstrip()) - 1)


def _unix(pieces: Iterator[str]) -> Iterator[str]:
    r"""The pieces with \n for \r\n."""
    rest = ""
    for piece in pieces:
        text = rest + piece
        rest = "\r" if text.endswith("\r") else ""
        yield text.removesuffix(rest).replace("\r\n", "\n") if rest else text.replace("\r\n", "\n")
    if rest:
        yield rest


def _pieces(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, without a byte order mark. Raises InputError where it is no such file."""
    decoder, size = codecs.getincrementaldecoder("utf-8-sig")(), 0
    try:
        with path.open("rb") as file:
            while True:
                piece = file.read(_PIECE)
                kept = len(decoder.getstate()[0])
                try:
                    yield decoder.decode(piece, final=not piece)
                except UnicodeDecodeError as error:
                    place, byte = size - kept + error.start, error.object[error.start]
                    raise InputError(f"`text` is {path}: not UTF-8, byte {byte:#04x} at {place}") from None
                if not piece:
                    return
                size += len(piece)
    except OSError as error:
        raise InputError(f"`text` is {path}: {error.strerror}") from None
