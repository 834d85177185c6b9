import dataclasses
import hashlib
import re
import sys
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqs_jax.pretrained.vocabulary import token_bytes_of
from sqs_jax.train import PRESETS, InputError
from sqs_jax.train.text import token_stream as text
from sqs_jax.train.text.corpus import read_stories
from sqs_jax.train.text.embedded_stories import stories
from sqs_jax.train.text.order import batch_numbers, permuted
from sqs_jax.train.text.tokenizer import decode, encode, end_of, read_tokenizer

SMALL = dataclasses.replace(PRESETS["text"], vocab=300, validation=1, test=1)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return text.load_text(PRESETS["stories"], cache_dir=tmp_path_factory.mktemp("cache"))


def load(tmp_path, content, **changes):
    path = tmp_path / "text.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = dataclasses.replace(SMALL, text=str(path), **changes)
    return text.load_text(config, cache_dir=tmp_path / "cache")


def test_the_embedded_stories_are_always_the_same():
    result = stories()
    content = "\n".join(result)
    assert hashlib.sha256(content.encode()).hexdigest().startswith("eae83034387dae5a")
    assert 200_000 < len(content) < 230_000
    assert len(set(result)) == len(result)
    assert stories(5) == result[:5]
    assert stories(5, seed=1) != result[:5]
    with pytest.raises(ValueError, match="`count` is 0"):
        stories(0)


def test_the_embedded_stories_keep_to_the_grammar():
    for story in stories():
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|  ", story), story
        for sentence in re.split(r"(?<=[.])[\s\"]+", story):
            assert not sentence or sentence[0] == '"' or sentence[0].isupper(), sentence
        assert story.count('"') % 2 == 0
        pronouns = {"he", "He", "she", "She"} & set(re.findall(r"\w+", story.split("\n\n")[0]))
        assert len({word.lower() for word in pronouns}) <= 1, story


def test_a_text_goes_through_the_tokenizer_and_back(embedded):
    for story in stories()[::40]:
        tokens = encode(embedded.tokenizer, story)
        assert tokens[0] == 0
        assert len(tokens) < len(story) / 2
        assert decode(embedded.tokenizer, tokens) == story


@given(st.text())
def test_so_does_any_other(embedded, content):
    if "<|endoftext|>" not in content:
        assert decode(embedded.tokenizer, encode(embedded.tokenizer, content)) == content


def test_tokens_are_bytes_put_together(embedded):
    story = "Лиса, 狐狸 & ñandú\n"
    spelled = token_bytes_of(embedded.tokenizer)
    assert b"".join(spelled[token] for token in embedded.tokenizer.encode(story).ids) == story.encode()
    assert spelled[end_of(embedded.tokenizer)] == b"<|endoftext|>"


def test_the_stream_holds_every_story_once_and_in_order(embedded):
    expected = stories()
    parts = (embedded.train, embedded.validation, embedded.test)
    assert [part.stories for part in parts] == [290, 30, 40]
    result = []
    for part in parts:
        assert part.tokens.dtype == np.uint16
        assert isinstance(part.tokens, np.memmap)
        assert part.tokens[0] == part.tokens[-1] == 0
        ends = np.flatnonzero(part.tokens == 0)
        for start, end in pairwise(ends):
            result.append(decode(embedded.tokenizer, part.tokens[start:end]))
    assert result == expected
    assert sum(part.bytes for part in parts) == sum(len(story.encode()) + 1 for story in expected)


@pytest.mark.parametrize("context", [7, 64, 100_000])
def test_windows_lose_and_repeat_nothing(embedded, context):
    stream = embedded.validation
    count = text.count_windows(stream, context)
    inputs, targets = text.windows(stream, context, np.arange(count))
    assert inputs.shape == targets.shape == (count, context)
    np.testing.assert_array_equal(targets[targets >= 0], stream.tokens[1:])
    np.testing.assert_array_equal(inputs[targets >= 0], stream.tokens[:-1])
    assert np.all(text.windows(stream, context, np.array([-1]))[1] == -1)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_an_order_is_a_permutation(count):
    places = np.arange(count)
    assert sorted(permuted(places, count, 0, 0)) == places.tolist()
    np.testing.assert_array_equal(permuted(places[::-2], count, 0, 0), permuted(places, count, 0, 0)[::-2])


