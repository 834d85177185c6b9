"""The configuration of a run: frozen dataclasses, one for images and one for text, their presets and their checks."""

import dataclasses
import functools
import json
import numbers
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from sqs_jax.activation import SQS, check_parameters, sqs
from sqs_jax.gates import GATES, Gate, nearest
from sqs_jax.messages import is_text, one_line, quoted


class InputError(ValueError):
    """A mistake of the caller's, told in one line that a terminal may show, whatever it quotes."""

    def __init__(self, message: object):
        super().__init__(one_line(message))


@dataclasses.dataclass(frozen=True)
class Range:
    """What numbers a field may have, for the command line, a config.json and a sweep alike."""

    least: float
    most: float
    above: bool = False
    """Whether `least` itself is too small."""

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.least:g} to {_plain(self.most)}"


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


_INT32, _FLOAT32 = 2**31 - 1, 3.4e38
_Count = Annotated[int, Range(0, _INT32)]
_OneOrMore = Annotated[int, Range(1, _INT32)]
_Layers = Annotated[int, Range(1, 256)]
_Width = Annotated[int, Range(0, 2**18)]
_Batch = Annotated[int, Range(1, 2**24)]
_Finite = Annotated[float, Range(0, _FLOAT32)]


def known(value: Any) -> bool:
    """Whether a field of a configuration is a number already, not one that a compiled program is given."""
    return isinstance(value, int | float)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What decides the numbers of any run; `ImageConfig` and `TextConfig` add to it."""

    data: tyro.conf.Positional[str] = "digits"
    """Data set."""
    gate: str = "sqs"
    """Gate σ of the GLU (x W) ⊙ σ(x V): sqs, bilinear, relu, gelu or silu."""
    c: _Finite = 0.01
    """SQS: shift c ≥ 0."""
    lam: _Finite = 0.5
    """SQS: shrink rate λ ≥ 0."""
    p: Annotated[float, Range(1, 100)] = 1.0
    """SQS: exponent p ≥ 1."""
    learnable: bool = False
    """SQS: train c and λ too, one pair a layer."""
    width: _Width = 64
    """Width of the embedding."""
    hidden: _Width = 64
    """Width of each GLU layer."""
    layers: _Layers = 1
    """Number of layers."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the computation; parameters are always float32."""
    epochs: _OneOrMore = 100
    """Passes over the training data."""
    batch_size: _Batch = 128
    """Examples a step, over all devices."""
    lr: Annotated[float, Range(0, _FLOAT32, above=True)] = 3e-3
    """Peak learning rate of AdamW; a cosine takes it to 0."""
    weight_decay: _Finite = 0.1
    """Decoupled weight decay, on matrices only."""
    warmup: _Count = 0
    """Steps of linear warm-up from 0."""
    clip: _Finite = 0.0
    """Largest global norm of the gradient; 0 for no clipping."""
    noise_std: _Finite = 0.5
    """Standard deviation of the Gaussian noise on training inputs."""
    seed: _Count = 0
    """Seed of the initial weights, the order of the examples and the noise."""
    validation: _Count = 200
    """Examples cut from the training set for validation, the same for every seed; 0 to train on all."""
    save_every: _OneOrMore = 10
    """Save at every so many evaluations; the last, and one that is the best so far on validation, are saved always."""

    @property
    def sigma(self) -> str | Gate:
        """The gate, as modules take it; c and λ may be traced."""
        if self.gate != "sqs":
            return self.gate
        if known(self.c) and known(self.lam):
            return SQS(self.c, self.lam, self.p)
        return functools.partial(sqs, c=self.c, lam=self.lam, p=self.p)


@dataclasses.dataclass(frozen=True)
class ImageConfig(TrainConfig):
    """A run on images: a classifier of GLU layers. The defaults are those of the data set `digits`."""

    data: tyro.conf.Positional[str] = "digits"
    """Data set: digits, mnist, fashion_mnist, cifar10, cifar100, cifar10_jpeg or tfds:<name>; or a text, see below."""
    width: _Width = 64
    """Width of the embedding; 0 for none."""
    hidden: Annotated[int, Range(1, 2**18)] = 64
    """Width of each GLU layer."""
    layers: _Layers = 1
    """Number of GLU layers."""
    epochs: _OneOrMore = 100
    """Passes over the training images."""
    batch_size: _Batch = 128
    """Images a step, over all devices; the last, smaller batch of an epoch is left out."""
    noise_std: _Finite = 0.5
    """Standard deviation of the Gaussian noise on training images, whose pixels lie in [0, 1]."""
    validation: _Count = 200
    """Images cut from the training set for validation, the same for every seed; 0 to train on all."""
    save_every: _OneOrMore = 10
    """Save every so many epochs; the last epoch, and one that is the best so far on validation, are saved always."""
    residual: bool = False
    """Add each GLU layer's input to its output (needs width = hidden)."""
    bias: bool = False
    """Biases in the GLU layers and the head."""
    noise_prob: Annotated[float, Range(0, 1)] = 1.0
    """Chance with which each image gets that noise."""


