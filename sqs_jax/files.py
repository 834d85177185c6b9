"""Files and folders that are written whole: under a temporary name beside their path, then renamed."""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# .<name>.<16 hexadecimal digits>.partial: a path that is being written. Nothing else is ever removed.
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
    """A folder to be filled under a temporary name, then renamed: it is whole or absent, and never replaces another.

    Its parent must exist. Raises OSError, naming `path`, where it cannot be written, or the path exists.
    """
    with _partial(path) as partial:
        partial.mkdir()
        yield partial
        if path.exists():  # an empty folder would be replaced
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        partial.rename(path)


def npz(arrays: Mapping[str, Any]) -> bytes:
    """The content of a .npz file of these arrays."""
    import numpy as np

    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(buffer, **plain)
    return buffer.getvalue()


def write_folder(folder: Path, content: Mapping[str, str | bytes]) -> None:
    """Writes files, by name, into a new folder, which appears whole, or one by one into a folder that is there.

    Raises OSError as `appearing`.
    """
    if folder.is_dir():
        for name, data in content.items():
            write(folder / name, data)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with appearing(folder) as partial:
        for name, data in content.items():
            (partial / name).write_bytes(data.encode() if isinstance(data, str) else data)


def remove(path: Path) -> None:
    """Removes a file or folder, for every reader at one moment: it is renamed first."""
    with _partial(path) as gone:
        path.rename(gone)
        _delete(gone)


def clean(folder: Path, name: str = "") -> None:
    """Removes the temporary files and folders that killed processes left in a folder, and nothing else.

    With `name`, only those of that name. Call it while holding the lock of the folder: running processes have
    temporary files too.
    """
    with contextlib.suppress(FileNotFoundError):
        for path in list(folder.iterdir()):
            if _PARTIAL.fullmatch(path.name) and (not name or path.name.startswith(f".{name[:100]}.")):
                _delete(path)


def discard() -> None:
    """Removes the temporary files of this process, which is about to end."""
    for path in list(_open):
        _delete(path)


def visible(folder: Path) -> list[Path]:
    """The paths in a folder, sorted, without hidden files, which a file manager may have put there."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock, which the system releases when the process dies. Yields whether it is held: always, with `wait`.

    `path` is the lock's file, which stays.
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
    """A temporary path beside `path`; what is still there at the end is removed."""
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
