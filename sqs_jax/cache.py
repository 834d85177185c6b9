"""The folder for prepared data, measurements and compiled programs."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """`SQS_CACHE_DIR`, else `sqs_jax` in `XDG_CACHE_HOME` or `~/.cache`."""
    if os.environ.get("SQS_CACHE_DIR"):
        return Path(os.environ["SQS_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqs_jax"
