"""A slice under way: what is computed for whom, and what each member gets when it is there.

On the CPU that is at once. On a GPU the next slice may be launched before.
"""

import numpy as np
import torch

from seqloom_server.engine.core.sequence import Array, Member, Slice, SliceResult, StateArrays
from seqloom_server.engine.device.transfers import Transfer


class SliceInFlight:
    """A slice that has been launched. lent: whether its results lie in memory that is wanted back.

    seconds: that the device computed, None where the clock tells as well; known when it is finished.
    """

    def __init__(self, slice_: Slice, transfer: Transfer, *, lent: bool) -> None:
        self.slice_ = slice_
        self.seconds: float | None = None
        self._transfer, self._lent = transfer, lent
        self._results: list[torch.Tensor] = []  # in the order in which they are taken
        self._answered: list[tuple[list[Member], bool, bool]] = []  # members of a group; whether it has values, labels
        self._stated: list[tuple[list[Member], int]] = []  # members whose states are told, and in how many parts

    def add_outputs(self, members: list[Member], values: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        """Takes the outputs of members, their rows one after the other."""
        self._results += [rows for rows in (values, labels) if rows is not None]
        self._answered.append((members, values is not None, labels is not None))

    def add_states(self, members: list[Member], parts: list[torch.Tensor]) -> None:
        """Takes the states, [rows, N, width] per part, of members that end or have a snapshot due."""
        self._results += parts
        self._stated.append((members, len(parts)))

    def launched(self) -> "SliceInFlight":
        """Everything has been launched; returns itself."""
        self._results = self._transfer.end(self._results)
        return self

    def computed(self) -> None:
        """Waits until the device has computed it. Raises what went wrong there."""
        self._transfer.computed()

    def finish(self) -> list[tuple[Member, SliceResult]]:
        """Waits for the results; returns what each member gets, in no particular order. Raises what went wrong."""
        self.seconds = self._transfer.wait()
        results = iter(self._results)
        answered = [
            (members, next(results) if values else None, next(results) if labels else None)
            for members, values, labels in self._answered
        ]
        states: dict[Member, StateArrays] = {}
        for members, count in self._stated:
            parts = [next(results).numpy() for _ in range(count)]
            states |= {member: tuple(part[:, k : k + 1].copy() for part in parts) for k, member in enumerate(members)}
        outputs = [
            (member, _result(member, own_values, own_labels, states.get(member)))
            for members, values, labels in answered
            for member, own_values, own_labels in zip(
                members, self._own_rows(members, values), self._own_rows(members, labels), strict=True
            )
        ]
        bare = (member for member in self.slice_.members if not member.steps)
        return outputs + [(member, _result(member, None, None, states.get(member))) for member in bare]

    def _own_rows(self, members: list[Member], rows: torch.Tensor | None) -> list[Array] | list[None]:
        """Cuts rows that belong to `members`, one after the other, into an array for each.

        They are copies: a caller that reads slowly must not keep the rows of its whole batch in memory.
        """
        if rows is None:
            return [None] * len(members)
        whole = rows.numpy()
        if len(members) == 1 and not self._lent:
            return [whole]
        ends = np.cumsum([member.steps for member in members]).tolist()
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
    )
