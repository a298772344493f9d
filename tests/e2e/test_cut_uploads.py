"""Uploads cut at any byte, cancelled, late or killed with their client: done once as a whole, or not at all."""

import asyncio
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.real_server import open_channel, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqloom import tensors
from seqloom.v1 import model_service_pb2, model_service_pb2_grpc, tensor_pb2, training_service_pb2_grpc
from seqloom.v1 import training_service_pb2 as pb
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

SPEC = ModelSpec(cell="gru", input_size=400, hidden_size=8, output_size=6)
LARGE = ModelSpec(cell="elman", input_size=400, hidden_size=500, output_size=400)  # 2.6 MB of weights
CALL_BYTES, MODEL_BYTES = 1_600_000, 2_700_000


def call_of(seed):
    """1.5 MB, in two parts."""
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((937, 400)).astype("f4")], [draw.integers(0, 6, 937)]


def parameters_of(served, run):
    return served.engine.runs.get(run.id).weights.network.parameters()


async def forward_backward(served, proxy, direct, client, cuts):
    run, twin = [await each.create_run("m", optimizer=seqloom.Adam(0.01)) for each in (client, direct)]
    for number, cut in enumerate(cuts, 1):
        proxy.cut_after = cut
        await run.forward_backward(*call_of(number))
        proxy.cut_after = None
        await twin.forward_backward(*call_of(number))
        assert (await run.step()).step == (await twin.step()).step == number
    undisturbed = parameters_of(served, twin)
    for name, tensor in parameters_of(served, run).items():
        assert (tensor == undisturbed[name]).all(), name
    await run.delete()
    await twin.delete()


async def gradients(served, proxy, direct, client, cuts):
    for number, cut in enumerate(cuts, 1):
        proxy.cut_after = cut
        mine = await client.gradients("m", *call_of(number), parameter_form="dense")
        proxy.cut_after = None
        undisturbed = await direct.gradients("m", *call_of(number), parameter_form="dense")
        assert mine.loss == undisturbed.loss
        for name, gradient in undisturbed.parameters.items():
            np.testing.assert_array_equal(mine.parameters[name], gradient, err_msg=name)


async def import_model(served, proxy, direct, client, cuts):
    for number, cut in enumerate(cuts, 1):
        network = Network.create(LARGE, number)
        model_folder.save(served.models.parent / "to-import", network)
        before = {model.name: model.weights_version for model in await direct.models()}
        proxy.cut_after = cut
        try:
            await client.import_model("new", served.models.parent / "to-import")
            whole = True
        except seqloom.Unavailable:
            whole = False
        proxy.cut_after = None
        if not whole and {model.name: model.weights_version for model in await direct.models()} == before:
            await direct.import_model("new", served.models.parent / "to-import")
        for name, tensor in served.engine.registry.current("new").network.parameters().items():
            assert (tensor == network.parameters()[name]).all(), name
    assert not [path for path in served.models.iterdir() if "being" in path.name]


@pytest.mark.parametrize(
    ("upload", "size"),
    [(forward_backward, CALL_BYTES), (gradients, CALL_BYTES), (import_model, MODEL_BYTES)],
    ids=["forward_backward", "gradients", "import_model"],
)
def test_an_upload_that_is_cut_at_any_byte_is_done_once_or_not_at_all(serve, upload, size):
    with asyncio.Runner() as runner:
        serving = serve({"m": SPEC})
        served = runner.run(serving.__aenter__())

        async def scenario(cuts):
            async with (
                proxy_of(served.address) as proxy,
                seqloom.AsyncClient(served.address, timeout=60) as direct,
                seqloom.AsyncClient(proxy.address, timeout=60) as client,
            ):
                await client.models()
                await upload(served, proxy, direct, client, cuts)

        @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(st.integers(0, size), min_size=1, max_size=4))
        def holds(cuts):
            runner.run(scenario(cuts))

        try:
            holds()
        finally:
            runner.run(serving.__aexit__(None, None, None))


def messages(run, number=1, parts=3):
    """A forward_backward in parts, the last of which says so."""
    (x,), (y,) = call_of(0)
    found = []
    for k, (rows, labels) in enumerate(zip(np.array_split(x, parts), np.array_split(y, parts), strict=True)):
        examples = pb.Examples(
            sequences=tensor_pb2.SequenceBatch(rows=tensors.encode(rows)),
            targets=tensors.encode(labels.astype("i4")),
        )
        message = pb.ForwardBackwardRequest(examples=examples)
        if k == 0:
            message.call.CopyFrom(pb.CallId(run=run, client="ann", number=number))
            message.examples.sequences.lengths.append(len(x))
            message.examples.loss = pb.LOSS_KIND_CROSS_ENTROPY
        found.append(message)
    found[-1].parts = parts
    return found


