"""Pretrained language models: their files, what they compute, and their tokens.

`load_pretrained` is the way in; what it returns, a `LanguageModel`, is read by `sqs_jax.analysis` and sampled by
`sqs_jax.generation`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqs_jax.pretrained.loading import load_pretrained
    from sqs_jax.pretrained.model import LanguageModel, from_transformer
    from sqs_jax.pretrained.sampling import PretrainedDecoder
    from sqs_jax.pretrained.saving import save_pretrained

__all__ = ["LanguageModel", "PretrainedDecoder", "from_transformer", "load_pretrained", "save_pretrained"]

# Imported where they are used: command lines look at paths before they need Flax.
_MODULES = {
    "LanguageModel": "sqs_jax.pretrained.model",
    "PretrainedDecoder": "sqs_jax.pretrained.sampling",
    "from_transformer": "sqs_jax.pretrained.model",
    "load_pretrained": "sqs_jax.pretrained.loading",
    "save_pretrained": "sqs_jax.pretrained.saving",
}


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
