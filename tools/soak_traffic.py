"""One client process of a soak: mixed traffic until it is ended, each answer held against what it must be.

It prints a line of JSON a second: what it did, how long calls took, and what was lost. tools/soak.py starts it and says
what is done here on purpose: cancelled calls, timeouts, connections that are closed on open streams.
"""

import asyncio
import collections
import json
import pathlib
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable

import numpy as np
import numpy.typing as npt
import seqloom

STEADY, MOVING = "steady", "moving"  # models: one never changes, the other is published
CHUNK = 10
_LONG = 30.0  # a timeout that nothing should reach


class Lost(Exception):
    """An answer is missing or wrong."""


class Traffic:
    """What is done, counted. xs, logits, losses: sequences [T, D] and what STEADY gives for them, in float64."""

    def __init__(self, address: str, oracle: pathlib.Path, seed: int) -> None:
        self.address = address
        self.random = random.Random(seed)
        with np.load(oracle) as arrays:
            count = int(arrays["count"])
            self.xs: list[npt.NDArray[np.float32]] = [arrays[f"x{n}"] for n in range(count)]
            self.logits: list[npt.NDArray[np.float64]] = [arrays[f"y{n}"] for n in range(count)]
            self.losses = [float(loss) for loss in arrays["losses"]]
        self.done: collections.Counter[str] = collections.Counter()
        self.seconds: list[float] = []
        self.lost: list[str] = []

    def check(self, n: int, outputs: npt.NDArray[np.generic], start: int = 0) -> None:
        expected = self.logits[n][start : start + len(outputs)]
        if outputs.shape != expected.shape or not np.allclose(outputs, expected, rtol=1e-3, atol=1e-4):
            raise Lost(f"sequence {n} from step {start}: other outputs than it has alone")

    async def whole(self, client: seqloom.AsyncClient) -> None:
        chosen = self.random.sample(range(len(self.xs)), self.random.randint(1, 4))
        begun = time.perf_counter()
        result = await client.infer(STEADY, [self.xs[n] for n in chosen], timeout=_LONG)
        self.seconds.append(time.perf_counter() - begun)
        for n, outputs in zip(chosen, result.outputs, strict=True):
            self.check(n, outputs)
        self.done["whole sequences"] += len(chosen)

    async def stream(self, client: seqloom.AsyncClient) -> None:
        n = self.random.randrange(len(self.xs))
        chunks = np.array_split(self.xs[n], max(1, len(self.xs[n]) // CHUNK))
        leaves = self.random.random() < 0.3
        async with client.stream(STEADY, rate=self.random.choice([None, 100.0]), timeout=_LONG) as stream:
            for place, chunk in enumerate(chunks):
                await stream.send(chunk)
                answer = await stream.receive()
                self.check(n, answer.outputs, answer.first_step)
                await asyncio.sleep(0.01)
                if leaves and place > len(chunks) // 2:
                    self.done["streams left open"] += 1
                    return
            await stream.finish()
        self.done["streams"] += 1

    async def group(self, client: seqloom.AsyncClient) -> None:
        n = self.random.randrange(len(self.xs))
        streams = self.random.choice([3, 16])
        async with client.stream_group(STEADY, streams, timeout=_LONG) as group:
            for start in range(0, min(len(self.xs[n]), 50), 5):
                frames = self.xs[n][start : start + 5]
                answer = await group.step(np.repeat(frames[None], streams, 0))
                for outputs in answer.outputs:
                    self.check(n, outputs, start)
        self.done["groups"] += 1

    async def gradients(self, client: seqloom.AsyncClient) -> None:
        n = self.random.randrange(len(self.xs))
        own = await client.gradients(STEADY, [self.xs[n]], [np.zeros(len(self.xs[n]), np.int32)], timeout=_LONG)
        if not np.isclose(own.loss, self.losses[n], rtol=1e-3):
            raise Lost(f"sequence {n}: its loss is {own.loss}, and alone {self.losses[n]}")
        self.done["gradients"] += 1

    async def run(self, client: seqloom.AsyncClient) -> None:
        run = await client.create_run(MOVING, optimizer=seqloom.SGD(lr=1e-4), checkpoint_interval=2, timeout=_LONG)
        say({"run": run.id})
        steps = self.random.randint(1, 4)
        for _ in range(steps):
            x = self.random.choice(self.xs)
            added = run.forward_backward([x], [np.zeros(len(x), np.int32)], timeout=_LONG)
            await asyncio.gather(added, run.step(timeout=_LONG))
        found = (await run.info()).step
        if found != steps:
            raise Lost(f"a run has done {found} of {steps} steps")
        if self.random.random() < 0.5:
            await run.publish(timeout=_LONG)
            self.done["publishes"] += 1
        await run.delete()
        say({"deleted": run.id})
        self.done["steps of runs"] += steps

    async def cancels(self, client: seqloom.AsyncClient) -> None:
        xs = [self.random.choice(self.xs) for _ in range(8)]
        task = asyncio.ensure_future(client.infer(STEADY, xs, timeout=_LONG))
        await asyncio.sleep(self.random.random() * 0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.done["cancelled calls"] += 1

    async def times_out(self, client: seqloom.AsyncClient) -> None:
        try:
            await client.infer(STEADY, self.xs, timeout=self.random.random() * 0.01 + 1e-4)
        except seqloom.DeadlineExceeded:
            self.done["timeouts"] += 1

    async def disconnects(self, _: seqloom.AsyncClient) -> None:
        async with seqloom.AsyncClient(self.address) as client:
            for stream in [client.stream(STEADY, timeout=_LONG) for _ in range(3)]:
                await stream.__aenter__()
                await stream.send(self.xs[0][:CHUNK])
            asking = asyncio.gather(client.infer(STEADY, self.xs, timeout=_LONG), return_exceptions=True)
            await asyncio.sleep(self.random.random() * 0.01)
        await asking
        self.done["connections closed on open streams"] += 1

    async def again(self, what: Callable[[seqloom.AsyncClient], Awaitable[None]], client: seqloom.AsyncClient) -> None:
        """Does it again and again, with pauses, until it is cancelled."""
        while True:
            try:
                await what(client)
            except seqloom.Overloaded:
                self.done["refused"] += 1
            except (seqloom.SeqloomError, Lost) as error:
                self.lost.append(f"{what.__name__}: {type(error).__name__}: {error}")
            await asyncio.sleep(self.random.random() * 0.1)

    async def tell(self) -> None:
        while True:
            await asyncio.sleep(1)
            say({"done": self.done, "seconds": self.seconds, "lost": self.lost})
            self.done.clear()
            self.seconds, self.lost = [], []


def say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


async def main() -> None:
    traffic = Traffic(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with seqloom.AsyncClient(traffic.address) as client:
        kinds = [traffic.whole] * 3 + [traffic.stream] * 6 + [traffic.group, traffic.gradients, traffic.run]
        kinds += [traffic.cancels, traffic.times_out, traffic.disconnects]
        tasks = [asyncio.ensure_future(traffic.again(kind, client)) for kind in kinds]
        tasks.append(asyncio.ensure_future(traffic.tell()))
        await ended.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    say({"done": traffic.done, "seconds": traffic.seconds, "lost": traffic.lost})


if __name__ == "__main__":
    asyncio.run(main())
