"""Reports: what is measured of a run, a sweep or weights, as one page and the files beside it."""

from sqs_jax.analysis.report.write import write_report

__all__ = ["write_report"]
