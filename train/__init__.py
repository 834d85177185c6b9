"""Training: `train(config, run_dir)`, `adopt(config, run_dir)`, and the command line `python -m train`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqs_jax.messages import InputError
    from sqs_jax.train.adoption.run_adoption import adopt
    from sqs_jax.train.config import AdoptConfig, ImageConfig, TextConfig, TrainConfig
    from sqs_jax.train.loop import train
    from sqs_jax.train.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "AdoptConfig",
    "ImageConfig",
    "InputError",
    "TextConfig",
    "TrainConfig",
    "adopt",
    "preset",
    "train",
]
_MODULES = {
    "InputError": "sqs_jax.messages",
    "adopt": "sqs_jax.train.adoption.run_adoption",
    "PRESETS": "sqs_jax.train.presets",
    "preset": "sqs_jax.train.presets",
    "train": "sqs_jax.train.loop",
}


def __getattr__(name):
    # All of it needs the extra `train`, and the loop Flax and optax: only who uses them pays.
    if name in __all__:
        from sqs_jax.start import extra

        with extra():
            return getattr(importlib.import_module(_MODULES.get(name, "sqs_jax.train.config")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
