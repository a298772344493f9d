"""Load for Triton from an unmodified tritonclient: the callers and streams are those that Seqloom is measured with.

A program of launcher.py, in the peers' own environment: asked [address, work, count, seconds], it answers with the
round's numbers, or {"failed": why}. Work is "callers", "patient", which repeat what is refused, "streams" or
"real_time"; "offered" are `count` calls a second that do not wait for each other, told as open_loop.Calls; "labels"
answers with what the server says to the first `count` recordings, sent whole and as streams.
"""

import asyncio
import dataclasses
import functools
import itertools
import sys
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Self

import numpy as np
import tritonclient.grpc.aio as triton

from benchmarks.harness.child_process import questions, say
from benchmarks.harness.rounds import Loop
from benchmarks.loads import open_loop, sequence_load, stream_load
from benchmarks.loads.workload import FRAME, chunks

CHUNK = 10  # frames
_PATIENCE = 60  # seconds that a round may take beyond its own
_PAUSE = 0.01  # seconds until a call that was refused comes again
_numbers = itertools.count(1)  # of sequences; 0 is none


def main() -> None:
    with np.load(sys.argv[1]) as stored:
        recordings = list(stored.values())
    live = chunks(recordings, CHUNK)
    say("ready")
    with Loop() as loop:
        for address, work, count, seconds in questions():
            taken = _round(address, work, count, seconds, recordings, live)
            try:
                say(loop.run(asyncio.wait_for(taken, seconds + _PATIENCE)))
            except Exception as error:  # whatever a server that crashes leads to
                say({"failed": f"{type(error).__name__}: {error}"})


async def _round(
    address: str, work: str, count: Any, seconds: float, recordings: list[np.ndarray], live: list[np.ndarray]
) -> Any:
    async with triton.InferenceServerClient(address) as client:
        if work == "labels":
            sent = recordings[:count]
            return {
                "whole": [(await whole(client, frames)).tolist() for frames in sent],
                "streamed": [(await _streamed(client, frames)).tolist() for frames in sent],
            }
        if work == "callers":

            async def call(frames: np.ndarray) -> None:
                assert len(await whole(client, frames)) == len(frames)

            return await sequence_load.closed_loop([call] * count, recordings, seconds)
        if work == "offered":
            return dataclasses.asdict(
                await open_loop.offered([functools.partial(_told, client)], recordings, count, seconds)
            )
        if work == "patient":
            patient = functools.partial(_answered, client)
            return await sequence_load.closed_loop([patient] * count, recordings, seconds)
        load = {"streams": stream_load.closed_loop, "real_time": stream_load.real_time}[work]
        return await load(Streams(client), "rnnseq", live, count, seconds)


async def _streamed(client: Any, frames: np.ndarray) -> np.ndarray:
    async with Streams(client).stream("rnnseq") as stream:
        got = []
        for first in range(0, len(frames), CHUNK):
            await stream.send(frames[first : first + CHUNK])
            got.append(await stream.receive())
        return np.concatenate(got)


async def _told(client: Any, frames: np.ndarray, timeout: float | None = open_loop.TIMEOUT) -> str:
    """Sends a call; returns what became of it. timeout: seconds."""
    try:
        answer = await client.infer("rnn", [_tensor(frames)], client_timeout=timeout)
    except triton.InferenceServerException as error:
        code = (error.status() or "").rpartition(".")[2]
        found = {"DEADLINE_EXCEEDED": open_loop.LATE, "UNAVAILABLE": open_loop.REFUSED}
        if code not in found:
            print(f"a call failed: {error}", file=sys.stderr)
        return found.get(code, open_loop.FAILED)
    assert answer.as_numpy("y").shape[1] == len(frames)
    return open_loop.GOOD


async def _answered(client: Any, frames: np.ndarray) -> None:
    """Sends a call until it is not refused."""
    while True:
        if await _told(client, frames, None) == open_loop.GOOD:
            return
        await asyncio.sleep(_PAUSE)


async def whole(client: Any, frames: np.ndarray) -> np.ndarray:
    """frames: [T, D]. Returns [T] int32."""
    return (await client.infer("rnn", [_tensor(frames)])).as_numpy("y")[0]


class Streams:
    """Makes streams of a Triton, as seqloom.AsyncClient makes its own."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def stream(self, model: str, outputs: str = "labels") -> "Stream":
        return Stream(self._client, model)


class Stream:
    """One live stream, with the methods of the SDK's: a call of its own, in which each request names its sequence.

    The server forgets a sequence at a request that says so. That one is sent when the stream is left, when nobody
    measures any more.
    """

    def __init__(self, client: Any, model: str) -> None:
        self._client, self._model, self._number = client, model, next(_numbers)
        self._source: asyncio.Future[AsyncIterable[np.ndarray]] = asyncio.get_running_loop().create_future()
        self._by_hand: asyncio.Queue[np.ndarray | None] = asyncio.Queue()
        self._sent = self._received = 0
        self._left = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._replies = self._client.stream_infer(self._requests())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self._replies.cancel()
            return
        self._left.set()
        self._by_hand.put_nowait(None)
        if not self._source.done():
            self._source.set_result(self._queued())
        while not self._forgotten:
            await self.receive()
        await anext(self._replies, None)  # a call that is not at its end would be cancelled when it is dropped

    async def send(self, frames: np.ndarray) -> None:
        """frames: [k, D]."""
        if not self._source.done():
            self._source.set_result(self._queued())
        self._by_hand.put_nowait(frames)

    async def receive(self) -> np.ndarray:
        """Returns [k] int32."""
        result, error = await anext(self._replies)
        if error:
            raise error
        self._received += 1
        return result.as_numpy("y")[0]

    async def run(self, chunks: AsyncIterable[np.ndarray]) -> AsyncIterator[np.ndarray]:
        """Sends [k, D] as they come; yields [k] int32 for each."""
        self._source.set_result(chunks)
        while not (self._fed and self._received == self._sent):
            labels = await self.receive()
            if self._forgotten:
                return
            yield labels

    _fed = False  # whether all chunks have been sent

    @property
    def _forgotten(self) -> bool:
        """Whether the last request, too, has been answered."""
        return self._received > self._sent

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        async for frames in await self._source:
            self._sent += 1
            yield self._request(frames, first=self._sent == 1)
        self._fed = True
        if self._received < self._sent:
            await self._left.wait()  # else `run` waits for a reply, which this one brings
        yield self._request(np.zeros((1, FRAME), "f4"), first=self._sent == 0, last=True)

    def _request(self, frames: np.ndarray, first: bool, last: bool = False) -> dict[str, Any]:
        return {
            "model_name": self._model,
            "inputs": [_tensor(frames)],
            "sequence_id": self._number,
            "sequence_start": first,
            "sequence_end": last,
        }

    async def _queued(self) -> AsyncIterator[np.ndarray]:
        while (frames := await self._by_hand.get()) is not None:
            yield frames


def _tensor(frames: np.ndarray) -> triton.InferInput:
    value = triton.InferInput("x", [1, *frames.shape], "FP32")
    value.set_data_from_numpy(frames[None])
    return value


if __name__ == "__main__":
    main()
