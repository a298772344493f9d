"""ModelService over a real channel: models are made, loaded, moved in and out, and what cannot be is told by name."""

import dataclasses

import grpc
import numpy as np
import pytest
from helpers.raw_calls import Sessions, assert_serves, entry, frames, infer, infer_request, refused
from helpers.real_server import SMALL, open_channel, until
from helpers.tolerances import near
from seqloom._version import __version__
from seqloom.v1 import model_service_pb2 as pb
from seqloom.v1 import model_service_pb2_grpc, tensor_pb2
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import request_parts
from seqloom_server.rpc.models import model_servicer

TINY = pb.ModelSpec(cell=pb.CELL_TYPE_GRU, input_size=2, hidden_size=3, output_size=4, num_layers=1)


@pytest.fixture
def stub(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


async def import_parts(stub, *parts, **more):
    *others, last = parts or (pb.ImportModelRequest(),)
    told = pb.ImportModelRequest()
    told.CopyFrom(last)  # what is shared by tests stays as it is
    told.parts = len(parts)
    return await stub.ImportModel(iter([*others, told] if parts else []), timeout=30, **more)


def parts_of(name, spec, *, seed=0, size=1 << 20):
    config, weights = model_folder.to_bytes(Network.create(spec, seed))
    yield pb.ImportModelRequest(name=name, config=config)
    for start in range(0, len(weights), size):
        yield pb.ImportModelRequest(weights=weights[start : start + size])


async def test_models_are_listed_by_name_with_what_they_are(serve):
    deep = ModelSpec("lstm", 4, 5, 6, num_layers=3, dtype="float64")
    relu = ModelSpec("elman", 1, 2, 3, activation="relu")
    async with serve({"relu": relu, "deep": deep}) as served, open_channel(served.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        listed = list((await stub.ListModels(pb.ListModelsRequest())).models)
        assert [model.name for model in listed] == ["deep", "relu"]
        expected = pb.ModelSpec(
            cell=pb.CELL_TYPE_LSTM,
            activation=pb.ACTIVATION_TANH,
            input_size=4,
            hidden_size=5,
            output_size=6,
            num_layers=3,
            data_type=tensor_pb2.DATA_TYPE_FLOAT64,
            precision=pb.PRECISION_FULL,
        )
        assert listed[0].spec == expected
        assert listed[0].parameter_count == deep.parameter_count
        assert listed[1].spec.activation == pb.ACTIVATION_RELU
        assert (await stub.GetModel(pb.GetModelRequest(name="deep"))).model == listed[0]


async def test_a_created_model_is_served_and_on_disk_and_the_seed_decides_its_weights(served, channel, stub):
    spec = pb.ModelSpec(cell=pb.CELL_TYPE_ELMAN, input_size=5, hidden_size=7, output_size=3, num_layers=1)
    reply = await stub.CreateModel(pb.CreateModelRequest(name="made", spec=spec, seed=11))
    assert reply.model.weights_version == 1
    assert reply.model.spec.data_type == tensor_pb2.DATA_TYPE_FLOAT32
    assert reply.model.spec.precision == pb.PRECISION_FULL
    served.networks["made"] = Network.create(SMALL, 11)
    await assert_serves(served, channel, "made")
    network, version = model_folder.load(served.models / "made")
    assert version == 1
    assert network.spec == dataclasses.replace(SMALL, precision="full")


async def test_a_name_that_is_taken_is_refused_and_the_model_untouched(served, channel, stub):
    failure = await refused(stub.CreateModel(pb.CreateModelRequest(name="small", spec=TINY)))
    assert (failure.code, failure.reason, failure.fields) == ("ALREADY_EXISTS", "MODEL_EXISTS", ["name"])
    await assert_serves(served, channel)


@pytest.mark.parametrize(
    "name", ["", "Upper", "../up", "a/b", ".hidden", "-dash", "a" * 65, "zao\u4e0a", "a\n", "a b", "nul\0"]
)
async def test_what_is_no_name_is_refused_whatever_the_call(served, channel, stub, name):
    for call in (
        stub.CreateModel(pb.CreateModelRequest(name=name, spec=TINY)),
        stub.LoadModel(pb.LoadModelRequest(name=name)),
        import_parts(stub, *parts_of(name, SMALL)),
    ):
        failure = await refused(call)
        assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ["name"])
    assert [path.name for path in served.models.iterdir()] == ["small"]
    await assert_serves(served, channel)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("cell", pb.CELL_TYPE_UNSPECIFIED, "CellType"),
        ("cell", 77, "CellType"),
        ("activation", 77, "Activation"),
        ("activation", pb.ACTIVATION_RELU, "'tanh'"),
        ("data_type", tensor_pb2.DATA_TYPE_INT32, "FLOAT32 or FLOAT64"),
        ("input_size", 0, "1 to"),
        ("hidden_size", -3, "1 to"),
        ("output_size", 2_000_000_000, "1 to"),
        ("num_layers", 17, "1 to 16"),
    ],
)
async def test_a_specification_that_no_network_has_is_refused_by_its_field(served, channel, stub, field, value, words):
    spec = pb.ModelSpec()
    spec.CopyFrom(TINY)
    setattr(spec, field, value)
    failure = await refused(stub.CreateModel(pb.CreateModelRequest(name="made", spec=spec)))
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", [f"spec.{field}"])
    assert words in failure.message
    assert not (served.models / "made").exists()


