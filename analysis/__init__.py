"""Spectra of gated linear units: interaction matrices, their eigenpairs, how well they read the network, the report."""

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
from sqs_jax.analysis.load import load_weights, read_weights

__all__ = [
    "Calibration",
    "Eigenpairs",
    "Fidelity",
    "GLUWeights",
    "NotConvergedError",
    "ablation",
    "calibrate",
    "calibrated",
    "deep_fidelity",
    "effective_rank",
    "eigengaps",
    "eigenpairs",
    "extremes",
    "fidelity",
    "interaction_matrices",
    "load_weights",
    "read_weights",
    "spectrum",
    "top_eigenpairs",
    "truncation",
]
