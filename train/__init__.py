"""Training of GLU networks, on images and on text: `train(config, run_dir)`, and the command line `python -m train`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqs_jax.train.config import PRESETS, ImageConfig, InputError, TextConfig, TrainConfig, preset
    from sqs_jax.train.loop import train

__all__ = ["PRESETS", "ImageConfig", "InputError", "TextConfig", "TrainConfig", "preset", "train"]


def __getattr__(name):
    # All of it needs the extra `train`, and the loop Flax and optax: only who uses them pays.
    if name in __all__:
        from sqs_jax.start import extra

        with extra():
            return getattr(
                importlib.import_module("sqs_jax.train.loop" if name == "train" else "sqs_jax.train.config"), name
            )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