async def test_a_model_above_the_bound_of_all_parameters_is_refused(stub):
    spec = pb.ModelSpec(
        cell=pb.CELL_TYPE_LSTM, input_size=16_384, hidden_size=16_384, output_size=1_000_000, num_layers=16
    )
    failure = await refused(stub.CreateModel(pb.CreateModelRequest(name="made", spec=spec)))
    assert failure.code == "INVALID_ARGUMENT"
    assert "parameters" in failure.message


async def test_a_folder_that_was_put_there_is_loaded_and_read_anew_with_a_higher_version(served, channel, stub):
    served.networks["later"] = Network.create(SMALL, 1)
    model_folder.save(served.models / "later", served.networks["later"])
    assert (await stub.LoadModel(pb.LoadModelRequest(name="later"))).model.weights_version == 1
    await assert_serves(served, channel, "later")
    served.networks["later"] = Network.create(SMALL, 2)
    model_folder.save(served.models / "later", served.networks["later"])
    assert (await stub.LoadModel(pb.LoadModelRequest(name="later"))).model.weights_version == 2
    await assert_serves(served, channel, "later")
    assert served.value("weights_version", model="later") == 2


async def test_an_open_session_keeps_the_weights_that_it_was_opened_with(served, channel, stub):
    x = frames(10)
    expected, _ = served.expected("small", x)
    sessions = Sessions(channel)
    assert (await sessions.open(1)).weights_version == 1
    await sessions.send(entry(1, x[:5]))
    assert (await sessions.next()).HasField("outputs")
    assert (await import_parts(stub, *parts_of("small", SMALL, seed=5))).model.weights_version == 2
    await sessions.send(entry(1, x[5:], end=True), entry(2, frames(1), open="small", end=True))
    values, _ = await sessions.until_ended(1)
    np.testing.assert_allclose(values, expected[5:], **near(rtol=1e-4, atol=1e-5))
    reply = await infer(channel, infer_request("small", x))
    assert reply.weights_version == 2
    failure = await refused(infer(channel, infer_request("small", x, weights_version=1)))
    assert failure.reason == "VERSION_MISMATCH"


async def test_no_more_versions_live_at_once_than_are_allowed(serve):
    async with serve(max_live_versions=2, max_live_bytes=0) as served, open_channel(served.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        sessions = Sessions(channel)
        await sessions.open(1)
        await import_parts(stub, *parts_of("small", SMALL, seed=1))
        await sessions.open(2)
        failure = await refused(import_parts(stub, *parts_of("small", SMALL, seed=2)))
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after > 0
        await sessions.send(entry(1, end=True))
        await sessions.until_ended(1)
        assert (await import_parts(stub, *parts_of("small", SMALL, seed=2))).model.weights_version == 3


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors"),
    ],
)
async def test_a_broken_folder_is_refused_by_name_and_what_is_served_stays(served, channel, stub, break_it, words):
    model_folder.save(served.models / "broken", Network.create(SMALL, 1))
    break_it(served.models / "broken")
    break_it(served.models / "small")
    for name in ("broken", "small"):
        failure = await refused(stub.LoadModel(pb.LoadModelRequest(name=name)))
        assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "MODEL_BROKEN")
        assert name in failure.message
        assert words in failure.message
    await assert_serves(served, channel)


