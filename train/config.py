"""The configuration of a run: one frozen dataclass, its presets and its checks."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import tyro

from sqs_jax.activation import check_parameters
from sqs_jax.gates import GATES, nearest


class InputError(ValueError):
    """A mistake of the caller's, told in one line."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All that decides the numbers of a run. The defaults are those of the data set `digits`."""

    data: tyro.conf.Positional[str] = "digits"
    """Data set: digits, mnist, fashion_mnist, cifar10, cifar100, cifar10_jpeg or tfds:<name>."""
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
    """Width of the embedding; 0 for none."""
    hidden: int = 64
    """Width of each GLU layer."""
    layers: int = 1
    """Number of GLU layers."""
    residual: bool = False
    """Add each GLU layer's input to its output (needs width = hidden)."""
    bias: bool = False
    """Biases in the GLU layers and the head."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the computation; parameters are always float32."""
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step, over all devices; the last, smaller batch of an epoch is left out."""
    lr: float = 3e-3
    """Peak learning rate of AdamW; a cosine takes it to 0."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""
    warmup: int = 0
    """Steps of linear warm-up from 0."""
    clip: float = 0.0
    """Largest global norm of the gradient; 0 for no clipping."""
    noise_std: float = 0.5
    """Standard deviation of the Gaussian noise on training images, whose pixels lie in [0, 1]."""
    noise_prob: float = 1.0
    """Chance with which each image gets that noise."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the noise."""
    validation: int = 200
    """Images cut from the training set for validation, the same for every seed; 0 to train on all."""
    save_every: int = 10
    """Save every so many epochs; the last epoch, and one that is the best so far on validation, are saved always."""


# The setting of the paper's image runs: arXiv 2509.01874, section 4, and the reproduction's record of it.
_PAPER = TrainConfig(
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

PRESETS: dict[str, TrainConfig] = {
    "digits": TrainConfig(),
    "mnist": dataclasses.replace(_PAPER, data="mnist"),
    "fashion_mnist": dataclasses.replace(_PAPER, data="fashion_mnist"),
    "cifar10": dataclasses.replace(_CIFAR, data="cifar10"),
    "cifar100": dataclasses.replace(_CIFAR, data="cifar100"),
    "cifar10_jpeg": dataclasses.replace(_CIFAR, data="cifar10_jpeg"),
}


def preset(data: str) -> TrainConfig:
    """The default configuration for a data set; that of `mnist` for any `tfds:<name>`.

    Raises InputError for an unknown data set, with the nearest known name.
    """
    if data in PRESETS:
        return PRESETS[data]
    if data.startswith("tfds:") and len(data) > len("tfds:"):
        return dataclasses.replace(PRESETS["mnist"], data=data)
    raise InputError(f"`data` is {data!r}: {nearest(data, [*PRESETS, 'tfds:<name>'])}")


def check(config: TrainConfig) -> None:
    """Raises InputError for the first field out of range, naming it, its value and what is valid."""
    preset(config.data)
    if config.gate not in GATES:
        raise InputError(f"`gate` is {config.gate!r}: {nearest(config.gate, GATES)}")
    try:
        check_parameters(c=config.c, lam=config.lam, p=config.p)
    except ValueError as error:
        raise InputError(str(error)) from None
    dtypes = get_args(get_type_hints(TrainConfig)["dtype"])
    if config.dtype not in dtypes:
        raise InputError(f"`dtype` is {config.dtype!r}: one of {', '.join(dtypes)} is needed")
    for name in ("hidden", "layers", "epochs", "batch_size", "save_every"):
        _in_range(config, name, least=1)
    for name in ("width", "warmup", "clip", "weight_decay", "noise_std", "validation"):
        _in_range(config, name, least=0)
    _in_range(config, "noise_prob", least=0, most=1)
    _in_range(config, "seed", least=0, most=2**31 - 1)
    if not 0 < config.lr < 3.4e38:
        raise InputError(f"`lr` is {config.lr}: a number > 0 that float32 can hold is needed")
    if config.learnable and (config.gate != "sqs" or config.c == 0 or config.lam == 0):
        raise InputError("`learnable` needs `gate` sqs with `c` and `lam` above 0")
    if config.residual and config.width not in (0, config.hidden):
        raise InputError(f"`residual` needs `width` = `hidden`: {config.width} is not {config.hidden}")


def _in_range(config, name, least, most=math.inf):
    value = getattr(config, name)
    if not (math.isfinite(value) and least <= value <= most):
        bounds = f"≥ {least}" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"`{name}` is {value}: a number {bounds} is needed")


def to_json(config: TrainConfig) -> str:
    """The configuration as the text of a `config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(path: Path) -> TrainConfig:
    """The configuration in a `config.json`; fields that it lacks keep the data set's preset.

    Raises InputError where the file is missing, is not such JSON, or has an unknown or ill-typed field.
    """
    try:
        fields = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"the configuration {path} is not a JSON object")
    kinds = get_type_hints(TrainConfig)
    for name, value in fields.items():
        if name not in kinds:
            raise InputError(f"the configuration {path} has an unknown field {name!r}: {nearest(name, kinds)}")
        choices = get_args(kinds[name])
        wanted = f"one of {', '.join(choices)}" if choices else f"a {kinds[name].__name__}"
        allowed = choices or ((int, float) if kinds[name] is float else (kinds[name],))
        if value not in allowed if choices else type(value) not in allowed:
            raise InputError(f"the configuration {path} has `{name}` {value!r}: {wanted} is needed")
    return dataclasses.replace(preset(fields.get("data", "digits")), **fields)
