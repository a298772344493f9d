"""Folders that are replaced whole or not at all: a crash at any moment leaves the old one or the new one.

The new folder is written beside the old one under a name that begins with a dot, synced, and renamed.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

_SUFFIXES = (".being-written", ".being-replaced")


@contextlib.contextmanager
def replaced(folder: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives an empty folder to write files into, which then stands in place of `folder`, on the disk and all.

    What the body raises leaves `folder` as it was. One writer to a folder at a time. Raises OSError.
    """
    path = pathlib.Path(folder)
    recover(path)
    new, old = _beside(path)
    new.mkdir(parents=True)
    try:
        yield new
        for each in (*new.iterdir(), new):
            sync(each)
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        recover(path)
    sync(path.parent)


def recover(folder: str | os.PathLike[str]) -> None:
    """Clears up what an interrupted replaced() left beside a folder, and puts the old one back if it was moved."""
    path = pathlib.Path(folder)
    new, old = _beside(path)
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def recover_all(root: str | os.PathLike[str]) -> None:
    """Does so for every folder directly in `root`, also one of which only the old folder is left."""
    for suffix in _SUFFIXES:
        for leftover in pathlib.Path(root).glob(f".*{suffix}"):
            recover(leftover.with_name(leftover.name.removeprefix(".").removesuffix(suffix)))


def sync(path: pathlib.Path) -> None:
    """Returns once the file's bytes, or the folder's entries, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where the new folder is written and where the old one waits; dots keep them apart from what is named by users."""
    new, old = (path.with_name(f".{path.name}{suffix}") for suffix in _SUFFIXES)
    return new, old
