"""Simulated live streams, which send their frames by a clock, and how long each chunk waits for its outputs."""

import collections
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.errors import Reason, ServerError

from helpers.simulated_callers import FRAMES
from helpers.simulated_device import make_sequence


@dataclass(eq=False)
class LiveStream:
    """Sends `chunk` frames every `interval` seconds from `starts` until `ends`; holds back what the window has no room
    for. more: further fields of its Sequence. delays: (when a chunk was answered, seconds since it was due).
    """

    device: Any
    weights: Any
    chunk: int = 10
    interval: float = 0.1
    starts: float = 0.0
    ends: float = 10.0
    window: int = 100
    name: str = "stream"
    more: dict = field(default_factory=dict)
    delays: list = field(default_factory=list)
    refused: bool = False
    over: bool = False

    def __post_init__(self):
        self._due = collections.deque()  # when chunks were due that the window has no room for
        self._sent = collections.deque()  # (steps of the sequence up to a chunk's end, when it was due)
        self._steps = 0
        self.device.at(self.starts, self._open)

    def _open(self):
        self.sequence = make_sequence(self.weights, Op.STREAM, sink=self, caller=self.name, **self.more)
        self.device.scheduler.live_sessions += 1
        self._tick()

    def _tick(self):
        device = self.device
        if self.over:
            return
        if device.now >= self.ends:
            device.scheduler.cancel(self.sequence)
            self._close()
            return
        self._due.append(device.now)
        self._send()
        device.at(device.now + self.interval, self._tick)

    def _send(self):
        while self._due and (len(self._sent) + 1) * self.chunk <= self.window:
            try:
                self.device.scheduler.push(
                    self.sequence, [Chunk(FRAMES[: self.chunk], self.device.now)], self.device.now
                )
            except ServerError as error:
                if error.reason is not Reason.OVERLOADED:
                    raise
                self.refused = True
                self.device.scheduler.cancel(self.sequence)
                self._close()
                return
            self._steps += self.chunk
            self._sent.append((self._steps, self._due.popleft()))

    def _close(self):
        self.over = True
        self.device.scheduler.live_sessions -= 1

    def gone(self, now):
        return self.over

    def ran(self, now):
        while self._sent and self._sent[0][0] <= self.sequence.steps_done:
            self.delays.append((now, now - self._sent.popleft()[1]))
        if not self.over:
            self._send()

    def failed(self, now):
        self.dropped(now)

    def dropped(self, now):
        if not self.over:
            self._close()


def open_streams(device, weights, count, **more):
    """Returns streams whose clocks begin at random moments of their first interval."""
    interval = more.get("interval", LiveStream.interval)
    return [LiveStream(device, weights, starts=device.random.uniform(0, interval), **more) for _ in range(count)]


def delay(streams, percent, start=1.0):
    """Returns a percentile of the delays of all chunks that were answered after `start`."""
    delays = [seconds for stream in streams for time, seconds in stream.delays if time > start]
    return float(np.percentile(delays, percent))
