"""What callers see of a server that is not there, dies, is slow or full: errors of one tree; then it works again."""

import asyncio
import contextlib
import signal
import socket

import grpc
import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.expected_outputs import CLOSE
from helpers.frames import noise
from helpers.real_server import SMALL, until, write_models
from helpers.tolerances import alike
from seqloom.v1 import model_service_pb2
from seqloom_server.nn.spec import ModelSpec

X = noise(6)


@contextlib.contextmanager
def nobody():
    """An address where nobody listens, and nobody else will."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{one.getsockname()[1]}"


CALLS = {
    "infer": lambda client, folder: client.infer("small", [X]),
    "stream": lambda client, folder: client.stream("small").__aenter__(),
    "models": lambda client, folder: client.models(),
    "model": lambda client, folder: client.model("small"),
    "server_info": lambda client, folder: client.server_info(),
    "create_model": lambda client, folder: client.create_model("other", seqloom.ModelSpec("elman", 5, 7, 3)),
    "load_model": lambda client, folder: client.load_model("small"),
    "unload_model": lambda client, folder: client.unload_model("small"),
    "export_model": lambda client, folder: client.export_model("small", folder / "new"),
    "import_model": lambda client, folder: client.import_model("new", folder / "small"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_says_that_the_server_is_not_there(tmp_path, name):
    write_models(tmp_path, {"small": SMALL})
    with nobody() as address:
        async with seqloom.AsyncClient(address, retries=1) as client:
            with pytest.raises(seqloom.Unavailable) as caught:
                await CALLS[name](client, tmp_path)
            assert caught.value.reason == "UNAVAILABLE"
            assert caught.value.message
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_of_a_closed_client_is_cancelled(tmp_path, served, name):
    write_models(tmp_path, {"small": SMALL})
    client = seqloom.AsyncClient(served.address)
    await client.infer("small", [X])
    await client.close()
    await client.close()
    with pytest.raises(seqloom.Cancelled) as caught:
        await CALLS[name](client, tmp_path)
    assert caught.value.reason == "CLIENT_CLOSED"


KINDS = {
    "UNIMPLEMENTED": (seqloom.Internal, "UNIMPLEMENTED"),
    "UNKNOWN": (seqloom.Internal, "UNKNOWN"),
    "DATA_LOSS": (seqloom.Internal, "DATA_LOSS"),
    "ABORTED": (seqloom.Internal, "ABORTED"),
    "INTERNAL": (seqloom.Unavailable, "CALL_LOST"),  # as a stream that was reset, and as this project's never is
    "CANCELLED": (seqloom.Unavailable, "CALL_LOST"),
    "UNAUTHENTICATED": (seqloom.Unauthenticated, "UNAUTHENTICATED"),
    "PERMISSION_DENIED": (seqloom.PermissionDenied, "PERMISSION_DENIED"),
    "NOT_FOUND": (seqloom.NotFound, "NOT_FOUND"),
    "RESOURCE_EXHAUSTED": (seqloom.InvalidArgument, "RESOURCE_EXHAUSTED"),
    "no message": (seqloom.Internal, "MALFORMED_REPLY"),
}


@contextlib.asynccontextmanager
async def another_server(answer):
    """A server that gives every call this code, or bytes that are no message."""

    async def unary(request, context):
        if answer != "no message":
            await context.abort(grpc.StatusCode[answer], "in its own words")
        return b"\xff\xff\xff"

    async def stream(requests, context):
        async for _ in requests:
            pass
        yield await unary(None, context)

    class Every(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method.endswith("ComputeGradients"):
                return grpc.stream_stream_rpc_method_handler(stream)
            if details.method.endswith("GetModel"):  # so that there is something to differentiate
                return grpc.unary_unary_rpc_method_handler(lambda request, context: known)
            return grpc.unary_unary_rpc_method_handler(unary)

    spec = model_service_pb2.ModelSpec(
        cell=1, activation=1, data_type=1, input_size=5, hidden_size=7, output_size=3, num_layers=1
    )
    known = model_service_pb2.GetModelResponse(
        model=model_service_pb2.Model(name="small", spec=spec)
    ).SerializeToString()
    server = grpc.aio.server(handlers=[Every()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.mark.parametrize("answer", KINDS)
async def test_what_another_server_or_a_proxy_answers_is_told_as_what_it_is(answer):
    kind, reason = KINDS[answer]
    async with another_server(answer) as address, seqloom.AsyncClient(address, retries=1) as client:
        for call in (
            client.models,
            lambda: client.gradients("small", [X], [np.zeros(len(X), int)]),
            lambda: client.create_run("small", optimizer=seqloom.SGD(0.1)),
        ):
            with pytest.raises(seqloom.SeqloomError) as caught:
                await call()
            assert (type(caught.value), caught.value.reason) == (kind, reason)


async def test_retries_end_with_the_deadline_and_not_after_it():
    with nobody() as address:
        async with seqloom.AsyncClient(address, retries=10**6) as client:
            async with asyncio.timeout(30):
                with pytest.raises((seqloom.Unavailable, seqloom.DeadlineExceeded)):
                    await client.infer("small", [X], timeout=0.3)


async def test_a_server_that_comes_up_meanwhile_answers_the_call_that_waited_for_it(serve):
    tried = asyncio.Event()

    def refuse(_, writer):
        writer.transport.abort()
        tried.set()

    before = await asyncio.start_server(refuse, "127.0.0.1", 0)
    address = f"127.0.0.1:{before.sockets[0].getsockname()[1]}"
    async with seqloom.AsyncClient(address, timeout=60, retries=1000) as client:
        calls = [asyncio.create_task(client.infer("small", [X])) for _ in range(3)]
        await tried.wait()
        before.close()
        await before.wait_closed()
        async with serve(listen=address) as served:
            for result in await asyncio.gather(*calls):
                np.testing.assert_allclose(result.outputs[0], served.expected("small", X)[0], **CLOSE)


async def test_infer_is_repeated_when_the_connection_breaks_under_it(served):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        await client.infer("small", [X])
        proxy.open.clear()
        calls = [asyncio.create_task(client.infer("small", [X, noise(3, seed=i)])) for i in range(8)]
        await until(lambda: served.value("steps_total", op="infer") >= 6 + 8 * 9)
        proxy.cut()
        proxy.open.set()
        for i, result in enumerate(await asyncio.gather(*calls)):
            np.testing.assert_allclose(result.outputs[1], served.expected("small", noise(3, seed=i))[0], **CLOSE)
        assert proxy.connections > 1


async def test_an_open_stream_is_lost_with_its_connection_and_says_so_ever_after(served):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        async with client.stream("small", resume=False) as stream, client.stream("small") as finished:
            await finished.send(X)
            await finished.finish()
            await stream.send(X)
            await stream.receive()
            proxy.cut()
            with pytest.raises(seqloom.StreamLost):
                await stream.receive()
            for call in (stream.send(X), stream.receive(), stream.finish(), stream.reset(), anext(aiter(stream))):
                with pytest.raises(seqloom.StreamLost):
                    await call
            with pytest.raises(seqloom.StreamLost):
                await anext(stream.run([X]))
            assert len(await finished.receive()) == 6  # it was all there before
        await until(lambda: served.engine.open_sessions == 0)
        async with client.stream("small") as stream:
            await stream.send(X)
            np.testing.assert_allclose((await stream.receive()).outputs, served.expected("small", X)[0], **CLOSE)


async def test_what_changes_the_server_is_not_repeated_when_its_answer_is_lost(served):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        await client.models()
        proxy.open.clear()
        creating = asyncio.create_task(client.create_model("other", seqloom.ModelSpec("elman", 5, 7, 3)))
        await until(lambda: served.value("weights_version", model="other") == 1)
        proxy.cut()
        proxy.open.set()
        with pytest.raises(seqloom.Unavailable):
            await creating
        assert [model.name for model in await client.models()] == ["other", "small"]
    method = "seqloom.v1.ModelService/CreateModel"
    assert served.value("requests_total", method=method) == 1


async def test_an_answer_that_comes_too_late_is_a_deadline_and_the_next_call_works(served):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        async with client.stream("small") as stream:
            proxy.open.clear()
            for call in (
                client.infer("small", [X], timeout=0.05),
                client.models(timeout=0.05),
                client.stream("small", timeout=0.05).__aenter__(),
                stream.finish(timeout=0.05),
            ):
                with pytest.raises(seqloom.DeadlineExceeded):
                    await call
            proxy.open.set()
            assert (await stream.finish()).hidden.shape == (1, 1, 7)
        assert len((await client.infer("small", [X])).outputs[0]) == 6
        await until(lambda: served.engine.open_sessions == 0)


async def test_a_call_that_its_caller_cancels_leaves_nothing_behind(served):
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        await client.infer("small", [X])
        proxy.open.clear()
        opening = asyncio.create_task(client.stream("small").__aenter__())
        calls = [opening, asyncio.create_task(client.infer("small", [X]))]
        await until(lambda: served.engine.open_sessions == 1)
        for call in calls:
            call.cancel()
        assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*calls, return_exceptions=True))
        proxy.open.set()
        await until(lambda: served.engine.open_sessions == 0)
        assert len((await client.infer("small", [X])).outputs[0]) == 6


async def test_a_full_server_says_when_to_come_back_and_is_asked_as_often_as_allowed(serve):
    async with (
        serve(max_sessions=1) as served,
        seqloom.AsyncClient(served.address, retries=0) as client,
        seqloom.AsyncClient(served.address, retries=1) as patient,
        client.stream("small"),
    ):
        with pytest.raises(seqloom.Overloaded) as caught:
            await client.stream("small").__aenter__()
        assert caught.value.retry_after > 0
        assert caught.value.reason
        assert caught.value.request_id
        assert served.value("rejected_total") == 1
        with pytest.raises(seqloom.Overloaded):
            await patient.stream("small").__aenter__()
        assert served.value("rejected_total", reason="sessions") == served.value("rejected_total") == 3


async def test_a_call_that_is_refused_for_load_succeeds_when_the_load_is_gone(serve):
    async with serve(max_sessions=1) as served, seqloom.AsyncClient(served.address, timeout=60, retries=1000) as client:
        async with client.stream("small"):
            second = asyncio.create_task(client.stream("small").__aenter__())
            await until(lambda: served.value("rejected_total") >= 1)
            assert not second.done()
        async with contextlib.AsyncExitStack() as stack:
            stream = await second
            stack.push_async_exit(stream.__aexit__)
            await stream.send(X)
            assert len(await stream.receive()) == 6


async def test_more_sequences_than_the_queue_holds_are_refused_as_load(serve):
    async with serve(max_queue_items=4) as served, seqloom.AsyncClient(served.address, retries=0) as client:
        with pytest.raises(seqloom.Overloaded):
            await client.infer("small", [noise(3)] * 500)
        await until(lambda: served.value("queue_items") == 0)
        assert len((await client.infer("small", [X])).outputs[0]) == 6


async def test_a_server_that_dies_loses_its_streams_and_one_on_its_address_serves_on(server_process, tmp_path):
    write_models(tmp_path, {"small": SMALL})
    started = await asyncio.to_thread(server_process, "--models", tmp_path)
    async with seqloom.AsyncClient(started.address, timeout=60, retries=1000) as client:
        before = (await client.infer("small", [X])).outputs[0]
        async with client.stream("small", snapshot_interval=1, resume=False) as stream:
            await stream.send(X)
            await stream.receive()
            await asyncio.to_thread(started.end, signal.SIGKILL)
            with pytest.raises(seqloom.StreamLost):
                await stream.receive()
            kept = stream.snapshot
        waiting = asyncio.create_task(client.infer("small", [X]))
        environment = {"SEQLOOM_LISTEN": started.address}
        await asyncio.to_thread(lambda: server_process("--models", tmp_path, environment=environment))
        np.testing.assert_array_equal((await waiting).outputs[0], before)
        whole = (await client.infer("small", [np.concatenate([X, X])])).outputs[0]
        async with client.stream("small", initial_state=kept.state) as stream:
            await stream.send(X)
            np.testing.assert_allclose((await stream.receive()).outputs, whole[6:], **alike(rtol=1e-5, atol=1e-6))


async def test_a_server_with_a_smaller_window_in_its_place_is_asked_for_its_own(serve):
    x = noise(500)
    async with contextlib.AsyncExitStack() as stack:
        async with serve(window_steps=4096) as served:
            client = await stack.enter_async_context(seqloom.AsyncClient(served.address, timeout=60, retries=1000))
            expected = served.expected("small", x)[0]
            await client.infer("small", [x])
        async with serve(window_steps=64, listen=served.address):
            np.testing.assert_allclose((await client.infer("small", [x])).outputs[0], expected, **CLOSE)
            async with client.stream("small") as stream:
                assert stream.window == 64


async def test_a_call_of_200_megabytes_is_cut_and_works(serve):
    wide = ModelSpec("elman", 16_384, 2, 2)
    async with serve({"wide": wide}) as served, seqloom.AsyncClient(served.address, timeout=120) as client:
        x = np.zeros((3200, 16_384), "f4")
        x[::7, ::11] = 0.5
        assert x.nbytes > 200e6
        result = await client.infer("wide", [x], outputs="labels")
        assert result.outputs[0].shape == (3200,)
        parts = await client.infer("wide", [x[:9]], outputs="labels")
        np.testing.assert_array_equal(result.outputs[0][:9], parts.outputs[0])
        async with client.stream("wide", outputs="labels") as stream:
            await stream.send(x)
            np.testing.assert_array_equal((await stream.receive()).outputs, result.outputs[0])
