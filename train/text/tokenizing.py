"""A text of any size to one stream of tokens: chunk by chunk, by several processes, and from where it was left."""

import errno
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from sqs_jax import display, files
from sqs_jax.train.text import encoder
from sqs_jax.train.text.tokenizer import end_of

_CHUNK = 2**26  # letters of a chunk, at least
_BATCH = 1000  # stories that are encoded at a time,
_LETTERS = 2**20  # or so many letters
_MOST_PROCESSES = 32  # more of them the one that parts the text cannot feed


def dtype_of(tokenizer: Any) -> str:
    """The dtype that a stream of a tokenizer's tokens is stored in."""
    return "uint16" if tokenizer.get_vocab_size() <= 2**16 else "uint32"


def write_stream(
    folder: Path, parts: Path, tokenizer: Any, training: Iterable[str], test: Iterable[str], held: tuple[int, int]
) -> None:
    """Writes `tokens.bin`, `splits.json` and `tokenizer.json` of stories into `folder`.

    Args:
      folder: where they are written.
      parts: a folder for the chunks. One that is there is gone on with: it has to be of the same text and tokenizer.
      tokenizer: a `tokenizers.Tokenizer`.
      training, test: the stories. Where `test` has none, it is cut from the end of training.
      held: how many stories are cut from the end of training for validation, and behind these for the test.

    Raises OSError where a file cannot be written, or a process ends early. What was finished of `parts` stays.
    """
    parts.mkdir(parents=True, exist_ok=True)
    count = 0

    def counted() -> Iterator[str]:
        nonlocal count
        for story in training:
            count += 1
            yield story

    files.write(parts / "tokenizer.json", tokenizer.to_str())  # whole: a later start takes it
    paths = _write_chunks(parts, tokenizer, chain(counted(), test), _Progress(training, test))
    with (folder / "tokens.bin").open("wb") as file:
        file.write(np.array([end_of(tokenizer)], dtype_of(tokenizer)).tobytes())
        for path in paths:
            with path.open("rb") as chunk:
                shutil.copyfileobj(chunk, file, 2**22)
    last = count - held[1]  # of training and validation
    bounds = [0, last - held[0], last]
    (folder / "splits.json").write_bytes(msgspec.json.encode(_splits(paths, bounds)))
    shutil.copy(parts / "tokenizer.json", folder / "tokenizer.json")


class _Progress:
    """How far tokenizing is: by stories where their number is known, else by bytes."""

    def __init__(self, *sources: Any):
        self._by_stories = all(hasattr(source, "__len__") for source in sources)
        total = sum(len(source) if self._by_stories else getattr(source, "size", 0) / 1e6 for source in sources)
        self._stage = display.stage("tokenizing", total or None, "stories" if self._by_stories else "MB")
        self._bytes, self._start = 0, time.perf_counter()

    def __enter__(self) -> "_Progress":
        self._shown = self._stage.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stage.__exit__(*error)

    def skip(self, stories: int, size: int) -> None:
        """So much was done before."""
        self._shown.advance(stories if self._by_stories else size / 1e6)

    def told(self, stories: int, size: int) -> None:
        """So much more is done."""
        self._bytes += size
        rate = self._bytes / 1e6 / (time.perf_counter() - self._start)
        self._shown.advance(stories if self._by_stories else size / 1e6, f"{rate:.1f} MB/s")


def _write_chunks(parts: Path, tokenizer: Any, stories: Iterator[str], progress: _Progress) -> list[Path]:
    """The files of all chunks; those that are there, whole, are not made again."""
    dtype, paths = dtype_of(tokenizer), []
    with progress, _Encoders(parts / "tokenizer.json", end_of(tokenizer), dtype, progress) as encoders:
        for number, batches in enumerate(_chunks(stories)):
            path = parts / f"{number:06d}.bin"
            paths.append(path)
            if (sizes := _whole(path, dtype)) is not None:
                for _ in batches:
                    pass
                progress.skip(*sizes)
            elif number == 0:  # a small text needs no further process; the tokenizer has threads of its own
                encoder.write_chunk(path, tokenizer, end_of(tokenizer), dtype, batches, progress.told)
            else:
                encoders.write(path, batches)
    return paths


