"""Runs of `python -m train` as something to read: loading, studying, comparing."""
