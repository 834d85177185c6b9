"""Spectra of gated linear units: interaction matrices, their eigenpairs, and pictures of them."""

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
from sqs_jax.analysis.interaction import GLUWeights, interaction_matrices

__all__ = [
    "Eigenpairs",
    "GLUWeights",
    "NotConvergedError",
    "effective_rank",
    "eigengaps",
    "eigenpairs",
    "extremes",
    "interaction_matrices",
    "spectrum",
    "top_eigenpairs",
]