def _chunks(stories: Iterator[str]) -> Iterator[Iterator[list[str]]]:
    """The stories in chunks of batches. Each chunk has to be read to its end before the next."""
    batches = _batches(stories)

    def chunk(first: list[str]) -> Iterator[list[str]]:
        size, batch = 0, first
        while True:
            yield batch
            size += sum(map(len, batch))
            if size >= _CHUNK or not (batch := next(batches, [])):
                return

    while first := next(batches, []):
        yield chunk(first)


def _batches(stories: Iterator[str]) -> Iterator[list[str]]:
    batch, letters = [], 0
    for story in stories:
        batch.append(story)
        letters += len(story)
        if len(batch) == _BATCH or letters >= _LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch


def _whole(path: Path, dtype: str) -> tuple[int, int] | None:
    """Stories and bytes of a chunk that was finished; None where it was not."""
    try:
        sizes = np.load(path.with_suffix(".npy"))
        if path.stat().st_size == sizes[:, 0].sum() * np.dtype(dtype).itemsize:
            return len(sizes), int(sizes[:, 1].sum())
    except (OSError, ValueError, EOFError):
        pass
    return None


def _splits(paths: list[Path], bounds: list[int]) -> list[dict[str, int]]:
    """What each part of the stream has: stories, its first token and that behind its last, and bytes.

    Parts begin with the stories of these numbers; the last ends with the stream.
    """
    story, before = 0, np.zeros(2, np.int64)
    places = {}  # tokens and bytes before a story
    for path in paths:
        sizes = np.load(path.with_suffix(".npy"))
        for bound in bounds:
            if story <= bound <= story + len(sizes):
                places[bound] = before + sizes[: bound - story].sum(axis=0)
        story, before = story + len(sizes), before + sizes.sum(axis=0)
    ends = [*(places[bound].tolist() for bound in bounds), before.tolist()]
    return [
        {"stories": last - first, "start": start[0], "end": end[0], "bytes": end[1] - start[1]}
        for (first, last), (start, end) in zip(pairwise([*bounds, story]), pairwise(ends), strict=True)
    ]


class _Encoders:
    """Processes that encode chunks; they are started when the first chunk comes, and end with the block."""

    def __init__(self, tokenizer: Path, end: int, dtype: str, progress: _Progress):
        program = Path(encoder.__file__)
        self._command = [sys.executable, "-P", str(program), str(tokenizer), str(end), dtype]
        self._progress, self._lines, self._parts = progress, queue.SimpleQueue(), tokenizer.parent
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "_Encoders":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            while kind is None and len(self._idle) < len(self._all):
                self._listen()
        finally:
            for process in self._all:
                process.kill()
                process.wait()
                with suppress(OSError):  # what was left to write
                    _pipe(process.stdin).close()

    def write(self, path: Path, batches: Iterator[list[str]]) -> None:
        """Gives a chunk to a process that has nothing to do; waits for one."""
        if not self._all:
            self._start()
        while not self._idle:
            self._listen()
        process = self._idle.pop()
        try:
            for value in chain([str(path)], batches, [[]]):
                _pipe(process.stdin).write(encoder.framed(value))
            _pipe(process.stdin).flush()
        except BrokenPipeError:
            self._idle.clear()
            while True:  # it has said why, or has ended
                self._listen()

    def _start(self) -> None:
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for _ in range(min(cores, _MOST_PROCESSES)):
            # Ctrl-C in a terminal is for the process that feeds them alone.
            group = 0 if os.name == "posix" else None
            process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=group
            )
            self._all.append(process)
            self._idle.append(process)
            threading.Thread(target=self._hear, args=(process,), daemon=True).start()

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        with _pipe(process.stdout) as lines:
            for line in lines:
                self._lines.put((process, line.decode()))
        self._lines.put((process, ""))

    def _listen(self) -> None:
        """Waits for a line of any process."""
        process, line = self._lines.get()
        if found := re.fullmatch(r"(\d+) (\d+)\n", line):
            self._progress.told(int(found[1]), int(found[2]))
        elif line == "done\n":
            self._idle.append(process)
        elif found := re.fullmatch(r"failed (\d+)\n", line):
            number = int(found[1]) or errno.EIO
            raise OSError(number, os.strerror(number), str(self._parts))
        else:
            raise ChildProcessError(errno.ECHILD, f"a process that tokenizes ended early, with {process.wait()}")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
