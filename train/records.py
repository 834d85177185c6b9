"""The JSON files of runs and sweeps: what each holds, and the one reader that checks it."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

import msgspec

from sqs_jax.messages import InputError, one_line

Shape = TypeVar("Shape")


class Row(TypedDict):
    """A row of `metrics.jsonl`: a round; those of the validation are there where it is."""

    epoch: float
    step: int
    learning_rate: float
    train_loss: float
    validation_loss: NotRequired[float]
    validation_accuracy: NotRequired[float]
    validation_bits_per_byte: NotRequired[float]


class Summary(TypedDict):
    """`summary.json`, that a run is complete and what came out."""

    test: dict[str, float]
    validation: dict[str, float] | None
    seconds: float
    epochs: float
    steps: NotRequired[int]
    analysis: NotRequired[dict[str, Any]]


class Diverged(TypedDict):
    """`diverged.json`, in the place of a summary: the step after which a network of a sweep was not finite."""

    diverged_at: int


class TableRow(TypedDict):
    """A row of `results.csv`, beside the columns of what is varied."""

    gate: str
    seed: int
    epoch: int
    step: int
    train_loss: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    diverged_at: int | None


class Stories(TypedDict):
    """One part of a text."""

    stories: int
    tokens: int
    bytes: int


class Facts(TypedDict):
    """`text.json`: what a language model was trained on."""

    sha256: str
    vocab: int
    tokenizer: NotRequired[str]
    order: NotRequired[str]
    train: Stories
    validation: Stories
    test: Stories


class ShardIndex(TypedDict):
    """The index of a model in several .safetensors files: which file holds an array."""

    weight_map: dict[str, str]


class Together(TypedDict):
    """What the summary of a run on text says of its layers, under `analysis`."""

    method: str
    layers: list[dict[str, Any]]
    together: dict[str, float | None]


class SweepRecord(TypedDict):
    """`sweep.json`: what all networks have in common, and the values that fields take."""

    base: dict[str, Any]
    axes: dict[str, list[bool | int | float | str]]
    share_noise: bool


class UnreadableError(InputError):
    """A file that is there and cannot be read: it may be whole."""


def read_record(path: Path, shape: type[Shape]) -> Shape:
    """A JSON file of this shape; what it has beside is kept.

    Raises InputError, naming the file, where it is missing, is no JSON, or has another shape.
    """
    return _parsed(path, _content(path), shape)


def check_record(path: Path, value: Any, shape: type[Shape], where: str = "") -> Shape:
    """A part of a file that was read, of this shape. Raises InputError, naming the file, where it has another."""
    try:
        msgspec.convert(value, shape)
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is damaged: {where}{one_line(error)}") from None
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`. Raises InputError for a damaged one."""
    lines = _content(path).splitlines()
    return [dict(_parsed(path, line, Row, f"line {number}: ")) for number, line in enumerate(lines, 1)]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a NUL in its name
        raise InputError(f"cannot read {path}: {error}") from None


def _parsed(path: Path, content: bytes, shape: type[Shape], where: str = "") -> Shape:
    try:
        value = msgspec.json.decode(content)
    except RecursionError:
        raise InputError(f"{path} is damaged: {where}it is nested too deep") from None
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} is damaged: {where}{one_line(error)}") from None
    return check_record(path, value, shape, where)
