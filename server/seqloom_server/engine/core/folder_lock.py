"""An exclusive lock of a folder, between processes and within one, which ends with the process that holds it.

It is the kernel's lock of a file that is never removed: a killed process leaves no lock behind.
"""

import contextlib
import errno
import logging
import os
import pathlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded
from seqloom_server.errors import Overload

LOCK = ".lock"

# it logs every attempt at a lock that another process holds
logging.getLogger("filelock").setLevel(logging.INFO)


class FolderLock:
    """The lock of one folder; any thread may take it, and any other give it back."""

    def __init__(self, folder: pathlib.Path) -> None:
        # a soft lock, the fallback without kernel locks, would outlive a killed process
        self._lock = FileLock(folder / LOCK, thread_local=False, fallback_to_soft=False)

    def take(self, seconds: float) -> bool:
        """Takes the lock; returns False if that fails for `seconds`.

        Raises OSError if the folder cannot be written, or its file system has no locks.
        """
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise OSError(error.errno, "the file system has no locks") from error
            raise OSError(error.errno, error.strerror or os.strerror(error.errno or errno.EIO)) from error
        return True

    def give_back(self) -> None:
        """Releases the lock, if it is held."""
        self._lock.release()

    @contextlib.contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        """Holds the lock for a change of models. Raises OSError, and ServerError OVERLOADED after `seconds`."""
        if not self.take(seconds):
            raise overloaded("the models folder is locked: another process is changing it", ONE_SECOND, Overload.MODELS)
        try:
            yield
        finally:
            self.give_back()
