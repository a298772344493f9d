"""What is wrong with a call of a stream group fails it and those sent behind it; what is wrong with a group ends it."""

import asyncio
import math

import numpy as np
import pytest
from helpers.gate import Gate, keep_cost
from helpers.plain_group import PlainGroup
from helpers.raw_calls import assert_serves, entry, failure_of
from helpers.raw_groups import Groups, assert_free, call, numbers, opening, parts_of, some, state_message
from helpers.real_server import SMALL, open_channel, until
from helpers.tolerances import near
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import tensor_pb2
from seqloom_server.engine.device import slice_runner
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.inference import group_call, group_session

CLOSE = near(rtol=1e-4, atol=1e-5)


def frames(w, k, seed=0, width=5):
    return np.random.default_rng(seed).standard_normal((w, k, width)).astype("f4")


def with_nan(w, k, *index):
    x = frames(w, k)
    x[index] = np.nan
    return x


def hidden(w, value=0.5):
    return (np.full((1, w, 7), value, "f4"),)


def raw(number, **fields):
    return pb.GroupRequest(group=number, **fields)


def tensor(shape, data, kind=tensor_pb2.DATA_TYPE_FLOAT32):
    return tensor_pb2.Tensor(data_type=kind, shape=shape, data=bytes(data))


X = frames(6, 4)
Y = frames(2, 3)
SIX = (6, 4)  # the sizes of X
# the entries of one call of a group of six streams, and the field and words that its failure names
WRONG = {
    "another number of streams": ([call(1, frames(5, 2))], "groups.frames", "[5, 2, 5]: expected [6, steps, 5]"),
    "not as many as `streams`": ([call(1, frames(6, 2), streams=[0, 1])], "groups.frames", "expected [2, steps, 5]"),
    "another width": ([call(1, frames(6, 2, width=4))], "groups.frames", "[6, 2, 4]: expected [streams, steps, 5]"),
    "another rank": ([call(1, X[0])], "groups.frames", "[4, 5]"),
    "another dtype": ([call(1, X.astype("f8"))], "groups.frames", "is float64: expected float32"),
    "bytes missing": ([raw(1, frames=tensor([6, 1, 5], 119))], "groups.frames", "119 bytes"),
    "NaN": ([call(1, with_nan(6, 4, 4, 2, 1))], "groups.frames", "nan at step 2 of stream 4, number 1"),
    "NaN of some": (
        [call(1, with_nan(2, 3, 1, 2, 0), streams=[5, 3])],
        "groups.frames",
        "nan at step 2 of stream 3, number 0",
    ),
    "NaN in a row of no stream": (
        [call(1, with_nan(3, 3, 2, 1, 4), streams=[5, 3])],
        "groups.frames",
        "nan at step 1 of stream 2, number 4",
    ),
    "NaN in a part": (
        parts_of(1, with_nan(6, 4, 4, 3, 1), [(0, 0, 6, 2), (0, 2, 3, 2), (3, 2, 3, 2)]),
        "groups.frames",
        "nan at step 3 of stream 4, number 1",
    ),
    "NaN in a part of some": (
        parts_of(1, with_nan(2, 3, 1, 2, 0), [(0, 0, 2, 2), (0, 2, 1, 1), (1, 2, 1, 1)], streams=[5, 3]),
        "groups.frames",
        "nan at step 2 of stream 3, number 0",
    ),
    "infinity": ([call(1, X * np.inf)], "groups.frames", "inf"),
    "a stream too high": ([call(1, Y, streams=[0, 6])], "groups.streams", "has 6: expected 0 to 5"),
    "a stream below 0": ([call(1, Y, streams=[-1, 0])], "groups.streams", "has -1: expected 0 to 5"),
    "a stream twice": ([call(1, Y, streams=[4, 4])], "groups.streams", "has stream 4 twice"),
    "streams of another dtype": (
        [raw(1, frames=tensors.encode(Y), streams=numbers([0, 1], "f4"))],
        "groups.streams",
        "is float32 [2]: expected int32",
    ),
    "streams of int64": (
        [raw(1, frames=tensors.encode(Y), streams=numbers([0, 1], "i8"))],
        "groups.streams",
        "is int64 [2]: expected int32",
    ),
    "no streams": ([call(1, frames(0, 3), streams=[])], "groups.streams", "one stream at least"),
    "streams of rank 2": ([call(1, Y, streams=[[0, 1]])], "groups.streams", "int32 [1, 2]"),
    "streams that are no array": (
        [raw(1, frames=tensors.encode(Y), streams=tensor([2], 7, tensor_pb2.DATA_TYPE_INT32))],
        "groups.streams",
        "7 bytes",
    ),
    "streams without frames": ([call(1, streams=[0, 1], get="all")], "groups.streams", "frames"),
    "a reset of a stream too high": ([call(1, X, reset=[6])], "groups.reset.streams", "has 6"),
    "a reset of no stream": ([raw(1, reset=pb.StreamSet())], "groups.reset.streams", ""),
    "a reset of all and some": (
        [raw(1, reset=pb.StreamSet(all=True, streams=numbers([0])))],
        "groups.reset",
        "`all` and streams",
    ),
    "states of a stream twice": ([call(1, get=[0, 0])], "groups.get.streams", "has stream 0 twice"),
    "a set of a stream too high": ([call(1, set=([7], hidden(1)))], "groups.set.streams.streams", "has 7"),
    "a set of other streams": ([call(1, set=([1, 2], hidden(3)))], "groups.set.state.hidden", "[1, 3, 7]"),
    "a set of no state": ([raw(1, set=pb.StreamStates(streams=some("all")))], "groups.set.state.hidden", ""),
    "a set with a cell": (
        [call(1, set=("all", (*hidden(6), *hidden(6))))],
        "groups.set.state.cell",
        "elman has none",
    ),
    "a set of NaN": ([call(1, X, set=([3], hidden(1, np.nan)))], "groups.set.state.hidden", "nan"),
    "more without frames": ([call(1, get="all", more=True)], "groups.more", "without frames"),
    "a place without frames": ([call(1, place=(0, 0, *SIX), get="all")], "groups.place", "without frames"),
    "a part without its place": ([call(1, X, more=True)], "groups.place", "[0, 0]: expected 6 streams"),
    "parts of 0 steps": ([call(1, frames(6, 0), place=(0, 0, 6, 0))], "groups.place", "[6, 0]"),
    "parts of other streams": ([call(1, X, place=(0, 0, 7, 4), more=True)], "groups.place", "[7, 4]"),
    "parts that begin late": ([call(1, X[:, 1:], place=(0, 1, *SIX))], "groups.place", "begins at [0, 1]"),
    "parts in another order": (
        [call(1, X[:3, :2], place=(0, 0, *SIX), more=True), call(1, X[:3, 2:], place=(0, 2, *SIX))],
        "groups.place",
        "begins at [0, 2]: expected [3, 0]",
    ),
    "parts that overlap": (
        [call(1, X[:, :3], place=(0, 0, *SIX), more=True), call(1, X[:, 2:], place=(0, 2, *SIX))],
        "groups.place",
        "begins at [0, 2]: expected [0, 3]",
    ),
    "parts of other sizes": (
        [call(1, X[:, :3], place=(0, 0, *SIX), more=True), call(1, X[:, 3:], place=(0, 3, 6, 5))],
        "groups.place",
        "[6, 5]: expected [6, 4]",
    ),
    "parts that reach too far": (
        [call(1, X[:, :3], place=(0, 0, *SIX), more=True), call(1, X[:, :2], place=(0, 3, *SIX))],
        "groups.frames",
        "[6, 5]: expected at most [6, 4]",
    ),
    "parts of too many streams": ([call(1, frames(7, 2), place=(0, 0, *SIX), more=True)], "groups.frames", "[7, 2]"),
    "parts beside others of fewer steps": (
        [call(1, X[:3, :2], place=(0, 0, *SIX), more=True), call(1, X[3:, :1], place=(3, 0, *SIX))],
        "groups.frames",
        "[3, 1, 5]: expected 2 steps",
    ),
    "a part of no streams": ([call(1, X[:0], place=(0, 0, *SIX), more=True)], "groups.frames", "[0, 4, 5]"),
    "the last part too early": ([call(1, X[:, :3], place=(0, 0, *SIX))], "groups.more", "[0, 3]"),
    "a part without frames": (
        [call(1, X[:, :3], place=(0, 0, *SIX), more=True), call(1, place=(0, 3, *SIX), end=True)],
        "groups.end",
        "",
    ),
    "a later part with more than frames": (
        [call(1, X[:, :3], place=(0, 0, *SIX), more=True), call(1, X[:, 3:], place=(0, 3, *SIX), get="all")],
        "groups.get",
        "",
    ),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_with_a_call_fails_it_and_what_was_sent_behind_it(served, channel, what):
    entries, field, words = WRONG[what]
    groups, twin = Groups(channel), PlainGroup(served.networks["small"], 6)
    await groups.open(1, 6)
    await groups.send(call(1, X), *entries)
    behind = [call(1, X, reset="all", set=("all", hidden(6)), get=[0]), call(1, reset=[2]), call(1, end=True)]
    await groups.send(*behind, *parts_of(1, X, [(0, 0, 6, 1), (0, 1, 6, 3)]))
    np.testing.assert_allclose((await groups.outputs(1, 6, 4))[0], twin.run(range(6), X), **CLOSE)
    # an entry that says `more` and is followed by a call that does not is answered together with it
    told = [await groups.failure(1) for _ in range(4 if entries[-1].more else 5)]
    for number, failure in told:
        assert (number, failure.code, failure.reason) == (1, "INVALID_ARGUMENT", "INVALID_FIELD")
        assert failure.fields == [field]
        assert words in failure.message
        assert failure.request_id
    await groups.send(call(1, Y, streams=[1, 4], failures=1, get="all", acknowledged_steps=4))
    got, first, _ = await groups.outputs(1, 2, 3)
    np.testing.assert_allclose(got, twin.run([1, 4], Y), **CLOSE)
    assert first.tolist() == [4, 4]
    np.testing.assert_allclose((await groups.states(1, 6))[0][0], twin.states[0], **CLOSE)
    await groups.send(call(1, end=True, failures=1))
    assert (await groups.of(1)).HasField("ended")
    assert await groups.rest() == []
    await assert_free(served)


async def test_failures_are_counted_and_what_says_fewer_was_sent_behind_one(served, channel):
    groups, twin = Groups(channel), PlainGroup(served.networks["small"], 6)
    wrong = frames(5, 1)
    await groups.send(
        opening(1, 6, x=wrong),  # fails, and opens
        call(1, X),
        call(1, wrong),  # passed over
        call(1, wrong, failures=1),  # fails
        call(1, X, failures=1),
        call(1, X),
        call(1, X, failures=2),
        call(1, X, failures=1),  # passed over, though one after it has run
    )
    replies = [await groups.of(1) for _ in range(9)]
    assert replies[0].HasField("opened")
    assert [reply.failure.number for reply in replies[1:]] == [1, 1, 1, 2, 2, 2, 0, 2]
    got = tensors.decode(replies[7].outputs.outputs.values).reshape(6, 4, 3)
    np.testing.assert_allclose(got, twin.run(range(6), X), **CLOSE)
    await groups.send(call(1, X, failures=3))
    failure = await groups.last_error(1)
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["groups.failures"])
    await assert_free(served)


