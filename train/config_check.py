"""The check of a configuration, made once, where a command or a caller hands one in."""

import dataclasses
from pathlib import Path
from typing import Any

from sqs_jax.activation import check_parameters
from sqs_jax.gates import GATES, nearest
from sqs_jax.messages import InputError, is_text, quoted
from sqs_jax.options import check_options
from sqs_jax.train.config import TextConfig, TrainConfig
from sqs_jax.train.presets import preset


def checked(config: TrainConfig) -> Any:
    """The configuration after all checks, with the absolute path of its text file, so that it can be resumed anywhere.

    Raises InputError for the first field out of range, naming it, its value and what is valid.
    """
    check(config)
    if isinstance(config, TextConfig) and config.text:
        return dataclasses.replace(config, text=str(Path(config.text).absolute()))
    return config


def check(config: TrainConfig) -> None:
    """Raises InputError for the first field out of range, naming it, its value and what is valid."""
    if type(preset(config.data)) is not type(config):
        raise InputError(f"`data` is {config.data!r}: a {type(config).__name__} is not for it")
    if config.gate not in GATES:
        raise InputError(f"`gate` is {quoted(config.gate)}: {nearest(config.gate, GATES)}")
    check_options(config)
    try:
        check_parameters(c=config.c, lam=config.lam, p=config.p)
    except ValueError as error:
        raise InputError(str(error)) from None
    if config.learnable and (config.gate != "sqs" or config.c == 0 or config.lam == 0):
        raise InputError("`learnable` needs `gate` sqs with `c` and `lam` above 0")
    if isinstance(config, TextConfig):
        _check_text(config)
    elif config.residual and config.width not in (0, config.hidden):
        raise InputError(f"`residual` needs `width` = `hidden`: {config.width} is not {config.hidden}")


def _check_text(config: TextConfig):
    if config.epochs == 0 and config.steps == 0:
        raise InputError("`epochs` is 0: a number ≥ 1 is needed, or `steps`")
    if config.steps and config.warmup >= config.steps:
        raise InputError(f"`warmup` is {config.warmup}: fewer than the run's {config.steps} steps are needed")
    if config.width % config.heads or config.width // config.heads % 2:
        raise InputError(f"`heads` is {config.heads}: `width` {config.width} must be an even multiple of it")
    if config.batch_size % config.accumulate:
        raise InputError(f"`accumulate` is {config.accumulate}: it must divide `batch_size`, {config.batch_size}")
    if config.data == "text" and not config.text:
        raise InputError("`data` is 'text' without a file: --text FILE is needed")
    if not is_text(config.text):
        raise InputError(f"`text` is {quoted(config.text)}: a path in UTF-8 is needed")
    if config.text and config.data != "text":
        raise InputError(
            f"`text` is {quoted(config.text)} and `data` {config.data!r}: a file goes with the data 'text'"
        )
