"""To whom a run belongs: to the token that made it, over restarts, too; to others it does not exist."""

import json

import numpy as np
import pytest
import seqloom
from helpers.frames import noise
from helpers.raw_calls import entry, failure_of
from helpers.real_server import open_channel
from seqloom.v1 import inference_service_pb2_grpc
from seqloom.v1 import training_service_pb2 as pb
from seqloom.v1.inference_service_pb2 import StreamInferRequest

X, Y = [noise(6, 5, 0, "f4")], [np.zeros(6, "i4")]


@pytest.fixture
def options(secured, tmp_path):
    secured.token("ann", "train")
    secured.token("bob", "train")
    secured.token("root", "train", "admin")
    return {"tokens": str(secured.tokens), "runs": str(tmp_path / "runs")}


def client(served, secured, name):
    return seqloom.AsyncClient(served.address, token=secured.secrets[name], timeout=30, retries=0)


async def trained(owner):
    run = await owner.create_run("small", optimizer=seqloom.SGD(0.1))
    await run.forward_backward(X, Y)
    await run.step()
    await run.save("kept")
    return run


async def assert_hidden(other, run_id):
    """No call of another token tells that the run is there, or changes it."""
    number = pb.CallId(run=run_id, client="c", number=1)
    calls = [
        other._connection.training(lambda stub: stub.GetRun, pb.GetRunRequest(run=run_id), None),
        other._connection.training(lambda stub: stub.DeleteRun, pb.DeleteRunRequest(run=run_id), None),
        *(
            other._connection.training(lambda stub, name=name: getattr(stub, name), request, None, read_only=False)
            for name, request in (
                ("OptimStep", pb.OptimStepRequest(call=number)),
                ("SaveCheckpoint", pb.SaveCheckpointRequest(call=number)),
                ("LoadCheckpoint", pb.LoadCheckpointRequest(call=number, name="kept")),
                ("PublishRun", pb.PublishRunRequest(call=number)),
            )
        ),
    ]  # fmt: skip
    texts = set()
    for call in calls:
        with pytest.raises(seqloom.NotFound) as caught:
            await call
        assert caught.value.reason == "RUN_NOT_FOUND"
        texts.add(caught.value.message)
    with pytest.raises(seqloom.NotFound) as caught:
        await other.attach_run("run-000000000000")
    assert texts == {caught.value.message.replace("run-000000000000", run_id)}, "just as a run that never was"
    assert run_id not in [run.id for run in await other.runs()]


async def test_a_foreign_run_is_not_found_by_any_call(serve, secured, options):
    async with serve(**options) as served, client(served, secured, "ann") as ann, client(served, secured, "bob") as bob:
        run = await trained(ann)
        other = await trained(bob)
        await assert_hidden(bob, run.id)
        await assert_hidden(ann, other.id)
        assert [info.id for info in await ann.runs()] == [run.id]
        await run.forward_backward(X, Y)
        assert (await run.step()).step_number == 2
        await ann.delete_run(run.id)
        assert await ann.runs() == []


async def test_many_calls_in_a_message_reach_no_foreign_run(serve, secured, options):
    async with serve(**options) as served, client(served, secured, "ann") as ann, client(served, secured, "bob") as bob:
        run = await trained(ann)
        call = pb.RunCall(entry=1, optim_step=pb.OptimStepRequest(call=pb.CallId(run=run.id, client="c", number=1)))
        stream = bob._connection.channel().training.RunCalls(
            iter([pb.RunCallsRequest(entries=[call])]), metadata=bob._connection.config.metadata()
        )
        [reply] = (await stream.read()).entries
        assert reply.error.code == 5, "NOT_FOUND"


