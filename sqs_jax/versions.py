"""The versions of this package and of those that its numbers depend on."""

import contextlib
import importlib
import importlib.metadata
import platform

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions by name, as far as a package is installed; of Python, too."""
    found = {}
    for name in _PACKAGES:  # each by its name: to list all that is installed takes half a second
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    own = importlib.import_module("sqs_jax").__version__  # a clone that is used as it is has no metadata
    return {"python": platform.python_version(), "sqs-jax": own} | found
