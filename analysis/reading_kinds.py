"""The kinds of readings of a language model's GLU, by name; imports nothing, for command lines."""

from typing import Literal, get_args

Reading = Literal["identity", "joint", "affine", "surrogate"]
READINGS: tuple[Reading, ...] = get_args(Reading)
Order = Literal["size", "data"]
