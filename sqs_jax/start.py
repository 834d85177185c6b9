"""How every command starts. From its first moment, Ctrl-C and a missing package end it with one line."""

import contextlib
import importlib
import os
import signal
import sys
import threading
from pathlib import Path

from sqs_jax import compile_cache, display, files

EXTRA = "train"
_COMMANDS = ("train", "analysis", "kernels")
_ANSWERS = {"-h", "--help", "--version", "-q", "--quiet"}  # what asks for no progress


def watch() -> None:
    """Where this process is one of our commands, and only there: catches Ctrl-C, shows that something happens, and
    has JAX keep what it compiles.

    Called before JAX is imported, which takes a second.
    """
    if _is_command():
        catch_interrupts("interrupted")
        display.begin(moving=_shows_progress())
        compile_cache.begin(sys.argv)


def _shows_progress() -> bool:
    return _ANSWERS.isdisjoint(sys.argv[1:])


def _is_command() -> bool:
    arguments = sys.orig_argv
    name = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    if name in _COMMANDS:  # from the root of a clone; a user's own train.py is no package of ours
        folders = getattr(sys.modules.get(name), "__path__", [])
        return any(Path(folder).resolve() == (Path(__file__).parent / name).resolve() for folder in folders)
    return name.removeprefix("sqs_jax.") in _COMMANDS or Path(sys.argv[0]).name == "sqs"


def catch_interrupts(message: str) -> None:
    """From now on Ctrl-C ends the process with a line and 130, after what is half-written was removed.

    A KeyboardInterrupt during imports and compilation may be swallowed, or end in a traceback. Training takes the
    signal over (`train.interrupt`). Does nothing where the signal is ignored, or in a thread.
    """

    def leave(number: int, frame: object) -> None:
        files.discard()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os.write(2, f"\n{message}\n".encode())
        os._exit(128 + number)

    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


def run(module: str, interrupted: str = "interrupted") -> None:
    """Runs the `main` of a command line's module; a package that is missing ends in a line."""
    catch_interrupts(interrupted)
    with display.command(moving=_shows_progress()):
        try:
            main = importlib.import_module(module).main
        except ModuleNotFoundError as error:
            display.end()
            print(f"error: {missing(error)}", file=sys.stderr)
            sys.exit(2)
        main()


def missing(error: ModuleNotFoundError) -> str:
    """What to say of a package that is not installed."""
    name = "pretrained" if error.name == "gguf" else EXTRA
    return f"the package {error.name} is not installed: pip install 'sqs-jax[{name}]' brings it"


@contextlib.contextmanager
def extra():
    """Around imports that need an extra: where a package is missing, the ImportError names the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(missing(error), name=error.name) from None
