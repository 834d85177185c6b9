"""The configuration of a run: frozen dataclasses, one for images and one for text, their presets and their checks."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from sqs_jax.activation import SQS, check_parameters, sqs
from sqs_jax.gates import GATES, Gate, nearest


class InputError(ValueError):
    """A mistake of the caller's, told in one line."""


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
    c: float = 0.01
    """SQS: shift c ≥ 0."""
    lam: float = 0.5
    """SQS: shrink rate λ ≥ 0."""
    p: float = 1.0
    """SQS: exponent p ≥ 1."""
    learnable: bool = False
    """SQS: train c and λ too, one pair a layer."""
    width: int = 64
    """Width of the embedding."""
    hidden: int = 64
    """Width of each GLU layer."""
    layers: int = 1
    """Number of layers."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the computation; parameters are always float32."""
    epochs: int = 100
    """Passes over the training data."""
    batch_size: int = 128
    """Examples a step, over all devices."""
    lr: float = 3e-3
    """Peak learning rate of AdamW; a cosine takes it to 0."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""
    warmup: int = 0
    """Steps of linear warm-up from 0."""
    clip: float = 0.0
    """Largest global norm of the gradient; 0 for no clipping."""
    noise_std: float = 0.5
    """Standard deviation of the Gaussian noise on training inputs."""
    seed: int = 0
    """Seed of the initial weights, the order of the examples and the noise."""
    validation: int = 200
    """Examples cut from the training set for validation, the same for every seed; 0 to train on all."""
    save_every: int = 10
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
    width: int = 64
    """Width of the embedding; 0 for none."""
    layers: int = 1
    """Number of GLU layers."""
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step, over all devices; the last, smaller batch of an epoch is left out."""
    noise_std: float = 0.5
    """Standard deviation of the Gaussian noise on training images, whose pixels lie in [0, 1]."""
    validation: int = 200
    """Images cut from the training set for validation, the same for every seed; 0 to train on all."""
    save_every: int = 10
    """Save every so many epochs; the last epoch, and one that is the best so far on validation, are saved always."""
    residual: bool = False
    """Add each GLU layer's input to its output (needs width = hidden)."""
    bias: bool = False
    """Biases in the GLU layers and the head."""
    noise_prob: float = 1.0
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
    vocab: int = 1024
    """Tokens of the byte-level BPE, at most; it is trained on the training stories."""
    context: int = 256
    """Tokens that the model sees at once."""
    width: int = 128
    """Width of the residual stream."""
    hidden: int = 0
    """Width of each block's GLU; 0 for ⅔·4·width, rounded to a multiple of 64."""
    layers: int = 2
    """Number of blocks."""
    heads: int = 4
    """Attention heads of each block."""
    tied: bool = True
    """One matrix for embedding and unembedding."""
    remat: Literal["none", "dots", "block"] = "none"
    """What is computed again in the backward pass, to save memory: none, what is no product with weights, or all."""
    scan_layers: bool = True
    """Compile one block for all layers."""
    epochs: int = 8
    """Passes over the training text."""
    steps: int = 0
    """Steps of training; 0 for as many as `epochs` has."""
    batch_size: int = 8
    """Windows of `context` tokens a step, over all devices."""
    accumulate: int = 1
    """Parts that each batch is taken in, one after the other, to save memory."""
    lr: float = 3e-3
    """Peak learning rate of AdamW; a cosine takes it to 0."""
    warmup: int = 20
    """Steps of linear warm-up from 0."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 for no clipping."""
    noise_std: float = 0.0
    """Standard deviation of the Gaussian noise on embedded training tokens, over their root mean square."""
    evaluate_every: int = 50
    """Steps between two evaluations, each with samples."""
    validation: int = 30
    """Stories cut from the end of the training text for validation; 0 to train on all."""
    test: int = 40
    """Last stories held out for the test; tinystories has a file of its own for it."""
    save_every: int = 1
    """Save at every so many evaluations; the last, and one that is the best so far on validation, are saved always."""
    samples: int = 2
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


def preset(data: str) -> Any:
    """The default configuration for a data set, an ImageConfig or a TextConfig; that of `mnist` for any `tfds:<name>`.

    Raises InputError for an unknown data set, with the nearest known name.
    """
    if data in PRESETS:
        return PRESETS[data]
    if data.startswith("tfds:") and len(data) > len("tfds:"):
        return dataclasses.replace(PRESETS["mnist"], data=data)
    raise InputError(f"`data` is {data!r}: {nearest(data, [*PRESETS, 'tfds:<name>'])}")


