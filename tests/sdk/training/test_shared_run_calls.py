"""The call that all runs of a client share: what travels together, what goes by itself, and servers without it."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.real_server import until
from helpers.run_helpers import SPEC, call_of
from helpers.scripted_server import scripted_server
from helpers.training_gate import TrainingGate
from seqloom import wire
from seqloom._config import MESSAGE_BYTES
from seqloom.v1 import model_service_pb2
from seqloom.v1 import training_service_pb2 as pb

SMALL = model_service_pb2.ModelSpec(
    cell=1, activation=1, data_type=1, input_size=5, hidden_size=7, output_size=3, num_layers=1
)
METHOD = "seqloom.v1.TrainingService"


class Script:
    """Answers gradients. done: by client, the last of its calls."""

    def __init__(self):
        self.done = {}

    def __call__(self, request):
        if isinstance(request, pb.CreateRunRequest):
            return pb.CreateRunResponse(run=pb.Run(id="run", model="small", spec=SMALL))
        if isinstance(request, pb.GetRunRequest):
            done = self.done.get(request.client, 0)
            return pb.GetRunResponse(run=pb.Run(id="run", model="small", calls_done=done))
        assert isinstance(request, pb.ForwardBackwardRequest)
        client, number = request.call.client, request.call.number
        self.done[client] = max(number, self.done.get(client, 0))
        return pb.ForwardBackwardResponse(loss=number, losses=[number], step=1)


def frames(steps):
    return [np.zeros((steps, 5), "f4")], [np.zeros(steps, "i4")]


async def attached(client, count):
    first = await client.create_run("m", optimizer=seqloom.SGD(0.1))
    return [first, *[await client.attach_run(first.id) for _ in range(count - 1)]]


async def test_calls_of_many_runs_that_come_together_share_a_message_and_a_batch(serve):
    async with serve({"m": SPEC}) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        runs = await attached(client, 32)
        gate = TrainingGate(served.engine)
        gate.open()
        for n in range(3):
            await asyncio.gather(*(run.forward_backward(*call_of(9 * n + k)) for k, run in enumerate(runs)))
        assert [len(jobs) for jobs in gate.batches] == [32] * 3
        assert (await runs[0].step()).step == 1
        assert len(served.server._training._streams._streams) == 1
        await asyncio.gather(*(run.close() for run in runs))

    def count(method):
        return served.value("requests_total", method=f"{METHOD}/{method}", code="OK")

    assert (count("ForwardBackward"), count("OptimStep")) == (96, 1)
    assert count("RunCalls") == served.value("requests_total", method=f"{METHOD}/RunCalls") == 1  # it ended in order


async def test_a_large_call_goes_by_itself_in_parts_and_in_its_turn():
    async with scripted_server(Script()) as server, seqloom.AsyncClient(server.address, timeout=30) as client:
        run = await client.create_run("small", optimizer=seqloom.SGD(0.1))
        results = await asyncio.gather(*(run.forward_backward(*frames(steps)) for steps in (10, 60_000, 20)))
        assert [result.loss for result in results] == [1, 2, 3]
        requests = {request.call.number: request for request, _ in server.of(pb.ForwardBackwardRequest)}
        assert [requests[number].parts for number in (1, 2, 3)] == [1, 0, 1]
        assert requests[2].ByteSize() <= MESSAGE_BYTES
        assert list(requests[3].examples.sequences.lengths) == [20]
        assert list(requests[3].examples.sequences.rows.shape) == [20, 5]


async def test_a_server_that_does_not_know_the_shared_call_gets_each_call_by_itself_and_once():
    script = Script()
    async with scripted_server(script, shares_runs=False) as server:
        for _ in range(20):  # gRPC may lose the server's word that it does not know the call
            async with seqloom.AsyncClient(server.address, timeout=30) as client:
                run = await client.create_run("small", optimizer=seqloom.SGD(0.1))
                results = await asyncio.gather(*(run.forward_backward(*frames(2000)) for _ in range(20)))
                assert [result.loss for result in results] == list(range(1, 21))
                assert not client._connection.channel().run_stream.served  # the next call does not ask again
        assert list(script.done.values()) == [20] * 20


async def test_another_kind_of_reply_is_no_reply():
    class Mixed(Script):
        def __call__(self, request):
            reply = super().__call__(request)
            return pb.OptimStepResponse(step=1) if isinstance(request, pb.ForwardBackwardRequest) else reply

    async with scripted_server(Mixed()) as server, seqloom.AsyncClient(server.address, timeout=30) as client:
        run = await client.create_run("small", optimizer=seqloom.SGD(0.1))
        with pytest.raises(seqloom.Internal) as caught:
            await run.forward_backward(*frames(3))
        assert caught.value.reason == "MALFORMED_REPLY"


async def test_an_error_of_one_call_is_told_to_its_caller_in_the_arguments_names_and_the_others_go_on(serve):
    async with serve({"m": SPEC}) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        runs = await attached(client, 3)
        xs, labels = call_of(1)
        calls = [
            run.forward_backward([x * (np.nan if n == 1 else 1) for x in xs], labels) for n, run in enumerate(runs)
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [getattr(result, "step", None) for result in results] == [1, None, 1]
        assert isinstance(results[1], seqloom.InvalidArgument)
        assert results[1].message.startswith("xs: ")
        assert results[1].request_id
        assert (await runs[1].forward_backward(xs, labels)).step == 1
        assert (await runs[0].info()).accumulated_calls == 3


async def test_calls_of_a_closed_client_fail_and_the_next_client_finds_all_that_was_done(serve):
    async with serve({"m": SPEC}) as served:
        gate = None
        async with seqloom.AsyncClient(served.address, timeout=30) as client:
            run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
            await run.forward_backward(*call_of(1))
            gate = TrainingGate(served.engine)
            waiting = run.forward_backward(*call_of(2))
            await gate.arrived()
        with pytest.raises(seqloom.Cancelled):
            await waiting
        gate.open()
        async with seqloom.AsyncClient(served.address, timeout=30) as client:
            again = await client.attach_run(run.id)
            await again.forward_backward(*call_of(3))
            assert (await again.info()).accumulated_calls == 3


async def test_a_connection_that_breaks_in_the_middle_of_a_message_loses_and_repeats_nothing(serve):
    async with (
        serve({"m": SPEC}) as served,
        proxy_of(served.address) as proxy,
        seqloom.AsyncClient(proxy.address, timeout=30) as client,
    ):
        runs = await attached(client, 16)
        for n in range(6):
            proxy.cut_after = 1500 * n  # of some 20 KB
            results = await asyncio.gather(*(run.forward_backward(*call_of(k)) for k, run in enumerate(runs)))
            assert {result.step for result in results} == {n + 1}
            assert (await runs[0].info()).accumulated_calls == 16
            await runs[n].step()
        assert proxy.connections > 5


async def test_what_is_given_up_before_it_is_written_is_never_sent_and_later_is_cancelled():
    def entry(number):
        request = pb.OptimStepRequest(call=pb.CallId(run="run", client="a" * 200_000, number=number))
        return wire.message(pb.RunCall.OPTIM_STEP_FIELD_NUMBER, [request.SerializeToString()])

    async with scripted_server(lambda request: None) as server, seqloom.AsyncClient(server.address) as client:
        stream = client._connection.channel().run_stream
        first = asyncio.create_task(stream.send(entry(1)))
        await until(lambda: server.requests)
        server.reading.clear()
        blocking = []
        while not stream._call._outbox:  # until the transport takes no more
            more = range(len(blocking) + 2, len(blocking) + 12)
            blocking += [asyncio.create_task(stream.send(entry(n))) for n in more]
            await asyncio.sleep(0.1)
        late = [asyncio.create_task(stream.send(entry(n))) for n in (997, 998, 999)]
        await asyncio.sleep(0)
        for task in (first, late[1]):
            task.cancel()
        await asyncio.wait([first, late[1]])
        server.reading.set()
        await until(lambda: server.cancelled and len(server.requests) == len(blocking) + 3)
        assert server.cancelled == [1]
        numbers = [request.call.number for request, _ in server.requests]
        assert numbers == [*range(1, len(blocking) + 2), 997, 999]
        for task in (*blocking, *late):
            task.cancel()
        await asyncio.wait([*blocking, *late])
        assert not stream._call._waiting


async def test_where_messages_must_be_small_each_call_goes_by_itself_and_is_done_once(serve):
    async with serve(max_message_bytes=1 << 16) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        run = await client.create_run("small", optimizer=seqloom.SGD(1e-2))
        draw = np.random.default_rng(0)
        xs = [draw.standard_normal((200, 5)).astype("f4") for _ in range(40)]  # 4 KB each, 160 KB together
        labels = np.zeros(200, np.int64)
        results = await asyncio.gather(*[run.forward_backward([x], [labels]) for x in xs])
        assert all(np.isfinite(result.loss) for result in results)
        assert (await run.step()).step == 1
        assert served.value("requests_total", method="seqloom.v1.TrainingService/ForwardBackward", code="OK") == 40
