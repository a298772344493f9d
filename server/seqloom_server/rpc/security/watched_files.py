"""Files that are read again when they change, while the server runs; what was read before stays if they are broken.

They are looked at every second. What has changed is read when it has stayed the same from one look to the next, since
a certificate and its key are never replaced in the same instant; or after some looks, if somebody writes all the time.
What could not be read is read again at every look until it can, since what kept it from being read may end without a
change of the file; it is told once.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
Signature = tuple[tuple[int, int, int, int] | None, ...]

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

_MOST_UNSETTLED = 5  # looks
_MAX_BYTES = 16 << 20


class BrokenFile(Exception):
    """A file that cannot be used; the text says why, and never quotes what may be secret."""


class WatchedFiles(Generic[T]):
    """Files that are read together. name: of what they are, for the log.

    read: returns what they say, in a worker thread; raises BrokenFile. use: takes what was read, on the event loop.
    failed: is called when they could not be read.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        read: Callable[[], T],
        use: Callable[[T], None],
        failed: Callable[[], None],
    ) -> None:
        self._name = name
        self._paths = paths
        self._read = read
        self._use = use
        self._failed = failed
        self._signature = self._look()
        self._failure: tuple[Signature, str] | None = None  # of the last read, and what the files were

    def first(self) -> T:
        """Returns what they say now. Raises BrokenFile."""
        self._signature = self._look()
        return self._read()

    async def watch(self) -> None:
        """Reads them again whenever they change, for ever."""
        seen, unsettled = self._signature, 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                now = await asyncio.to_thread(self._look)
                unsettled = 0 if now == seen else unsettled + 1
                seen = now
                unchanged = now == self._signature and self._failure is None
                if unchanged or unsettled not in (0, _MOST_UNSETTLED):
                    continue
                self._signature, unsettled = now, 0
                self._use(await asyncio.to_thread(self._read))
            except Exception as error:  # also of the look itself, such as a worker thread that cannot be started
                self._tell(error)
            else:
                self._failure = None
                log.info("%s: read again", self._name)

    def _tell(self, error: Exception) -> None:
        failure = self._signature, repr(error)
        if failure == self._failure:
            return
        self._failure = failure
        self._failed()
        known = isinstance(error, BrokenFile)
        log.error("%s: the files have changed, and what they said before stays: %s", self._name, error,
                  exc_info=None if known else error)  # fmt: skip

    def _look(self) -> Signature:
        """Returns what differs when a file has changed, or its owner or mode, which say who may read it."""
        found: list[tuple[int, int, int, int] | None] = []
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
        return tuple(found)


def read_file(path: str) -> bytes:
    """Returns a regular file's bytes. Raises BrokenFile."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            raise BrokenFile(f"{path}: is not a regular file")
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BrokenFile(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) > _MAX_BYTES:
        raise BrokenFile(f"{path}: has more than {_MAX_BYTES} bytes")
    return text
