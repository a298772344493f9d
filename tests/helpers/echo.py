"""The server as one session sees it, as a plain model of the protocol: it echoes frames as outputs.

It joins neighbouring chunks and cuts them anywhere, answers a chunk of no steps on its own, and holds the caller to the
window.
"""

import collections
import time

import numpy as np
from seqloom import tensors, wire
from seqloom._streaming.deadline_timer import DeadlineTimer
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import tensor_pb2


class Echo:
    """Takes a session's entries; `reply` makes the next answer, of as many steps as it is told at most."""

    def __init__(self, window, width=1):
        self.window = window
        self.width = width
        self.timer = DeadlineTimer()
        self.rows = collections.deque()  # of frames not yet answered; None for a chunk of no steps
        self.received = self.acknowledged = self.answered = 0
        self.ending = False

    def put(self, outgoing):
        (entry,) = pb.StreamInferRequest.FromString(wire.joined(outgoing.buffers(time.monotonic()))).entries
        self.acknowledged = max(self.acknowledged, entry.acknowledged_steps)
        if entry.HasField("frames"):
            frames = tensors.decode(entry.frames)
            self.received += len(frames)
            self.rows.extend(frames if len(frames) else [None])
        self.ending |= entry.end
        assert self.acknowledged <= self.answered
        assert self.received - self.acknowledged <= self.window

    def reply(self, most):
        entry = pb.SessionResponse()
        entry.outputs.first_step = self.answered
        rows = []
        if self.rows[0] is None:
            self.rows.popleft()
        else:
            while self.rows and self.rows[0] is not None and len(rows) < most:
                rows.append(self.rows.popleft())
        self.answered += len(rows)
        entry.outputs.outputs.values.CopyFrom(tensors.encode(np.array(rows, "f4").reshape(-1, self.width)))
        if self.ending and not self.rows:
            entry.MergeFrom(self.end())
        return entry

    def end(self):
        state = tensor_pb2.State(hidden=tensors.encode(np.zeros((1, 1, 1), "f4")))
        return pb.SessionResponse(ended=pb.SessionEnded(steps=self.answered, final_state=state))
