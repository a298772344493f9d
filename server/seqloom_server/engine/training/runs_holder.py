"""Holds the runs folder for one server at a time, names the holder to others, and hands over at shutdown."""

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

_RETRY_SECONDS = 0.05
_SECONDS_TO_WRITE = 1.0  # for a server that has just taken the lock to write its name
_MAX_BYTES = 4096


class InUse(Exception):
    """Another server holds the folder; the text names it."""


@dataclass(frozen=True, slots=True)
class HolderInfo:
    """The server that holds a folder. address: HOST:PORT of its gRPC. draining: whether it is shutting down."""

    pid: int
    address: str
    draining: bool = False

    def __str__(self) -> str:
        return f"pid {self.pid}, {self.address}"


class RunsHolder:
    """This server's hold of the runs folder. A file beside the lock names the holder; it is read only while another
    process has the lock, as a killed server leaves its file behind."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._lock = FolderLock(folder)
        self._own: HolderInfo | None = None
        self._waited_for: HolderInfo | None = None

    async def take(self, address: str, *, wait: bool = True) -> bool:
        """Takes the folder; if its holder is shutting down, waits for it, or with wait=False returns False.

        address: HOST:PORT of this server. Raises InUse if another server holds the folder and is not shutting down,
        OSError if it cannot be locked.
        """
        if self._own is not None:
            return True
        until = time.monotonic() + _SECONDS_TO_WRITE
        while not await asyncio.to_thread(self._take, address):
            found = await asyncio.to_thread(self._read)
            if found is not None and found.draining:
                if found != self._waited_for:
                    self._waited_for = found
                    log.info("waiting for pid %d at %s, which is shutting down", found.pid, found.address)
                if not wait:
                    return False
                until = time.monotonic() + _SECONDS_TO_WRITE
            elif time.monotonic() >= until:
                raise InUse(f"is in use by another server{'' if found is None else f': {found}'}")
            await asyncio.sleep(_RETRY_SECONDS)
        return True

    def announce_shutdown(self) -> None:
        """Announces to servers that wait for the folder that this one is shutting down."""
        if self._own is not None:
            self._own = HolderInfo(self._own.pid, self._own.address, draining=True)
            self._write(self._own)

    def check_in_place(self) -> None:
        """Raises OSError if the folder was moved away, and another, which may be another server's, is at its path."""
        self._lock.check_in_place()

    def give_back(self) -> None:
        """Releases the folder, if it is held, to the next server; this one must not write in it any more."""
        if self._own is not None:
            self._own = None
            with contextlib.suppress(OSError):
                self._lock.check_in_place()
                (self._folder / HOLDER).unlink()
            self._lock.give_back()

    def _take(self, address: str) -> bool:
        if not self._lock.take(0):
            return False
        self._own = HolderInfo(os.getpid(), address)
        self._write(self._own)
        return True

    def _write(self, info: HolderInfo) -> None:
        new = self._folder / f"{HOLDER}.new"
        try:
            self._lock.check_in_place()
            new.unlink(missing_ok=True)  # writing to a link would change the file that it leads to
            new.write_text(json.dumps(asdict(info)) + "\n")
            new.replace(self._folder / HOLDER)
        except OSError as error:  # such as a full disk, with which the server can still serve
            log.error("the file that names the holder of %s cannot be written: %s", self._folder, error.strerror)
            with contextlib.suppress(OSError):  # it names an earlier holder
                self._lock.check_in_place()
                (self._folder / HOLDER).unlink()

    def _read(self) -> HolderInfo | None:
        """Returns the holder, or None if the file is missing or invalid."""
        path = self._folder / HOLDER
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return None
            with open(path, "rb") as file:
                fields = json.loads(file.read(_MAX_BYTES))
            found = HolderInfo(int(fields["pid"]), str(fields["address"])[:300], bool(fields["draining"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        return found if found.address.isprintable() else None
