"""The steps that a run has applied since its last checkpoint: one line of JSON each, so that they can be done again.

A line says whose call the step was and which calls of each client had gone before. It outlives the process, not the
machine: after a loss of power the callers' own records have to do.
"""

import json
import pathlib
import threading
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that was applied. calls: by client, the last of its calls that was done by then, itself included."""

    step: int
    client: str
    number: int
    calls: dict[str, int]


class Journal:
    """The records of one run, in one file. Safe from several threads."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._lock = threading.RLock()

    def append(self, record: StepRecord) -> None:
        """Raises OSError."""
        with self._lock, open(self._path, "a") as file:
            # on a line of its own, also behind one that a full disk or the end of a process cut
            file.write("\n" + json.dumps(asdict(record)) + "\n")

    def read(self, after: int) -> list[StepRecord]:
        """Returns the records of steps after `after`, in order, up to the first that does not follow.

        A line that is no record is passed over: the disk was full, or the process died while it wrote.
        """
        records: list[StepRecord] = []
        with self._lock:
            try:
                lines = self._path.read_text().splitlines()
            except OSError:
                return []
        for line in lines:
            try:
                record = StepRecord(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if record.step == after + len(records) + 1:
                records.append(record)
        return records

    def forget(self, through: int) -> None:
        """Drops the records up to a step that is durable. Raises OSError."""
        with self._lock:  # over both, or a step applied in between is lost
            self._keep(self.read(through))

    def clear(self) -> None:
        """Drops every record. Raises OSError."""
        self._keep([])

    def _keep(self, kept: list[StepRecord]) -> None:
        with self._lock:
            new = self._path.with_suffix(".new")
            new.write_text("".join(json.dumps(asdict(record)) + "\n" for record in kept))
            new.replace(self._path)
