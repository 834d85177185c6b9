"""A configuration as a `config.json`: written, and read with the data set's preset for what it lacks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from sqs_jax.gates import nearest
from sqs_jax.messages import InputError, quoted
from sqs_jax.options import check_option, types_of
from sqs_jax.train.config import AdoptConfig, ImageConfig, TrainConfig
from sqs_jax.train.presets import preset
from sqs_jax.train.records import read_record


def to_json(config: TrainConfig) -> str:
    """The configuration as the text of a `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=float) + "\n"  # NumPy's numbers are numbers


def from_fields(fields: dict[str, Any], path: Path) -> Any:
    """The configuration in what was read from a JSON file; fields that it lacks keep the data set's preset.

    Raises InputError, naming the file, for an unknown field and for a value that is not of its field's type.
    """
    data = fields.get("data", "digits")
    base = AdoptConfig() if "model" in fields else preset(data) if isinstance(data, str) else ImageConfig()
    types = types_of(type(base))
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for name, value in fields.items():
        if name not in types:
            raise InputError(f"the configuration {path} has an unknown field {quoted(name)}: {nearest(name, types)}")
        try:
            check_option(name, value, types[name])
        except InputError as error:
            raise InputError(f"the configuration {path}: {error}") from None
    return dataclasses.replace(base, **fields)


def from_json(path: Path) -> Any:
    """The configuration in a `config.json`; fields that it lacks keep the data set's preset.

    Raises InputError where the file is missing, is not such JSON, or has an unknown or ill-typed field.
    """
    return from_fields(read_record(path, dict[str, Any]), path)
