"""Reads and writes model folders, which several servers may share: writes hold a lock, reads do not.

A reader sees one whole folder or none: after reading it checks that the folder has not been replaced meanwhile.
"""

import logging
import os
import pathlib
import stat
import time
from collections.abc import Callable

from seqloom_server.engine.core.folder_lock import FolderLock
from seqloom_server.engine.core.names import is_name
from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.errors import Overload, Reason, ServerError
from seqloom_server.nn.files import atomic_folder, model_folder
from seqloom_server.nn.files.model_folder import BrokenModel
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

log = logging.getLogger(__name__)

_LOCK_SECONDS = 10.0  # that a change waits for a change by another process
_MAX_READS = 20  # of a folder that is replaced while it is read
_RETRY_SECONDS = 0.05


class ModelFolders:
    """The model folders in the folder `root`, by name. Call its methods in worker threads."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        self._lock = FolderLock(root)

    def has(self, name: str) -> bool:
        """Returns whether a file or folder of this name exists."""
        return os.path.lexists(self._root / name)

    def find(self) -> list[str]:
        """Returns the names of all possible model folders, after removing the leftovers of crashes.

        Folders that another process is replacing are among them. Raises OSError if the root cannot be read.
        """
        unfinished = atomic_folder.unfinished(self._root)
        if unfinished:
            self._remove_leftovers()
        paths = self._root.iterdir() if self._root.is_dir() else ()
        found = {path.name for path in paths if not _is_file(path)}
        return sorted(name for name in {*found, *unfinished} if is_name(name))

    def read(self, name: str, device: str, check: Callable[[ModelSpec], None]) -> tuple[Network, int]:
        """Returns the network of a folder, and its weights version. check: see model_folder.load().

        Raises BrokenModel, OSError, ServerError MODEL_NOT_FOUND, or OVERLOADED if it is replaced at every attempt.
        """
        folder = self._root / name
        for attempt in range(_MAX_READS):
            before = atomic_folder.identity(folder)
            if _is_file(folder) or (before is None and not self._restore(name)):
                raise ServerError(Reason.MODEL_NOT_FOUND, f"model folder {name!r} not found", field="name")
            if before is None:
                continue
            try:
                if not folder.is_dir():
                    raise BrokenModel(f"{name}: is neither a folder nor a link to one")
                loaded = model_folder.load(folder, device, check)
            except Exception:
                if attempt == _MAX_READS - 1 or atomic_folder.identity(folder) == before:
                    raise
            else:
                if atomic_folder.identity(folder) == before:
                    return loaded
        raise overloaded(f"model {name!r} was replaced during each of {_MAX_READS} reads", ONE_SECOND, Overload.MODELS)

    def save(self, name: str, network: Network, version: int, check: Callable[[str], None] | None = None) -> None:
        """Writes a model folder, replacing an existing one. check: called with the name while the lock is held.

        Raises ServerError OVERLOADED if another process holds the lock for too long, MODEL_EXISTS if a file has that
        name; OSError; and what check raises.
        """
        with self._lock.held(_LOCK_SECONDS):
            if _is_file(self._root / name):
                raise ServerError(Reason.MODEL_EXISTS, f"{name!r} is a file in the models folder", field="name")
            if check is not None:
                check(name)
            model_folder.save(self._root / name, network, version)

    def _remove_leftovers(self) -> None:
        """Removes leftovers as far as possible: models in a read-only folder are served, too."""
        try:
            with self._lock.held(_LOCK_SECONDS):
                failed = model_folder.recover_all(self._root)
        except ServerError:  # a process that holds the lock for so long is alive, and writing
            return
        except OSError as error:
            failed = dict.fromkeys(atomic_folder.unfinished(self._root), error)
        for name, problem in failed.items():
            log.warning("leftovers of an interrupted change of model %s cannot be removed: %s", name, problem.strerror)

    def _restore(self, name: str) -> bool:
        """Waits for a process that is replacing a missing folder, or restores one that a crashed process moved away.

        Returns whether the folder may exist then. Raises ServerError OVERLOADED.
        """
        if name in atomic_folder.unfinished(self._root):
            try:
                with self._lock.held(_LOCK_SECONDS):
                    atomic_folder.recover(self._root / name)
            except OSError:  # the folder is read-only for this process; another one may be writing
                time.sleep(_RETRY_SECONDS)
                return True
        return self.has(name)


def _is_file(path: pathlib.Path) -> bool:
    """Returns whether the path is a regular file, such as a README beside the models."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
