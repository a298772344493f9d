"""The models' folders on disk, which other servers may read and change meanwhile: changed under a lock, read without.

A reader sees one whole folder or none, since it looks whether the same one still stands there when it has read it.
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
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.files import atomic_folder, model_folder
from seqloom_server.nn.files.model_folder import BrokenModel
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

log = logging.getLogger(__name__)

_LOCK_SECONDS = 10.0  # for which a change waits for one of another process
_READS = 20  # of a folder that others replace again and again meanwhile
_SECONDS_BETWEEN_LOOKS = 0.05


class ModelFolders:
    """Those in one folder `root`, by name. Its methods are for worker threads; one process changes them at a time."""

    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        self._lock = FolderLock(root)

    def has(self, name: str) -> bool:
        """Whether anything stands there under this name."""
        return os.path.lexists(self._root / name)

    def find(self) -> list[str]:
        """Returns the names of whatever may be a model's folder, after clearing up what a crash left.

        Those that another process is replacing are among them. Raises OSError where the root cannot be read.
        """
        unfinished = atomic_folder.unfinished(self._root)
        if unfinished:
            self._clear_up()
        paths = self._root.iterdir() if self._root.is_dir() else ()
        found = {path.name for path in paths if not _is_file(path)}
        return sorted(name for name in {*found, *unfinished} if is_name(name))

    def read(self, name: str, device: str, check: Callable[[ModelSpec], None]) -> tuple[Network, int]:
        """Returns the network of a folder, and its weights version; check: see storage.load().

        Raises BrokenModel, OSError, ServerError MODEL_NOT_FOUND, or OVERLOADED where it is replaced all the time.
        """
        folder = self._root / name
        for attempt in range(_READS):
            before = atomic_folder.identity(folder)
            if _is_file(folder) or (before is None and not self._put_back(name)):
                raise ServerError(Reason.MODEL_NOT_FOUND, f"there is no model folder {name!r}", field="name")
            if before is None:
                continue
            try:
                if not folder.is_dir():
                    raise BrokenModel(f"{name}: is no folder, and no link to one")
                loaded = model_folder.load(folder, device, check)
            except Exception:
                if attempt == _READS - 1 or atomic_folder.identity(folder) == before:
                    raise
            else:
                if atomic_folder.identity(folder) == before:
                    return loaded
        raise overloaded(f"model {name!r} is replaced all the time", ONE_SECOND)

    def save(self, name: str, network: Network, version: int, check: Callable[[str], None] | None = None) -> None:
        """Writes a folder in place of what stands there. check: sees the name once no other process may change it.

        Raises ServerError OVERLOADED where another process changes models for too long, MODEL_EXISTS where a file has
        that name; OSError; what check raises.
        """
        with self._lock.held(_LOCK_SECONDS):
            if _is_file(self._root / name):
                raise ServerError(Reason.MODEL_EXISTS, f"{name!r} is a file among the models' folders", field="name")
            if check is not None:
                check(name)
            model_folder.save(self._root / name, network, version)

    def _clear_up(self) -> None:
        """As far as it can: where nothing may be written, models are served all the same."""
        try:
            with self._lock.held(_LOCK_SECONDS):
                failed = model_folder.recover_all(self._root)
        except ServerError:  # whoever has it for so long is alive, and at work
            return
        except OSError as error:
            failed = dict.fromkeys(atomic_folder.unfinished(self._root), error)
        for name, problem in failed.items():
            log.warning("what was left of a change of model %s cannot be cleared up: %s", name, problem.strerror)

    def _put_back(self, name: str) -> bool:
        """Waits for whoever is replacing a folder that is not there now, or puts back what one that died moved away.

        Returns whether there may be a folder after that. Raises ServerError OVERLOADED.
        """
        if name in atomic_folder.unfinished(self._root):
            try:
                with self._lock.held(_LOCK_SECONDS):
                    atomic_folder.recover(self._root / name)
            except OSError:  # where nothing may be written: another process may have more rights, and be at work
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                return True
        return self.has(name)


def _is_file(path: pathlib.Path) -> bool:
    """Whether it is a file, such as a README: those lie beside models."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
