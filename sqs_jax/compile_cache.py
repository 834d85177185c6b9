"""What one command has compiled the next need not: JAX's persistent compilation cache, on for every command.

The programs lie in `compiled/<machine>/` of the cache's folder (`SQS_CACHE_DIR`).
"""

import contextlib
import hashlib
import itertools
import os
import platform
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path

from sqs_jax.cache import default_cache_dir

FLAG = "--no-compile-cache"
HELP = "Compile all anew, and keep nothing of it."
LARGEST = 2**29
"""Bytes of the programs of all machines together, at the beginning of a command."""

_FOLDER, _SWITCH = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
_SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # JAX's own, a second, is longer than most of our programs take
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",  # of GPUs: where those cannot be written, nothing is compiled
}
# What tells one kind of processor from another, on x86 and on ARM.
_FEATURES = {
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features",
}  # fmt: skip


def begin(arguments: Sequence[str]) -> None:
    """Switches the cache on, by JAX's environment variables: called before JAX is imported.

    Off where the arguments of the command have `FLAG`. Does nothing where the user has set or switched off JAX's
    cache. A folder that cannot be made or written costs nothing but the time of compiling.
    """
    if FLAG in (argument.replace("_", "-") for argument in arguments):
        os.environ[_SWITCH] = "false"
        return
    if _FOLDER in os.environ or _SWITCH in os.environ:
        return
    try:
        everything = default_cache_dir() / "compiled"
    except RuntimeError:  # nobody's home
        return
    folder = everything / machine()
    bound(everything, LARGEST)
    os.environ[_FOLDER] = str(folder)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    _heal(folder)


def machine(described: Path = Path("/proc/cpuinfo")) -> str:
    """A name for processors that run the same machine code, and as many of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [platform.machine(), str(cores)]
    try:
        with described.open() as lines:  # of the first processor: a machine may have hundreds
            facts += [
                line.rstrip("\n")
                for line in itertools.takewhile(str.strip, lines)
                if line.partition(":")[0].strip() in _FEATURES
            ]
    except OSError:
        facts += [platform.platform(), platform.node()]  # no other machine's
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def bound(folder: Path, largest: int) -> None:
    """Removes the programs that were not used for the longest time, until `largest` bytes are left."""
    kept = []
    with contextlib.suppress(OSError):  # a folder that may not be read, or that another command removes
        for path in folder.rglob("*"):
            facts = path.stat()
            if stat.S_ISREG(facts.st_mode):
                kept.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    room = largest
    for _, size, path in sorted(kept, reverse=True):
        room -= size
        if room < 0:
            with contextlib.suppress(OSError):
                path.unlink()


def _heal(folder: Path) -> None:
    """Where JAX cannot read an entry, forgets them all, and says nothing: they are made anew.

    A process that is killed, or a full disk, leaves an entry half-written, and JAX never writes over one.
    """
    shown = warnings.showwarning

    def show(message, *details, **named):
        text = str(message)
        if text.startswith("Error reading persistent compilation cache entry"):
            bound(folder, 0)
        elif not text.startswith("Error writing persistent compilation cache entry"):
            shown(message, *details, **named)

    warnings.showwarning = show
