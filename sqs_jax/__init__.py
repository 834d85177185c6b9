"""Signed Quadratic Shrink (SQS) gated linear units, and the spectra of their weights, in JAX."""

import importlib
from typing import TYPE_CHECKING

from sqs_jax import start

start.watch()

from sqs_jax.activation import SQS, sqs, sqs_slope  # noqa: E402 - after the signal is caught
from sqs_jax.gates import GATES, get_gate  # noqa: E402
from sqs_jax.glu import gated, gated_linear  # noqa: E402
from sqs_jax.sharding import sharded_gated_linear  # noqa: E402

if TYPE_CHECKING:
    from sqs_jax.generation import Sampling, generate
    from sqs_jax.modules import GLU, GLUClassifier
    from sqs_jax.transformer import Transformer, TransformerConfig

__version__ = "0.1.0"
__all__ = [
    "GATES",
    "GLU",
    "SQS",
    "GLUClassifier",
    "Sampling",
    "Transformer",
    "TransformerConfig",
    "gated",
    "gated_linear",
    "generate",
    "get_gate",
    "sharded_gated_linear",
    "sqs",
    "sqs_slope",
]


# The modules need flax.nnx, which costs more to import than all else here: only who uses them pays.
_MODULES = {
    "GLU": "modules",
    "GLUClassifier": "modules",
    "Sampling": "generation",
    "Transformer": "transformer",
    "TransformerConfig": "transformer",
    "generate": "generation",
}


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(f"sqs_jax.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'sqs_jax' has no attribute {name!r}")