async def test_a_failure_between_calls_that_run_together_is_told_in_its_place(served, channel):
    groups, twin = Groups(channel), PlainGroup(served.networks["small"], 6)
    gate = Gate(served.engine.registry.current("small"))
    await groups.open(1, 6)
    await groups.send(call(1, X))
    await gate.arrived()
    await groups.send(  # these wait, and share a slice
        call(1, X[:, :1]),
        call(1, frames(5, 1)),
        call(1, X[:, :2], failures=1),
        call(1, frames(5, 1), failures=1),
        call(1, reset=[3], failures=2),
        call(1, frames(5, 1), failures=2),
        call(1, get="all", failures=3),
    )
    await until(lambda: served.engine._scheduler.waiting_steps)
    gate.open()
    for count, number in ((4, 0), (1, 1), (2, 2)):
        got, _, _ = await groups.outputs(1, 6, count)
        np.testing.assert_allclose(got, twin.run(range(6), X[:, :count]), **CLOSE)
        if number:
            assert (await groups.failure(1))[0] == number
    await groups.done(1)
    assert (await groups.failure(1))[0] == 3
    twin.reset([3])
    np.testing.assert_allclose((await groups.states(1, 6))[0][0], twin.states[0], **CLOSE)


# what opens group 2, and the field and words of its error
REFUSED = {
    "no streams": (opening(2, 0), "INVALID_FIELD", "groups.open.streams", "is 0: expected at least 1"),
    "too many streams": (opening(2, 10_001), "OVER_LIMIT", "groups.open.streams", "expected at most 10000"),
    "far too many": (opening(2, 2**32 - 1), "OVER_LIMIT", "groups.open.streams", "expected at most 10000"),
    "an unknown model": (opening(2, 3, "smell"), "MODEL_NOT_FOUND", "model", "'smell'"),
    "another version": (opening(2, 3, weights_version=9), "VERSION_MISMATCH", "weights_version", "version 1 is served"),
    "an unknown output": (
        opening(2, 3, output=tensor_pb2.OutputSpec(kind=99)),
        "INVALID_FIELD",
        "groups.open.output.kind",
        "99",
    ),
    "states of others": (
        opening(2, 3, initial_state=state_message(hidden(2))),
        "INVALID_FIELD",
        "groups.open.initial_state.hidden",
        "[1, 2, 7]: expected [1, 3, 7]",
    ),
    "a timeout that is no time": (
        opening(2, 3, timeout_seconds=math.nan),
        "INVALID_FIELD",
        "groups.open.timeout_seconds",
        "nan",
    ),
    "a rate below 0": (
        opening(2, 3, steps_per_second=-1.0),
        "INVALID_FIELD",
        "groups.open.steps_per_second",
        "-1",
    ),
    "a rate without end": (
        opening(2, 3, steps_per_second=math.inf),
        "INVALID_FIELD",
        "groups.open.steps_per_second",
        "inf",
    ),
    "a bidirectional model": (opening(2, 3, "both"), "INVALID_FIELD", "groups.open.model", "is bidirectional"),
    "frames before open": (call(2, X), "SESSION_NOT_OPEN", "groups.open", "is not open: expected `open`"),
    "a part before open": (call(2, X, more=True), "SESSION_NOT_OPEN", "groups.open", "is not open: expected `open`"),
}


