"""What Orbax and the libraries below it raise, as errors of this package: on damaged files, and on full disks."""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from sqs_jax.messages import InputError, first_line

# What fails is raised too; Orbax logs it from each of its threads, with a traceback.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class DamagedError(InputError):
    """A checkpoint that cannot be read."""


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns what Orbax and the libraries below it raise for damaged or missing files into a DamagedError.

    Errors that may be gone the next time are raised unchanged: no memory, no permission, too many open files.
    """
    try:
        with _closed_loops():
            yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _error_number(error)
        if number not in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
            raise OSError(number, os.strerror(number), str(path)) from None
        raise DamagedError(f"{path} is damaged: {first_line(error)}") from None


@contextlib.contextmanager
def _closed_loops() -> Iterator[None]:
    """Silences one kind of message: after a failure Orbax closes an asyncio loop that a library still calls.

    The calls may come late, so after a failure the filter stays.
    """
    excepthook, unraisablehook = sys.excepthook, sys.unraisablehook

    def is_news(error: Any) -> bool:
        return "Event loop is closed" not in str(error)

    sys.excepthook = lambda kind, error, trace: excepthook(kind, error, trace) if is_news(error) else None
    sys.unraisablehook = lambda report: unraisablehook(report) if is_news(report.exc_value) else None
    level = logging.getLogger("asyncio").level
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of tasks whose errors nobody waits for
    yield
    logging.getLogger("asyncio").setLevel(level)
    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook


def _error_number(error: Exception) -> int | None:
    """The errno of an error. The library below Orbax writes it into the text of a ValueError."""
    match = re.search(r"os_error_code='(\d+)'", str(error))
    return int(match[1]) if match else None


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns what Orbax and the libraries below it raise into an OSError."""
    try:
        with _closed_loops():
            yield
    except OSError:
        raise
    except Exception as error:  # as the libraries below Orbax tell of a quota
        number = _error_number(error)
        raise OSError(number or errno.EIO, os.strerror(number) if number else first_line(error), str(path)) from None
