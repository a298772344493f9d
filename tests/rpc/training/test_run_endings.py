"""Runs whose checkpoints, end or server overtake calls that are under way: what was told stays true."""

import asyncio

import numpy as np
from helpers.raw_calls import frames, refused
from helpers.raw_training_calls import Client, create_run, examples, gradients, labels, stub
from helpers.real_server import open_channel, until
from seqloom.v1 import training_service_pb2 as pb


async def test_a_checkpoint_in_the_background_does_not_replace_a_later_one(served, channel):
    client = Client(channel, (await create_run(channel, checkpoint_interval=1)).id)
    run = served.engine.runs.get(client.run)
    async with run.checkpoints.turn():  # the disk is slow
        for _ in range(2):
            await client.forward_backward()
            await client.step()
        await client.forward_backward()
        save = asyncio.ensure_future(client.save())
        await until(lambda: len(run.checkpoints._writing._waiters) == 2)
    assert (await save).progress.calls_durable == 6
    await until(run.checkpoints._writer.done)
    found = await client.get()
    assert (found.calls_durable, found.durable_step) == (6, 2)


async def test_a_run_that_is_deleted_while_it_is_saved_leaves_no_folder(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    run = served.engine.runs.get(client.run)
    async with run.checkpoints.turn():
        save = asyncio.ensure_future(client.save("last"))
        await until(lambda: run.checkpoints._writing._waiters)
        delete = asyncio.ensure_future(stub(channel).DeleteRun(pb.DeleteRunRequest(run=client.run), timeout=30))
        await until(lambda: not served.engine.runs.all())
    await delete
    assert (await refused(save)).reason == "RUN_NOT_FOUND"
    assert not run.folder.exists()


async def test_a_call_that_the_device_has_begun_is_told_the_truth_by_a_server_that_shuts_down(serve):
    async with serve(training_piece_gflop=1e-4) as served, open_channel(served.address) as channel:
        client = Client(channel, (await create_run(channel)).id)
        xs = [frames(4000, seed=1)]
        call = asyncio.ensure_future(client.forward_backward(examples(xs, labels(4000))))
        await until(lambda: served.engine._scheduler.training.begun())
        await served.engine.drain(0)
        assert np.isfinite((await call).loss)


async def test_gradients_that_are_refused_for_their_size_give_nothing_back(serve):
    options = {"max_output_bytes": 1 << 20, "training_piece_gflop": 1e-5}
    async with serve(**options) as served, open_channel(served.address) as channel:
        big = examples([frames(4000, seed=n) for n in range(10)], labels(40000))
        inputs = (pb.WITH_RESPECT_TO_INPUTS, pb.WITH_RESPECT_TO_HIDDEN)
        first = asyncio.ensure_future(gradients(channel, big, wrt=inputs))
        await until(lambda: served.engine._scheduler.training.begun())
        for _ in range(3):
            assert (await refused(gradients(channel, big, wrt=inputs))).reason == "OVERLOADED"
        assert served.value("rejected_total", reason="unread_outputs") == served.value("rejected_total") == 3
        assert not first.done()  # all of them came while it held its share
        await first
