"""The paper's claims and experiments, and what goes beyond them, each by one command: `python -m experiments`."""
