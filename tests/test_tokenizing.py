"""A text is tokenized in chunks, by several processes, and from where it was left: the stream is always the same."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer

from sqs_jax.train import PRESETS, InputError
from sqs_jax.train.text import token_stream, tokenizing
from sqs_jax.train.text.embedded_stories import stories
from sqs_jax.train.text.tokenizer import decode, end_of

CONFIG = dataclasses.replace(PRESETS["text"], vocab=300, validation=5, test=70, separator="endoftext")
ROOT = Path(__file__).parent.parent
STORIES = [story for i in range(5) for story in (*stories(60, seed=i), f"Ünique {i} 狐狸", "x")]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    os.utime(path, (10**9, 10**9))
    return path


def load(text, cache, **changes):
    return token_stream.load_text(dataclasses.replace(CONFIG, text=str(text), **changes), cache_dir=cache)


def check(found, expected=STORIES):
    """The three parts, against the tokens of each story by itself."""
    bounds = [0, len(expected) - 75, len(expected) - 70, len(expected)]
    end = end_of(found.tokenizer)
    for part, first, last in zip((found.train, found.validation, found.test), bounds, bounds[1:], strict=False):
        tokens = [end]
        for story in expected[first:last]:
            tokens += [*found.tokenizer.encode(story, add_special_tokens=False).ids, end]
        np.testing.assert_array_equal(part.tokens, tokens)
        assert part.stories == last - first
        assert part.bytes == sum(len(story.encode()) + 1 for story in expected[first:last])


@pytest.fixture
def small(monkeypatch):
    """Chunks so small that a text has many, and that held-out stories lie over several."""
    monkeypatch.setattr(tokenizing, "_CHUNK", 20_000)
    monkeypatch.setattr(tokenizing, "_BATCH", 7)


def test_one_chunk_and_many_give_the_stories_tokens(text, tmp_path, small):
    found = load(text, tmp_path / "cache")
    check(found)
    (folder,) = (tmp_path / "cache" / "text").glob("*[0-9a-f]")
    assert sorted(path.name for path in folder.iterdir()) == ["splits.json", "tokenizer.json", "tokens.bin"]
    assert not list((tmp_path / "cache" / "text").glob("*.parts"))


def test_what_is_left_is_gone_on_with(text, tmp_path, small, monkeypatch):
    made = []
    monkeypatch.setattr(tokenizing._Encoders, "write", lambda self, path, batches: stop(path))

    def stop(path):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(text, tmp_path / "cache")
    monkeypatch.undo()
    (parts,) = (tmp_path / "cache" / "text").glob("*.parts")
    assert (parts / "000000.bin").is_file()
    trained = (parts / "tokenizer.json").read_text()
    monkeypatch.setattr(tokenizing, "_CHUNK", 20_000)
    monkeypatch.setattr(tokenizing, "_BATCH", 7)
    encode = tokenizing.encoder.write_chunk
    monkeypatch.setattr(tokenizing.encoder, "write_chunk", lambda path, *rest: made.append(path) or encode(path, *rest))
    monkeypatch.setattr(token_stream, "train_tokenizer", lambda *_: pytest.fail("trained again"))
    found = load(text, tmp_path / "cache")
    check(found)
    assert not made  # the first chunk was there
    assert found.tokenizer.to_str() == Tokenizer.from_str(trained).to_str()


def test_a_chunk_that_is_damaged_is_made_again(text, tmp_path, small, monkeypatch):
    kept = tmp_path / "kept"
    monkeypatch.setattr(token_stream.files, "remove", lambda path: path.rename(kept))
    load(text, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "text").glob("*[0-9a-f]")
    expected = (folder / "tokens.bin").read_bytes()
    paths = sorted(kept.glob("*.bin"))
    assert len(paths) > 4
    paths[0].write_bytes(paths[0].read_bytes()[:-2])
    paths[1].with_suffix(".npy").write_bytes(b"")
    paths[2].unlink()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    kept.rename(folder.with_name(folder.name + ".parts"))
    check(load(text, tmp_path / "cache"))
    assert (folder / "tokens.bin").read_bytes() == expected


_PROGRAM = """
import sys
from pathlib import Path
from sqs_jax.train.text import tokenizing
from tests.test_tokenizing import load
tokenizing._CHUNK, tokenizing._BATCH = 20_000, 7
load(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("who", ["all", "one"])
def test_processes_that_are_killed_leave_nothing_that_runs(text, tmp_path, who):
    big = tmp_path / "big.txt"
    big.write_text("\n<|endoftext|>\n".join(STORIES * 40), encoding="utf-8")
    command = [sys.executable, "-c", _PROGRAM, str(big), str(tmp_path / "cache")]
    begun = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    encoders, deadline = [], time.monotonic() + 60
    while not encoders and begun.poll() is None and time.monotonic() < deadline:
        encoders = psutil.Process(begun.pid).children()
        time.sleep(0.01)
    time.sleep(0.3)
    assert encoders
    victim = begun.pid if who == "all" else encoders[0].pid
    os.kill(victim, signal.SIGKILL)
    _, stderr = begun.communicate(timeout=30)
    if who == "one":
        assert "a process that tokenizes ended early, with -9" in stderr
    _, alive = psutil.wait_procs(encoders, timeout=10)
    assert not alive
    (parts,) = (tmp_path / "cache" / "text").glob("*.parts")
    assert list(parts.glob("*.bin"))
    assert not list((tmp_path / "cache" / "text").glob("*[0-9a-f]"))
    subprocess.run(command, check=True, cwd=ROOT)
    check(load(big, tmp_path / "cache"), STORIES * 40)


def test_what_a_process_cannot_write_is_that_error(text, tmp_path):
    program = _PROGRAM.replace("20_000, 7", "2_000, 7")
    # The processes may not write as much as a chunk has; the command itself may.
    limited = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
start = tokenizing._Encoders._start
def limited(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    start(self)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
tokenizing._Encoders._start = limited
load("""
    command = [sys.executable, "-c", program.replace("load(", limited, 1)]
    done = subprocess.run(
        [*command, str(text), str(tmp_path / "cache")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stderr.count("Traceback") == 1
    assert "in _listen" in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]


def test_what_a_killed_process_left_behind_a_finished_text_is_removed(text, tmp_path):
    load(text, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "text").glob("*[0-9a-f]")
    left = [folder.with_name(f"{folder.name}.parts"), folder.with_name(f".{folder.name}.parts.{'0' * 16}.partial")]
    for path in left:
        path.mkdir()
        (path / "000000.bin").write_bytes(b"x")
        check(load(text, tmp_path / "cache"))
        assert not path.exists()


def test_a_tokenizer_that_cuts_or_fills_does_neither(text, tmp_path):
    own = load(text, tmp_path / "cache").tokenizer
    own.enable_truncation(4)
    own.enable_padding(length=50)
    path = tmp_path / "tokenizer.json"
    own.save(str(path))
    check(load(text, tmp_path / "cache", tokenizer=str(path)))


def test_many_tokens_are_stored_in_four_bytes(text, tmp_path):
    from tokenizers import AddedToken

    many = load(text, tmp_path / "cache").tokenizer
    many.add_tokens([AddedToken(f"<{i}>", special=True) for i in range(70_000)])
    many.add_tokens(["fox"])
    path = tmp_path / "tokenizer.json"
    many.save(str(path))
    found = load(text, tmp_path / "cache", tokenizer=str(path))
    assert found.train.tokens.dtype == np.uint32
    check(found)
    assert (np.asarray(found.train.tokens) == many.token_to_id("fox")).any()


def test_an_end_may_be_any_token(text, tmp_path):
    own = json.loads(load(text, tmp_path / "cache").tokenizer.to_str())
    vocab = own["model"]["vocab"]
    moved = {name: (token - 1) % len(vocab) for name, token in vocab.items()}
    own["model"]["vocab"] = moved
    own["added_tokens"][0]["id"] = len(vocab) - 1
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(own))
    found = load(text, tmp_path / "cache", tokenizer=str(path))
    assert end_of(found.tokenizer) == len(vocab) - 1
    check(found)
    assert decode(found.tokenizer, found.validation.tokens) == "".join(STORIES[-75:-70])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda own: own["added_tokens"].clear() or own["model"]["vocab"].pop("<|endoftext|>"),
            "has no token <|endoft",
        ),
        (lambda own: own["model"]["vocab"].update({"▁the": len(own["model"]["vocab"])}), "is not byte-level: '▁the'"),
        (lambda own: own.update(decoder=None), "is not byte-level"),
        (lambda own: own["model"]["vocab"].update({"zz": own["model"]["vocab"].pop("Z")}), "for the byte 0x5a"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_named(text, tmp_path, change, message):
    own = json.loads(load(text, tmp_path / "cache").tokenizer.to_str())
    change(own)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(own))
    with pytest.raises(InputError, match=r"tokenizer\.json") as error:
        load(text, tmp_path / "cache", tokenizer=str(path))
    assert message in str(error.value)
