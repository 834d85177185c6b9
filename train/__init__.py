"""Training of GLU networks, on images and on text: `train(config, run_dir)`, and the command line `python -m train`."""

from typing import TYPE_CHECKING

from sqs_jax.train.config import PRESETS, ImageConfig, InputError, TextConfig, TrainConfig, preset

if TYPE_CHECKING:
    from sqs_jax.train.loop import train

__all__ = ["PRESETS", "ImageConfig", "InputError", "TextConfig", "TrainConfig", "preset", "train"]


def __getattr__(name):
    # The loop imports Flax and optax; --help and a mistyped flag need not wait for them.
    if name == "train":
        from sqs_jax.train.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
