"""Text files read in pieces: the same stories as of the whole text at once, in little memory, and checksums."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sqs_jax.messages import InputError
from sqs_jax.train import PRESETS
from sqs_jax.train.presets import name_of_text
from sqs_jax.train.text import text_file
from sqs_jax.train.text.text_file import END_OF_TEXT, SEPARATORS, StoriesOf, files_of, text_checksum
from sqs_jax.train.text.token_stream import load_text
from sqs_jax.train.text.tokenizer import decode


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
        stories = StoriesOf([path], separator)
        assert list(stories) == parted(content, separator)
        assert list(stories) == parted(content, separator)  # again
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
count = sum(1 for _ in StoriesOf([path], "auto"))
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


def test_folders_and_patterns_name_their_texts(tmp_path):
    for name, content in {"b.txt": "b", "a.jsonl": "{}", "below/c.parquet": "", "d.csv": "", ".e.txt": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    names = [path.relative_to(tmp_path).as_posix() for path in files_of(tmp_path)]
    assert names == ["a.jsonl", "b.txt", "below/c.parquet"]
    assert files_of(tmp_path / "*.txt") == [tmp_path / "b.txt"]
    assert files_of(tmp_path / "**" / "*.parquet") == [tmp_path / "below" / "c.parquet"]
    assert files_of(tmp_path / "d.csv") == [tmp_path / "d.csv"]
    assert files_of(tmp_path / "none") == [tmp_path / "none"]  # that it is not there is said where it is read
    with pytest.raises(InputError, match="no file fits the pattern"):
        files_of(tmp_path / "*.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a file that ends in .txt, .jsonl, .parquet is needed below it"):
        files_of(tmp_path / "empty")
    names = [name_of_text(str(tmp_path / name)) for name in ("b.txt", "below", "below/*.parquet", "below/**/*.txt")]
    assert names == ["b", "below", "below", "below"]


def test_records_are_stories(tmp_path):
    records = ["One\n\nstory.", "", "Another <|endoftext|>one.", "ä" * 3000]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(records)) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": records, "id": range(4)}), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("First.\n\nSecond.")
    expected = ["One\n\nstory.", "Another one.", "ä" * 3000]
    for piece in (7, 2**20):
        whole, text_file._PIECE = text_file._PIECE, piece
        try:
            assert list(StoriesOf(files_of(tmp_path), "auto")) == [*expected, *expected, "First.", "Second."]
        finally:
            text_file._PIECE = whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', "line 2: Object missing required field `text`"),
        ("a.jsonl", '{"text": 3}', "line 1: Expected `str`, got `int`"),
        ("a.jsonl", "text", "line 1: JSON is malformed"),
        ("a.parquet", "no parquet", "a.parquet: Parquet"),
        ("b.parquet", None, "a column `text` of strings is needed, it has story"),
    ],
)
def test_records_without_a_text_are_named(name, content, message, tmp_path):
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"story": ["a"]}), tmp_path / name)
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        list(StoriesOf([tmp_path / name], "auto"))


def test_a_folder_of_texts_is_trained_on(tmp_path):
    (tmp_path / "texts").mkdir()
    for name, text in (("a", "One.\n\nTwo.\n\nThree."), ("b", "Four.\n\nFive.")):
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    config = dataclasses.replace(PRESETS["text"], vocab=300, validation=1, test=1, text=str(tmp_path / "texts"))
    text = load_text(config, cache_dir=tmp_path / "cache")
    assert [part.stories for part in (text.train, text.validation, text.test)] == [3, 1, 1]
    assert decode(text.tokenizer, text.test.tokens) == "Five."
    (tmp_path / "texts" / "b.txt").rename(tmp_path / "texts" / "0.txt")  # another order is another text
    assert load_text(config, cache_dir=tmp_path / "cache").sha256 != text.sha256