@dataclasses.dataclass(frozen=True)
class TextConfig(TrainConfig):
    """A run on text: a Transformer with a GLU in each block. The defaults are those of the text `stories`."""

    data: tyro.conf.Positional[str] = "stories"
    """Text: stories, tinystories, or with --text a file of your own; or a data set of images, see below."""
    text: str = ""
    """A UTF-8 file to train on; its content is not copied into the run."""
    separator: Literal["auto", "endoftext", "blank_line", "newline"] = "auto"
    """What stands between two stories of --text: <|endoftext|>, a blank line, or a newline that is no part of one;
    auto takes the first of these that the file has."""
    vocab: Annotated[int, Range(257, 65535)] = 1024  # each byte and the end of a text; uint16
    """Tokens of the byte-level BPE, at most; it is trained on the training stories."""
    context: Annotated[int, Range(2, 2**18)] = 256
    """Tokens that the model sees at once."""
    width: Annotated[int, Range(1, 2**18)] = 128
    """Width of the residual stream."""
    hidden: _Width = 0
    """Width of each block's GLU; 0 for ⅔·4·width, rounded to a multiple of 64."""
    layers: _Layers = 2
    """Number of blocks."""
    heads: Annotated[int, Range(1, 4096)] = 4
    """Attention heads of each block."""
    tied: bool = True
    """One matrix for embedding and unembedding."""
    remat: Literal["none", "dots", "block"] = "none"
    """What is computed again in the backward pass, to save memory: none, what is no product with weights, or all."""
    scan_layers: bool = True
    """Compile one block for all layers."""
    epochs: _Count = 8
    """Passes over the training text."""
    steps: _Count = 0
    """Steps of training; 0 for as many as `epochs` has."""
    batch_size: _Batch = 8
    """Windows of `context` tokens a step, over all devices."""
    accumulate: _Batch = 1
    """Parts that each batch is taken in, one after the other, to save memory."""
    lr: Annotated[float, Range(0, _FLOAT32, above=True)] = 3e-3
    """Peak learning rate of AdamW; a cosine takes it to 0."""
    warmup: _Count = 20
    """Steps of linear warm-up from 0."""
    clip: _Finite = 1.0
    """Largest global norm of the gradient; 0 for no clipping."""
    noise_std: _Finite = 0.0
    """Standard deviation of the Gaussian noise on embedded training tokens, over their root mean square."""
    evaluate_every: _OneOrMore = 50
    """Steps between two evaluations, each with samples."""
    validation: _Count = 30
    """Stories cut from the end of the training text for validation; 0 to train on all."""
    test: _OneOrMore = 40
    """Last stories held out for the test; tinystories has a file of its own for it."""
    save_every: _OneOrMore = 1
    """Save at every so many evaluations; the last, and one that is the best so far on validation, are saved always."""
    samples: Annotated[int, Range(0, 1000)] = 2
    """Stories sampled at each evaluation."""


# The setting of the paper's image runs: arXiv 2509.01874, section 4, and the reproduction's record of it.
_PAPER = ImageConfig(
    width=512,
    hidden=512,
    epochs=20,
    batch_size=2048,
    lr=1e-3,
    weight_decay=0.1,
    noise_std=1.0,
    validation=5000,
    save_every=1,
)
_CIFAR = dataclasses.replace(_PAPER, noise_std=0.2, batch_size=1024)
# Four blocks, as the paper has them; the sizes are ours.
_LANGUAGE = TextConfig(
    vocab=4096,
    width=256,
    layers=4,
    batch_size=16,
    lr=1e-3,
    epochs=1,
    warmup=100,
    evaluate_every=250,
    validation=250,
    test=250,
)

PRESETS: dict[str, Any] = {
    "digits": ImageConfig(),
    "mnist": dataclasses.replace(_PAPER, data="mnist"),
    "fashion_mnist": dataclasses.replace(_PAPER, data="fashion_mnist"),
    "cifar10": dataclasses.replace(_CIFAR, data="cifar10"),
    "cifar100": dataclasses.replace(_CIFAR, data="cifar100"),
    "cifar10_jpeg": dataclasses.replace(_CIFAR, data="cifar10_jpeg"),
    "stories": TextConfig(),
    "tinystories": dataclasses.replace(_LANGUAGE, data="tinystories"),
    "text": dataclasses.replace(_LANGUAGE, data="text", epochs=4),
}
IMAGES = tuple(name for name, config in PRESETS.items() if isinstance(config, ImageConfig))
TEXTS = tuple(name for name, config in PRESETS.items() if isinstance(config, TextConfig))


