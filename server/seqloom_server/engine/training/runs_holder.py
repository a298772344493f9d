"""The one server that may write in a folder of runs, told by name to every other, and handed over by one that ends."""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import stat
import time
from dataclasses import asdict, dataclass

from seqloom_server.engine.core.folder_lock import FolderLock

log = logging.getLogger(__name__)

HOLDER = ".holder.json"

_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_TO_TELL = 1.0  # for which whoever has just taken the folder may not have told its name yet
_MAX_BYTES = 4096


class InUse(Exception):
    """The folder is another server's; the text says whose."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What is told of a server that has a folder. address: HOST:PORT of its gRPC. draining: it ends."""

    pid: int
    address: str
    draining: bool = False

    def __str__(self) -> str:
        return f"pid {self.pid}, {self.address}"


class RunsHolder:
    """This server's hold of one folder. The name is told in a file beside the lock, of which nothing is ever believed
    but while somebody has the lock: one that was killed leaves its own behind."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._lock = FolderLock(folder)
        self._mine: Holding | None = None
        self._waited_for: Holding | None = None

    async def take(self, address: str, *, wait: bool = True) -> bool:
        """Takes the folder; where its server is ending, waits for that one, or returns False.

        address: HOST:PORT of this server. Raises InUse where another server has the folder and does not end, OSError
        where it cannot be locked.
        """
        if self._mine is not None:
            return True
        until = time.monotonic() + _SECONDS_TO_TELL
        while not await asyncio.to_thread(self._take, address):
            found = await asyncio.to_thread(self._read)
            if found is not None and found.draining:
                if found != self._waited_for:
                    self._waited_for = found
                    log.info("waits for pid %d at %s, which is shutting down", found.pid, found.address)
                if not wait:
                    return False
                until = time.monotonic() + _SECONDS_TO_TELL
            elif time.monotonic() >= until:
                raise InUse(f"is in use by another server{'' if found is None else f': {found}'}")
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
        return True

    def tell_draining(self) -> None:
        """Tells whoever wants the folder that this server is ending."""
        if self._mine is not None:
            self._mine = Holding(self._mine.pid, self._mine.address, draining=True)
            self._write(self._mine)

    def give_back(self) -> None:
        """Lets the next server have the folder, in which this one writes no more. Does nothing where it has it not."""
        if self._mine is not None:
            self._mine = None
            with contextlib.suppress(OSError):
                (self._folder / HOLDER).unlink()
            self._lock.give_back()

    def _take(self, address: str) -> bool:
        if not self._lock.take(0):
            return False
        self._mine = Holding(os.getpid(), address)
        self._write(self._mine)
        return True

    def _write(self, holding: Holding) -> None:
        new = self._folder / f"{HOLDER}.new"
        try:
            new.unlink(missing_ok=True)  # whatever it is: a link would be written through
            new.write_text(json.dumps(asdict(holding)) + "\n")
            new.replace(self._folder / HOLDER)
        except OSError as error:  # such as a full disk, on which a server serves all the same
            log.error("other servers cannot be told who has %s: %s", self._folder, error.strerror)
            with contextlib.suppress(OSError):  # another's name
                (self._folder / HOLDER).unlink()

    def _read(self) -> Holding | None:
        """None where nobody has told anything, or what is there is not of this kind."""
        path = self._folder / HOLDER
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return None
            with open(path, "rb") as file:
                fields = json.loads(file.read(_MAX_BYTES))
            found = Holding(int(fields["pid"]), str(fields["address"])[:300], bool(fields["draining"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        return found if found.address.isprintable() else None
