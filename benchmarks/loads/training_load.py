"""Callers that train: each brings one recording at a time, to a run that all share or for gradients of its own."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator

import grpc
import seqloom
from seqloom import tensors
from seqloom.v1 import training_service_pb2 as pb
from seqloom.v1.training_service_pb2_grpc import TrainingServiceStub

from benchmarks.harness.rounds import Result, Tally
from benchmarks.loads.sequence_load import Call
from benchmarks.loads.training_workload import Labelled


@contextlib.asynccontextmanager
async def callers_of_one_run(client: seqloom.AsyncClient, model: str, count: int) -> AsyncIterator[list[Call]]:
    """Yields `count` callers that have attached to one run; the run is deleted in the end."""
    first = await client.create_run(model, optimizer=seqloom.SGD(lr=1e-3), checkpoint_interval=0)
    runs = [first, *[await client.attach_run(first.id) for _ in range(count - 1)]]
    try:
        yield [_forward_backward(run) for run in runs]
    finally:
        await client.delete_run(first.id)


def callers_of_gradients(client: seqloom.AsyncClient, model: str, count: int) -> list[Call]:
    """`count` callers, each of which gets the gradients of all parameters for its recording."""

    async def call(example: Labelled) -> None:
        gradients = await client.gradients(model, [example.frames], [example.labels])
        assert gradients.parameters is not None
        assert "output.weight" in gradients.parameters

    return [call] * count


async def waves(calls: list[Call], examples: list[Labelled], seconds: float) -> Result:
    """One round in which all callers call at once, and again when the last of them has its answer."""
    tally, following = Tally(seconds), itertools.cycle(examples)

    async def one(call: Call, example: Labelled) -> None:
        sent = time.perf_counter()
        await call(example)
        tally.add(len(example), sent)

    while tally.running:
        await asyncio.gather(*map(one, calls, following))
    return tally.result()


async def reply_bytes(address: str, model: str, example: Labelled, form: pb.ParameterForm) -> int:
    """How many bytes the messages of one answer have, parameter gradients in this form."""
    request = pb.ComputeGradientsRequest(
        model=model, with_respect_to=[pb.WITH_RESPECT_TO_PARAMETERS], parameter_form=form, parts=1
    )
    request.examples.sequences.lengths.append(len(example))
    tensors.encode_into(example.frames, request.examples.sequences.rows)
    tensors.encode_into(example.labels, request.examples.targets)
    request.examples.loss = pb.LOSS_KIND_CROSS_ENTROPY
    async with grpc.aio.insecure_channel(address) as channel:
        parts = TrainingServiceStub(channel).ComputeGradients(iter([request]))
        return sum([part.ByteSize() async for part in parts])


def _forward_backward(run: seqloom.AsyncRun) -> Call:
    async def call(example: Labelled) -> None:
        result = await run.forward_backward([example.frames], [example.labels])
        assert result.loss > 0

    return call
