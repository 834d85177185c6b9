"""The versions of this package and of those that its numbers depend on."""

import importlib
import importlib.metadata
import platform

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions by name, as far as a package is installed; of Python, too."""
    found = {dist.name.lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    own = importlib.import_module("sqs_jax").__version__  # a clone that is used as it is has no metadata
    known = {name: found[name] for name in _PACKAGES if name in found}
    return {"python": platform.python_version(), "sqs-jax": own} | known
