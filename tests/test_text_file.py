"""Text files read in pieces: the same stories as of the whole text at once, in little memory, and checksums."""

import hashlib
import os
import re
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sqs_jax.messages import InputError
from sqs_jax.train.text import text_file
from sqs_jax.train.text.text_file import END_OF_TEXT, SEPARATORS, StoriesOf, text_checksum


def parted(content: str, separator: str) -> list[str]:
    """The stories of a text that is in memory."""
    content = content.replace("\r\n", "\n").strip()
    if separator == "auto":
        separator = next((name for name, pattern in SEPARATORS.items() if re.search(pattern, content)), "newline")
    parts = [part.replace(END_OF_TEXT, "").strip() for part in re.split(SEPARATORS[separator], content)]
    return [part for part in parts if part]


PARTS = st.sampled_from(
    ["a", "ä", "bc d", "\n", "\n\n", "\r\n", "\r", " ", "\t", "  \n", END_OF_TEXT, "<|endof", "text|>"]
)


@given(
    st.lists(PARTS, min_size=1, max_size=30).map("".join), st.sampled_from(["auto", *SEPARATORS]), st.integers(1, 40)
)
@example("a\n\nabcdefghijklm\n" + "b" * 30, "auto", 5)
@example("\n\na\nb\nc\n\n\n", "newline", 1)
@example("a" * 50 + "\n \t \n" + "b" * 50, "auto", 3)
def test_pieces_of_any_size_give_the_stories_of_the_whole(tmp_path_factory, content, separator, piece):
    path = tmp_path_factory.getbasetemp() / "text.txt"
    path.write_bytes(content.encode())
    whole, text_file._PIECE = text_file._PIECE, piece
    try:
        stories = StoriesOf(path, separator)
        assert list(stories) == parted(content, separator)
        assert len(stories) == len(list(stories))
    finally:
        text_file._PIECE = whole


def test_a_checksum_is_that_of_the_text_and_is_remembered(tmp_path, monkeypatch):
    path, cache = tmp_path / "text.txt", tmp_path / "cache"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo")  # with a byte order mark
    expected = hashlib.sha256(b"one\r\n\r\ntwo").hexdigest()
    assert text_checksum(path, cache) == expected
    assert not list(cache.glob("checksums/*"))  # just written: it may change again
    os.utime(path, (1e9, 1e9))
    assert text_checksum(path, cache) == expected
    with monkeypatch.context() as patched:
        patched.setattr(text_file, "_pieces", lambda _: pytest.fail("read again"))
        assert text_checksum(path, cache) == expected
    path.write_bytes(b"one\n\nsix")
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert text_checksum(path, cache) == hashlib.sha256(b"one\n\nsix").hexdigest()
    (record,) = cache.glob("checksums/*.json")
    record.write_text("{")
    assert text_checksum(path, cache) == hashlib.sha256(b"one\n\nsix").hexdigest()


def test_the_place_of_a_wrong_byte_is_told(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes("ä".encode() * 1000 + b"\xff" + b"a" * 100)
    for piece in (1, 7, 2**20):
        monkeypatch.setattr(text_file, "_PIECE", piece)
        with pytest.raises(InputError, match="not UTF-8, byte 0xff at 2000"):
            text_checksum(path, tmp_path / "cache")


_PEAK = """
import pathlib, resource, sys
from sqs_jax.train.text.text_file import StoriesOf, text_checksum
path = pathlib.Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
text_checksum(path, path.parent / "cache")
count = len(StoriesOf(path, "auto"))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_large_file_takes_little_memory(tmp_path):
    path = tmp_path / "large.txt"
    story = ("A story of some length. " * 40).strip() + "\n\n"
    with path.open("w") as file:
        for _ in range(300):
            file.write(story * 500)
    size = path.stat().st_size
    assert size > 120 * 2**20
    command = [sys.executable, "-c", _PEAK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, peak = map(int, done.stdout.split())
    assert count == 150_000
    assert peak < size / 2
