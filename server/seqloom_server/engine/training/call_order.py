"""The order in which a run's calls begin: each client's by number, and after a restart in the steps that had them.

A restart loses what came after the last checkpoint. The journal names the steps that were applied since, and the calls
of each client in every one; clients send those calls again, in any order. A call that was part of a lost step begins
before that step, later calls wait, and the step begins when all of its calls have begun.
"""

import collections
from collections.abc import Iterable

from seqloom_server.engine.training.step_journal import StepRecord


class CallOrder:
    """Which calls have begun, and which may begin. Pure bookkeeping.

    done: by client, the last of its calls that is done. step: steps applied. lost: steps that are to be done again.
    """

    def __init__(self, done: dict[str, int], step: int = 0, lost: Iterable[StepRecord] = ()) -> None:
        self.planned = step  # steps applied or about to be
        self._begun = dict(done)
        self._lost = collections.deque(lost)

    def last_begun(self, client: str) -> int:
        """Returns the number of the client's last call that has begun; 0 where none has."""
        return self._begun.get(client, 0)

    def forget(self, client: str) -> None:
        """Forgets a client that will not call again."""
        self._begun.pop(client, None)

    def learn(self, record: StepRecord) -> None:
        """Takes a lost step from a client's own record; the journal may be lost, too."""
        follows = record.step == self.planned + len(self._lost) + 1
        if follows and record.number > self.last_begun(record.client):  # a step that has begun cannot be waited for
            self._lost.append(record)

    def forget_lost(self) -> None:
        """Gives the lost steps up."""
        self._lost.clear()

    def may_begin(self, client: str, number: int, named_step: int = 0) -> bool:
        """Returns whether it is the call's turn. named_step: the step that had it before a restart; 0 where unknown."""
        if number != self.last_begun(client) + 1:
            return False
        if not self._lost:
            return named_step <= self.planned + 1
        step = self._lost[0]
        if (client, number) == (step.client, step.number):
            return not self._missing(step)
        return number <= step.calls.get(client, 0)

    def begin(self, client: str, number: int, *, is_step: bool = False) -> None:
        """Notes that a call has begun; calls that begin later are done later."""
        self._begun[client] = number
        if is_step:
            self.planned += 1
            if self._lost and (client, number) == (self._lost[0].client, self._lost[0].number):
                self._lost.popleft()

    def step_failed(self) -> None:
        """Notes that a step that had begun was not applied."""
        self.planned -= 1

    def waiting_for(self) -> str:
        """Returns in words what the run waits for before new calls may begin; "" where it waits for nothing."""
        if not self._lost:
            return ""
        step = self._lost[0]
        missing = self._missing(step) or {step.client: step.number}
        calls = ", ".join(
            f"{self.last_begun(client) + 1} to {number} of client {client}" for client, number in missing.items()
        )
        return (
            f"step {step.step}, which the server lost when it was restarted, waits for calls {calls} to be sent again"
        )

    def _missing(self, step: StepRecord) -> dict[str, int]:
        """By client, the last of its calls that must begin before the step."""
        wanted = {client: number - (client == step.client) for client, number in step.calls.items()}
        return {client: number for client, number in wanted.items() if self.last_begun(client) < number}
