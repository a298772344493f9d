"""What a stream group may make the server hold: whatever it sends counts, and what could never fit fails alone."""

import numpy as np
import pytest
from helpers.gate import Gate
from helpers.plain_group import PlainGroup
from helpers.raw_calls import Sessions, entry
from helpers.raw_groups import Groups, assert_free, call, opening, parts_of
from helpers.real_server import open_channel, until
from helpers.tolerances import near
from seqloom import tensors
from seqloom.v1 import tensor_pb2
from seqloom_server.engine.device import slice_runner

CLOSE = near(rtol=1e-4, atol=1e-5)
MOST_STREAMS = 65_536


def frames(w, k, seed=0):
    return np.random.default_rng(seed).standard_normal((w, k, 5)).astype("f4")


def hidden(w, value=0.5):
    return (np.full((1, w, 7), value, "f4"),)


SIX = list(range(6))
# the entries of a call that a queue of 1,000 bytes could never hold, and the field that its failure names
TOO_LARGE = {
    "frames": ([call(1, frames(6, 9), streams=SIX)], "groups.frames"),
    "frames in parts": (parts_of(1, frames(6, 9), [(0, 0, 6, 5), (0, 5, 6, 4)], streams=SIX), "groups.frames"),
    "frames, with the states set": (
        [call(1, frames(6, 8), streams=SIX, set=([1, 2], hidden(2)))],
        "groups.frames",
    ),
    "states": ([call(1, set=(list(range(36)), hidden(36)))], "groups.set"),
    "numbers of streams": ([call(1, reset=list(range(126)))], "groups.reset"),
}


@pytest.mark.parametrize("what", TOO_LARGE)
async def test_a_call_that_the_queue_could_never_hold_fails_alone_as_a_single_stream_does(serve, what):
    entries, field = TOO_LARGE[what]
    async with serve(max_queue_bytes=1000) as served, open_channel(served.address) as channel:
        groups, twin = Groups(channel), PlainGroup(served.networks["small"], 200)
        await groups.open(1, 200)
        await groups.send(*entries, call(1, get=[0]))
        told = [await groups.failure(1) for _ in range(2)]
        for number, failure in told:
            assert (number, failure.reason, failure.fields) == (1, "OVER_LIMIT", [field])
            assert "expected at most 1000" in failure.message
        x = frames(6, 8)
        await groups.send(call(1, x, streams=SIX, failures=1))
        np.testing.assert_allclose((await groups.outputs(1, 6, 8))[0], twin.run(SIX, x), **CLOSE)
        sessions = Sessions(channel)
        await sessions.open(1)
        await sessions.send(entry(1, frames(1, 54)[0]))
        alone = await sessions.error(1)
        assert (alone.code, alone.reason) == (told[0][1].code, "OVER_LIMIT")
        await groups.rest()
        await assert_free(served)


async def test_numbers_of_streams_that_wait_to_be_reset_count_in_the_queue(serve):
    async with serve(max_queue_bytes=100_000) as served, open_channel(served.address) as channel:
        gate = Gate(served.engine.registry.current("small"))
        groups, n = Groups(channel), 1000
        await groups.open(1, n)
        await groups.send(call(1, frames(2, 1), streams=[0, 1]))
        await gate.arrived()
        reset = call(1, reset=list(range(1, n)))
        await groups.send(*[reset] * 12)
        await until(lambda: served.engine._scheduler.waiting_bytes == 12 * 8 * (n - 1))
        await groups.send(reset)
        assert (await groups.error(1)).reason == "OVERLOADED"
        gate.open()
        await assert_free(served)


async def test_snapshots_are_charged_like_other_outputs(served, channel):
    gate = Gate(served.engine.registry.current("small"))
    groups, budget = Groups(channel), served.server._inference._budget._bound
    await groups.open(1, 6, snapshot_interval_steps=4)
    await groups.send(call(1, frames(6, 3)))
    await gate.arrived()
    assert budget.used == 6 * (3 * 12 + 8)
    await groups.send(call(1, frames(6, 1)))
    await until(lambda: budget.used > 6 * (3 * 12 + 8))
    assert budget.used == 6 * (4 * 12 + 2 * 8) + 6 * 28
    gate.open()
    await groups.outputs(1, 6, 3)
    await groups.outputs(1, 6, 1)
    await groups.states(1, 6, "snapshot")
    await until(lambda: budget.used == 0)
    await groups.rest()
    await assert_free(served)


async def test_no_group_is_so_large_that_what_is_said_of_each_stream_fits_no_message(serve):
    async with serve(max_sessions=1_000_000) as served, open_channel(served.address) as channel:
        groups, n = Groups(channel), MOST_STREAMS
        labels = tensor_pb2.OutputSpec(kind=tensor_pb2.OUTPUT_KIND_LABELS)
        await groups.send(opening(2, n + 1))
        failure = await groups.error(2)
        assert (failure.reason, failure.fields) == ("OVER_LIMIT", ["groups.open.streams"])
        assert f"expected at most {n}" in failure.message
        await groups.open(1, n, output=labels, snapshot_interval_steps=2)
        for which in ([7], None):
            width = n if which is None else 1
            await groups.send(call(1, frames(width, 1), streams=which))
            _, first, _ = await groups.outputs(1, width, 1, "labels")
        assert first.sum() == 1  # so there is one of each stream
        _, replies = await groups.states(1, n, "snapshot")
        assert len(tensors.decode(replies[0].snapshot.steps)) == n
        await groups.send(call(1, end=True))
        await groups.states(1, n, "ended")
        assert max(message.ByteSize() for message in groups.messages) <= 1 << 20
        await assert_free(served)


async def test_a_call_that_replaces_states_touches_these_alone(served, channel, monkeypatch):
    widths, launch = [], slice_runner.launch

    def recording(slice_, *arguments, **options):
        widths.append([member.width for member in slice_.members])
        return launch(slice_, *arguments, **options)

    groups, twin, x = Groups(channel), PlainGroup(served.networks["small"], 6), frames(6, 3)
    await groups.open(1, 6)
    await groups.send(call(1, x))
    await groups.outputs(1, 6, 3)
    twin.run(range(6), x)
    monkeypatch.setattr(slice_runner, "launch", recording)
    for seed, (given, reset) in enumerate([([4], None), (None, [2]), ([4, 1], [1, 5])]):
        await groups.send(call(1, set=None if given is None else (given, hidden(len(given), seed)), reset=reset))
        await groups.done(1)
        if given is not None:
            twin.set(given, hidden(len(given), seed))
        if reset is not None:
            twin.reset(reset)
    assert widths == [[1], [1], [3]]
    await groups.send(call(1, get="all"))
    np.testing.assert_allclose((await groups.states(1, 6))[0][0], twin.states[0], **CLOSE)
    await groups.rest()
    await assert_free(served)
