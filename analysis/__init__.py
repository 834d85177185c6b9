"""Spectra of gated linear units: interaction matrices, their eigenpairs, how well they read the network, the report.

What `__all__` names is public, and with it `analysis.interpret` and `analysis.similarity`; everything else may change.
"""

import importlib
from typing import TYPE_CHECKING

from sqs_jax.analysis.calibration import Calibration, bilinear_layer, calibrate, calibrated
from sqs_jax.analysis.eigen import Eigenpairs, NotConvergedError, eigenpairs, spectrum, top_eigenpairs
from sqs_jax.analysis.fidelity import Fidelity, ablation, deep_fidelity, fidelity, truncation
from sqs_jax.analysis.interaction import GLUWeights, interaction_matrices
from sqs_jax.analysis.recorded import Recorded, read_recorded
from sqs_jax.analysis.runs.load import Run, layer_weights, load_run, load_weights
from sqs_jax.analysis.similarity import compare
from sqs_jax.analysis.spectrum_summary import effective_rank, eigengaps, extremes
from sqs_jax.analysis.weight_files import read_weights
from sqs_jax.start import extra

if TYPE_CHECKING:
    from sqs_jax.analysis.language import mlp_weights, token_directions, token_eigenpairs
    from sqs_jax.analysis.report import write_report
    from sqs_jax.analysis.report.model_page import write_model_report
    from sqs_jax.analysis.report.weights_page import write_weights_report
    from sqs_jax.analysis.runs.compare import compare_runs
    from sqs_jax.analysis.surrogate import Surrogate, fit_surrogate
    from sqs_jax.train.text.language_model import load_language

__all__ = [
    "Calibration",
    "Eigenpairs",
    "Fidelity",
    "GLUWeights",
    "NotConvergedError",
    "Recorded",
    "Run",
    "Surrogate",
    "ablation",
    "bilinear_layer",
    "calibrate",
    "calibrated",
    "compare",
    "compare_runs",
    "deep_fidelity",
    "effective_rank",
    "eigengaps",
    "eigenpairs",
    "extremes",
    "fidelity",
    "fit_surrogate",
    "interaction_matrices",
    "layer_weights",
    "load_language",
    "load_run",
    "load_weights",
    "mlp_weights",
    "read_recorded",
    "read_weights",
    "spectrum",
    "token_directions",
    "token_eigenpairs",
    "top_eigenpairs",
    "truncation",
    "write_model_report",
    "write_report",
    "write_weights_report",
]


# What needs Flax, or the extra `train`: only who uses it pays.
_MODULES = {
    "Surrogate": "sqs_jax.analysis.surrogate",
    "compare_runs": "sqs_jax.analysis.runs.compare",
    "fit_surrogate": "sqs_jax.analysis.surrogate",
    "load_language": "sqs_jax.train.text.language_model",
    "mlp_weights": "sqs_jax.analysis.language",
    "token_directions": "sqs_jax.analysis.language",
    "token_eigenpairs": "sqs_jax.analysis.language",
    "write_model_report": "sqs_jax.analysis.report.model_page",
    "write_report": "sqs_jax.analysis.report",
    "write_weights_report": "sqs_jax.analysis.report.weights_page",
}


def __getattr__(name):
    if name in _MODULES:
        with extra():
            return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
