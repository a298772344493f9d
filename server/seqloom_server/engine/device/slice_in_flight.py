"""A launched slice: the tensors computed for its members, and the result of each member once they are complete.

On the CPU they are complete at once. On a GPU the device thread may launch the next slice before.
"""

import numpy as np
import torch

from seqloom_server.engine.core.sequence import Array, Member, Slice, SliceResult, StateArrays
from seqloom_server.engine.device.transfers import Transfer


class SliceInFlight:
    """A slice that has been launched. copy: whether results are in memory that is reused, and so must be copied.

    seconds: the device time, known once it is finished; None if the caller's clock measures it as well.
    """

    def __init__(self, slice_: Slice, transfer: Transfer, *, copy: bool) -> None:
        self.slice_ = slice_
        self.seconds: float | None = None
        self._transfer, self._copy = transfer, copy
        self._collected: list[tuple[Member, SliceResult]] | None = None
        self._results: list[torch.Tensor] = []  # in the order of the two lists below
        self._output_groups: list[tuple[list[Member], bool, bool]] = []  # members; whether there are values, labels
        self._state_groups: list[tuple[list[Member], int]] = []  # members whose states are returned; number of parts

    def add_outputs(self, members: list[Member], values: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        """Adds the outputs of members, their rows one after the other, of a group stream by stream."""
        self._results += [rows for rows in (values, labels) if rows is not None]
        self._output_groups.append((members, values is not None, labels is not None))

    def add_states(self, members: list[Member], parts: list[torch.Tensor]) -> None:
        """Adds states, [rows, streams, width] per part, of members that end, have a snapshot due, or ask for them."""
        self._results += parts
        self._state_groups.append((members, len(parts)))

    def launched(self) -> "SliceInFlight":
        """Begins the copies of the results, once everything has been launched; returns itself."""
        self._results = self._transfer.end(self._results)
        return self

    def computed(self) -> None:
        """Waits until the device has computed the slice. Raises the device's errors."""
        self._transfer.computed()

    def finish(self) -> list[tuple[Member, SliceResult]]:
        """Waits for the results; returns each member's, in no particular order. Raises the device's errors."""
        if self._collected is None:
            self.collect()
        collected, self._collected = self._collected, None
        assert collected is not None
        return collected

    def collect(self) -> None:
        """Waits for the results, and makes of them what finish() returns."""
        self.seconds = self._transfer.wait()
        results = iter(self._results)
        output_groups = [
            (members, next(results) if values else None, next(results) if labels else None)
            for members, values, labels in self._output_groups
        ]
        states: dict[Member, StateArrays] = {}
        for members, count in self._state_groups:
            parts = [next(results).numpy() for _ in range(count)]
            ends = np.cumsum([member.width for member in members]).tolist()
            for member, end in zip(members, ends, strict=True):
                states[member] = tuple(part[:, end - member.width : end].copy() for part in parts)
        outputs = [
            (member, _result(member, member_values, member_labels, states.get(member)))
            for members, values, labels in output_groups
            for member, member_values, member_labels in zip(
                members, self._split(members, values), self._split(members, labels), strict=True
            )
        ]
        stepless = (member for member in self.slice_.members if not member.steps)
        self._collected = outputs + [(member, _result(member, None, None, states.get(member))) for member in stepless]

    def _split(self, members: list[Member], rows: torch.Tensor | None) -> list[Array] | list[None]:
        """Splits the rows of `members`, one after the other, into an array for each.

        They are copies: a slow caller must not keep the rows of its whole batch in memory.
        """
        if rows is None:
            return [None] * len(members)
        whole = rows.numpy()
        if len(members) == 1 and not self._copy:
            return [whole]
        ends = np.cumsum([member.cells for member in members]).tolist()
        return [whole[start:end].copy() for start, end in zip([0, *ends], ends, strict=False)]


def _result(member: Member, values: Array | None, labels: Array | None, state: StateArrays | None) -> SliceResult:
    return SliceResult(
        member.first_step,
        member.steps,
        values,
        labels,
        answers=member.answers or bool(member.steps),
        snapshot=state if member.snapshot else None,
        final_state=state if member.final else None,
        states=state if member.asks else None,
        streams=member.width,
    )
