"""Stories to tokens, a chunk at a time: a function, and a program for a process of its own.

The program imports nothing of this package, so that it starts at once and stays small:

    python -P encoder.py TOKENIZER END DTYPE

It reads frames from its input: eight bytes of length, and so many of MessagePack. The first of a chunk is the path of
its file, those that follow are lists of stories, and an empty list ends it. It answers with a line for each batch,
stories and bytes; with `done` for each chunk, and with `failed` and the number of an error. It ends where its input
does.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np


def write_chunk(
    path: Path, tokenizer: Any, end: int, dtype: str, batches: Iterable[list[str]], told: Callable[[int, int], None]
) -> None:
    """Writes `path`, the tokens of stories with `end` behind each, and beside it `.npy`, their sizes.

    Sizes are int64 (stories, 2): tokens and UTF-8 bytes of each, with its end. `path` appears last, and whole. `told`
    hears how many stories and bytes each batch had.
    """
    partial, sizes = path.with_suffix(".partial"), []
    with partial.open("wb") as file:
        for batch in batches:
            encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
            rows = [(len(code.ids) + 1, len(story.encode()) + 1) for story, code in zip(batch, encodings, strict=True)]
            file.write(np.concatenate([np.array([*code.ids, end], dtype) for code in encodings]).tobytes())
            sizes.append(np.array(rows, np.int64))
            told(len(rows), int(sizes[-1][:, 1].sum()))
    np.save(path.with_suffix(".npy"), np.concatenate(sizes))
    partial.replace(path)


def framed(value: Any) -> bytes:
    """A value as a frame."""
    content = msgspec.msgpack.encode(value)
    return len(content).to_bytes(8, "little") + content


def _frames(stream: IO[bytes]) -> Iterator[Any]:
    while len(head := stream.read(8)) == 8:
        size = int.from_bytes(head, "little")
        if len(content := stream.read(size)) < size:
            return
        yield msgspec.msgpack.decode(content)


def _main(tokenizer_path: str, end: str, dtype: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_path)
    tokenizer.encode_special_tokens = True

    def say(*words: Any) -> None:
        print(*words, flush=True)

    frames = _frames(sys.stdin.buffer)
    for path in frames:
        batches = []
        for batch in frames:  # all of the chunk, so that the next process is fed meanwhile
            if not batch:
                break
            batches.append(batch)
        else:
            return
        try:
            write_chunk(Path(path), tokenizer, int(end), dtype, batches, say)
        except OSError as error:
            say("failed", error.errno or 0)
            return
        say("done")


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except BrokenPipeError:  # who fed it is gone
        os._exit(0)