async def test_what_is_wrong_with_an_opening_is_told_to_that_group_alone(serve):
    models = {"small": SMALL, "both": ModelSpec("elman", 5, 7, 3, bidirectional=True)}
    async with serve(models) as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        await groups.open(1, 6)
        for number, (what, (wrong, reason, field, words)) in enumerate(REFUSED.items(), 2):
            wrong.group = number
            await groups.send(wrong)
            failure = await groups.error(number)
            assert (failure.reason, failure.fields) == (reason, [field]), what
            assert words in failure.message, what
            on_their_way = call(number, X), call(number, end=True), call(number, acknowledged_steps=4)
            await groups.send(*on_their_way)
        await groups.send(call(1, X))
        await groups.outputs(1, 6, 4)
        await groups.open(2, 3)
        assert served.value("active_streams") == 9
        await groups.rest()
        await assert_free(served)


# what is sent to an open group 1 of six streams, and the error that ends it
ENDING = {
    "opened again": ([opening(1, 6)], "SESSION_EXISTS", "open already"),
    "opened again as a session": ([entry(1, open="small")], "SESSION_EXISTS", "open already"),
    "an entry of a session": ([entry(1, X[0])], "INVALID_FIELD", "is 1, which is a group"),
    "an acknowledgement too high": ([call(1, acknowledged_steps=5)], "INVALID_FIELD", "expected at most 0, the steps"),
    "failures that never were": ([call(1, X, failures=1)], "INVALID_FIELD", "expected at most 0"),
    "frames after the end": ([call(1, X, end=True), call(1, X)], "SESSION_ENDED", "ended"),
    "more than the window": ([call(1, frames(6, 1000)) for _ in range(5)], "WINDOW_EXCEEDED", "at most 4096"),
}


