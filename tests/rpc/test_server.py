"""The server as a whole over real connections: health, reflection, HTTP, bugs, what is no message, and the end."""

import asyncio
import logging
import platform
import socket
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from helpers.raw_calls import Sessions, assert_serves, entry, frames, infer, infer_request, refused
from helpers.real_server import SMALL, open_channel, until
from helpers.tolerances import near
from helpers.tolerances import served as served_in
from prometheus_client.parser import text_string_to_metric_families
from seqloom import tensors
from seqloom._version import __version__
from seqloom.v1 import inference_service_pb2_grpc, model_service_pb2_grpc, tensor_pb2
from seqloom.v1 import model_service_pb2 as models_pb
from seqloom_server.config import ServerConfig
from seqloom_server.engine.device import slice_runner
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc import server
from seqloom_server.rpc.server import SERVICES, CannotStart, Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def get(address: str, path: str, method: str = "GET"):
    """Returns status and text of an HTTP request."""

    def fetch():
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", method=method)) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(fetch)


async def health(channel, service=""):
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return reply.status


async def test_every_service_is_healthy_and_an_unknown_one_is_not_found(channel):
    for service in ("", "seqloom.v1.InferenceService", "seqloom.v1.ModelService"):
        assert await health(channel, service) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health(channel, "seqloom.v1.None")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_names_every_service_and_gives_their_files(channel):
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="seqloom.v1.InferenceService"),
    ]
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(requests))
    replies = [reply async for reply in call]
    names = {service.name for service in replies[0].list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}
    assert replies[1].file_descriptor_response.file_descriptor_proto


METHODS = [
    ("/seqloom.v1.InferenceService/Infer", "unary_unary", "InferRequest"),
    ("/seqloom.v1.ModelService/CreateModel", "unary_unary", "CreateModelRequest"),
    ("/seqloom.v1.ModelService/ExportModel", "unary_stream", "ExportModelRequest"),
    ("/seqloom.v1.ModelService/ImportModel", "stream_unary", "ImportModelRequest"),
    ("/seqloom.v1.InferenceService/StreamInfer", "stream_stream", "StreamInferRequest"),
    ("/grpc.health.v1.Health/Check", "unary_unary", "HealthCheckRequest"),
]


