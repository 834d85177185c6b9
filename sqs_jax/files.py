"""Files and folders that are written whole: under a name of our own beside their place, then moved there."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

# .<name>.<16 hexadecimal digits>.partial: a place that is being written. Nothing else is ever removed.
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{16}\.partial")
_open: set[Path] = set()


def write(path: Path, content: str | bytes) -> None:
    """Writes a file: readers see the old one or the new one, whole, and two writers never meet.

    Raises OSError, naming `path`, where it cannot be written; the old file is then untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    with _partial(path) as partial:
        with partial.open("xb") as file:  # exclusive: a link is never followed
            file.write(data)
        if path.is_file() and not path.is_symlink():
            shutil.copymode(path, partial)
        partial.replace(path)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A folder to be filled beside its place, then moved there: it is whole or absent, and never replaces another.

    What it lies in must be there. Raises OSError, naming `path`, where it cannot be written, or something is there.
    """
    with _partial(path) as partial:
        partial.mkdir()
        yield partial
        if path.exists():  # an empty folder would be replaced
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        partial.rename(path)


def remove(path: Path) -> None:
    """Removes a file or folder at once for every reader: it first gets a name of our own."""
    with _partial(path) as gone:
        path.rename(gone)
        _delete(gone)


def clean(folder: Path, name: str = "") -> None:
    """Removes what processes that were killed have left in a folder: partial places of our own naming, no others.

    With `name`, only those of the place of that name. To be called by who holds the lock of it, for processes that are
    at work have such places too.
    """
    with contextlib.suppress(FileNotFoundError):
        for path in list(folder.iterdir()):
            if _PARTIAL.fullmatch(path.name) and (not name or path.name.startswith(f".{name[:100]}.")):
                _delete(path)


def discard() -> None:
    """Removes the partial places of this process: for a process that is about to end at once."""
    for path in list(_open):
        _delete(path)


def visible(folder: Path) -> list[Path]:
    """What a folder holds but for hidden files, which the system, or a file manager, may have put there; sorted."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock, which the system lets go when a process dies. Yields whether it is held: always, with `wait`.

    `path` is the file of the lock; it stays.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A place of our own naming beside `path`; what is still there at the end is removed."""
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    _open.add(partial)
    try:
        yield partial
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        if error.filename is not None and not str(error.filename).startswith(str(partial)):
            raise  # of another file
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
    finally:
        _delete(partial)
        _open.discard(partial)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
