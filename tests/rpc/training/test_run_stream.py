"""RunCalls over a real channel: its entries are what the methods of their names are, each alone, and all is bounded."""

import asyncio
import collections
import gc
import signal
import weakref

import numpy as np
import psutil
import pytest
from google.protobuf.message import Message
from helpers.raw_calls import frames, refused
from helpers.raw_run_calls import Entries, Entry, forward_backward, optim_step
from helpers.raw_training_calls import ADAM, Client, create_run, examples, labels, stub
from helpers.real_server import SMALL, open_channel, serving, until, write_models
from helpers.training_gate import TrainingGate
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from seqloom.v1 import training_service_pb2 as pb
from seqloom_server.engine.training import numbered_calls
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.training import run_stream

METHOD = "seqloom.v1.TrainingService"


def batch(lengths, seed):
    xs = [frames(length, seed=seed + n) for n, length in enumerate(lengths)]
    return examples(xs, labels(sum(lengths), seed=seed))


def waiting_calls(served):
    """How many calls wait for earlier ones."""
    return sum(len(run.calls._held) for run in served.engine.runs.all())


async def test_entries_of_one_message_share_a_batch_and_their_replies_a_message(served, channel):
    run = (await create_run(channel)).id
    clients = [Client(channel, run, f"client{n}") for n in range(20)]
    gate, entries = TrainingGate(served.engine), Entries(channel)
    await entries.send(*(forward_backward(n, client.id()) for n, client in enumerate(clients)))
    await gate.arrived()
    gate.open()
    replies = [await entries.reply(n) for n in range(20)]
    assert {reply.forward_backward.step for reply in replies} == {1}
    assert [len(jobs) for jobs in gate.batches] == [20]
    assert max(entries.messages) == 20
    await entries.send(optim_step(0, clients[0].id()))  # a number whose entry is answered may be used again
    stepped = (await entries.reply(0)).optim_step
    assert stepped.calls == {f"client{n}": 1 + (n == 0) for n in range(20)}
    assert await entries.rest() == []


@settings(deadline=None, max_examples=12)
@given(
    calls=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=8), seed=st.integers(0, 99)
)
def test_a_call_makes_the_same_numbers_to_the_bit_by_either_rpc(calls, seed, tmp_path_factory):
    """The same calls in one batch, by entries and by a call each: losses, the gradients' norm, and the weights."""
    asyncio.run(assert_same_by_either_rpc(calls, seed, tmp_path_factory.mktemp("models")))


async def assert_same_by_either_rpc(calls, seed, folder):
    async with serving(folder) as served, open_channel(served.address) as channel:
        shared, alone = [Client(channel, (await create_run(channel, ADAM)).id) for _ in range(2)]
        batches = [batch(lengths, seed + 9 * n) for n, lengths in enumerate(calls)]
        gate, entries = TrainingGate(served.engine), Entries(channel)
        gate.open()  # it only counts

        async def by_entry(n):
            await entries.send(forward_backward(n, shared.id(n), batches[n - 1]))
            return n

        async def by_call(n):
            return asyncio.ensure_future(alone.forward_backward(batches[n - 1], number=n))

        found = []
        for client, send in ((shared, by_entry), (alone, by_call)):
            # the first comes last, so that all others wait for it, and share its batch
            sent = {n: await send(n) for n in range(2, len(calls) + 1)}
            await until(lambda: waiting_calls(served) == len(calls) - 1)
            sent[1] = await send(1)
            numbers = range(1, len(calls) + 1)
            if client is shared:
                replies = [(await entries.reply(n)).forward_backward for n in numbers]
            else:
                replies = [await sent[n] for n in numbers]
            assert len(gate.batches[-1]) == len(calls)
            norm = (await client.step(number=len(calls) + 1)).gradient_norm
            await client.publish(number=len(calls) + 2)
            weights = load_file(served.models / "small" / "model.safetensors")
            bits = {name: weight.tobytes() for name, weight in weights.items()}
            found.append(([(reply.loss, [*reply.losses], reply.step) for reply in replies], norm, bits))
        assert found[0] == found[1]


async def test_a_repeat_by_the_other_rpc_is_the_same_call(served, channel):
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    first = await client.forward_backward(batch([4], 1), number=1)
    await entries.send(forward_backward(1, client.id(1), batch([4], 1)))
    again = (await entries.reply(1)).forward_backward
    assert (again.loss, again.losses, again.step) == (first.loss, first.losses, first.step)
    await entries.send(
        forward_backward(2, client.id(2), batch([3], 2)), forward_backward(3, client.id(2), batch([3], 2))
    )
    twice = [(await entries.reply(n)).forward_backward.loss for n in (2, 3)]
    assert twice[0] == twice[1] == (await client.forward_backward(batch([3], 2), number=2)).loss
    await entries.send(forward_backward(4, client.id(1), batch([5], 3)))
    assert (await entries.error(4)).reason == "CALL_CHANGED"
    assert (await client.get()).accumulated_calls == 2


