"""Spectra of gated linear units: interaction matrices, their eigenpairs, and pictures of them."""

from sqs_jax.analysis.eigen import Eigenpairs, eigenpairs, extremes, spectrum
from sqs_jax.analysis.interaction import GLUWeights, interaction_matrices

__all__ = ["Eigenpairs", "GLUWeights", "eigenpairs", "extremes", "interaction_matrices", "spectrum"]