@pytest.mark.parametrize("what", ENDING)
async def test_what_is_wrong_with_a_group_ends_it_alone(served, channel, what):
    entries, reason, words = ENDING[what]
    groups = Groups(channel)
    await groups.open(1, 6)
    await groups.open(7, 2)
    first, *_ = parts_of(7, Y, [(0, 0, 2, 1), (0, 1, 2, 2)])
    await groups.send(*entries, call(1, X), first)
    failure = await groups.last_error(1)
    assert failure.reason == reason
    assert words in failure.message
    await groups.send(*parts_of(7, Y, [(0, 0, 2, 1), (0, 1, 2, 2)])[1:])
    await groups.outputs(7, 2, 3)
    await groups.send(opening(1, 2, x=Y))  # the number is free again
    assert (await groups.of(1)).HasField("opened")
    await groups.outputs(1, 2, 3)
    await groups.rest()
    await assert_free(served)
    await assert_serves(served, channel)


async def test_an_entry_of_a_group_with_the_number_of_a_session_ends_the_session(served, channel):
    groups = Groups(channel)
    await groups.send(entry(5, open="small"))
    assert (await groups.next()).HasField("opened")
    await groups.send(call(5, X))
    reply = await groups.next()
    assert isinstance(reply, pb.SessionResponse)
    failure = failure_of(reply.error)
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["groups.group"])
    assert await groups.rest() == []
    await assert_free(served)


