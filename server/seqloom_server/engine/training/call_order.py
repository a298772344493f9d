"""In which order a run's calls go: each client's by number, and after a restart into the steps that they were in.

A restart loses what came after the last checkpoint. The steps that were applied since are known from the journal, and
whose calls had gone into each; clients send those calls again, in any order among them. So a call that was part of a
step goes before that step, what came after it waits, and the step goes when everything that was part of it is there.
"""

import collections
from collections.abc import Iterable

from seqloom_server.engine.training.step_journal import StepRecord


class CallOrder:
    """What went and what may go. Pure bookkeeping.

    done: by client, the last of its calls that is done. step: steps applied. lost: steps that are to be done again.
    """

    def __init__(self, done: dict[str, int], step: int = 0, lost: Iterable[StepRecord] = ()) -> None:
        self.planned = step  # steps applied or about to be
        self._gone = dict(done)
        self._lost = collections.deque(lost)

    def last(self, client: str) -> int:
        """The number of the client's last call that went; 0 where none has."""
        return self._gone.get(client, 0)

    def forget(self, client: str) -> None:
        """A client will not come again."""
        self._gone.pop(client, None)

    def learn(self, record: StepRecord) -> None:
        """A client tells of a step that was applied; the journal may not have outlived what happened."""
        follows = record.step == self.planned + len(self._lost) + 1
        if follows and record.number > self.last(record.client):  # one that went cannot be waited for
            self._lost.append(record)

    def forget_lost(self) -> None:
        """The lost steps are given up."""
        self._lost.clear()

    def may_go(self, client: str, number: int, named_step: int = 0) -> bool:
        """Whether it is the call's turn. named_step: which step it was in before a restart; 0 where unknown."""
        if number != self.last(client) + 1:
            return False
        if not self._lost:
            return named_step <= self.planned + 1
        step = self._lost[0]
        if (client, number) == (step.client, step.number):
            return not self._missing(step)
        return number <= step.calls.get(client, 0)

    def went(self, client: str, number: int, *, is_step: bool = False) -> None:
        """The call is on its way; whatever goes later is done later."""
        self._gone[client] = number
        if is_step:
            self.planned += 1
            if self._lost and (client, number) == (self._lost[0].client, self._lost[0].number):
                self._lost.popleft()

    def step_failed(self) -> None:
        """A step that went was not applied."""
        self.planned -= 1

    def waiting_for(self) -> str:
        """What the run waits for before anything new may go, in words; "" for nothing."""
        if not self._lost:
            return ""
        step = self._lost[0]
        missing = self._missing(step) or {step.client: step.number}
        calls = ", ".join(
            f"{self.last(client) + 1} to {number} of client {client}" for client, number in missing.items()
        )
        return (
            f"step {step.step}, which the server lost when it was restarted, waits for calls {calls} to be sent again"
        )

    def _missing(self, step: StepRecord) -> dict[str, int]:
        """By client, the last of its calls that must go before the step."""
        wanted = {client: number - (client == step.client) for client, number in step.calls.items()}
        return {client: number for client, number in wanted.items() if self.last(client) < number}
