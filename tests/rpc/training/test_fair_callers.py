"""A flood of gradient calls by one caller beside a modest other one, over connections of their own."""

import asyncio

from helpers.raw_calls import frames, refused
from helpers.raw_training_calls import Client, create_run, examples, gradients, labels, stub
from helpers.real_server import open_channel, until
from helpers.training_gate import TrainingGate
from seqloom.v1 import training_service_pb2 as pb

FLOOD, AT_ONCE = 300, 10


def one(seed=0):
    return examples([frames(6, seed=seed)], labels(6, seed=seed))


async def test_a_flood_of_one_connection_delays_another_by_two_batches_at_most(serve):
    async with (
        serve(max_batch_sequences=AT_ONCE) as served,
        open_channel(served.address) as flooding,
        open_channel(served.address) as modest,
    ):
        await gradients(modest)  # so that its connection is there
        gate = TrainingGate(served.engine)
        flood = [asyncio.ensure_future(gradients(flooding, one(n))) for n in range(FLOOD)]
        await until(lambda: served.value("queue_items", op="train") >= FLOOD - AT_ONCE)
        caller = gate.batches[0][0].caller
        for number in range(5):
            before = len(gate.batches)  # the last of them is under way
            call = asyncio.ensure_future(gradients(modest, one(number)))
            await until(lambda: any(own != caller for own in served.engine._scheduler.training._loads))
            gate.let_pass(2)
            await until(lambda before=before: len(gate.batches) >= before + 2)
            came = [{job.caller for job in jobs} - {caller} for jobs in gate.batches[before:]]
            assert any(came), "its call is in the first batch or in the second"
            gate.let_pass()
            await call
            await until(lambda before=before: len(gate.batches) == before + 3)
        gate.open()
        replies = await asyncio.gather(*flood)
        assert len(replies) == FLOOD
        assert len(gate.batches) >= FLOOD // AT_ONCE


async def test_runs_of_one_connection_take_turns_with_that_of_another(serve):
    async with serve() as served, open_channel(served.address) as many, open_channel(served.address) as modest:
        runs = [Client(many, (await create_run(many)).id) for _ in range(8)]
        own = Client(modest, (await create_run(modest)).id)
        weights = served.engine.runs.get(own.run).weights
        gate = TrainingGate(served.engine)
        flood = [asyncio.ensure_future(client.forward_backward()) for client in runs]
        await until(lambda: served.value("queue_items", op="train") == len(flood) - 1)
        call = asyncio.ensure_future(own.forward_backward())
        await until(lambda: served.value("queue_items", op="train") == len(flood))
        gate.let_pass(3)
        await call
        assert weights in [jobs[0].weights for jobs in gate.batches[:3]]
        gate.open()
        await asyncio.gather(*flood)


async def test_a_call_that_would_come_too_late_is_refused_at_the_door_and_counted(serve):
    async with serve() as served, open_channel(served.address) as channel:
        await gradients(channel)
        await until(lambda: not served.engine._scheduler.training.waiting)
        gate = TrainingGate(served.engine)
        pace = served.engine._scheduler.training._pace
        for _ in range(20):  # as on a machine that has become slow
            pace.observe(("small", True), 13, 1000.0)
        busy = asyncio.ensure_future(gradients(channel))
        await gate.arrived()
        request = pb.ComputeGradientsRequest(model="small", examples=one(), with_respect_to=[1], parts=1)
        failure = await refused(stub(channel).ComputeGradients(iter([request]), timeout=0.5).read())
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after >= 0.05
        assert served.value("rejected_total", reason="too_late") == served.value("rejected_total") == 1
        gate.open()
        await busy
        await gradients(channel)
