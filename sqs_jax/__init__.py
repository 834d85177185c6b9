"""Signed Quadratic Shrink (SQS) gated linear units, and the spectra of their weights, in JAX."""

from typing import TYPE_CHECKING

from sqs_jax.activation import SQS, sqs, sqs_slope
from sqs_jax.gates import GATES, get_gate
from sqs_jax.glu import gated, gated_linear
from sqs_jax.sharding import sharded_gated_linear

if TYPE_CHECKING:
    from sqs_jax.modules import GLU, GLUClassifier

__version__ = "0.1.0"
__all__ = [
    "GATES",
    "GLU",
    "SQS",
    "GLUClassifier",
    "gated",
    "gated_linear",
    "get_gate",
    "sharded_gated_linear",
    "sqs",
    "sqs_slope",
]


def __getattr__(name):
    # The modules need flax.nnx, which costs more to import than all else here: only who uses them pays.
    if name in ("GLU", "GLUClassifier"):
        from sqs_jax import modules

        return getattr(modules, name)
    raise AttributeError(f"module 'sqs_jax' has no attribute {name!r}")