@pytest.fixture
async def training(serve):
    async with (
        serve({"m": SPEC}) as served,
        open_channel(served.address) as channel,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
        yield served, training_service_pb2_grpc.TrainingServiceStub(channel), run


async def assert_untouched(served, stub, run):
    told = (await stub.GetRun(pb.GetRunRequest(run=run.id, client="ann"))).run
    assert (told.calls_done, told.accumulated_calls, told.step) == (0, 0, 0)
    reply = await stub.ForwardBackward(iter(messages(run.id)), timeout=30)
    assert reply.step == 1, "its number was not used"


def ended(served, **labels):
    """Whether the server has done with the call."""
    return lambda: served.value("requests_total", method="seqloom.v1.TrainingService/ForwardBackward", **labels)


@pytest.mark.parametrize("sent", [0, 1, 2])
async def test_a_call_that_is_cancelled_while_it_is_sent_uses_no_number(training, sent):
    served, stub, run = training
    call = stub.ForwardBackward(timeout=30)
    for message in messages(run.id)[:sent]:
        await call.write(message)
    await call.wait_for_connection()
    call.cancel()
    await until(ended(served))
    await assert_untouched(served, stub, run)


@pytest.mark.parametrize("sent", [0, 1, 2])
async def test_a_call_whose_deadline_passes_while_it_is_sent_uses_no_number(training, sent):
    served, stub, run = training
    call = stub.ForwardBackward(timeout=0.3)
    for message in messages(run.id)[:sent]:
        await call.write(message)
    assert (await call.code()).name == "DEADLINE_EXCEEDED"
    await until(ended(served))
    await assert_untouched(served, stub, run)


async def test_a_call_that_ends_without_its_last_part_uses_no_number(training):
    served, stub, run = training
    call = stub.ForwardBackward(iter(messages(run.id)[:2]), timeout=30)
    assert (await call.code()).name == "CANCELLED"
    assert "ended after 2 parts" in await call.details()
    await assert_untouched(served, stub, run)


@pytest.mark.parametrize("wrong", [1, 2, 4])
async def test_a_count_that_is_off_is_told(training, wrong):
    served, stub, run = training
    parts = messages(run.id)
    parts[-1].parts = 0
    parts[min(wrong, 3) - 1].parts = wrong
    call = stub.ForwardBackward(iter(parts), timeout=30)
    assert (await call.code()).name == "INVALID_ARGUMENT"
    assert (await call.details()).startswith("parts: is ")
    await assert_untouched(served, stub, run)


async def test_a_last_part_may_say_only_that_it_is_the_last(training):
    _, stub, run = training
    parts = messages(run.id)
    parts[-1].parts = 0
    parts.append(pb.ForwardBackwardRequest(parts=len(parts) + 1))
    assert (await stub.ForwardBackward(iter(parts), timeout=30)).step == 1


async def test_parts_of_nothing_count_towards_the_bytes_of_a_call(training):
    served, stub, run = training
    parts = [*messages(run.id), *(pb.ForwardBackwardRequest() for _ in range(40_000))]
    parts[2].parts = 0
    call = stub.ForwardBackward(iter(parts), timeout=60)
    assert (await call.code()).name == "INVALID_ARGUMENT"
    assert "bytes in all parts" in await call.details()
    await assert_untouched(served, stub, run)


CLIENT = """
    import sys
    import grpc
    from seqloom.v1 import {module}_pb2 as pb, {module}_pb2_grpc as stubs

    def parts():
        for size in map(int, sys.argv[2:]):
            yield getattr(pb, {message!r}).FromString(sys.stdin.buffer.read(size))
        print("sent", flush=True)
        sys.stdin.buffer.read()  # until it is killed

    with grpc.insecure_channel(sys.argv[1]) as channel:
        stubs.{service}Stub(channel).{method}(parts())
"""


def killed_client(served, module, service, method, parts):
    """A client in a process of its own that has sent these parts and no end, and is killed."""
    code = textwrap.dedent(CLIENT).format(
        module=module, service=service, method=method, message=type(parts[0]).__name__
    )
    raw = [part.SerializeToString() for part in parts]
    command = [sys.executable, "-c", code, served.address, *(str(len(each)) for each in raw)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"".join(raw))
        process.stdin.flush()
        assert process.stdout.readline() == b"sent\n"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdin.close()


async def test_a_client_that_is_killed_in_the_midst_of_a_call_uses_no_number(training):
    served, stub, run = training
    parts = messages(run.id)[:2]
    await asyncio.to_thread(killed_client, served, "training_service", "TrainingService", "ForwardBackward", parts)
    await until(ended(served, code="CANCELLED"))
    await assert_untouched(served, stub, run)


async def test_a_client_that_is_killed_when_all_weights_were_sent_and_no_end_imports_nothing(training):
    served, _, _ = training
    config, weights = model_folder.to_bytes(Network.create(SPEC, 3))
    parts = [
        model_service_pb2.ImportModelRequest(name="new", config=config),
        model_service_pb2.ImportModelRequest(weights=weights),
    ]
    await asyncio.to_thread(killed_client, served, "model_service", "ModelService", "ImportModel", parts)
    await until(lambda: served.value("requests_total", method="seqloom.v1.ModelService/ImportModel", code="CANCELLED"))
    assert [model.name for model in served.engine.registry.models()] == ["m"]
    assert not (served.models / "new").exists()
    async with open_channel(served.address) as channel:
        parts[-1].parts = 2
        reply = await model_service_pb2_grpc.ModelServiceStub(channel).ImportModel(iter(parts), timeout=30)
    assert reply.model.weights_version == 1
