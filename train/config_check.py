"""The check of a configuration, made once, where a command or a caller hands one in."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqs_jax.activation import check_parameters
from sqs_jax.gates import GATES, nearest
from sqs_jax.messages import InputError, is_text, quoted
from sqs_jax.options import check_options
from sqs_jax.train.config import AdoptConfig, ImageConfig, TextConfig, TrainConfig, length_of
from sqs_jax.train.presets import OWN, preset

ADOPTED_GATES = ("sqs", "bilinear", "own")
_PATHS = ("init_from", "text", "tokenizer")  # fields that name a path, where a configuration has them


def checked(config: TrainConfig) -> Any:
    """The configuration after all checks, with the absolute path of its text file, so that it can be resumed anywhere.

    Raises InputError for the first field out of range, naming it, its value and what is valid.
    """
    check(config)
    if isinstance(config, AdoptConfig):
        model = config.model if config.model.startswith("hf:") else str(Path(config.model).absolute())
        return dataclasses.replace(config, text=str(Path(config.text).absolute()), model=model)
    paths = {name: str(Path(path).absolute()) for name in _PATHS if (path := getattr(config, name, ""))}
    if isinstance(config, ImageConfig) and config.data.startswith(OWN):
        paths["data"] = OWN + str(Path(config.data.removeprefix(OWN)).absolute())
    return dataclasses.replace(config, **paths)


def check(config: TrainConfig) -> None:
    """Raises InputError for the first field out of range, naming it, its value and what is valid."""
    if isinstance(config, AdoptConfig):
        _check_adoption(config)
        return
    if type(preset(config.data)) is not type(config):
        raise InputError(f"`data` is {config.data!r}: a {type(config).__name__} is not for it")
    if config.gate not in GATES:
        raise InputError(f"`gate` is {quoted(config.gate)}: {nearest(config.gate, GATES)}")
    check_options(config)
    _check_sqs(config)
    _check_restarts(config)
    for name in _PATHS:
        if not is_text(path := getattr(config, name, "")):
            raise InputError(f"`{name}` is {quoted(path)}: a path in UTF-8 is needed")
    if config.learnable and (config.gate != "sqs" or config.c == 0 or config.lam == 0):
        raise InputError("`learnable` needs `gate` sqs with `c` and `lam` above 0")
    if isinstance(config, TextConfig):
        _check_text(config)
    elif config.size and not config.data.startswith(OWN):
        raise InputError(f"`size` is {config.size}: it goes with images of your own, the data images:<folder>")
    elif config.residual and config.width not in (0, config.hidden):
        raise InputError(f"`residual` needs `width` = `hidden`: {config.width} is not {config.hidden}")


def _check_sqs(config: TrainConfig) -> None:
    try:
        check_parameters(c=config.c, lam=config.lam, p=config.p)
    except ValueError as error:
        raise InputError(str(error)) from None


def _check_restarts(config: TrainConfig) -> None:
    points = (0, *config.restarts, length_of(config))
    if config.restarts and any(later <= earlier for earlier, later in pairwise(points)):
        raise InputError(f"`restarts` is {config.restarts}: rising numbers from 1 to {points[-1] - 1} are needed")


def _check_adoption(config: AdoptConfig) -> None:
    if config.gate not in ADOPTED_GATES:
        raise InputError(f"`gate` is {quoted(config.gate)}: {nearest(config.gate, ADOPTED_GATES)}")
    check_options(config)
    _check_sqs(config)
    _check_restarts(config)
    for name in ("model", "text"):
        value = getattr(config, name)
        if not value or not is_text(value):
            raise InputError(f"`{name}` is {quoted(value)}: a path in UTF-8 is needed")
    if config.gate == "sqs" and config.learnable and (config.c == 0 or config.lam == 0):
        raise InputError("`learnable` needs `c` and `lam` above 0")
    if config.gate == "sqs" and config.p != 1 and config.stage != "tune":
        raise InputError(f"`p` is {config.p}: layers are fitted with `p` 1; another goes with `stage` tune")
    if config.gate == "own" and config.stage != "tune":
        raise InputError(f"`stage` is {config.stage!r} with the `gate` own: there is nothing to fit, tune is needed")
    if config.blend and (config.stage != "tune" or config.gate == "own"):
        raise InputError(f"`blend` is {config.blend}: it goes with `stage` tune, from the model's own gate to another")
    if config.control and config.stage == "distil":
        raise InputError("`control` goes with `stage` tune or both: without training there is nothing to compare with")
    if config.dtype == "float16":
        raise InputError("`dtype` is 'float16': one of float32, bfloat16 is needed")
    if config.stage != "distil":
        _check_steps(config)


def _check_steps(config: AdoptConfig | TextConfig) -> None:
    if config.steps and config.warmup >= config.steps:
        raise InputError(f"`warmup` is {config.warmup}: fewer than the run's {config.steps} steps are needed")
    if config.batch_size % config.accumulate:
        raise InputError(f"`accumulate` is {config.accumulate}: it must divide `batch_size`, {config.batch_size}")


def _check_text(config: TextConfig):
    if config.epochs == 0 and config.steps == 0:
        raise InputError("`epochs` is 0: a number ≥ 1 is needed, or `steps`")
    _check_steps(config)
    if config.width % config.heads or config.width // config.heads % 2:
        raise InputError(f"`heads` is {config.heads}: `width` {config.width} must be an even multiple of it")
    if config.tokenizer and config.init_from:
        raise InputError("`tokenizer` and `init_from` exclude each other: with a run its tokenizer is taken")
    if config.data == "text" and not config.text:
        raise InputError("`data` is 'text' without a file: --text FILE is needed")
    if config.text and config.data != "text":
        raise InputError(
            f"`text` is {quoted(config.text)} and `data` {config.data!r}: a file goes with the data 'text'"
        )
