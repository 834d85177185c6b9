"""What one command has compiled the next need not: JAX's persistent compilation cache, on for every command.

The programs lie in `compiled/<machine>/` of the cache's folder (`SQS_CACHE_DIR`).
"""

import contextlib
import hashlib
import os
import platform
import shutil
import stat
import warnings
from pathlib import Path

from sqs_jax.cache import default_cache_dir

FLAG = "--no-compile-cache"
LARGEST = 2**29
"""Bytes of the programs of all machines together, at the beginning of a command."""

_FOLDER, _SWITCH = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
_SHORTEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
# What tells one kind of processor from another, on x86 and on ARM.
_FEATURES = {
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features",
}  # fmt: skip


def begin() -> None:
    """Switches the cache on, by JAX's environment variables: called before JAX is imported.

    Does nothing where the user has set or switched off JAX's cache. A folder that cannot be made or written costs
    nothing but the time of compiling.
    """
    if _FOLDER in os.environ or _SWITCH in os.environ:
        return
    try:
        everything = default_cache_dir() / "compiled"
    except RuntimeError:  # nobody's home
        return
    folder = everything / machine()
    bound(everything, LARGEST)
    os.environ[_FOLDER] = str(folder)
    os.environ.setdefault(_SHORTEST, "0")  # JAX's own, a second, is longer than most of our programs take
    _heal(folder)


def machine(described: Path = Path("/proc/cpuinfo")) -> str:
    """A name for processors that run the same machine code, and as many of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = [platform.machine(), str(cores)]
    try:
        first, _, _ = described.read_text().partition("\n\n")
        facts += [line for line in first.splitlines() if line.partition(":")[0].strip() in _FEATURES]
    except OSError:
        facts += [platform.platform(), platform.node()]  # no other machine's
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def bound(folder: Path, largest: int) -> None:
    """Removes the programs that were not used for the longest time, until `largest` bytes are left."""
    kept = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another command removes it
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                continue
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
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True)
        elif not text.startswith("Error writing persistent compilation cache entry"):
            shown(message, *details, **named)

    warnings.showwarning = show
