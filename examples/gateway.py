"""A telephone gateway: hundreds of people on the line in one process, labelled every 10 ms by one stream group.

Each line of the gateway is a place in the group. Who hangs up frees a place; the next caller gets it, with its hidden
state reset. Every 10 ms the frames of all who speak go to the server as one array, and what the network makes of them
comes back as one. The callers say the recordings that ship with the project, of voices that are not in the training
set; their features are computed beforehand and sliced, since they do not depend on later audio.

Without --address it starts its own server with the model that ships with the project; a server at --address must serve
it as "digits" (README.md says how to start one).
"""

import argparse
import asyncio
import contextlib
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import seqloom
from callers import FRAME, Said
from features import log_mel
from own_server import OwnServer, own_server
from recordings import Recording, shipped
from reporting import DelayLine, print_numbers, print_right

MODEL = "digits"
MODELS = pathlib.Path(__file__).resolve().parent / "models"
PAUSE = 1.0  # seconds, the most that a place is free
KEPT = 500  # recordings whose words are compared at the end

Index = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Tick:
    """What was sent at one tick. due: when its frames had been spoken. places: who spoke, [w]. steps: of their
    recordings, [w]. left: places whose recordings ended, and which recordings these are."""

    due: float
    places: Index
    steps: Index
    left: Index
    said: Index


class Lines:
    """Who is on which of n lines, and where in what recording. Nothing in it runs once a caller."""

    def __init__(self, recordings: Sequence[Recording], n: int) -> None:
        features = [log_mel(each.samples, each.rate) for each in recordings]
        lengths = np.array([len(each) for each in features])
        self.longest = int(lengths.max())
        self.joined = self.left = 0
        self._frames = np.concatenate(features)
        self._starts, self._lengths = lengths.cumsum() - lengths, lengths
        self._random = np.random.default_rng(0)
        self._recording = np.zeros(n, np.intp)
        self._step = np.full(n, -1)  # of its recording; -1 where nobody is
        self._joins = self._pauses(n)  # ticks until somebody joins, where nobody is

    def tick(self) -> tuple[Index, Index, npt.NDArray[np.float32], Index]:
        """Goes on by 10 ms. Returns who has joined; who speaks, [w]; their frames, [w, 1, 40]; the steps, [w]."""
        self._joins -= 1
        joining = np.flatnonzero((self._step < 0) & (self._joins <= 0))
        self._recording[joining] = self._random.integers(0, len(self._lengths), len(joining))
        self._step[joining] = 0
        self.joined += len(joining)
        speaking = np.flatnonzero(self._step >= 0)
        steps = self._step[speaking]
        frames = self._frames[self._starts[self._recording[speaking]] + steps]
        self._step[speaking] += 1
        return joining, speaking, frames[:, None], steps

    def leave(self) -> tuple[Index, Index]:
        """Lets those go whose recordings have ended. Returns their places, and the recordings."""
        leaving = np.flatnonzero(self._step == self._lengths[self._recording])
        self._step[leaving] = -1
        self._joins[leaving] = self._pauses(len(leaving))
        self.left += len(leaving)
        return leaving, self._recording[leaving]

    def _pauses(self, count: int) -> npt.NDArray[np.int64]:
        return self._random.integers(1, round(PAUSE / FRAME), count, endpoint=True)


@dataclass(eq=False)
class Heard:
    """What came back. probs: of each place's caller, [n, longest, classes]. delays: seconds, one for each tick."""

    probs: npt.NDArray[np.float32]
    recordings: Sequence[Recording]
    delays: list[float] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)

    def take(self, tick: Tick, outputs: npt.NDArray[np.float32]) -> None:
        """Adds the outputs of a tick, [w, 1, classes]."""
        self.probs[tick.places, tick.steps] = outputs[:, 0]
        for place, which in zip(tick.left[: KEPT - len(self.said)], tick.said, strict=False):
            recording = self.recordings[which]
            self.said.append(Said(recording, self.probs[place, : len(recording.labels)].copy()))


async def serve_lines(client: seqloom.AsyncClient, n: int, seconds: float) -> Heard:
    """Runs the gateway, and shows it live."""
    clock, corpus = asyncio.get_running_loop().time, shipped()
    recordings = corpus.held_out
    lines, line = Lines(recordings, n), DelayLine(FRAME)
    heard = Heard(np.zeros((n, lines.longest, len(corpus.classes)), np.float32), recordings)
    sent: asyncio.Queue[Tick | None] = asyncio.Queue()
    async with client.stream_group(MODEL, n, outputs="probs") as group:
        begin = clock()

        async def speak() -> None:
            try:
                for number in range(1, round(seconds / FRAME) + 1):
                    await asyncio.sleep(begin + number * FRAME - clock())
                    joining, places, frames, steps = lines.tick()
                    if len(joining):
                        await group.reset(joining)
                    if len(places):
                        await group.send(frames, places)
                        sent.put_nowait(Tick(begin + number * FRAME, places, steps, *lines.leave()))
            finally:
                sent.put_nowait(None)

        speaking = asyncio.create_task(speak())
        try:
            while (tick := await sent.get()) is not None:
                chunk = await group.receive()
                heard.delays.append(clock() - tick.due)
                heard.take(tick, chunk.outputs)
                line.show(clock() - begin, heard.delays, f"{len(tick.places)} of {n} speak, {lines.left} left")
            await speaking
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
    line.end(heard.delays)
    return heard


@contextlib.contextmanager
def shipped_model() -> Iterator[OwnServer]:
    """Runs a server of its own with the model that ships with the project."""
    with tempfile.TemporaryDirectory() as models:
        shutil.copytree(MODELS / MODEL, pathlib.Path(models) / MODEL)
        with own_server(pathlib.Path(models)) as server:
            yield server


async def gateway(address: str, n: int, seconds: float) -> Heard:
    async with seqloom.AsyncClient(address) as client:
        return await serve_lines(client, n, seconds)


def main() -> int:
    """Runs the example; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speakers", type=int, default=500, metavar="N", help="how many lines there are (500)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for how long (10)")
    parser.add_argument("--address", metavar="HOST:PORT", help="a server that runs already")
    options = parser.parse_args()
    if options.speakers < 1 or options.seconds < FRAME:
        parser.error(f"--speakers must be above 0, and --seconds at least {FRAME}")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # the server ends with the example
    print(f"{options.speakers} lines, a frame of each speaker every 10 ms, in one stream group:")
    try:
        with contextlib.nullcontext() if options.address else shipped_model() as server:
            before = server.metrics() if server else None
            heard = asyncio.run(
                gateway(server.address if server else options.address, options.speakers, options.seconds)
            )
            after = server.metrics() if server else None
    except (seqloom.SeqloomError, ValueError, RuntimeError, OSError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print_right(heard.said, shipped().classes)
    if before is not None and after is not None:
        print("\nThe server's own numbers, from /metrics:")
        print_numbers(before, after, options.seconds, options.speakers, np.array(heard.delays))
    return 0


if __name__ == "__main__":
    sys.exit(main())
