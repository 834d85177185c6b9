"""The grid of a sweep: every combination of the values that fields of a configuration take."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqs_jax.messages import InputError, quoted
from sqs_jax.options import types_of, value_of
from sqs_jax.train.config import ImageConfig
from sqs_jax.train.config_check import check

# What only the gate sqs has: for the others its values are left as they are, and make no members.
SQS_FIELDS = ("c", "lam", "p", "learnable")

# What all networks of a sweep have in common.
NEVER_VARIED = ("data", "size", "restarts", "init_from")

MOST_NETWORKS = 10_000

Axes = Mapping[str, Sequence[Any]]


def parse_values(name: str, text: str) -> tuple[Any, ...]:
    """The values of a field from a comma-separated list. Raises InputError for a value of the wrong type."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise InputError(f"`{name}` is {quoted(text)}: one value or more, with commas between, is needed")
    values = []
    for word in words:
        try:
            values.append(value_of(word, types_of(ImageConfig)[name]))
        except ValueError as error:
            raise InputError(f"`{name}` has {quoted(word)}: {error}") from None
    return tuple(values)


def members(base: ImageConfig, axes: Axes) -> dict[str, ImageConfig]:
    """The configurations of a grid by name, the first axis changing slowest.

    Args:
      base: what all have in common.
      axes: the values of fields, by name. Those of c, λ, p and learnable are for the gate sqs alone.

    Raises InputError for an empty grid, an unknown field, a value twice, and as `check` for any value out of range.
    """
    check_axes(base, axes)
    if base.init_from:
        raise InputError(
            f"`init_from` is {quoted(base.init_from)}: the networks of a sweep begin with their own weights"
        )
    count = math.prod(len(values) for values in axes.values())
    if count > MOST_NETWORKS:
        raise InputError(f"the grid has {count} networks: at most {MOST_NETWORKS} are trained in a sweep")
    configs: dict[str, ImageConfig] = {}
    for combination in itertools.product(*axes.values()):
        fields = dict(zip(axes, combination, strict=True))
        gate = fields.get("gate", base.gate)
        fields = {name: value for name, value in fields.items() if gate == "sqs" or name not in SQS_FIELDS}
        config = dataclasses.replace(base, **fields)
        config = config if gate == "sqs" else dataclasses.replace(config, learnable=False)
        check(config)
        configs[_name(config, [name for name in fields if len(axes[name]) > 1])] = config
    sqs_only = [name for name in axes if name in SQS_FIELDS]
    if sqs_only and all(config.gate != "sqs" for config in configs.values()):
        raise InputError(f"`{sqs_only[0]}` has values, but no `gate` of the grid is sqs")
    return configs


def check_axes(base: ImageConfig, axes: Axes) -> None:
    """Raises InputError for an unknown field, one without values, and a value twice."""
    for name, values in axes.items():
        if name not in types_of(type(base)) or name in NEVER_VARIED:
            raise InputError(f"{quoted(name)} is no field that a grid can have")
        if not len(values):
            raise InputError(f"`{name}` has no values: the grid is empty")
        if len(set(values)) < len(values):
            twice = next(value for i, value in enumerate(values) if value in values[:i])
            raise InputError(f"`{name}` has {quoted(twice)} twice")


def _name(config: ImageConfig, varied: list[str]) -> str:
    """The gate, what else varies, and the seed: sqs-lam0.5-seed0."""
    parts = [f"{name}{_text(getattr(config, name))}" for name in varied if name not in ("gate", "seed")]
    return "-".join([config.gate, *parts, f"seed{config.seed}"])


def _text(value) -> str:
    return str(value).lower().removesuffix(".0")