# As tensorflow-datasets has them: name, name/config, name:1.0.0, name/config:1.0.0. No name leads out of a folder.
_TFDS = re.compile(r"tfds:\w+(/\w[\w.+-]*)?(:\d+\.\d+\.\d+)?", re.ASCII)


def preset(data: str) -> Any:
    """The default configuration for a data set, an ImageConfig or a TextConfig; that of `mnist` for any `tfds:<name>`.

    Raises InputError for an unknown data set, with the nearest known name.
    """
    if data in PRESETS:
        return PRESETS[data]
    if _TFDS.fullmatch(data):
        return dataclasses.replace(PRESETS["mnist"], data=data)
    known = "tfds:<name>, tfds:<name>/<config> or, with a version, tfds:<name>:1.0.0"
    raise InputError(f"`data` is {quoted(data)}: {nearest(data, [*PRESETS, known])}")


def check(config: TrainConfig) -> None:
    """Raises InputError for the first field out of range, naming it, its value and what is valid."""
    if type(preset(config.data)) is not type(config):
        raise InputError(f"`data` is {config.data!r}: a {type(config).__name__} is not for it")
    if config.gate not in GATES:
        raise InputError(f"`gate` is {quoted(config.gate)}: {nearest(config.gate, GATES)}")
    for name, kind in _fields(type(config)).items():
        _check_field(name, getattr(config, name), kind)
    try:
        check_parameters(c=config.c, lam=config.lam, p=config.p)
    except ValueError as error:
        raise InputError(str(error)) from None
    if config.learnable and (config.gate != "sqs" or config.c == 0 or config.lam == 0):
        raise InputError("`learnable` needs `gate` sqs with `c` and `lam` above 0")
    if isinstance(config, TextConfig):
        _check_text(config)
    elif isinstance(config, ImageConfig) and config.residual and config.width not in (0, config.hidden):
        raise InputError(f"`residual` needs `width` = `hidden`: {config.width} is not {config.hidden}")


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _check_field(name: str, value: Any, kind: Any) -> None:
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        fits, needed = value in choices, f"one of {', '.join(choices)}"
    else:
        plain, *within = (get_args(kind)[0], *choices[1:]) if get_origin(kind) is Annotated else (kind,)
        within = [part for part in within if isinstance(part, Range)]
        kinds = {float: numbers.Real, int: int}.get(plain, plain)
        fits = isinstance(value, kinds) and (plain is bool) == isinstance(value, bool)
        fits = fits and all(value in part for part in within)
        needed = " ".join([_KINDS[plain], *map(str, within)])
    if not fits:
        raise InputError(f"`{name}` is {quoted(value)}: {needed} is needed")


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


def located(config: Any) -> Any:
    """The same configuration, a file of text by its absolute path: the run can then be resumed from anywhere."""
    if isinstance(config, TextConfig) and config.text:
        return dataclasses.replace(config, text=str(Path(config.text).absolute()))
    return config


def to_json(config: TrainConfig) -> str:
    """The configuration as the text of a `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=float) + "\n"  # NumPy's numbers are numbers


def from_json(path: Path) -> Any:
    """The configuration in a `config.json`; fields that it lacks keep the data set's preset.

    Raises InputError where the file is missing, is not such JSON, or has an unknown or ill-typed field.
    """
    from sqs_jax.train.records import read_record

    return from_fields(read_record(path, dict[str, Any]), path)


def from_fields(fields: dict[str, Any], path: Path) -> Any:
    """The configuration in what was read from a JSON file, which errors name. Raises as `from_json`."""
    data = fields.get("data", "digits")
    base = preset(data) if isinstance(data, str) else ImageConfig()
    kinds = get_type_hints(type(base))
    for name, value in fields.items():
        if name not in kinds:
            raise InputError(f"the configuration {path} has an unknown field {quoted(name)}: {nearest(name, kinds)}")
        choices = get_args(kinds[name])
        needed = f"one of {', '.join(choices)}" if choices else f"a {kinds[name].__name__}"
        allowed = choices or ((int, float) if kinds[name] is float else (kinds[name],))
        if value not in allowed if choices else type(value) not in allowed:
            raise InputError(f"the configuration {path} has `{name}` {quoted(value)}: {needed} is needed")
    return dataclasses.replace(base, **fields)
