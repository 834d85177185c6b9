"""Spectra of gated linear units: interaction matrices, their eigenpairs, how well they read the network, the report.

What `__all__` names is public; everything else may change.
"""

from typing import TYPE_CHECKING

from sqs_jax.analysis.calibration import Calibration, calibrate, calibrated
from sqs_jax.analysis.eigen import (
    Eigenpairs,
    NotConvergedError,
    effective_rank,
    eigengaps,
    eigenpairs,
    extremes,
    spectrum,
    top_eigenpairs,
)
from sqs_jax.analysis.fidelity import Fidelity, ablation, deep_fidelity, fidelity, truncation
from sqs_jax.analysis.interaction import GLUWeights, interaction_matrices
from sqs_jax.analysis.runs.load import layer_weights, load_weights
from sqs_jax.analysis.similarity import compare
from sqs_jax.analysis.weights import read_weights

if TYPE_CHECKING:
    from sqs_jax.analysis.language import mlp_weights
    from sqs_jax.train.text.language_model import load_language

__all__ = [
    "Calibration",
    "Eigenpairs",
    "Fidelity",
    "GLUWeights",
    "NotConvergedError",
    "ablation",
    "calibrate",
    "calibrated",
    "compare",
    "deep_fidelity",
    "effective_rank",
    "eigengaps",
    "eigenpairs",
    "extremes",
    "fidelity",
    "interaction_matrices",
    "layer_weights",
    "load_language",
    "load_weights",
    "mlp_weights",
    "read_weights",
    "spectrum",
    "top_eigenpairs",
    "truncation",
]


def __getattr__(name):
    # Flax, and for runs the extra `train`: only who reads language models needs them.
    if name == "mlp_weights":
        from sqs_jax.analysis.language import mlp_weights

        return mlp_weights
    if name == "load_language":
        from sqs_jax.start import extra

        with extra():
            from sqs_jax.train.text.language_model import load_language
        return load_language
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
