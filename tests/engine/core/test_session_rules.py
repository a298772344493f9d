"""What may come in which order in a session, and how far ahead of what was acknowledged, against a plain model."""

import numpy as np
import pytest
from helpers.simulated_device import KnownWeights, make_chunk, make_sequence
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.session_window import SessionWindow, empty_frames, is_idle
from seqloom_server.errors import Reason, ServerError

WINDOW = 20


def make_session(window=WINDOW):
    return SessionWindow(make_sequence(KnownWeights(), Op.STREAM), window, empty_frames(2, "float32"))


class SessionMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.session = make_session()
        self.sent = self.answered = self.consumed = 0
        self.over = False

    @rule(steps=st.integers(0, 20))
    def answer(self, steps):
        steps = min(steps, self.sent - self.answered)
        self.answered += steps
        self.session.answered += steps

    @rule(
        steps=st.none() | st.integers(0, 15),
        reset=st.booleans(),
        end=st.sampled_from([False, False, False, True]),
        consumed=st.integers(0, 8),
        beyond=st.sampled_from([0, 0, 0, 0, 1]),
    )
    def entry(self, steps, reset, end, consumed, beyond):
        acknowledged = min(self.consumed + consumed, self.answered) + beyond * (self.answered + 1)
        frames = None if steps is None else np.ones((steps, 2), "f4")
        refusal, chunks = None, []
        try:
            chunks = self.session.chunks(frames, reset=reset, end=end, acknowledged=acknowledged, now=1.0)
        except ServerError as error:
            refusal = error.reason
        if self.over or beyond:
            assert refusal is (Reason.SESSION_ENDED if self.over else Reason.INVALID_FIELD)
            return
        if self.sent + (steps or 0) - acknowledged > WINDOW:
            assert refusal is Reason.WINDOW_EXCEEDED
            self.consumed = acknowledged
            return
        assert refusal is None
        self.consumed = max(self.consumed, acknowledged)
        self.sent += steps or 0
        assert self.sent - self.consumed <= WINDOW
        self.over = end
        if steps is None and not reset and not end:
            assert chunks == []
            return
        (chunk,) = chunks
        assert len(chunk.rows) == (steps or 0)
        assert chunk.rows.shape[1] == 2
        assert (chunk.reset, chunk.last, chunk.silent, chunk.arrived) == (reset, end, steps is None, 1.0)


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=100, deadline=None)


def test_an_acknowledgement_that_comes_late_does_not_narrow_the_window():
    session = make_session()
    frames = np.ones((15, 2), "f4")
    session.chunks(frames, reset=False, end=False, acknowledged=0, now=0.0)
    session.answered = 15
    session.chunks(None, reset=False, end=False, acknowledged=15, now=0.0)
    session.chunks(frames, reset=False, end=False, acknowledged=3, now=0.0)
    with pytest.raises(ServerError, match="30 steps would be unacknowledged"):
        session.chunks(frames, reset=False, end=False, acknowledged=0, now=0.0)


@pytest.mark.parametrize("busy", ["queued", "in flight"])
def test_idle_time_does_not_run_while_there_is_work(busy):
    sequence = make_sequence(KnownWeights(), Op.STREAM, last_active=0.0)
    assert is_idle(sequence, 10.0, 5.0)
    if busy == "queued":
        sequence.chunks.append(make_chunk(1))
    else:
        sequence.in_flight = True
    assert not is_idle(sequence, 10.0, 5.0)


def test_idle_time_counts_from_the_last_work():
    sequence = make_sequence(KnownWeights(), Op.STREAM, last_active=8.0)
    assert not is_idle(sequence, 13.0, 5.0)
    assert is_idle(sequence, 13.1, 5.0)