def test_orders_have_no_pattern():
    # Of 7 places each is taken to each by one seed in seven: chi-square of 36 degrees of freedom, p = 1e-6 at 88.
    counts = np.zeros((7, 7))
    for seed in range(7000):
        counts[np.arange(7), permuted(np.arange(7), 7, seed, 0)] += 1
    assert ((counts - 1000) ** 2 / 1000).sum() < 88
    order = permuted(np.arange(100_000), 100_000, 3, 1)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02


def test_an_order_of_many_windows_takes_no_memory():
    tracemalloc.start()
    numbers = batch_numbers(10**9, 64, 2**40, seed=0)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert len(set(numbers.tolist())) == 64
    assert numbers.max() < 2**40


@pytest.mark.parametrize(("batch", "count"), [(4, 10), (16, 10), (5, 5), (3, 1)])
def test_each_epoch_takes_every_window_once(batch, count):
    steps = 3 * count
    taken = np.concatenate([batch_numbers(step, batch, count, seed=1) for step in range(steps)])
    epochs = taken[: len(taken) // count * count].reshape(-1, count)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(count), epochs.shape))
    if count > 5:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(epochs[0], batch_numbers(0, count, count, seed=2))
    np.testing.assert_array_equal(batch_numbers(2, batch, count, seed=1), taken[2 * batch : 3 * batch])


def test_held_out_stories_are_the_last_and_train_no_tokenizer(tmp_path):
    content = "\n\n".join(["aaaa bbbb"] * 50 + ["zqzqzqzq zqzqzqzq"] * 2)
    result = load(tmp_path, content, vocab=262)
    assert decode(result.tokenizer, result.test.tokens) == "zqzqzqzq zqzqzqzq"
    assert not [token for token in result.tokenizer.get_vocab() if "zq" in token]
    assert result.train.stories == 50


@pytest.mark.parametrize(
    ("content", "separator", "expected"),
    [
        ("a b\n\nc\n<|endoftext|>\nd<|endoftext|>e\n", "auto", ["a b\n\nc", "d", "e"]),
        ("a\nb\n \nc\r\n\r\nd", "auto", ["a\nb", "c", "d"]),
        ("a\n\nb\nc\n\n\nd\ne", "newline", ["a\n\nb", "c\n\n\nd", "e"]),
        ("a\nb\nc", "auto", ["a", "b", "c"]),
        ("\n\na\nb\nc\n\n\n", "auto", ["a", "b", "c"]),
        ("a\n\nb<|endoftext|>\n\nc", "blank_line", ["a", "b", "c"]),
    ],
)
def test_separators(tmp_path, content, separator, expected):
    result = load(tmp_path, content, separator=separator)
    parts = [decode(result.tokenizer, getattr(result, name).tokens) for name in ("train", "validation", "test")]
    assert parts == expected


def test_a_text_is_known_by_its_content(tmp_path, capsys):
    first = load(tmp_path, "a\n\nb\n\nc")
    assert "tokenizing" in capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    again = dataclasses.replace(SMALL, text=str(tmp_path / "elsewhere" / "text.txt"))
    (tmp_path / "elsewhere" / "text.txt").write_text("a\n\nb\n\nc")
    assert text.load_text(again, cache_dir=tmp_path / "cache").sha256 == first.sha256
    assert capsys.readouterr().out == ""
    for changes in ({"content": "a\n\nb\n\nd"}, {"content": "a\n\nb\n\nc", "vocab": 400}):
        assert load(tmp_path, changes.pop("content"), **changes).sha256 != first.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b" \n\n \n", "it is empty"),
        (b"good\n\n\xff\xfe bad", "not UTF-8, byte 0xff at 6"),
        (b"one\n\ntwo", "has 2 stories, and `validation` and `test` hold 2 of them out"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, content)
    assert "text.txt" in str(error.value)
    assert not list((tmp_path / "cache").glob("text/*[0-9a-f]"))


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path, message in ((tmp_path / "none.txt", "No such file"), (tmp_path, r"a file that ends in .txt")):
        with pytest.raises(InputError, match=message):
            text.load_text(dataclasses.replace(SMALL, text=str(path)), cache_dir=tmp_path / "cache")


def tinystories(folder, train, valid):
    folder.mkdir(parents=True)
    (folder / "TinyStories-train.txt").write_bytes(train)
    (folder / "TinyStories-valid.txt").write_bytes(valid)


