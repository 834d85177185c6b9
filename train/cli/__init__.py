"""The commands: `python -m train`, `sweep` and `sample`."""