def check(config: TrainConfig) -> None:
    """Raises InputError for the first field out of range, naming it, its value and what is valid."""
    if type(preset(config.data)) is not type(config):
        raise InputError(f"`data` is {config.data!r}: a {type(config).__name__} is not for it")
    if config.gate not in GATES:
        raise InputError(f"`gate` is {config.gate!r}: {nearest(config.gate, GATES)}")
    try:
        check_parameters(c=config.c, lam=config.lam, p=config.p)
    except ValueError as error:
        raise InputError(str(error)) from None
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise InputError(f"`{name}` is {getattr(config, name)!r}: one of {choices} is needed")
        if kind is int and type(getattr(config, name)) is not int:
            raise InputError(f"`{name}` is {getattr(config, name)!r}: a whole number is needed")
    for name in ("layers", "batch_size", "save_every"):
        _in_range(config, name, least=1)
    for name in ("warmup", "clip", "weight_decay", "noise_std", "validation"):
        _in_range(config, name, least=0)
    _in_range(config, "seed", least=0, most=2**31 - 1)
    if not 0 < config.lr < 3.4e38:
        raise InputError(f"`lr` is {config.lr}: a number > 0 that float32 can hold is needed")
    if config.learnable and (config.gate != "sqs" or config.c == 0 or config.lam == 0):
        raise InputError("`learnable` needs `gate` sqs with `c` and `lam` above 0")
    if isinstance(config, TextConfig):
        _check_text(config)
    elif isinstance(config, ImageConfig):
        _check_images(config)


def _check_images(config: ImageConfig):
    for name in ("hidden", "epochs"):
        _in_range(config, name, least=1)
    _in_range(config, "width", least=0)
    _in_range(config, "noise_prob", least=0, most=1)
    if config.residual and config.width not in (0, config.hidden):
        raise InputError(f"`residual` needs `width` = `hidden`: {config.width} is not {config.hidden}")


def _check_text(config: TextConfig):
    for name in ("width", "heads", "accumulate", "evaluate_every", "test"):
        _in_range(config, name, least=1)
    _in_range(config, "context", least=2)
    for name in ("hidden", "steps", "samples"):
        _in_range(config, name, least=0)
    _in_range(config, "epochs", least=0 if config.steps else 1)
    _in_range(config, "vocab", least=257, most=65535)  # each byte and the end of a text; uint16
    if config.width % config.heads or config.width // config.heads % 2:
        raise InputError(f"`heads` is {config.heads}: `width` {config.width} must be an even multiple of it")
    if config.batch_size % config.accumulate:
        raise InputError(f"`accumulate` is {config.accumulate}: it must divide `batch_size`, {config.batch_size}")
    if config.data == "text" and not config.text:
        raise InputError("`data` is 'text' without a file: --text FILE is needed")
    if config.text and config.data != "text":
        raise InputError(f"`text` is {config.text!r} and `data` {config.data!r}: a file goes with the data 'text'")


def _in_range(config, name, least, most=math.inf):
    value = getattr(config, name)
    if not (math.isfinite(value) and least <= value <= most):
        bounds = f"≥ {least}" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"`{name}` is {value}: a number {bounds} is needed")


def located(config: Any) -> Any:
    """The same configuration, a file of text by its absolute path: the run can then be resumed from anywhere."""
    if isinstance(config, TextConfig) and config.text:
        return dataclasses.replace(config, text=str(Path(config.text).absolute()))
    return config


def to_json(config: TrainConfig) -> str:
    """The configuration as the text of a `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(path: Path) -> Any:
    """The configuration in a `config.json`; fields that it lacks keep the data set's preset.

    Raises InputError where the file is missing, is not such JSON, or has an unknown or ill-typed field.
    """
    try:
        fields = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from None
    return from_fields(fields, path)


def from_fields(fields: Any, path: Path) -> Any:
    """The configuration in what was read from a JSON file, which errors name. Raises as `from_json`."""
    if not isinstance(fields, dict):
        raise InputError(f"the configuration {path} is not a JSON object")
    data = fields.get("data", "digits")
    base = preset(data) if isinstance(data, str) else ImageConfig()
    kinds = get_type_hints(type(base))
    for name, value in fields.items():
        if name not in kinds:
            raise InputError(f"the configuration {path} has an unknown field {name!r}: {nearest(name, kinds)}")
        choices = get_args(kinds[name])
        wanted = f"one of {', '.join(choices)}" if choices else f"a {kinds[name].__name__}"
        allowed = choices or ((int, float) if kinds[name] is float else (kinds[name],))
        if value not in allowed if choices else type(value) not in allowed:
            raise InputError(f"the configuration {path} has `{name}` {value!r}: {wanted} is needed")
    return dataclasses.replace(base, **fields)
