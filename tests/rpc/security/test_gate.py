"""Tokens of a real server: what each scope permits, tokens that are removed, and secrets that are told to nobody."""

import asyncio
import logging
import struct
import urllib.request

import grpc
import numpy as np
import pytest
import seqloom
from helpers.frames import noise
from helpers.raw_calls import entry, refused
from helpers.raw_http2 import DATA, END_HEADERS, HEADERS, RawConnection, frame, header_block
from helpers.raw_training_calls import SGD
from helpers.real_server import open_channel, until
from seqloom.v1 import (
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
)
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.security.scopes import ANY, scope_of

X = noise(6, 5, 0, "f4")

FILES = (inference_service_pb2, model_service_pb2, training_service_pb2)
METHODS = {
    f"{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
OTHERS = ("grpc.health.v1.Health/Check", "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")


def bearer(secret):
    return (("authorization", f"Bearer {secret}"),)


def call(channel, path, metadata):
    """Begins any method with an empty message, and returns what awaits its first answer."""
    method = METHODS.get(path)
    asks = method.client_streaming if method else path.endswith("Info")
    answers = method.server_streaming if method else path.endswith("Info")
    kind = f"{'stream' if asks else 'unary'}_{'stream' if answers else 'unary'}"
    begun = getattr(channel, kind)(f"/{path}")(iter([b""]) if asks else b"", timeout=30, metadata=metadata)
    return begun.read() if answers else begun


async def read_on(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def code_of(answer):
    """The status with which a call, or its first answer, comes."""
    try:
        await answer
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


EXPECTED = {
    **{path: "infer" for path in METHODS if "InferenceService" in path},
    **{path: "train" for path in METHODS if "TrainingService" in path},
    **{path: "admin" for path in METHODS if "ModelService" in path},
    **dict.fromkeys(OTHERS, ANY),
    **dict.fromkeys((f"seqloom.v1.ModelService/{name}" for name in ("GetServerInfo", "ListModels", "GetModel")), ANY),
}


def test_the_scopes_are_those_that_are_told():
    assert {path: scope_of(path) for path in (*METHODS, *OTHERS)} == EXPECTED
    assert scope_of("some.new.Service/Method") == "admin"


@pytest.mark.parametrize("path", EXPECTED)
async def test_every_method_needs_a_token_of_its_scope(serve, secured, path):
    for scope in ("infer", "train", "admin"):
        secured.token(scope, scope)
    async with serve(tokens=str(secured.tokens)) as served, open_channel(served.address) as channel:
        failure = await refused(call(channel, path, ()))
        assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "NO_TOKEN")
        for scope, secret in secured.secrets.items():
            if EXPECTED[path] in (ANY, scope):
                code = await code_of(call(channel, path, bearer(secret)))  # an empty message asks for nothing
                assert code not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
            else:
                failure = await refused(call(channel, path, bearer(secret)))
                assert (failure.code, failure.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
        failure = await refused(call(channel, path, bearer("wrong")))
        assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "WRONG_TOKEN")
        assert served.value("unauthorized_total", reason="missing") == 1
        assert served.value("unauthorized_total", reason="wrong") == 1


async def test_the_sdk_raises_the_errors_of_tokens(serve, secured):
    secured.token("reader", "infer")
    async with serve(tokens=str(secured.tokens)) as served:
        async with seqloom.AsyncClient(served.address, token=secured.secrets["reader"]) as client:
            assert len((await client.infer("small", [X])).outputs) == 1
            spec = seqloom.ModelSpec(cell="gru", input_size=2, hidden_size=2, output_size=2)
            with pytest.raises(seqloom.PermissionDenied) as denied:
                await client.create_model("other", spec, seed=0)
            assert (denied.value.reason, bool(denied.value.request_id)) == ("SCOPE_MISSING", True)
            with pytest.raises(seqloom.PermissionDenied):
                await client.gradients("small", [X], [np.zeros(6, "i4")])
            with pytest.raises(seqloom.PermissionDenied):
                await client.create_run("small", optimizer=seqloom.SGD(0.1))
        for token in (None, "wrong"):
            async with seqloom.AsyncClient(served.address, token=token) as client:
                with pytest.raises(seqloom.Unauthenticated):
                    await client.models()
                with pytest.raises(seqloom.Unauthenticated):
                    await client.infer("small", [X])


@pytest.mark.parametrize("scope", ["train", "admin"])
async def test_the_sdks_streams_are_refused_with_the_reason(serve, secured, scope):
    secured.token("other", scope)
    async with serve(tokens=str(secured.tokens)) as served:
        for _ in range(10):
            async with seqloom.AsyncClient(served.address, token=secured.secrets["other"], retries=0) as client:
                with pytest.raises(seqloom.PermissionDenied):
                    await client.infer("small", [X])
                with pytest.raises(seqloom.PermissionDenied):
                    async with client.stream("small") as stream:
                        await stream.send(X)


@pytest.mark.parametrize("how", ["removed", "another secret", "another scope"])
async def test_a_stream_ends_when_its_token_does_and_no_other(serve, secured, how):
    secured.token("gone", "infer")
    secured.token("stays", "infer")
    async with serve(tokens=str(secured.tokens)) as served:
        gone = seqloom.AsyncClient(served.address, token=secured.secrets["gone"])
        stays = seqloom.AsyncClient(served.address, token=secured.secrets["stays"])
        async with gone, stays, gone.stream("small") as ending, stays.stream("small") as living:
            for stream in (ending, living):
                await stream.send(X[:2])
                await stream.receive()
            if how == "another scope":
                secured.tokens.write_text(secured.tokens.read_text().replace('["infer"]', '["train"]', 1))
            else:
                secured.remove("gone")
            if how == "another secret":
                secured.token("gone", "infer")
            with pytest.raises(seqloom.PermissionDenied) as denied:
                await ending.receive()
            assert denied.value.reason == ("SCOPE_MISSING" if how == "another scope" else "TOKEN_REMOVED")
            await living.send(X[2:])
            await living.receive()
            await until(lambda: served.value("active_streams") == 1)
            if how == "removed":
                with pytest.raises(seqloom.Unauthenticated):
                    await gone.models()


async def test_streams_end_with_their_token_also_if_their_outputs_are_not_read(serve, secured):
    secured.token("gone", "infer")
    wide = ModelSpec("elman", 5, 7, 20_000)
    async with serve({"wide": wide}, tokens=str(secured.tokens)) as served, open_channel(served.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        calls = [stub.StreamInfer(metadata=bearer(secured.secrets["gone"])) for _ in range(3)]
        for call in calls:
            opening = entry(1, noise(64, 5, 0, "f4"), open="wide")
            await call.write(inference_service_pb2.StreamInferRequest(entries=[opening]))
        await until(lambda: served.value("steps_total") == 3 * 64)
        assert served.value("active_streams") == 3
        secured.remove("gone")
        await until(lambda: served.value("active_streams") == 0)
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await read_on(call)
            assert ended.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_calls_on_runs_end_when_their_token_does(serve, secured):
    secured.token("gone", "train")
    async with (
        serve(tokens=str(secured.tokens)) as served,
        seqloom.AsyncClient(served.address, token=secured.secrets["gone"], timeout=30) as client,
    ):
        run = await client.create_run("small", optimizer=seqloom.SGD(0.1))
        await run.forward_backward([X], [np.zeros(6, "i4")])
        await run.step()
        secured.remove("gone")
        method = "seqloom.v1.TrainingService/RunCalls"
        await until(lambda: served.value("requests_total", method=method, code="PERMISSION_DENIED"))
        with pytest.raises((seqloom.Unauthenticated, seqloom.PermissionDenied)):
            await run.step()


@pytest.mark.parametrize("path", METHODS)
async def test_a_call_without_a_good_token_is_refused_before_its_request_has_come(serve, secured, path):
    secured.token()
    begun = frame(DATA, 0, 1, struct.pack(">BI", 0, 1 << 20) + bytes(1000))  # of a message that never ends
    async with serve(tokens=str(secured.tokens)) as served:
        for more in ((), (("authorization", "Bearer wrong"),)):
            with RawConnection(served.address) as connection:
                connection.send(frame(HEADERS, END_HEADERS, 1, header_block(f"/{path}", *more)) + begun)
                await until(lambda connection=connection: connection.counts.get(HEADERS))


async def test_a_large_request_without_a_good_token_is_refused_with_the_reason(serve, secured):
    secured.token()
    async with serve(tokens=str(secured.tokens)) as served, open_channel(served.address) as channel:
        infer = channel.unary_unary("/seqloom.v1.InferenceService/Infer")
        for metadata, reason in (((), "NO_TOKEN"), (bearer("wrong"), "WRONG_TOKEN")):
            failure = await refused(infer(bytes(3 << 20), timeout=60, metadata=metadata))
            assert (failure.code, failure.reason) == ("UNAUTHENTICATED", reason)


async def test_calls_that_wait_for_others_end_when_their_token_does(serve, secured):
    secured.token("gone", "train")
    metadata = bearer(secured.secrets["gone"])
    async with serve(tokens=str(secured.tokens)) as served, open_channel(served.address) as channel:
        training = training_service_pb2_grpc.TrainingServiceStub(channel)
        creation = training_service_pb2.CreateRunRequest(model="small", optimizer=SGD)
        run = (await training.CreateRun(creation, metadata=metadata)).run.id

        def second(client):  # it waits for the first
            return training_service_pb2.CallId(run=run, client=client, number=2)

        waiting = [
            training.OptimStep(training_service_pb2.OptimStepRequest(call=second("a")), metadata=metadata, timeout=60),
            training.PublishRun(
                training_service_pb2.PublishRunRequest(call=second("b")), metadata=metadata, timeout=60
            ),
        ]
        gate = served.server._security.gate
        await until(lambda: len(gate._calls) == len(waiting))
        secured.remove("gone")
        for call in waiting:
            failure = await refused(call)
            assert (failure.code, failure.reason) == ("PERMISSION_DENIED", "TOKEN_REMOVED")
        await until(lambda: not len(gate._calls))


async def test_a_token_that_is_added_is_good_without_a_restart(serve, secured):
    secured.token("first", "infer")
    async with serve(tokens=str(secured.tokens)) as served:
        secret = secured.token("second", "infer")
        async with open_channel(served.address) as channel:
            path = "seqloom.v1.ModelService/ListModels"
            codes = set()
            async with asyncio.timeout(60):
                while grpc.StatusCode.OK not in codes:
                    codes.add(await code_of(call(channel, path, bearer(secret))))
            assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED}


async def test_a_file_that_breaks_changes_nothing_but_is_told(serve, secured, caplog):
    secured.token("a", "infer")
    async with serve(tokens=str(secured.tokens)) as served:
        for number, text in enumerate(("[[token]", secured.tokens.read_text().replace("infer", "root")), 1):
            secured.tokens.write_text(text)
            await until(lambda number=number: served.value("reload_failures_total", files="tokens") == number)
        secured.tokens.unlink()
        await until(lambda: served.value("reload_failures_total", files="tokens") == 3)
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 3
        async with seqloom.AsyncClient(served.address, token=secured.secrets["a"]) as client:
            await client.infer("small", [X])


async def test_secrets_are_in_no_log_no_metric_and_no_error(serve, secured, caplog):
    caplog.set_level(logging.DEBUG)
    secret = secured.token("a", "infer")
    async with serve(tokens=str(secured.tokens), log_format="json") as served, open_channel(served.address) as channel:
        texts = []
        for word in (secret, "guess-4711"):
            for path in ("seqloom.v1.ModelService/ListModels", "seqloom.v1.ModelService/CreateModel"):
                try:
                    await call(channel, path, bearer(word))
                except grpc.aio.AioRpcError as error:
                    texts.append(str(error))
        address = f"http://{served.http_address}/metrics"
        texts.append(await asyncio.to_thread(lambda: urllib.request.urlopen(address).read().decode()))
    digest = secured.tokens.read_text().split('sha256 = "')[1][:64]
    for text in (*texts, caplog.text, *(str(vars(record)) for record in caplog.records)):
        for word in (secret, "guess-4711", digest):
            assert word not in text


async def test_metrics_and_healthz_need_no_token(serve, secured):
    secured.token()
    async with serve(tokens=str(secured.tokens)) as served:
        for path in ("metrics", "healthz"):
            address = f"http://{served.http_address}/{path}"
            assert (await asyncio.to_thread(lambda a=address: urllib.request.urlopen(a).status)) == 200


async def test_reflection_can_be_turned_off(serve):
    async with serve(reflection="off") as served, open_channel(served.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, OTHERS[1], ())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