async def test_a_foreign_stream_cannot_be_named(serve, secured):
    for name in ("ann", "bob"):
        secured.token(name, "infer")
    frame = noise(1, 5, 0, "f4")
    async with serve(tokens=str(secured.tokens)) as served, open_channel(served.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        ann, bob = (
            stub.StreamInfer(metadata=[("authorization", f"Bearer {secured.secrets[name]}")]) for name in ("ann", "bob")
        )
        await ann.write(StreamInferRequest(entries=[entry(1, frame, open="small")]))
        while not (await ann.read()).entries[-1].HasField("outputs"):
            pass
        await bob.write(StreamInferRequest(entries=[entry(1, frame)]))
        [reply] = (await bob.read()).entries
        assert failure_of(reply.error).reason == "SESSION_NOT_OPEN"
        await ann.write(StreamInferRequest(entries=[entry(1, frame, end=True)]))
        replies = (await ann.read()).entries
        assert replies[-1].ended.steps == 2


async def test_owners_last_over_a_restart(serve, secured, options):
    async with serve(**options) as served, client(served, secured, "ann") as ann:
        run = await trained(ann)
    async with serve(**options) as served, client(served, secured, "ann") as ann, client(served, secured, "bob") as bob:
        await assert_hidden(bob, run.id)
        again = await ann.attach_run(run.id)
        await again.forward_backward(X, Y)
        assert (await again.step()).step_number == 2


async def test_a_run_without_an_owner_is_an_administrators(serve, secured, options, tmp_path):
    async with serve(runs=options["runs"]) as served, seqloom.AsyncClient(served.address) as anybody:
        old = await trained(anybody)
        older = await trained(anybody)
    state = tmp_path / "runs" / older.id / "latest" / "state.json"
    content = json.loads(state.read_text())
    assert content["meta"].pop("owner") == "", "as a server wrote it that knew no owners"
    state.write_text(json.dumps(content))
    async with (
        serve(**options) as served,
        client(served, secured, "ann") as ann,
        client(served, secured, "root") as root,
    ):
        for run in (old, older):
            await assert_hidden(ann, run.id)
        assert {info.id for info in await root.runs()} == {old.id, older.id}
        mine = await trained(ann)
        await assert_hidden(root, mine.id)
        await (await root.attach_run(older.id)).publish()
    async with serve(runs=options["runs"]) as served, seqloom.AsyncClient(served.address) as anybody:
        assert {info.id for info in await anybody.runs()} == {old.id, older.id, mine.id}, "no tokens: all see all"


async def test_a_run_with_broken_tensors_is_its_owners_still(serve, secured, options, tmp_path):
    async with serve(**options) as served, client(served, secured, "ann") as ann:
        run = await trained(ann)
    (tmp_path / "runs" / run.id / "latest" / "tensors.safetensors").write_bytes(b"none")
    async with (
        serve(**options) as served,
        client(served, secured, "ann") as ann,
        client(served, secured, "bob") as bob,
    ):
        await assert_hidden(bob, run.id)
        with pytest.raises(seqloom.InvalidArgument) as caught:
            await ann.attach_run(run.id)
        assert caught.value.reason == "RUN_BROKEN"
        [info] = await ann.runs()
        assert info.broken
        await ann.delete_run(run.id)
        assert await ann.runs() == []


@pytest.mark.parametrize("text", ["{", "3", '{"meta": 3}', '{"meta": {"owner": 3}}', "[" * 100_000])
async def test_a_run_of_which_no_owner_can_be_read_is_an_administrators(serve, secured, options, tmp_path, text):
    async with serve(**options) as served, client(served, secured, "ann") as ann:
        run = await trained(ann)
    (tmp_path / "runs" / run.id / "latest" / "state.json").write_text(text)
    async with (
        serve(**options) as served,
        client(served, secured, "ann") as ann,
        client(served, secured, "root") as root,
    ):
        with pytest.raises(seqloom.NotFound):
            await ann.attach_run(run.id)
        [info] = await root.runs()
        assert info.broken
        with pytest.raises(seqloom.NotFound):
            await ann.delete_run(run.id)
        await root.delete_run(run.id)


async def test_the_same_request_id_of_another_token_makes_another_run(serve, secured, options):
    request = pb.CreateRunRequest(model="small", request_id="same", optimizer=pb.Optimizer(kind=1, learning_rate=0.1))
    async with serve(**options) as served, client(served, secured, "ann") as ann, client(served, secured, "bob") as bob:
        ids = [
            (await each._connection.training(lambda stub: stub.CreateRun, request, None)).run.id
            for each in (ann, bob, ann)
        ]
    assert ids[0] == ids[2] != ids[1]
