"""Folders that are replaced, or removed, whole or not at all: a crash at any moment leaves the old one or the new one.

The new folder is written beside the old one under a name that begins with a dot, synced, and renamed. Who does so, or
clears up, keeps others from it meanwhile; to read needs nothing but a look at identity(), before and after.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

_SUFFIXES = (".being-written", ".being-replaced")


class BrokenFolder(ValueError):
    """A folder whose files cannot be loaded; the text names the file, and the field or tensor at fault."""


@contextlib.contextmanager
def replaced(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives an empty folder to write files into, which then stands in place of `folder`, on the disk and all.

    What the body raises leaves `folder` as it was, whatever it was. One writer to a folder at a time. Raises OSError.
    """
    path = pathlib.Path(folder)
    recover(path)
    new, old = _beside(path)
    new.mkdir(parents=True)
    try:
        yield new
        for each in (*new.iterdir(), new):
            sync(each)
        if os.path.lexists(path):
            path.rename(old)
        new.rename(path)
    finally:
        recover(path)
    sync(path.parent)


def remove(folder: str | os.PathLike[str]) -> None:
    """Removes a folder, or what stands in its place: no crash leaves a part of it under its name.

    Raises FileNotFoundError or another OSError; it is gone, or as it was.
    """
    path = pathlib.Path(folder)
    recover(path)
    new, _ = _beside(path)
    path.rename(new)
    sync(path.parent)
    with contextlib.suppress(OSError):  # what is left of it is cleared up at the next start
        _delete(new)


def recover(folder: str | os.PathLike[str]) -> None:
    """Clears up what an interrupted replaced() left beside a folder, and puts the old one back if it was moved.

    Only where nobody is replacing it now. Raises OSError.
    """
    path = pathlib.Path(folder)
    new, old = _beside(path)
    if os.path.lexists(old) and not os.path.lexists(path):
        old.rename(path)
    for leftover in (new, old):
        if os.path.lexists(leftover):
            _delete(leftover)


def recover_all(root: str | os.PathLike[str]) -> dict[str, OSError]:
    """Does so for every folder directly in `root`, also one of which only the old folder is left.

    Returns why by name for those where it could not. Raises OSError where `root` cannot be read.
    """
    failed: dict[str, OSError] = {}
    for name in unfinished(root):
        try:
            recover(pathlib.Path(root) / name)
        except OSError as error:
            failed[name] = error
    return failed


def unfinished(root: str | os.PathLike[str]) -> list[str]:
    """The names of the folders in `root` that are being replaced, or whose replacing was interrupted. Raises OSError.

    [] where there is no such root.
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
    """Equal at two moments if the same folder stood there at both; None where nothing does. Raises OSError."""
    try:
        found = [os.lstat(folder), os.stat(folder)]
    except FileNotFoundError:
        return None if not os.path.lexists(folder) else "a link that leads nowhere"
    # an inode may soon be another folder's, which has another time
    return [(each.st_dev, each.st_ino, each.st_mtime_ns, each.st_ctime_ns) for each in found]


def sync(path: pathlib.Path) -> None:
    """Returns once the file's bytes, or the folder's entries, are on the disk. Raises OSError."""
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
    """Where the new folder is written and where the old one waits; dots keep them apart from what is named by users."""
    new, old = (path.with_name(f".{path.name}{suffix}") for suffix in _SUFFIXES)
    return new, old