async def test_an_entry_that_cannot_be_is_refused_alone_in_the_words_of_its_method(served, channel):
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    wrong = examples(targets=labels(12))
    await entries.send(
        forward_backward(1, client.id(1)),
        forward_backward(2, client.id(2), wrong),
        forward_backward(3, client.id(3), parts=0),
        forward_backward(4, client.id(3), parts=2),
        forward_backward(5, pb.CallId(run="no-run", client="ann", number=1)),
        forward_backward(6, pb.CallId(run=client.run, client="not a name", number=1)),
        Entry(entry=7),
        optim_step(8, client.id(3), learning_rate=-1.0),
        optim_step(9, client.id(3), expected_step=7),
        optim_step(10, client.id(4)),
    )
    assert (await entries.reply(1)).forward_backward.step == 1
    other = Client(channel, client.run, "bob")
    same = await refused(other.forward_backward(wrong))
    failure = await entries.error(2)
    assert (failure.code, failure.reason, failure.fields, failure.message) == (
        *(same.code, same.reason, same.fields, same.message),
    )
    assert failure.request_id != same.request_id
    assert [(await entries.error(n)).fields for n in (3, 4)] == [["parts"]] * 2
    assert (await entries.error(5)).reason == "RUN_NOT_FOUND"
    assert (await entries.error(6)).fields == ["call.client"]
    assert (await entries.error(7)).fields == ["entries.call"]
    assert (await entries.error(8)).fields == ["learning_rate"]
    assert (await entries.error(9)).reason == "STEP_MISMATCH"
    assert (await entries.reply(10)).optim_step.step == 1
    assert await entries.rest() == []


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xff\xff", "MALFORMED_MESSAGE"),
        (pb.RunCallsRequest(entries=[Entry(entry=n) for n in range(run_stream._MAX_ENTRIES + 1)]), "OVER_LIMIT"),
    ],
)
async def test_what_is_no_message_of_the_call_ends_it(served, channel, message, reason):
    client = Client(channel, (await create_run(channel)).id)
    raw = channel.stream_stream(f"/{METHOD}/RunCalls")()
    await raw.write(message.SerializeToString() if isinstance(message, Message) else message)
    assert (await refused(raw.read())).reason == reason
    assert (await client.forward_backward()).step == 1


async def test_an_entry_with_the_number_of_an_open_one_is_dropped_alone(served, channel):
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    await entries.send(*(forward_backward(5, client.id(n)) for n in (2, 3)), forward_backward(6, client.id(3)))
    assert (await entries.error(5)).fields == ["entries.entry"]
    await until(lambda: waiting_calls(served) == 2)
    await entries.send(forward_backward(1, client.id(1)))
    assert [(await entries.reply(n)).forward_backward.step for n in (1, 5, 6)] == [1, 1, 1]
    assert (await client.get()).accumulated_calls == 3


async def test_an_entry_that_nobody_waits_for_any_more_is_not_answered_and_not_done_if_it_waits(served, channel):
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    await entries.send(forward_backward(1, client.id(2)), forward_backward(2, client.id(3)))
    await until(lambda: waiting_calls(served) == 2)
    await entries.send(Entry(entry=1, cancel=True), Entry(entry=9, cancel=True))
    await until(lambda: waiting_calls(served) == 1)
    await entries.send(forward_backward(1, client.id(1)))  # the number is free again
    assert (await entries.reply(1)).forward_backward.step == 1
    assert (await client.get()).calls_done == 1
    assert (await client.forward_backward(number=2)).step == 1
    assert (await entries.reply(2)).forward_backward.step == 1
    assert served.value("requests_total", method=f"{METHOD}/ForwardBackward", code="CANCELLED") == 1


