"""Options: the fields of a dataclass, each declared once with its default, its help and its range.

A command line, a configuration file and a sweep all read the same declarations.
"""

import dataclasses
import functools
import numbers
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sqs_jax.messages import InputError, quoted


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field may have: from `least`, or above it, to `most`."""

    least: float
    most: float
    above: bool = False
    """Whether `least` itself is too small."""

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        most = str(self.most) if isinstance(self.most, int) else f"{self.most:g}"
        return f"{'above' if self.above else 'from'} {self.least:g} to {most}"


_INT32, _FLOAT32 = 2**31 - 1, 3.4e38
COUNT = Range(0, _INT32)
ONE_OR_MORE = Range(1, _INT32)
FINITE = Range(0, _FLOAT32)
POSITIVE = Range(0, _FLOAT32, above=True)


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",  # noqa: A002 - as argparse has it
    within: Range | None = None,
    *,
    positional: bool = False,
    metavar: str = "",
) -> Any:
    """A field of a dataclass that a command line can set.

    Args:
      default: its value where nothing else is said; without one the option is required.
      help: one sentence or two, shown by --help.
      within: the range of a number, checked by `check_option`.
      positional: the value stands on the command line without a flag.
      metavar: what --help shows in the value's place, by default its type.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "within": within, "positional": positional, "metavar": metavar}
    )


@functools.cache
def types_of(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields by name."""
    return get_type_hints(kind)


def plain_type(annotation: Any) -> Any:
    """An annotation without its `| None`."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    is_optional = get_origin(annotation) not in (tuple, Literal) and len(parts) < len(get_args(annotation))
    return Union[tuple(parts)] if is_optional else annotation  # noqa: UP007 - of parts that are in a list


_NEEDED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


def needed(annotation: Any, within: Range | None = None) -> str:
    """The values that an annotation takes, in words."""
    kind = plain_type(annotation)
    if get_origin(kind) is tuple:
        return f"several of: {needed(get_args(kind)[0], within)}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return " ".join([_NEEDED[kind], *([str(within)] if within else [])])


def value_of(text: str, annotation: Any) -> Any:
    """A value read from text. Raises ValueError, saying what is needed, for text that is no such value."""
    kind = plain_type(annotation)
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"{needed(kind)} is needed")


def check_option(name: str, value: Any, annotation: Any, within: Range | None = None) -> None:
    """Raises InputError for a value that is not of its field's type, or out of its range."""
    if not _fits(value, annotation, within):
        raise InputError(f"`{name}` is {quoted(value)}: {needed(annotation, within)} is needed")


def _fits(value: Any, annotation: Any, within: Range | None) -> bool:
    kind = plain_type(annotation)
    if value is None:
        return kind is not annotation
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0], within) for item in value)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    types = {float: numbers.Real, int: int}.get(kind, kind)
    is_of_type = isinstance(value, types) and (kind is bool) == isinstance(value, bool)
    return is_of_type and (within is None or value in within)


def check_options(values: Any) -> None:
    """Raises InputError for the first field of a dataclass that is out of range, naming it and what is valid."""
    for field in dataclasses.fields(values):
        annotation = types_of(type(values))[field.name]
        check_option(field.name, getattr(values, field.name), annotation, field.metadata["within"])