async def test_calls_after_the_end_are_told_so_and_late_acknowledgements_are_no_matter(served, channel):
    groups = Groups(channel)
    await groups.send(opening(1, 6, x=X, call_of={"end": True}))
    assert (await groups.of(1)).HasField("opened")  # with the outputs
    await groups.states(1, 6, "ended")
    await groups.send(call(1, acknowledged_steps=4), call(1, cancel=True), call(1, X))
    assert (await groups.error(1)).reason == "SESSION_ENDED"
    assert await groups.rest() == []


async def test_a_call_of_more_than_64_mebibytes_fails_and_the_group_goes_on(served, channel, monkeypatch):
    groups = Groups(channel)
    await groups.open(1, 6)
    steps = (64 << 20) // (6 * 20) + 1
    await groups.send(call(1, X, place=(0, 0, 6, steps), more=True), call(1, X, place=(0, 4, 6, steps)))
    number, failure = await groups.failure(1)
    assert (number, failure.reason, failure.fields) == (1, "OVER_LIMIT", ["groups.frames"])
    assert f"expected at most {64 << 20} in a call" in failure.message
    for module in (group_call, group_session):
        monkeypatch.setattr(module, "MAX_CALL_BYTES", 6 * 4 * 12 - 1)
    await groups.send(call(1, X, failures=1, get="all"))  # its outputs are too large
    number, failure = await groups.failure(1)
    assert (number, failure.reason, failure.fields) == (2, "OVER_LIMIT", ["groups.frames"])
    assert "of outputs" in failure.message
    await groups.send(call(1, X[:, :3], failures=2))
    await groups.outputs(1, 6, 3)
    await groups.rest()
    await assert_free(served)


