"""Replaces and removes folders atomically: a crash at any moment leaves the old folder or the new one, complete.

The new folder is written beside the old one under a name that begins with a dot, synced, and renamed. Callers make sure
that only one process at a time replaces or recovers a folder; readers compare identity() before and after reading.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

_SUFFIXES = (".being-written", ".being-replaced")


class BrokenFolder(ValueError):
    """A folder whose files cannot be loaded; the text names the file, and the invalid field or tensor."""


@contextlib.contextmanager
def replaced(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Returns a context with an empty folder to write files into, which then replaces `folder` and is synced.

    If the body raises, `folder` stays as it was. One writer to a folder at a time. Raises OSError.
    """
    path = pathlib.Path(folder)
    recover(path)
    new, old = _beside(path)
    new.mkdir(parents=True)
    try:
        yield new
        for written in (*new.iterdir(), new):
            sync(written)
        if os.path.lexists(path):
            path.rename(old)
        new.rename(path)
    finally:
        recover(path)
    sync(path.parent)


def remove(folder: str | os.PathLike[str]) -> None:
    """Removes a folder or file; a crash leaves no part of it under its name.

    Raises FileNotFoundError or another OSError; it is then removed, or unchanged.
    """
    path = pathlib.Path(folder)
    recover(path)
    new, _ = _beside(path)
    path.rename(new)
    sync(path.parent)
    with contextlib.suppress(OSError):  # the next recover_all() removes the rest
        _delete(new)


def recover(folder: str | os.PathLike[str]) -> None:
    """Removes the leftovers of an interrupted replaced(), and restores the old folder if it had been moved away.

    No process may be replacing the folder now. Raises OSError.
    """
    path = pathlib.Path(folder)
    new, old = _beside(path)
    if os.path.lexists(old) and not os.path.lexists(path):
        old.rename(path)
    for leftover in (new, old):
        if os.path.lexists(leftover):
            _delete(leftover)


def recover_all(root: str | os.PathLike[str]) -> dict[str, OSError]:
    """Calls recover() for every unfinished folder directly in `root`.

    Returns by name the errors of those that failed. Raises OSError if `root` cannot be read.
    """
    failed: dict[str, OSError] = {}
    for name in unfinished(root):
        try:
            recover(pathlib.Path(root) / name)
        except OSError as error:
            failed[name] = error
    return failed


def unfinished(root: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the folders in `root` that are being replaced, or were when their process was interrupted.

    [] if `root` does not exist. Raises OSError.
    """
    names = os.listdir(root) if os.path.isdir(root) else []
    found = {
        name.removeprefix(".").removesuffix(suffix)
        for name in names
        for suffix in _SUFFIXES
        if name.startswith(".") and name.endswith(suffix)
    }
    return sorted(found - {""})


def identity(folder: str | os.PathLike[str]) -> object:
    """Returns a value that changes when the folder is replaced; None if nothing has that name. Raises OSError."""
    try:
        found = [os.lstat(folder), os.stat(folder)]
    except FileNotFoundError:
        return None if not os.path.lexists(folder) else "broken link"
    # times too: an inode may be reused for another folder
    return [(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns) for status in found]


def sync(path: pathlib.Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _beside(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the temporary paths of the new and the old folder; names of users never begin with a dot."""
    new, old = (path.with_name(f".{path.name}{suffix}") for suffix in _SUFFIXES)
    return new, old
