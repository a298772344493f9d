"""The lock of a folder in which several servers may write: one has it at a time, and it ends with that one's process.

Between processes and within one. It is the kernel's, on a file that stays: whoever is killed holds nothing back.
"""

import contextlib
import errno
import logging
import os
import pathlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from seqloom_server.engine.core.overload import ONE_SECOND, overloaded

LOCK = ".lock"

# it tells of every look at a lock that another has
logging.getLogger("filelock").setLevel(logging.INFO)


class FolderLock:
    """The lock of one folder, to be taken by any thread and given back by any other."""

    def __init__(self, folder: pathlib.Path) -> None:
        # a lock file without the kernel's lock, which it would resort to, outlives whoever is killed
        self._lock = FileLock(folder / LOCK, thread_local=False, fallback_to_soft=False)

    def take(self, seconds: float) -> bool:
        """Waits so long at most. Raises OSError where nothing can be written there, or the file system has no locks."""
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
        """Does nothing where it is not held."""
        self._lock.release()

    @contextlib.contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        """Has it for a change of models. Raises ServerError OVERLOADED where another has it for so long; OSError."""
        if not self.take(seconds):
            raise overloaded("another process is changing the server's folder of models", ONE_SECOND)
        try:
            yield
        finally:
            self.give_back()
