"""A load that costs as little as it can: messages that were built beforehand, sent as bytes over bare gRPC.

Asked [address, kind, model, entries, frames, answer bytes, seconds], it answers with the round's numbers. kind:
"StreamInfer", whose messages have so many entries of so many frames, or "Infer", whose calls have so many sequences.
answer bytes: None for a server of ours; else an echo of messages of the same sizes is asked.
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
from benchmarks.loads.sequence_load import ANSWER, ECHO
from benchmarks.loads.workload import FRAME

OURS = "seqloom.v1.InferenceService"
IN_FLIGHT = 4  # messages on their way at once, each on a call of its own over one connection
_WINDOW = 4096 // 2  # steps after which what came is acknowledged

Exchange = Callable[[], Awaitable[int]]
"""Sends a message; returns the size of what answered it."""


def _frames(steps: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (steps, FRAME)).astype("f4")


async def _sessions(channel: grpc.aio.Channel, model: str, entries: int, frames: int) -> Exchange:
    """Opens a StreamInfer call with a session for each entry of its messages."""
    call: Any = channel.stream_stream(f"/{OURS}/StreamInfer")()
    opening, message = inference_service_pb2.StreamInferRequest(), inference_service_pb2.StreamInferRequest()
    for session in range(entries):
        opened = opening.entries.add(session=session).open
        opened.model, opened.output.kind = model, tensor_pb2.OUTPUT_KIND_LABELS
        tensors.encode_into(_frames(frames), message.entries.add(session=session).frames)
    raw, done, acknowledged = message.SerializeToString(), 0, 0
    await call.write(opening.SerializeToString())
    missing = entries
    while missing:
        reply = inference_service_pb2.StreamInferResponse.FromString(await call.read())
        missing -= sum(entry.HasField("opened") for entry in reply.entries)

    async def exchange() -> int:
        nonlocal done, acknowledged
        if done - acknowledged >= _WINDOW:
            acknowledged, message = done, inference_service_pb2.StreamInferRequest()
            for session in range(entries):
                message.entries.add(session=session, acknowledged_steps=done)
            await call.write(message.SerializeToString())
        await call.write(raw)
        missing, size = entries * frames, 0
        while missing:  # the answers may come in several messages
            answer = await call.read()
            reply = inference_service_pb2.StreamInferResponse.FromString(answer)
            missing -= sum(len(entry.outputs.outputs.labels.data) // 4 for entry in reply.entries)
            size += len(answer)
        done += frames
        return size

    return exchange


def _unary(channel: grpc.aio.Channel, service: str, raw: bytes) -> Exchange:
    method = channel.unary_unary(f"/{service}/Infer")

    async def exchange() -> int:
        return len(await method(raw))

    return exchange


async def _opened(
    channel: grpc.aio.Channel, kind: str, model: str, entries: int, frames: int, answer: int | None
) -> Exchange:
    if answer is not None:
        raw = ANSWER.pack(answer) + bytes(max(answer, entries * (frames * FRAME * 4 + 30)))
        if kind == "Infer":
            return _unary(channel, ECHO, raw)
        call: Any = channel.stream_stream(f"/{ECHO}/StreamInfer")()

        async def exchange() -> int:
            await call.write(raw)
            return len(await call.read())

        return exchange
    if kind == "StreamInfer":
        return await _sessions(channel, model, entries, frames)
    request = inference_service_pb2.InferRequest(model=model)
    request.output.kind = tensor_pb2.OUTPUT_KIND_LABELS
    tensors.encode_into(_frames(entries * frames), request.sequences.rows)
    request.sequences.lengths.extend([frames] * entries)
    return _unary(channel, OURS, request.SerializeToString())


async def _round(address: str, kind: str, model: str, entries: int, frames: int, *rest: Any) -> Result:
    answer, seconds = rest
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        exchanges = [await _opened(channel, kind, model, entries, frames, answer) for _ in range(IN_FLIGHT)]
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