async def test_an_unloaded_model_is_no_longer_served_but_its_folder_and_its_sessions_live_on(served, channel, stub):
    sessions = Sessions(channel)
    await sessions.open(1)
    await stub.UnloadModel(pb.UnloadModelRequest(name="small"))
    failure = await refused(infer(channel, infer_request("small", frames(3))))
    assert (failure.code, failure.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    x = frames(4)
    await sessions.send(entry(1, x, end=True))
    values, _ = await sessions.until_ended(1)
    np.testing.assert_allclose(values, served.expected("small", x)[0], **near(rtol=1e-4, atol=1e-5))
    await stub.LoadModel(pb.LoadModelRequest(name="small"))
    await assert_serves(served, channel)


async def test_an_unknown_model_is_not_found_whatever_the_call(served, stub):
    for call in (
        stub.GetModel(pb.GetModelRequest(name="none")),
        stub.LoadModel(pb.LoadModelRequest(name="none")),
        stub.UnloadModel(pb.UnloadModelRequest(name="none")),
        stub.ExportModel(pb.ExportModelRequest(name="none")).read(),
    ):
        failure = await refused(call)
        assert (failure.code, failure.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert "'none'" in failure.message


async def test_a_model_goes_out_in_parts_and_comes_in_as_the_same(serve):
    spec = ModelSpec("gru", 40, 200, 1500, num_layers=2)
    async with serve({"one": (spec, 3)}) as served, open_channel(served.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        config, weights = b"", []
        async for part in stub.ExportModel(pb.ExportModelRequest(name="one")):
            assert part.ByteSize() <= (1 << 20) + 64
            assert not (config and part.config), "the configuration came twice"
            config = config or part.config
            if part.weights:
                weights.append(part.weights)
        assert len(weights) == -(-sum(map(len, weights)) // (1 << 20)) > 1
        parts = [pb.ImportModelRequest(weights=part) for part in weights]
        reply = await import_parts(stub, pb.ImportModelRequest(name="two", config=config), *parts)
        assert reply.model.spec == (await stub.GetModel(pb.GetModelRequest(name="one"))).model.spec
        served.networks["two"] = served.networks["one"]
        await assert_serves(served, channel, "two")


def with_weights(change):
    config, weights = model_folder.to_bytes(Network.create(SMALL, 0))
    return [pb.ImportModelRequest(name="made", config=config), pb.ImportModelRequest(weights=change(weights))]


def with_config(config):
    return [pb.ImportModelRequest(name="made", config=config)]


OTHER = ModelSpec("elman", 5, 6, 3)

WRONG_IMPORTS = {
    "nothing": ([], "name", "first part"),
    "a configuration that is no JSON": (with_config(b"{"), "config", "config.json is not valid JSON"),
    "no configuration": (with_config(b""), "config", "config.json is not valid JSON"),
    "a field too many": (with_config(b'{"cell": "elman", "x": 1}'), "config", "config.json: 'x'"),
    "a configuration of 1 MB": (with_config(b" " * (1 << 20)), "config", "config.json has more than"),
    "no weights": (with_weights(lambda weights: b""), "weights", "model.safetensors"),
    "half of the weights": (with_weights(lambda weights: weights[:-10]), "weights", "model.safetensors"),
    "far more than the configuration needs": (
        with_weights(lambda weights: weights + bytes(1 << 20)),
        "weights",
        "more than",
    ),
    "another model's weights": (
        with_weights(lambda _: model_folder.to_bytes(Network.create(OTHER, 0))[1]),
        "weights",
        "rnn.weight_ih_l0",
    ),
    "the configuration again": (
        [*with_weights(lambda weights: weights[:9]), pb.ImportModelRequest(config=b"{}")],
        "config",
        "first part only",
    ),
    "another name": (
        [*with_weights(lambda weights: weights[:9]), pb.ImportModelRequest(name="other")],
        "name",
        "first part only",
    ),
}


@pytest.mark.parametrize("what", WRONG_IMPORTS)
async def test_what_is_no_model_is_not_imported(served, channel, stub, what):
    parts, field, words = WRONG_IMPORTS[what]
    failure = await refused(import_parts(stub, *parts))
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", [field])
    assert words in failure.message
    assert [path.name for path in served.models.iterdir()] == ["small"]
    await assert_serves(served, channel)


def too_much(megabytes):
    yield next(parts_of("made", SMALL))
    for _ in range(megabytes):
        yield pb.ImportModelRequest(weights=bytes(1 << 20))


async def test_an_import_that_is_refused_half_way_is_told_why(served, channel, stub):
    """Cut off at once, gRPC's client reports that it could not send instead."""
    for parts, field in (
        (too_much(150), "weights"),
        ([*parts_of("Made", SMALL), *[pb.ImportModelRequest(weights=bytes(1 << 20))] * 150], "name"),
    ):
        call = stub.ImportModel(timeout=30)
        for part in parts:
            await call.write(part)
        await call.done_writing()
        failure = await refused(call)
        assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", [field])
    await assert_serves(served, channel)


async def test_an_import_without_end_is_cut_off(served, channel, stub, monkeypatch):
    monkeypatch.setattr(request_parts, "_MAX_PASSED_OVER_BYTES", 4 << 20)
    sent = []

    async def parts_without_end():
        for part in too_much(1000):
            sent.append(len(part.weights))
            yield part

    with pytest.raises(grpc.aio.AioRpcError):
        await stub.ImportModel(parts_without_end(), timeout=30)
    assert len(sent) < 500
    await assert_serves(served, channel)


async def test_a_served_model_is_not_replaced_by_one_of_another_specification(served, channel, stub):
    failure = await refused(import_parts(stub, *parts_of("small", OTHER)))
    assert (failure.code, failure.reason) == ("ALREADY_EXISTS", "MODEL_EXISTS")
    await assert_serves(served, channel)


async def test_an_import_that_is_dropped_half_way_holds_up_no_other(served, channel, stub):
    parts = list(parts_of("made", SMALL, size=100))
    call = stub.ImportModel(timeout=30)
    for part in parts[:3]:
        await call.write(part)
    call.cancel()
    assert (await import_parts(stub, *parts)).model.name == "made"
    await until(lambda: served.value("requests_total", code="CANCELLED") == 1)


async def test_an_import_of_which_no_more_comes_holds_up_no_other_and_is_ended(served, stub, monkeypatch):
    monkeypatch.setattr(request_parts, "SECONDS_WITHOUT_PROGRESS", 0.2)
    parts = list(parts_of("made", SMALL, size=100))
    for silent in (parts[:1], parts[:3], [parts[0], *[pb.ImportModelRequest()] * 3], []):
        stalled = stub.ImportModel(timeout=30)
        for part in silent:
            await stalled.write(part)
        failure = await refused(stalled)
        assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
        assert "0.2 s" in failure.message
    monkeypatch.setattr(request_parts, "SECONDS_WITHOUT_PROGRESS", 30.0)
    stalled = stub.ImportModel(timeout=30)
    for part in parts[:3]:
        await stalled.write(part)
    assert (await import_parts(stub, *parts)).model.name == "made"
    stalled.cancel()


async def test_imports_that_are_together_too_large_are_told_to_come_later(serve):
    wide = ModelSpec("elman", 5, 7, 100_000)
    size = model_folder.weights_bytes(wide)
    async with serve(max_model_bytes=size) as served, open_channel(served.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        parts = list(parts_of("made", wide))
        held = stub.ImportModel(timeout=30)
        for part in parts[:-1]:
            await held.write(part)
        failure = await refused(import_parts(stub, *parts_of("other", wide)))
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after > 0
        assert served.value("rejected_total", reason="models") == served.value("rejected_total") == 1
        parts[-1].parts = len(parts)
        await held.write(parts[-1])
        await held.done_writing()
        assert (await held).model.name == "made"
        assert (await import_parts(stub, *parts_of("other", wide))).model.name == "other"


async def test_exports_that_nobody_reads_are_bounded_and_ended(serve, monkeypatch):
    wide = ModelSpec("elman", 5, 100, 100_000)
    async with serve({"wide": wide}) as served, open_channel(served.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        monkeypatch.setattr(model_servicer, "SECONDS_WITHOUT_PROGRESS", 0.5)
        unread = [stub.ExportModel(pb.ExportModelRequest(name="wide")) for _ in range(2)]
        for call in unread:
            assert (await call.read()).config
        failure = await refused(stub.ExportModel(pb.ExportModelRequest(name="wide")).read())
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert served.value("rejected_total", reason="models") == served.value("rejected_total") == 1
        await until(lambda: served.value("requests_total", code="CANCELLED") == 2)
        whole = [part async for part in stub.ExportModel(pb.ExportModelRequest(name="wide"))]
        assert sum(len(part.weights) for part in whole) > model_folder.weights_bytes(wide)


async def test_a_model_above_the_bound_of_its_bytes_is_refused_before_its_weights_come(serve):
    async with serve(max_model_bytes=10_000) as served, open_channel(served.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        large = pb.ModelSpec(cell=pb.CELL_TYPE_LSTM, input_size=9, hidden_size=500, output_size=9, num_layers=1)
        spec = ModelSpec("lstm", 9, 500, 9)
        for call in (
            stub.CreateModel(pb.CreateModelRequest(name="made", spec=large)),
            import_parts(stub, next(parts_of("made", spec))),
        ):
            failure = await refused(call)
            assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "OVER_LIMIT")
        await assert_serves(served, channel)


async def test_the_server_tells_its_version_device_and_limits(serve):
    async with (
        serve(max_sequences_per_request=5, window_steps=99, max_batch_steps=77) as served,
        open_channel(served.address) as channel,
    ):
        info = await model_service_pb2_grpc.ModelServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())
        assert (info.version, info.device) == (__version__, "cpu")
        assert info.limits == pb.Limits(
            max_sequences_per_request=5,
            max_steps_per_sequence=1_000_000,
            max_message_bytes=4 << 20,
            max_stream_message_bytes=1 << 20,
            window_steps=99,
            max_sessions=10_000,
            max_batch_sequences=256,
            max_batch_steps=77,
            max_training_bytes=64 << 20,
            max_training_steps=100_000,
        )
        await assert_serves(served, channel)
