"""A server as one live session sees it, as a plain model: s = s / 2 + x, its outputs are its states, and it snapshots.

It can be cut: what it has not handled, and what it has answered and nobody has read, is lost with its session.
"""

import collections
import time

import numpy as np
from seqloom import tensors, wire
from seqloom._streaming.call_pauses import CallPauses
from seqloom._streaming.deadline_timer import DeadlineTimer
from seqloom.errors import Unavailable
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import tensor_pb2

FINGERPRINT = b"0123456789abcdef"


def run(x, state):
    """Returns the states after each of some frames [k]."""
    states = []
    for each in x:
        state = state / 2 + each
        states.append(state)
    return states


class PlainCall:
    """One call, until it is cut. window: of its sessions. As `calls` of a session it is also where that goes on."""

    def __init__(self, window):
        self.window = window
        self.pauses = CallPauses()
        self.timer = DeadlineTimer()
        self.session = None
        self.numbers = 0
        self.opened = 0  # sessions
        self.requests = collections.deque()
        self._forget()

    def _forget(self):
        for entry in self.requests:
            entry.release_budget()
        self.requests, self.replies = collections.deque(), collections.deque()
        self.state = None

    def cut(self):
        """Breaks the call."""
        self._forget()
        self.session.fail(Unavailable("cut"))

    def go_away(self):
        """Handles what has come, and says that the server is shutting down."""
        if self.state is not None:
            self.handle(len(self.requests))
            if self.state is not None:
                self.replies.append(pb.SessionResponse(snapshot=self._snapshot(), going_away=True))

    def leave(self):
        """Is told that no new sessions are opened here."""

    def attach(self, session):
        self._forget()
        self.numbers += 1
        session.move_to(self, self.numbers)

    def put(self, entry):
        if entry.cancel:
            self._forget()
        elif not entry.is_dead:
            self.requests.append(entry)

    def handle(self, count):
        """Handles the next entries."""
        for _ in range(min(count, len(self.requests))):
            entry = self.requests.popleft()
            if entry.is_dead:
                continue
            entry.release_budget()
            entry.session.opened = entry.session.opened or entry.opens
            (request,) = pb.StreamInferRequest.FromString(wire.joined(entry.buffers(time.monotonic()))).entries
            self._take(request)

    def _take(self, request):
        reply = pb.SessionResponse()
        if request.HasField("open"):
            self.opened += 1
            resumed = request.open.resumed
            assert resumed.fingerprint == (FINGERPRINT if self.opened > 1 else b"")
            self.steps = self.acknowledged = self.answered = resumed.steps
            state = request.open.initial_state
            self.state = float(tensors.decode(state.hidden)[0, 0, 0]) if state.HasField("hidden") else 0.0
            self.interval = request.open.snapshot_interval_steps
            reply.opened.weights_version, reply.opened.window_steps = 1, self.window
            reply.opened.fingerprint = FINGERPRINT
            self.replies.append(reply)
            return
        assert self.state is not None
        assert request.acknowledged_steps <= self.answered
        self.acknowledged = max(self.acknowledged, request.acknowledged_steps)
        if request.reset:
            self.state = 0.0
        if request.HasField("frames"):
            frames = tensors.decode(request.frames)[:, 0]
            assert self.steps + len(frames) - self.acknowledged <= self.window
            self._outputs(frames)
        if request.snapshot:
            self.replies.append(pb.SessionResponse(snapshot=self._snapshot()))
        if request.end:
            state = self._snapshot()
            self.replies.append(pb.SessionResponse(ended=pb.SessionEnded(steps=state.steps, final_state=state.state)))
            self.state = None

    def _outputs(self, frames):
        """Answers frames, up to each snapshot that is due."""
        at = 0
        while True:
            due = self.interval - self.steps % self.interval if self.interval else len(frames) + 1
            states = run(frames[at : at + due], self.state)
            reply = pb.SessionResponse()
            reply.outputs.first_step = self.steps
            reply.outputs.outputs.values.CopyFrom(tensors.encode(np.array(states, "f8").reshape(-1, 1)))
            self.state = states[-1] if states else self.state
            self.steps += len(states)
            self.answered = self.steps
            at += len(states)
            if self.interval and states and self.steps % self.interval == 0:
                reply.snapshot.CopyFrom(self._snapshot())
            self.replies.append(reply)
            if at >= len(frames):
                return

    def _snapshot(self):
        state = tensor_pb2.State(hidden=tensors.encode(np.full((1, 1, 1), self.state, "f8")))
        return pb.SessionSnapshot(steps=self.steps, state=state)

    def reply(self, count):
        """Gives the session the next replies."""
        for _ in range(min(count, len(self.replies))):
            if self.replies:
                self.session.take(self.replies.popleft())
                if self.session.ended:
                    self.session.closed()
