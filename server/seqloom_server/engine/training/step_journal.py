"""The journal of the steps that a run has applied since its last checkpoint, one line of JSON each, to repeat them.

A line names the call of the step, and the last call of each client before it. The journal survives the process but, as
it is not synced, not a loss of power; clients' own records are used then.
"""

import contextlib
import errno
import json
import os
import pathlib
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from seqloom_server.errors import ServerError

_MAX_LINE_BYTES = 1 << 20  # a line names the calls of some thousand clients
_MAX_BYTES = 1 << 30
_MAX_COUNT = 2**63 - 1


class BrokenJournal(OSError):
    """The file cannot be a journal."""

    def __init__(self, problem: str) -> None:
        super().__init__(errno.EINVAL, problem)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that was applied, by a client's numbered call. calls: by client, the last call done, the step included."""

    step: int
    client: str
    number: int
    calls: dict[str, int]


class StepJournal:
    """The records of one run, in one file. Safe from several threads.

    check_in_place: raises OSError where the run's folder is not this server's any more.
    """

    def __init__(self, path: pathlib.Path, check_in_place: Callable[[], None] = lambda: None) -> None:
        self._path = path
        self._check_in_place = check_in_place
        self._lock = threading.RLock()
        self._closed: ServerError | None = None

    def append(self, record: StepRecord) -> None:
        """Appends a record. Raises OSError."""
        # begins a new line, since the last one may have been cut short by a full disk or a crash
        line = "\n" + json.dumps(asdict(record)) + "\n"
        with self._lock:
            self.check_open()
            if self._size() + len(line) > _MAX_BYTES:  # read() would refuse the file
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            with open(self._path, "a") as file:
                file.write(line)

    def read(self, after: int) -> list[StepRecord]:
        """Returns the records of consecutive steps after step `after`.

        Lines that are not records are skipped: they were cut short by a full disk or a crash. Raises BrokenJournal if
        the file cannot be a journal.
        """
        records: list[StepRecord] = []
        with self._lock:
            for line in self._lines():
                record = _record_of(line)
                if record is not None and record.step == after + len(records) + 1:
                    records.append(record)
        return records

    def forget(self, through: int) -> None:
        """Drops the records up to a durable step. Raises OSError."""
        with self._lock:  # held for both, or a step appended in between is lost
            self._keep(self.read(through))

    def clear(self) -> None:
        """Drops every record. Raises OSError."""
        self._keep([])

    def close(self, error: ServerError) -> None:
        """Ends all writing; later attempts raise the error."""
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
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would block
            raise BrokenJournal(f"{self._path.name} is not a regular file")
        return found.st_size

    def _keep(self, kept: list[StepRecord]) -> None:
        with self._lock:
            self.check_open()
            new = self._path.with_suffix(".new")
            new.unlink(missing_ok=True)  # writing to a link would change the file that it leads to
            new.write_text("".join(json.dumps(asdict(record)) + "\n" for record in kept))
            new.replace(self._path)

    def check_open(self) -> None:
        """Raises the error of close(), and OSError where the folder is not this server's any more."""
        if self._closed is not None:
            raise self._closed
        self._check_in_place()


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


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT
