"""What every command line here has in common: one line for a mistake, and exit codes."""

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro

from sqs_jax.messages import one_line
from sqs_jax.start import missing
from sqs_jax.train.config import InputError


@contextlib.contextmanager
def one_line_errors(*mistakes: type[Exception], interrupted: str = "interrupted") -> Iterator[None]:
    """Turns these errors and OSError into one line and exit code 2, Ctrl-C into a line of its own and 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # σ and λ on a terminal that has no such letters
    try:
        yield
    except KeyboardInterrupt:
        fail(interrupted, 130)
    except mistakes as error:
        fail(str(error), 2)
    except ModuleNotFoundError as error:
        fail(missing(error), 2)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)


def read(kind: Any, args: Sequence[str], *, prog: str, description: str | None = None, **settings: Any) -> Any:
    """The command line by tyro, whose framed messages become the one line of an InputError."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=prog, description=description, args=args, **settings)
    except SystemExit as end:
        if end.code == 0:
            raise
        raise InputError(f"{_unframed(complaint.getvalue())} ({prog} --help lists the flags)") from None


def fail(message: str, code: int) -> NoReturn:
    """Says it on stderr, in one line, and exits."""
    line = one_line(message)
    print(f"error: {line}" if code in (1, 2) else line, file=sys.stderr, flush=True)
    sys.exit(code)


def program(folder: str, installed: str | None = None) -> str:
    """How `folder`'s command was called: from a clone's root, as an installed module, or by its installed name."""
    main_module = getattr(sys.modules["__main__"], "__spec__", None)
    if main_module and main_module.name == f"sqs_jax.{folder}.__main__":
        return f"python -m sqs_jax.{folder}"
    return installed if installed and Path(sys.argv[0]).stem == installed else f"python -m {folder}"


def _unframed(framed: str) -> str:
    """What tyro says in a frame: title, message, then maybe the flags that could be meant, with rules between."""
    paragraphs: list[list[str]] = [[]]
    for line in framed.splitlines():
        content = line.strip("│ ")
        if line.startswith(("╭", "╰")) or set(content) <= {"─", "-"}:
            paragraphs.append([])
        else:
            paragraphs[-1].append(content)
    message, *rest = [lines for lines in paragraphs[1:] if lines]
    likely = [lines[1].split()[0].rstrip(",") for lines in rest if lines[0].startswith("Perhaps")]
    return " ".join(message) + (f"; did you mean {likely[0]}?" if likely else "")