async def test_more_rows_than_the_queue_could_hold_fail_their_call_and_a_full_queue_ends_the_group(serve):
    async with serve(max_queue_steps=50) as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        await groups.open(1, 6)
        await groups.send(call(1, frames(6, 9)))
        number, failure = await groups.failure(1)
        assert (number, failure.reason, failure.fields) == (1, "OVER_LIMIT", ["groups.frames"])
        assert "at most 50" in failure.message
        await groups.send(call(1, frames(6, 8), failures=1))
        await groups.outputs(1, 6, 8)
        gate = Gate(served.engine.registry.current("small"))
        await groups.send(call(1, frames(6, 1), failures=1))
        await gate.arrived()
        for _ in range(2):
            await groups.send(call(1, frames(6, 5), failures=1))
        failure = await groups.error(1)
        gate.open()
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        await assert_free(served)
        await assert_serves(served, channel)


async def test_states_that_wait_to_be_set_count_in_the_queue(serve):
    async with serve(max_queue_bytes=100_000) as served, open_channel(served.address) as channel:
        gate = Gate(served.engine.registry.current("small"))
        groups, n = Groups(channel), 1000
        await groups.open(1, n)
        await groups.send(call(1, frames(2, 1), streams=[0, 1]))
        await gate.arrived()
        await groups.send(*[call(1, set=("all", hidden(n))) for _ in range(3)], call(1, set=([4], hidden(1))))
        await until(lambda: served.engine._scheduler.waiting_bytes == 3 * 28_000 + 28 + 8)
        await groups.send(call(1, set=("all", hidden(n))))
        assert (await groups.error(1)).reason == "OVERLOADED"
        gate.open()
        await assert_free(served)


async def test_more_streams_than_there_is_room_for_are_told_when_to_come_again(serve):
    async with serve(max_sessions=10) as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        await groups.open(1, 6)
        await groups.send(opening(2, 5, x=Y, call_of={"streams": [0, 1]}))
        failure = await groups.error(2)
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after > 0
        assert served.value("rejected_total", reason="sessions") == 1
        await groups.open(3, 4)
        await groups.send(call(1, end=True))
        await groups.states(1, 6, "ended")
        await groups.open(2, 6)
        await groups.rest()
        await assert_free(served)


async def test_the_rate_of_a_group_is_that_of_each_of_its_streams(serve):
    async with serve(max_live_load=0.02) as served, open_channel(served.address) as channel:
        keep_cost(served.engine.registry.current("small"), per_slice=1e-9, per_step=1e-9, per_cell=4e-6)
        served.engine.sequences.load._idle_seconds = None  # the loop of a test is as busy as its machine
        groups = Groups(channel)
        await groups.open(1, 30, steps_per_second=100.0)
        await groups.send(opening(2, 30, steps_per_second=100.0))
        failure = await groups.error(2)
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert "max_live_load" in failure.message
        await groups.open(3, 15, steps_per_second=100.0)
        await groups.send(call(1, frames(30, 20)), call(1, end=True), call(3, cancel=True))
        await groups.outputs(1, 30, 20)
        await groups.rest()
        await assert_free(served)


async def test_an_idle_group_is_ended_and_tells_so(serve):
    async with serve(idle_seconds=0.1) as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        await groups.open(1, 3)
        failure = await groups.error(1)
        assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "SESSION_IDLE")
        await assert_free(served)