@pytest.mark.parametrize(("path", "kind", "message"), METHODS)
@pytest.mark.parametrize("raw", [b"\xff" * 20, b"\x0a\x7fcut off", b"\x0a\x02\xff\xfe"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(served, channel, path, kind, message, raw):
    call = getattr(channel, kind)(path)
    call = call(raw, timeout=30) if kind.startswith("unary") else call(iter([raw]), timeout=30)
    failure = await refused(call.read() if kind.endswith("stream") else call)
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    assert message in failure.message
    await assert_serves(served, channel)


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
async def test_a_message_of_200_mb_is_refused_by_the_transport(served, channel, kind):
    method = {"unary_unary": "Infer", "stream_stream": "StreamInfer"}[kind]
    call = getattr(channel, kind)(f"/seqloom.v1.InferenceService/{method}")
    huge = bytes(200_000_000)
    call = call(huge, timeout=60) if kind == "unary_unary" else call(iter([huge]), timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if kind == "unary_unary" else call.read())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.trailing_metadata().get("grpc-status-details-bin") is None, "so no RetryInfo either"
    await assert_serves(served, channel)


async def test_an_unknown_method_is_unimplemented_and_makes_no_label(served, channel):
    for method in ("/seqloom.v1.InferenceService/Guess", "/none/None"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(method)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await assert_serves(served, channel)
    _, text = await get(served.http_address, "/metrics")
    assert "Guess" not in text
    assert "None" not in text


async def test_a_bug_is_told_by_its_request_id_and_nothing_else(served, channel, monkeypatch, caplog):
    def broken(name, version=0):
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patched:
        patched.setattr(served.engine.registry, "current", broken)
        failure = await refused(infer(channel, infer_request("small", frames(2))))
    assert (failure.code, failure.reason) == ("INTERNAL", "INTERNAL")
    assert "secret" not in failure.message
    assert failure.request_id in failure.message
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert failure.request_id in record.getMessage()
    assert record.exc_info[0] is ZeroDivisionError
    await assert_serves(served, channel)


async def test_requests_have_ids_of_their_own(channel):
    failures = [await refused(infer(channel, infer_request("none"))) for _ in range(3)]
    assert len({failure.request_id for failure in failures}) == 3


async def test_metrics_count_calls_by_method_model_and_code_and_never_by_what_a_caller_types(served, channel):
    await assert_serves(served, channel)
    await refused(infer(channel, infer_request("typed-by-a-caller", frames(3))))
    await refused(infer(channel, infer_request("small", frames(3, width=9))))
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    await refused(stub.GetModel(models_pb.GetModelRequest(name="typed-by-a-caller")))
    status, text = await get(served.http_address, "/metrics")
    assert status == 200
    assert "typed-by-a-caller" not in text
    found = {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "seqloom_requests_total"
    }
    infer_method = ("method", "seqloom.v1.InferenceService/Infer")
    assert found[(("code", "OK"), infer_method, ("model", "small"))] == 1
    assert found[(("code", "NOT_FOUND"), infer_method, ("model", ""))] == 1
    assert found[(("code", "INVALID_ARGUMENT"), infer_method, ("model", "small"))] == 1
    assert served.value("request_duration_seconds_count", method=infer_method[1]) == 3


async def test_a_scrape_has_every_metric_that_concerns_serving(served, channel):
    sessions = Sessions(channel)
    await sessions.send(entry(1, frames(6), open="small"), entry(2, frames(2), open="none"))
    assert (await sessions.error(2)).code == "NOT_FOUND"
    await infer(channel, infer_request("small", frames(4), kind=tensor_pb2.OUTPUT_KIND_LABELS))
    await until(lambda: served.value("steps_total") == 10)
    _, text = await get(served.http_address, "/metrics")
    values = {
        (sample.name, *(sample.labels[key] for key in ("op", "model") if key in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for op, steps in (("stream", 6), ("infer", 4)):
        assert values["seqloom_steps_total", op, "small"] == steps
        assert values["seqloom_padded_steps_total", op, "small"] == 0
        assert values["seqloom_batch_sequences_count", op, "small"] == 1
        assert values["seqloom_batch_steps_sum", op, "small"] == steps
        assert values["seqloom_queue_duration_seconds_count", op, "small"] == 1
        assert values["seqloom_compute_duration_seconds_count", op, "small"] == 1
        assert values["seqloom_queue_items", op] == 0
    assert values["seqloom_active_streams", "small"] == 1
    assert values["seqloom_weights_version", "small"] == 1
    assert values[("seqloom_state_bytes",)] > 0
    assert values[("seqloom_device_memory_bytes",)] >= SMALL.parameter_count * 4
    [build] = [line for line in text.splitlines() if line.startswith("seqloom_build_info{")]
    labels = {"version": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for name, value in {**labels, "device": "cpu", "precision": served_in()}.items():
        assert f'{name}="{value}"' in build
    assert values[("seqloom_serving",)] == 1


async def test_http_answers_healthz_metrics_and_nothing_else(served):
    assert await get(served.http_address, "/healthz") == (200, "ok\n")
    assert (await get(served.http_address, "/none"))[0] == 404
    assert (await get(served.http_address, "/metrics", "POST"))[0] == 405


async def test_a_caller_that_holds_an_http_connection_holds_up_no_other(served):
    host, port = served.http_address.split(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.send(b"GET /heal")
        assert await get(served.http_address, "/healthz") == (200, "ok\n")


async def test_when_the_device_thread_dies_all_is_told_and_health_says_so(serve, monkeypatch):
    async with serve() as served, open_channel(served.address) as channel:
        live, sessions = Sessions(channel), Sessions(channel)
        await live.open(1)

        def broken(*arguments, **options):
            raise SystemError("the device is gone")

        monkeypatch.setattr(slice_runner, "launch", broken)
        for number in range(2, 12):  # a failed slice is its members' alone; too many in a row are the device's
            await sessions.send(entry(number, frames(2), open="small", end=True))
            assert (await sessions.error(number)).code in ("INTERNAL", "UNAVAILABLE")
        failure = await live.error(1)
        assert (failure.code, failure.reason) == ("UNAVAILABLE", "ENGINE_DEAD")
        failure = await refused(infer(channel, infer_request("small", frames(3))))
        assert (failure.code, failure.reason) == ("UNAVAILABLE", "ENGINE_DEAD")
        for service in ("", *SERVICES):
            assert await health(channel, service) == NOT_SERVING
        assert (await get(served.http_address, "/healthz"))[0] == 503
        assert served.value("serving") == 0
        assert served.value("active_streams") == 0


async def test_a_draining_server_ends_live_work_takes_none_and_holds_no_idle_call(serve):
    slow = ModelSpec("lstm", 5, 1024, 3)
    async with serve({"slow": slow, "small": SMALL}) as served, open_channel(served.address) as channel:
        idle, live = Sessions(channel), Sessions(channel)
        await idle.send(entry(1, frames(2), open="small", end=True))
        await idle.until_ended(1)
        await live.open(1)
        whole = asyncio.ensure_future(infer(channel, infer_request("slow", frames(300))))
        await until(lambda: served.value("queue_items") or served.value("steps_total", model="slow"))
        stopping = asyncio.ensure_future(served.server.stop(30))
        await until(lambda: not served.server._serving)
        failure = await refused(idle.next())
        assert (failure.code, failure.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert await health(channel) == NOT_SERVING
        assert (await get(served.http_address, "/healthz"))[0] == 503
        failure = await refused(infer(channel, infer_request("small", frames(3))))
        assert (failure.code, failure.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        assert (await whole).lengths == [300]
        # the live session goes on, until its caller ends it
        x = frames(5)
        assert not stopping.done()
        await live.send(entry(2, open="small"), entry(1, x, end=True))
        assert (await live.error(2)).reason == "SHUTTING_DOWN"
        values, last = await live.until_ended(1)
        np.testing.assert_allclose(values, served.expected("small", x)[0], **near(rtol=1e-4, atol=1e-5))
        assert last.HasField("ended")
        await stopping


async def test_what_was_computed_when_the_server_began_to_stop_still_reaches_a_caller_that_reads_late(
    serve, monkeypatch
):
    monkeypatch.setattr(server, "_SECONDS_TO_END_CALLS", 0.0)
    wide = ModelSpec("elman", 5, 7, 20_000)
    async with serve({"wide": wide}) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.send(*[entry(number, frames(60), open="wide", end=True) for number in range(10)])
        await until(lambda: served.value("steps_total") == 600)
        stopping = asyncio.ensure_future(served.server.stop(30))
        await until(lambda: not served.server._serving)
        steps = dict.fromkeys(range(10), 0)
        for _ in range(10):
            while not (reply := await sessions.next()).HasField("ended"):
                steps[reply.session] += len(tensors.decode(reply.outputs.outputs.values))
            steps[reply.session] += len(tensors.decode(reply.outputs.outputs.values))
        assert steps == dict.fromkeys(range(10), 60)
        await stopping


async def test_what_outlives_the_grace_period_is_told_that_the_server_shuts_down(serve):
    async with serve() as served, open_channel(served.address) as channel:
        live = Sessions(channel)
        await live.open(1)
        stopping = asyncio.ensure_future(served.server.stop(0.1))
        failure = await live.error(1)
        assert (failure.code, failure.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        await stopping


async def test_a_port_in_use_is_told_with_its_address(served, tmp_path):
    for option, address in (("listen", served.address), ("http", served.http_address)):
        ports = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0", option: address}
        second = Server(ServerConfig(models=str(tmp_path), device="cpu", **ports))
        with pytest.raises(CannotStart, match=rf"^cannot listen on {address} for .*: Address already in use$"):
            await second.start()


@pytest.mark.parametrize(("models", "runs"), [("a", "a"), ("a", "a/runs"), ("a/models", "a"), ("a", "link")])
async def test_folders_that_hold_one_another_are_refused(tmp_path, models, runs):
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    config = ServerConfig(
        models=str(tmp_path / models), runs=str(tmp_path / runs), listen="127.0.0.1:0", http="127.0.0.1:0"
    )
    with pytest.raises(CannotStart, match="expected two folders, neither inside the other"):
        await Server(config).start()


def test_every_method_of_the_schema_is_served():
    for servicer in (inference_service_pb2_grpc.InferenceServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
        implementation = next(cls for cls in servicer.__subclasses__())
        for name in (name for name in vars(servicer) if not name.startswith("_")):
            assert getattr(implementation, name) is not getattr(servicer, name)