async def test_a_call_that_breaks_drops_what_waits_and_leaves_what_has_begun(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    gate, entries = TrainingGate(served.engine), Entries(channel)
    await entries.send(forward_backward(1, client.id(1)), forward_backward(3, client.id(3)))
    await gate.arrived()
    entries.call.cancel()
    await until(lambda: waiting_calls(served) == 0)
    gate.open()
    again = Entries(channel)
    await again.send(forward_backward(1, client.id(1)), forward_backward(2, client.id(2)))
    assert [(await again.reply(n)).forward_backward.step for n in (1, 2)] == [1, 1]
    found = await client.get()
    assert (found.accumulated_calls, found.calls_done) == (2, 2)
    assert served.value("deduplicated_calls_total") == 1


async def test_each_entry_is_counted_as_a_call_of_its_method(served, channel):
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    await entries.send(forward_backward(1, client.id(1)), forward_backward(2, client.id(2), parts=3))
    await entries.send(optim_step(3, client.id(2)), optim_step(4, client.id(3)))
    for n in (1, 2, 3, 4):
        await entries.reply(n)
    await entries.rest()

    def count(method, code, model="small"):
        return served.value("requests_total", method=f"{METHOD}/{method}", code=code, model=model)

    assert count("ForwardBackward", "OK") == 1
    assert count("ForwardBackward", "INVALID_ARGUMENT", "") == 1  # no run was looked for
    assert (count("OptimStep", "OK"), count("OptimStep", "FAILED_PRECONDITION")) == (1, 1)
    await until(lambda: count("RunCalls", "OK", "") == 1)
    assert served.value("request_duration_seconds_count", method=f"{METHOD}/ForwardBackward") == 2


async def test_bytes_of_entries_are_bounded_and_given_back(serve):
    async with serve(max_queue_bytes=1 << 20) as served, open_channel(served.address) as channel:
        client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
        big = batch([25_000], 1)
        assert big.ByteSize() > 1 << 19
        for attempt in range(3):
            first = 10 * attempt
            await entries.send(forward_backward(first + 2, client.id(first + 2), big))
            await until(lambda: waiting_calls(served) == 1)
            await entries.send(*(forward_backward(first + n, client.id(first + n), big) for n in (3, 4)))
            failures = [await entries.error(first + n) for n in (3, 4)]
            assert {failure.reason for failure in failures} == {"OVERLOADED"}
            assert all(failure.retry_after for failure in failures)
            await entries.send(Entry(entry=first + 2, cancel=True))
            await until(lambda: waiting_calls(served) == 0)
            await entries.send(*(forward_backward(first + n, client.id(first + n)) for n in range(1, 11)))
            for n in range(1, 11):
                assert (await entries.reply(first + n)).forward_backward.step == 1
        assert served.server._training._incoming._bound.used == 0


async def test_a_call_that_waits_keeps_nothing_of_the_others_of_its_message(served, channel):
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    filling = forward_backward(9, pb.CallId(run="no-run"), batch([150_000], 1))  # 3.6 MB, refused at once
    size, rss = filling.ByteSize(), psutil.Process().memory_info
    for warm in (True, False):
        before = rss().rss
        for n in range(5 if warm else 40):
            number = 2 + n + 10 * (not warm)
            wait = forward_backward(number, client.id(number)) if n % 2 else optim_step(number, client.id(number))
            await entries.send(wait, filling)
            assert (await entries.error(9)).reason == "RUN_NOT_FOUND"
    assert waiting_calls(served) == 45
    assert rss().rss - before < 20 * size


async def test_a_call_beyond_the_limit_of_its_method_is_refused_by_an_entry_in_the_same_words(serve):
    async with serve(max_training_bytes=1 << 16) as served, open_channel(served.address) as channel:
        client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
        large = batch([4000], 1)
        same = await refused(Client(channel, client.run, "bob").forward_backward(large))
        await entries.send(forward_backward(1, client.id(1), large), forward_backward(2, client.id(1)))
        failure = await entries.error(1)
        assert (failure.reason, failure.fields, failure.message) == ("OVER_LIMIT", ["examples"], same.message)
        assert (await entries.reply(2)).forward_backward.step == 1  # its number was not used
        assert served.server._training._incoming._bound.used == 0


async def test_steps_that_name_thousands_of_clients_begin_a_few_at_a_time(served, channel, monkeypatch):
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    methods, begun, turn = served.server._training._methods, collections.Counter(), 0
    begin = methods.optim_step

    def counted(request, caller):
        begun[turn] += 1
        return begin(request, caller)

    async def count_turns():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(methods, "optim_step", counted)
    counting = asyncio.ensure_future(count_turns())
    for calls, most in (({f"c{n:x}": 1 for n in range(4096)}, 8), ({}, 64)):
        begun.clear()
        await entries.send(*(optim_step(n, client.id(n), calls=calls) for n in range(2, 66)))
        await until(lambda: waiting_calls(served) == 64)
        assert sum(begun.values()) == 64
        assert max(begun.values()) <= most
        await entries.send(*(Entry(entry=n, cancel=True) for n in range(2, 66)))
        await until(lambda: waiting_calls(served) == 0)
    assert max(begun.values()) > 8  # small ones begin together
    counting.cancel()


async def test_tries_of_one_waiting_call_are_bounded_over_all_calls(served, channel):
    client, most = Client(channel, (await create_run(channel)).id), numbered_calls._MAX_WAITERS
    streams = [Entries(channel) for _ in range(4)]
    for entries in streams[:2]:
        await entries.send(*(forward_backward(n, client.id(2)) for n in range(most // 2)))
    await until(lambda: served.value("deduplicated_calls_total") == most - 1)
    await streams[2].send(*(forward_backward(n, client.id(2)) for n in range(3)))
    failures = [await streams[2].error(n) for n in range(3)]
    assert {failure.reason for failure in failures} == {"OVERLOADED"}
    assert all(failure.retry_after for failure in failures)
    assert (await refused(client.forward_backward(number=2))).reason == "OVERLOADED"
    await streams[3].send(forward_backward(1, client.id(1)))
    for entries in streams[:2]:
        replies = [(await entries.reply(n)).forward_backward for n in range(most // 2)]
        assert {reply.step for reply in replies} == {1}
    assert (await client.get()).accumulated_calls == 2


async def test_open_entries_are_bounded(served, channel, monkeypatch):
    monkeypatch.setattr(run_stream, "_MAX_OPEN", 8)
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    await entries.send(*(forward_backward(n, client.id(n)) for n in range(2, 13)))
    failures = [await entries.error(n) for n in (10, 11, 12)]
    assert {failure.reason for failure in failures} == {"OVERLOADED"}
    assert all(failure.retry_after for failure in failures)
    assert served.value("rejected_total", reason="runs") == served.value("rejected_total") == 3
    await until(lambda: waiting_calls(served) == 8)
    await entries.send(Entry(entry=9, cancel=True), forward_backward(1, client.id(1)))  # there is room again
    assert [(await entries.reply(n)).forward_backward.step for n in range(1, 9)] == [1] * 8
    await entries.send(*(forward_backward(n, client.id(n)) for n in range(9, 17)))
    assert [(await entries.reply(n)).forward_backward.step for n in range(9, 17)] == [1] * 8


async def test_replies_to_the_entries_of_one_message_are_bounded_too(served, channel, monkeypatch):
    most = 1 << 14
    monkeypatch.setattr(run_stream, "_MAX_UNREAD_BYTES", most)
    entries = Entries(channel, timeout=60)
    refusals = [Entry(entry=n, optim_step=pb.OptimStepRequest(call=pb.CallId(run="r" * 80))) for n in range(4096)]

    async def flood():
        for _ in range(10):  # some 20 MB of replies, of which the connection takes the first few
            await entries.send(*refusals)

    flooding = asyncio.ensure_future(flood())
    await until(lambda: served.server._training._streams._streams)
    (stream,) = served.server._training._streams._streams
    async with asyncio.timeout(60):
        unread = -1
        while unread != stream._unread or not unread:  # until nothing has got through for a while
            unread = stream._unread
            await asyncio.sleep(0.5)
    assert most < unread < most + 70 * 1000  # and those that began together
    found = 0
    while found < 10 * len(refusals):
        found += len((await entries.call.read()).entries)
    await flooding
    assert await entries.rest() == []


@pytest.mark.parametrize("rpc", ["RunCalls", "ForwardBackward"])
@pytest.mark.parametrize("why", ["INVALID_FIELD", "OVERFLOW"])
async def test_a_refused_call_whose_reply_is_kept_keeps_no_arrays(served, channel, monkeypatch, rpc, why):
    arrays, frames_of = [], converters.frames

    def watched(*arguments):
        found = frames_of(*arguments)
        arrays.append(weakref.ref(found.base if isinstance(found.base, np.ndarray) else found))
        return found

    monkeypatch.setattr(converters, "frames", watched)
    client, entries = Client(channel, (await create_run(channel)).id), Entries(channel)
    rows = [frames(500, seed=1)]
    targets = np.full(500, 99, "i4") if why == "INVALID_FIELD" else np.full((500, 3), 3e38, "f4")
    wrong = examples(rows, targets, pb.LOSS_KIND_CROSS_ENTROPY if why == "INVALID_FIELD" else pb.LOSS_KIND_MSE)
    for number in (1, 2):
        if rpc == "RunCalls":
            await entries.send(forward_backward(number, client.id(number), wrong))
            failure = await entries.error(number)
        else:
            failure = await refused(client.forward_backward(wrong, number=number))
        assert failure.reason == why
    refused_arrays, arrays = list(arrays), []
    assert len(refused_arrays) == 2
    await client.forward_backward(number=3)  # so that the device holds no batch of them

    def any_left():
        gc.collect()
        return any(array() is not None for array in refused_arrays)

    await until(lambda: not any_left())
    assert (await refused(client.forward_backward(wrong, number=1))).message == failure.message


async def test_a_caller_that_reads_no_replies_is_read_no_further(served, channel, monkeypatch):
    monkeypatch.setattr(run_stream, "_MAX_UNREAD_BYTES", 1 << 12)
    entries = Entries(channel, timeout=60)
    refusals = [Entry(entry=n, optim_step=pb.OptimStepRequest(call=pb.CallId(run="r" * 700))) for n in range(500)]
    written = 0

    async def flood():
        nonlocal written
        while True:
            await entries.send(*refusals)
            written += 1

    flooding = asyncio.ensure_future(flood())
    last = -1
    while written != last:  # until nothing has got through for a while
        last = written
        await asyncio.sleep(0.5)
    flooding.cancel()
    (stream,) = served.server._training._streams._streams
    assert stream._unread < 2 * 500 * 4096
    assert not stream._open
    entries.call.cancel()
    await until(lambda: not served.server._training._streams._streams)
    assert served.server._training._incoming._bound.used == 0


async def test_a_run_that_is_deleted_ends_its_entries_and_no_others(served, channel):
    gone, stays = [Client(channel, (await create_run(channel)).id) for _ in range(2)]
    entries = Entries(channel)
    await entries.send(forward_backward(1, gone.id(7)), forward_backward(2, stays.id(2)))
    await until(lambda: waiting_calls(served) == 2)
    await stub(channel).DeleteRun(pb.DeleteRunRequest(run=gone.run), timeout=30)
    assert (await entries.error(1)).reason == "RUN_NOT_FOUND"
    await entries.send(forward_backward(1, stays.id(1)))
    assert [(await entries.reply(n)).forward_backward.step for n in (1, 2)] == [1, 1]


async def test_a_dead_device_fails_every_entry(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    gate, entries = TrainingGate(served.engine), Entries(channel)
    await entries.send(forward_backward(1, client.id(1)))
    await gate.arrived()
    served.engine.died(RuntimeError("a test"))
    assert (await entries.error(1)).reason == "ENGINE_DEAD"
    await entries.send(forward_backward(2, client.id(2)))
    assert (await entries.error(2)).reason == "ENGINE_DEAD"
    gate.open()


async def test_a_server_that_shuts_down_answers_what_has_begun_and_ends_the_call(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    idle, entries = Entries(channel), Entries(channel)
    await idle.send()
    gate = TrainingGate(served.engine)
    await entries.send(forward_backward(1, client.id(1)), forward_backward(5, client.id(5)))
    await gate.arrived()
    stopping = asyncio.ensure_future(served.server.stop(20))
    assert (await refused(idle.call.read())).reason == "SHUTTING_DOWN"
    await entries.send(forward_backward(2, client.id(2)))
    assert (await entries.error(2)).reason == "SHUTTING_DOWN"
    gate.open()
    assert (await entries.reply(1)).forward_backward.step == 1
    assert (await entries.error(5)).reason == "SHUTTING_DOWN"  # it waited for calls that never came
    assert (await refused(entries.call.read())).reason == "SHUTTING_DOWN"
    async with asyncio.timeout(10):
        await stopping


async def test_sigterm_ends_an_idle_call_and_loses_nothing(server_process, tmp_path):
    write_models(tmp_path, {"small": SMALL})
    first = server_process("--models", tmp_path)
    async with open_channel(first.address) as channel:
        client, entries = Client(channel, (await create_run(channel, checkpoint_interval=0)).id), Entries(channel)
        await entries.send(*(forward_backward(n, client.id(n)) for n in (1, 2)), optim_step(3, client.id(3)))
        assert (await entries.reply(3)).optim_step.step == 1
        status, _ = await asyncio.to_thread(first.end, signal.SIGTERM, 10)
        assert status == 0
    second = server_process("--models", tmp_path)
    async with open_channel(second.address) as channel:
        again, entries = Client(channel, client.run), Entries(channel)
        found = await again.get()
        assert (found.calls_done, found.durable_step) == (3, 1)
        await entries.send(forward_backward(3, again.id(2)), optim_step(4, again.id(3)))
        assert (await entries.reply(3)).forward_backward.step == 1
        assert (await entries.reply(4)).optim_step.step == 1
