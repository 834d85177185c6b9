"""Flags from dataclasses: every kind of value, what is not understood, and help that shows the defaults."""

import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from sqs_jax.command_line import given, read
from sqs_jax.messages import InputError
from sqs_jax.options import Range, check_options, option
from sqs_jax.train.config import ImageConfig, TextConfig


@dataclasses.dataclass(frozen=True)
class Example:
    """What a command takes."""

    folder: Path = option(help="Where.", positional=True)
    count: int = option(3, "How many, 50% of them.", Range(1, 10))
    rate: float | None = option(None, "How fast.")
    kind: Literal["a", "b"] = option("a", "Which.")
    loud: bool = option(True, "Whether.")
    sizes: tuple[int, ...] = option((), "Sizes.")
    dry_run: bool = option(False, "Whether to do nothing.")


@dataclasses.dataclass(frozen=True)
class Many:
    """Several words without a flag."""

    paths: tuple[Path, ...] = option(help="Which files.", positional=True)
    out: Path = option(Path("out"), "Where to.")


@dataclasses.dataclass(frozen=True)
class Named:
    """One text, see arXiv 2509.01874. More of it."""

    name: str = option("", "Any text.")


def parsed(line: str, kind=Example):
    return read(kind, line.split(), prog="example")


def test_every_kind_of_value_is_read():
    assert parsed("x") == Example(Path("x"))
    line = "--count 5 --rate=-0.5 x --kind b --no-loud --sizes 1 2 3 --dry-run"
    assert parsed(line) == Example(Path("x"), 5, -0.5, "b", False, (1, 2, 3), True)
    assert parsed("x --dry_run --sizes") == Example(Path("x"), dry_run=True)  # as it is spelled in Python
    assert parsed("--rate -1e-3 x").rate == -1e-3
    assert parsed("--rate -1. x").rate == -1
    assert read(Named, ["--name", "-hi there"], prog="x") == Named("-hi there")
    assert read(Named, ["--name", "-h"], prog="x") == Named("-h")  # a value, no call for help
    assert parsed("x --sizes -1 4").sizes == (-1, 4)
    assert parsed("a b --out c", Many) == Many((Path("a"), Path("b")), Path("c"))


def test_only_what_is_set_is_given_and_a_later_flag_wins():
    assert given([Example], ["--count", "4", "--count", "5"], prog="example") == {"count": 5}
    assert given([ImageConfig, TextConfig], ["mnist", "--heads", "2"], prog="x") == {"data": "mnist", "heads": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "folder is missing: Where."),
        ("x --count many", "argument --count: 'many': a whole number is needed"),
        ("x --count 1.5", "a whole number is needed"),
        ("x --rate fast", "argument --rate: 'fast': a number is needed"),
        ("x --kind c", "argument --kind: 'c': one of a, b is needed"),
        ("x --count", "argument --count: expected one argument"),
        ("x --cuont 3", "unrecognized: --cuont, 3; did you mean --count?"),
        ("x --coun 3", "unrecognized: --coun, 3; did you mean --count?"),
        ("x y z", "unrecognized: y, z"),
        ("x --loud=yes", "argument --loud"),
        ("x -z", "unrecognized: -z"),
        ("-count 3 x", "unrecognized: -count"),
        ("x --count --loud", "argument --count: expected one argument"),
        ("x --rate -1,2", "argument --rate: '-1,2': a number is needed"),
        ("x --sizes 1 two", "argument --sizes: 'two': a whole number is needed"),
    ],
)
def test_what_is_not_understood_is_named(line, message):
    with pytest.raises(InputError) as error:
        parsed(line)
    assert message in str(error.value)
    assert "(example --help lists the flags)" in str(error.value)


@pytest.mark.parametrize("line", ["--help", "x -h --count 4", "--kind c --help"])
def test_help_shows_every_flag_with_its_default(line, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(line)
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: example [folder] [flags] What a command takes." in text
    for words in (
        "How many, 50% of them. (default: 3)",
        "--kind {a,b} Which. (default: a)",
        "--loud, --no-loud Whether. (default: true)",
        "--dry-run, --no-dry-run Whether to do nothing. (default: false)",
    ):
        assert words in text


def test_the_title_of_a_section_is_the_first_sentence(capsys):
    with pytest.raises(SystemExit):
        parsed("--help", Named)
    assert "One text, see arXiv 2509.01874:\n" in capsys.readouterr().out


def test_ranges_are_checked_with_the_name_and_what_is_valid():
    check_options(dataclasses.replace(Example(Path("x")), rate=1.0))
    with pytest.raises(InputError, match="`count` is 11: a whole number from 1 to 10 is needed"):
        check_options(Example(Path("x"), count=11))
    assert 0 not in Range(0, 1, above=True)
    assert str(Range(0, 1, above=True)) == "above 0 to 1"
    assert {0, 1} <= {value for value in (-1, 0, 1, 2) if value in Range(0, 1)}
