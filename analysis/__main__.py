"""The command line `python -m analysis`: nothing but a call."""

from sqs_jax.analysis.cli import main

if __name__ == "__main__":
    main()
