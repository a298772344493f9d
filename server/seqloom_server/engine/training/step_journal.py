"""The steps that a run has applied since its last checkpoint: one line of JSON each, so that they can be done again.

A line says whose call the step was and which calls of each client had gone before. It outlives the process, not the
machine: after a loss of power the callers' own records have to do.
"""

import contextlib
import errno
import json
import os
import pathlib
import stat
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from seqloom_server.errors import ServerError

_MAX_LINE_BYTES = 1 << 20  # of the calls of some thousand clients
_MAX_BYTES = 1 << 30
_MOST = 2**63 - 1


class BrokenJournal(OSError):
    """What stands in a journal's place cannot be one."""

    def __init__(self, problem: str) -> None:
        super().__init__(errno.EINVAL, problem)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that was applied. calls: by client, the last of its calls that was done by then, itself included."""

    step: int
    client: str
    number: int
    calls: dict[str, int]


class StepJournal:
    """The records of one run, in one file. Safe from several threads."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._closed: ServerError | None = None

    def append(self, record: StepRecord) -> None:
        """Raises OSError."""
        line = "\n" + json.dumps(asdict(record)) + "\n"
        with self._lock:
            self._check_open()
            if self._size() + len(line) > _MAX_BYTES:  # which read() would not take
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            with open(self._path, "a") as file:
                # on a line of its own, also behind one that a full disk or the end of a process cut
                file.write(line)

    def read(self, after: int) -> list[StepRecord]:
        """Returns the records of steps after `after`, in order, up to the first that does not follow.

        A line that is no record is passed over: the disk was full, or the process died while it wrote. Raises
        BrokenJournal for what cannot be a journal.
        """
        records: list[StepRecord] = []
        with self._lock:
            for line in self._lines():
                record = _record_of(line)
                if record is not None and record.step == after + len(records) + 1:
                    records.append(record)
        return records

    def forget(self, through: int) -> None:
        """Drops the records up to a step that is durable. Raises OSError."""
        with self._lock:  # over both, or a step applied in between is lost
            self._keep(self.read(through))

    def clear(self) -> None:
        """Drops every record. Raises OSError."""
        self._keep([])

    def close(self, error: ServerError) -> None:
        """After this nothing is written any more; who tries gets the error."""
        with self._lock:
            self._closed = error

    def _lines(self) -> Iterator[bytes]:
        if self._size() > _MAX_BYTES:
            raise BrokenJournal(f"{self._path.name} has more than {_MAX_BYTES} bytes")
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            yield from iter(lambda: file.readline(_MAX_LINE_BYTES), b"")

    def _size(self) -> int:
        try:
            found = self._path.lstat()
        except OSError:
            return 0
        if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for who is at its other end
            raise BrokenJournal(f"{self._path.name} is no regular file")
        return found.st_size

    def _keep(self, kept: list[StepRecord]) -> None:
        with self._lock:
            self._check_open()
            new = self._path.with_suffix(".new")
            new.unlink(missing_ok=True)  # whatever it is: a link would be written through
            new.write_text("".join(json.dumps(asdict(record)) + "\n" for record in kept))
            new.replace(self._path)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed


def _record_of(line: bytes) -> StepRecord | None:
    try:
        record = StepRecord(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    counts = [record.step, record.number]
    if not (isinstance(record.client, str) and isinstance(record.calls, dict)):
        return None
    counts += record.calls.values()
    return record if all(map(_is_count, counts)) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