async def test_a_group_whose_first_frames_have_not_run_in_time_fails(served, channel):
    gate = Gate(served.engine.registry.current("small"))
    groups = Groups(channel)
    await groups.open(1, 2)
    await groups.send(call(1, Y))
    await gate.arrived()
    await groups.send(opening(2, 2, timeout_seconds=0.05), call(2, Y))
    assert (await groups.of(2)).HasField("opened")
    await asyncio.sleep(0.1)
    gate.open()
    await groups.outputs(1, 2, 3)
    failure = await groups.error(2)
    assert (failure.code, failure.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    await groups.rest()
    await assert_free(served)


async def test_a_slice_that_fails_ends_its_groups_alone(served, channel, monkeypatch):
    groups = Groups(channel)
    await groups.open(1, 2)
    await groups.open(2, 3)
    launch = slice_runner.launch

    def broken(*arguments, **options):
        raise RuntimeError("the device hiccups")

    monkeypatch.setattr(slice_runner, "launch", broken)
    await groups.send(call(1, Y, get="all"))
    assert (await groups.error(1)).code == "INTERNAL"
    monkeypatch.setattr(slice_runner, "launch", launch)
    await groups.send(call(2, frames(3, 2)))
    await groups.outputs(2, 3, 2)
    await groups.rest()
    await assert_free(served)


async def test_when_the_device_thread_dies_or_the_server_stops_groups_are_told(serve, monkeypatch):
    async with serve() as served, open_channel(served.address) as channel:
        groups = Groups(channel)
        await groups.open(1, 2)
        await groups.open(2, 2)
        stopping = asyncio.ensure_future(served.server.stop(0.5))
        for number in (1, 2):  # they hear of it at once
            assert (await groups.of(number)).going_away
        await until(lambda: not served.server._serving)
        await groups.send(call(1, Y, end=True), opening(3, 2))
        assert (await groups.error(3)).reason == "SHUTTING_DOWN"
        await groups.outputs(1, 2, 3)
        await groups.states(1, 2, "ended")
        failure = await groups.error(2)
        assert (failure.code, failure.reason) == ("UNAVAILABLE", "SHUTTING_DOWN")
        await stopping


async def test_outputs_of_groups_beyond_the_servers_memory_refuse_the_group(serve):
    wide = ModelSpec("elman", 5, 7, 3000)
    options = {"max_output_bytes": 1 << 20}
    async with serve({"wide": wide}, **options) as served, open_channel(served.address) as channel:
        gate = Gate(served.engine.registry.current("wide"))
        groups = Groups(channel)
        await groups.open(1, 6, "wide")
        await groups.open(2, 6, "wide")
        await groups.send(call(1, frames(6, 10)))
        await gate.arrived()
        await groups.send(call(2, frames(6, 10)))
        failure = await groups.error(2)
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        gate.open()
        await groups.outputs(1, 6, 10)
        await groups.rest()
        await assert_free(served)


@pytest.mark.parametrize("behind", [call(1, frames(5, 1)), call(1, end=True)])
async def test_calls_behind_a_failure_are_bounded_like_others(serve, behind):
    async with serve(window_steps=64) as served, open_channel(served.address) as channel:
        gate = Gate(served.engine.registry.current("small"))
        groups = Groups(channel)
        await groups.open(1, 6)
        await groups.send(call(1, X))
        await gate.arrived()
        await groups.send(call(1, frames(5, 1)), *[behind] * 300)
        assert (await groups.error(1)).reason == "WINDOW_EXCEEDED"
        gate.open()
        await assert_free(served)


async def test_what_small_calls_of_many_streams_need_is_charged_or_shared(served, channel):
    gate = Gate(served.engine.registry.current("small"))
    groups, n, budget = Groups(channel), 1000, served.server._inference._budget._bound
    await groups.open(1, n)
    await groups.send(call(1, Y, streams=[3, 4]))  # so the numbers of steps differ
    await gate.arrived()
    before = budget.used
    await groups.send(*[call(1, frames(n, 0)) for _ in range(20)])
    await until(lambda: budget.used >= before + 20 * 8 * n)
    gate.open()
    await groups.outputs(1, 2, 3)
    for _ in range(20):
        _, first, _ = await groups.outputs(1, n, 0)
        assert first.sum() == 6
    await groups.rest()
    await assert_free(served)
    one, other = (group_call.GroupCall.checked(call(1, reset="all"), SMALL, n).reset for _ in range(2))
    assert one is other
