"""Simulates callers that stream recordings at the same time, in real time, as live frames of 10 ms."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import seqloom
from features import HOP, RATE, LogMel
from recordings import Recording

FRAME = HOP / RATE
"""Seconds."""


@dataclass(eq=False)
class Said:
    """A recording that a caller has sent, and its outputs.

    probs: [frames, classes]. delays: seconds from sending frames to having their outputs, one for each message.
    """

    recording: Recording
    probs: np.ndarray
    delays: list[float] = field(default_factory=list)


async def call(
    address: str,
    model: str,
    turns: Sequence[Recording],
    begin: float,
    show: Callable[[np.ndarray], None] | None = None,
) -> list[Said]:
    """Streams one recording after the other, each as a stream of its own, over the caller's own connection.

    begin: when the first sample is spoken, by the event loop's clock. show gets each step's probabilities, [classes],
    as they arrive.
    """
    said = []
    async with seqloom.AsyncClient(address) as client:
        for recording in turns:
            said.append(await _say(client, model, recording, begin, show))
            begin += FRAME * len(recording.labels)
    return said


async def _say(
    client: seqloom.AsyncClient,
    model: str,
    recording: Recording,
    begin: float,
    show: Callable[[np.ndarray], None] | None,
) -> Said:
    clock = asyncio.get_running_loop().time
    sent: list[float] = []
    outputs: list[np.ndarray] = []
    delays = []

    async def spoken() -> AsyncIterator[np.ndarray]:
        async for frames in _live(recording, begin):
            sent.append(clock())
            yield frames

    async with client.stream(model, outputs="probs") as stream:
        async for chunk in stream.run(spoken()):
            delays.append(clock() - sent[len(outputs)])
            outputs.append(chunk.outputs)
            for probs in chunk.outputs if show else ():
                show(probs)
        await stream.finish()
    return Said(recording, np.concatenate(outputs), delays)


async def _live(recording: Recording, begin: float) -> AsyncIterator[np.ndarray]:
    """Yields the features of a recording, [k, 40] each, at the times at which a microphone would record them."""
    clock = asyncio.get_running_loop().time
    features = LogMel(recording.rate)
    for t in range(len(recording.labels)):
        await asyncio.sleep(begin + (t + 1) * FRAME - clock())
        heard = slice(round(t * FRAME * recording.rate), round((t + 1) * FRAME * recording.rate))
        if len(frames := features.accept(recording.samples[heard])):
            yield frames
    yield features.finish()