def test_tinystories_from_its_original_files(original_files, tmp_path, capfd):
    sample = (original_files / "tinystories" / "tinystories_sample.txt").read_bytes()
    tinystories(tmp_path / "data" / "tinystories", sample, sample[:1200])
    config = dataclasses.replace(PRESETS["tinystories"], vocab=300, validation=2)
    result = text.load_text(config, tmp_path / "data", tmp_path / "cache")
    assert [part.stories for part in (result.train, result.validation, result.test)] == [3, 2, 2]
    first = decode(result.tokenizer, result.train.tokens[: np.flatnonzero(result.train.tokens == 0)[1]])
    assert first == sample.decode().split("<|endoftext|>")[0].strip()
    assert first.startswith("Once upon a time there was a little boy named Ben.")
    assert "tensorflow" not in sys.modules
    # A text is what its stories are, whatever stands between them.
    tinystories(tmp_path / "same", b"\n\n" + sample + b"<|endoftext|>\n", sample[:1200])
    assert text.load_text(config, tmp_path / "same", tmp_path / "cache").sha256 == result.sha256
    # Other files under the same names are another text.
    tinystories(tmp_path / "other", sample[:2500], sample[:1200])
    assert text.load_text(config, tmp_path / "other", tmp_path / "cache").train.stories < 3


def test_tinystories_that_cannot_be_had_says_what_to_do(tmp_path):
    tinystories(tmp_path / "data", b"a<|endoftext|>b", b"\xff")
    config = dataclasses.replace(PRESETS["tinystories"], vocab=300, validation=0)
    with pytest.raises(InputError, match=r"TinyStories-valid.txt is not UTF-8"):
        text.load_text(config, tmp_path / "data", tmp_path / "cache")
    (tmp_path / "data" / "TinyStories-valid.txt").write_text(" \n<|endoftext|>\n")
    with pytest.raises(InputError, match=r"TinyStories-valid.txt is empty"):
        text.load_text(config, tmp_path / "data", tmp_path / "cache")
    (tmp_path / "data" / "TinyStories-valid.txt").unlink()
    with pytest.raises(InputError, match=r"put TinyStories-valid.txt into DIR/tinystories/ and pass --data-dir DIR"):
        text.load_text(config, tmp_path / "data", tmp_path / "cache")
    with pytest.raises(InputError, match="no such folder"):
        text.load_text(config, tmp_path / "typo", tmp_path / "cache")


def test_stories_are_read_in_pieces(tmp_path):
    path = tmp_path / "long.txt"
    expected = [f"story {i} " + "ä" * 5000 for i in range(500)]
    path.write_text("\n<|endoftext|>\n".join(expected), encoding="utf-8")
    assert path.stat().st_size > 4 * 2**20
    assert list(read_stories(path)) == expected


def test_a_literal_end_in_a_text_or_prompt_is_text(tmp_path):
    stories = "One story.\n\nAnother <|endo<|endoftext|>ftext|> one.\n\nThe third.\n\nThe last."
    result = load(tmp_path, stories, separator="blank_line")
    assert np.sum(result.train.tokens == 0) == result.train.stories + 1
    said = "about <|endoftext|> tokens"
    tokens = encode(result.tokenizer, said)
    assert tokens.count(0) == 1
    assert decode(result.tokenizer, tokens) == said
    (tmp_path / "tokenizer.json").write_text(result.tokenizer.to_str())
    assert encode(read_tokenizer(tmp_path / "tokenizer.json"), said) == tokens


@pytest.mark.parametrize("word", ["a" * 200_000, " " * 200_000, "ab" * 60_000 + " \t" * 60_000])
def test_a_word_of_any_length_is_cut_and_comes_back(word, tmp_path):
    # Training and encoding are quadratic in what a word has: minutes, were it not cut.
    result = load(tmp_path, f"One.\n\nx{word}y\n\nTwo.\n\nThree.", separator="blank_line")
    pieces = result.tokenizer.pre_tokenizer.pre_tokenize_str(word)
    assert max(len(piece) for piece, _ in pieces) <= 130
    assert decode(result.tokenizer, result.train.tokens) == f"One.x{word}y"


def test_the_cut_of_words_changes_no_usual_text(embedded):
    from tokenizers import Tokenizer, pre_tokenizers

    plain = Tokenizer.from_str(embedded.tokenizer.to_str())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    for story in (*stories(20), "x" * 128, "  two  blanks\n\n\ttab", "σλ" * 30):
        assert plain.encode(story).ids == embedded.tokenizer.encode(story).ids
