"""An exclusive lock of a folder, between processes and within one, which ends with the process that holds it.

It is the kernel's lock of the folder itself, wherever that is moved and whatever is removed in it, and of a file in it:
some file systems have no locks of folders, such as NFS, which locks only what is open for writing. A killed process
leaves no lock behind.
"""

import contextlib
import errno
import logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout, lock_descriptor

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.errors import Overload

LOCK = ".lock"

_RETRY_SECONDS = 0.05
_NO_FOLDERS = (errno.EBADF, errno.EINVAL, errno.EISDIR)  # whose folders have no locks

# it logs every attempt at a lock that another process holds
logging.getLogger("filelock").setLevel(logging.INFO)


class FolderLock:
    """The lock of one folder; any thread may take it, and any other give it back."""

    def __init__(self, folder: pathlib.Path) -> None:
        # a soft lock, the fallback without kernel locks, would outlive a killed process
        self._file = FileLock(folder / LOCK, thread_local=False, fallback_to_soft=False)
        self._folder = folder
        self._descriptor: int | None = None  # of the folder, while it is locked
        self._changing = threading.Lock()

    def take(self, seconds: float) -> bool:
        """Takes the lock; returns False if that fails for `seconds`.

        Raises OSError if the folder cannot be written, or its file system has no locks.
        """
        until = time.monotonic() + seconds
        try:
            self._file.acquire(timeout=seconds)
            taken = False
            try:
                while not (taken := self._take_folder()) and time.monotonic() < until:
                    time.sleep(_RETRY_SECONDS)
            finally:
                if not taken:
                    self._file.release()
        except Timeout:
            return False
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise OSError(error.errno, "the file system has no locks") from error
            raise OSError(error.errno, error.strerror or os.strerror(error.errno or errno.EIO)) from error
        return taken

    def check_in_place(self) -> None:
        """Raises OSError if what is at the path now is not the folder that is locked."""
        with self._changing:
            if self._descriptor is not None and not os.path.samestat(os.fstat(self._descriptor), self._folder.stat()):
                raise OSError(errno.ESTALE, "another folder is in its place")

    def give_back(self) -> None:
        """Releases the lock, if it is held."""
        with self._changing:
            if self._descriptor is not None and self._file.lock_counter <= 1:
                os.close(self._descriptor)
                self._descriptor = None
        self._file.release()

    def _take_folder(self) -> bool:
        """Locks the folder itself, unless it has no lock; returns False if another holds it. Raises OSError."""
        with self._changing:
            if self._descriptor is not None or sys.platform == "win32":
                return True
            try:
                descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            except PermissionError:  # who cannot read the folder learns it from what is read next
                return True
            try:
                if lock_descriptor(descriptor, blocking=False):
                    self._descriptor, descriptor = descriptor, -1
                    return True
                return False
            except OSError as error:
                if error.errno in _NO_FOLDERS:
                    return True
                raise
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    @contextlib.contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        """Holds the lock for a change of models. Raises OSError, and ServerError OVERLOADED after `seconds`."""
        if not self.take(seconds):
            raise overloaded("the models folder is locked: another process is changing it", ONE_SECOND, Overload.MODELS)
        try:
            yield
        finally:
            self.give_back()
