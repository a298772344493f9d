"""A load that costs as little as it can: messages that were built beforehand, sent as bytes over bare gRPC.

Asked [address, kind, model, entries, frames, answer bytes, seconds], it answers with
the round's numbers. kind: "StreamInfer", whose messages have so many entries of so many frames, or "Infer", whose calls
have so many sequences. answer bytes: None for a server of ours; else an echo of messages of the same sizes is asked.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from seqloom import tensors
from seqloom.v1 import inference_service_pb2, tensor_pb2

from benchmarks.harness.child_process import say
from benchmarks.harness.rounds import Result
from benchmarks.loads.sequence_load import ANSWER
from benchmarks.loads.workload import FRAME

OURS, ECHO = "seqloom.v1.InferenceService", "benchmark.Echo"
IN_FLIGHT = 4  # messages on their way at once, each on a call of its own over one connection
_WINDOW = 4096 // 2  # steps after which what came is acknowledged

Exchange = Callable[[], Awaitable[int]]
"""Sends a message; returns the size of what answered it."""


def _frames(steps: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (steps, FRAME)).astype("f4")


class Sessions:
    """A StreamInfer call with a session for each entry of its messages."""

    def __init__(self, channel: grpc.aio.Channel, model: str, entries: int, frames: int) -> None:
        self._call: Any = channel.stream_stream(f"/{OURS}/StreamInfer")()
        self._entries, self._frames, self._done, self._acknowledged = entries, frames, 0, 0
        opening = inference_service_pb2.StreamInferRequest()
        message = inference_service_pb2.StreamInferRequest()
        for session in range(entries):
            opened = opening.entries.add(session=session).open
            opened.model, opened.output.kind = model, tensor_pb2.OUTPUT_KIND_LABELS
            tensors.encode_into(_frames(frames), message.entries.add(session=session).frames)
        self._opening, self._message = opening.SerializeToString(), message.SerializeToString()

    async def open(self) -> None:
        await self._call.write(self._opening)
        opened = 0
        while opened < self._entries:
            reply = inference_service_pb2.StreamInferResponse.FromString(await self._call.read())
            opened += sum(entry.HasField("opened") for entry in reply.entries)

    async def exchange(self) -> int:
        if self._done - self._acknowledged >= _WINDOW:
            self._acknowledged = self._done
            message = inference_service_pb2.StreamInferRequest()
            for session in range(self._entries):
                message.entries.add(session=session, acknowledged_steps=self._done)
            await self._call.write(message.SerializeToString())
        await self._call.write(self._message)
        missing, size = self._entries * self._frames, 0
        while missing:  # the answers may come in several messages
            raw = await self._call.read()
            reply = inference_service_pb2.StreamInferResponse.FromString(raw)
            missing -= sum(len(entry.outputs.outputs.labels.data) // 4 for entry in reply.entries)
            size += len(raw)
        self._done += self._frames
        return size

    async def close(self) -> None:
        self._call.cancel()


def _calls(channel: grpc.aio.Channel, model: str, sequences: int, frames: int) -> Exchange:
    request = inference_service_pb2.InferRequest(model=model)
    request.output.kind = tensor_pb2.OUTPUT_KIND_LABELS
    tensors.encode_into(_frames(sequences * frames), request.sequences.rows)
    request.sequences.lengths.extend([frames] * sequences)
    method, raw = channel.unary_unary(f"/{OURS}/Infer"), request.SerializeToString()

    async def exchange() -> int:
        return len(await method(raw))

    return exchange


def _echoes(channel: grpc.aio.Channel, kind: str, entries: int, frames: int, answer: int) -> Exchange:
    raw = ANSWER.pack(answer) + bytes(max(answer, entries * (frames * FRAME * 4 + 30)))
    if kind == "Infer":
        method = channel.unary_unary(f"/{ECHO}/Infer")

        async def exchange() -> int:
            return len(await method(raw))

        return exchange
    call: Any = channel.stream_stream(f"/{ECHO}/StreamInfer")()

    async def exchange_one() -> int:
        await call.write(raw)
        return len(await call.read())

    return exchange_one


async def _round(
    address: str, kind: str, model: str, entries: int, frames: int, answer: int | None, seconds: float
) -> Result:
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        exchanges: list[Exchange] = []
        for _ in range(IN_FLIGHT):
            if answer is not None:
                exchanges.append(_echoes(channel, kind, entries, frames, answer))
            elif kind == "Infer":
                exchanges.append(_calls(channel, model, entries, frames))
            else:
                sessions = Sessions(channel, model, entries, frames)
                await sessions.open()
                exchanges.append(sessions.exchange)
        sizes: list[int] = []
        begun = time.perf_counter()

        async def caller(exchange: Exchange) -> None:
            while time.perf_counter() - begun < seconds:
                sizes.append(await exchange())

        await asyncio.gather(*map(caller, exchanges))
        took = time.perf_counter() - begun
    return {
        "messages": len(sizes),
        "messages_per_second": len(sizes) / took,
        "entries_per_second": len(sizes) * entries / took,
        "frames_per_second": len(sizes) * entries * frames / took,
        "reply_bytes": sum(sizes) / len(sizes),
    }


async def main() -> None:
    say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        say(await _round(*json.loads(line)))


if __name__ == "__main__":
    asyncio.run(main())
