"""The data sets by name, each with the configuration that a run on it has by default."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from sqs_jax.gates import nearest
from sqs_jax.messages import InputError, is_text, quoted
from sqs_jax.train.config import ImageConfig, TextConfig

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


OWN = "images:"
"""Begins the name of images of one's own; their folder or file follows."""


def name_of_text(text: str) -> str:
    """The name of a text by its path: of a file, a folder, or the folder of a pattern."""
    path = Path(text)
    while any(letter in path.name for letter in "*?["):
        path = path.parent
    return path.stem or "text"


def short_name(data: str) -> str:
    """A data set's name as a folder's: of images of one's own that of their folder or file."""
    return Path(data.removeprefix(OWN)).absolute().name if data.startswith(OWN) else data.replace(":", "-")


def preset(data: str) -> Any:
    """The default configuration for a data set, an ImageConfig or a TextConfig.

    That of `mnist` for any `tfds:<name>`. For `images:PATH` one for images that are not counted yet:
    `train.images.own_images.own_preset` counts them.

    Raises InputError for an unknown data set, with the nearest known name.
    """
    if data in PRESETS:
        return PRESETS[data]
    if data.startswith(OWN) and len(data) > len(OWN) and is_text(data):
        return ImageConfig(data=data, width=128, hidden=128, noise_std=0.2)
    if _TFDS.fullmatch(data):
        return dataclasses.replace(PRESETS["mnist"], data=data)
    known = "images:<folder or .npz file>, tfds:<name>, tfds:<name>/<config> or, with a version, tfds:<name>:1.0.0"
    raise InputError(f"`data` is {quoted(data)}: {nearest(data, [*PRESETS, known])}")
