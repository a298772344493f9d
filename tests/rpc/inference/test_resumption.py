"""Resumption on the wire: snapshots that are asked for, sessions that go on, and a server that goes away."""

import asyncio

import numpy as np
import pytest
from helpers.raw_calls import Sessions, entry, frames
from helpers.real_server import SMALL, open_channel, until
from helpers.tolerances import near
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.files.fingerprint import fingerprint
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

CLOSE = near(rtol=1e-4, atol=1e-5)


async def opened(sessions, number, **more):
    await sessions.send(entry(number, open=pb.OpenSession(model="small", **more)))
    return (await sessions.next()).opened


async def test_a_snapshot_is_sent_behind_the_entry_that_asks_for_it(served, channel):
    x, sessions = frames(40), Sessions(channel)
    await opened(sessions, 1)
    await sessions.send(*(entry(1, x[i : i + 5], snapshot=i in (10, 25)) for i in range(0, 40, 5)))
    steps, states, seen = 0, {}, []
    while steps < 40:
        reply = await sessions.next()
        rows = len(tensors.decode(reply.outputs.outputs.values)) if reply.HasField("outputs") else 0
        steps += rows
        seen.append(rows)
        if reply.HasField("snapshot"):
            assert reply.snapshot.steps == steps
            states[steps] = tensors.decode(reply.snapshot.state.hidden)
    assert sorted(states) == [15, 30]
    for step, state in states.items():
        np.testing.assert_allclose(state, served.expected("small", x[:step])[1][0], **CLOSE)
    # also of a session that has no frames, and behind a reset
    await opened(sessions, 2)
    await sessions.send(entry(2, snapshot=True), entry(2, x[:3]), entry(2, reset=True), entry(2, snapshot=True))
    snapshots = []
    while len(snapshots) < 2:
        reply = await sessions.next()
        if reply.HasField("snapshot"):
            snapshots.append((reply.snapshot.steps, np.abs(tensors.decode(reply.snapshot.state.hidden)).max()))
    assert snapshots == [(0, 0), (3, 0)]
    assert served.value("rejected_total") == 0


async def test_a_session_goes_on_with_its_counts_on_another_call(served, channel):
    x, sessions = frames(40), Sessions(channel)
    first = await opened(sessions, 1, snapshot_interval_steps=8)
    assert first.fingerprint == fingerprint(served.networks["small"])
    await sessions.send(entry(1, x[:20], snapshot=True))
    snapshots = {}
    while 20 not in snapshots:
        reply = await sessions.next()
        if reply.HasField("snapshot"):
            snapshots[reply.snapshot.steps] = reply.snapshot.state
    async with open_channel(served.address) as other:
        again = Sessions(other)
        resumed = pb.Resumption(steps=20, fingerprint=first.fingerprint)
        second = await opened(again, 7, snapshot_interval_steps=8, initial_state=snapshots[20], resumed=resumed)
        assert second == first
        await again.send(entry(7, x[20:], acknowledged_steps=20, end=True))
        values, steps, at = [], [], []
        while True:
            reply = await again.next()
            if reply.HasField("outputs"):
                at.append(reply.outputs.first_step)
                values.append(tensors.decode(reply.outputs.outputs.values))
            if reply.HasField("snapshot"):
                steps.append(reply.snapshot.steps)
            if reply.HasField("ended"):
                break
        assert at[0] == 20
        assert steps == [24, 32, 40]
        assert reply.ended.steps == 40
        expected, final = served.expected("small", x)
        np.testing.assert_allclose(np.concatenate(values), expected[20:], **CLOSE)
        np.testing.assert_allclose(tensors.decode(reply.ended.final_state.hidden), final[0], **CLOSE)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"resumed": pb.Resumption(steps=2**63)}, "entries.open.resumed.steps"),
        ({"resumed": pb.Resumption(steps=1), "whole_sequence": True}, "entries.open.resumed"),
    ],
)
async def test_what_cannot_be_resumed_is_refused(served, channel, more, field):
    sessions = Sessions(channel)
    await sessions.send(entry(1, open=pb.OpenSession(model="small", **more)))
    failure = await sessions.error(1)
    assert failure.reason == "INVALID_FIELD"
    assert failure.fields == [field]


async def test_a_whole_sequence_has_no_snapshots(served, channel):
    sessions = Sessions(channel)
    await sessions.send(entry(1, frames(3), open=pb.OpenSession(model="small"), end=True, snapshot=True))
    failure = await sessions.error(1)
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["entries.snapshot"])


async def test_weights_are_found_by_their_numbers_as_long_as_they_are_there(served, channel):
    sessions, registry = Sessions(channel), served.engine.registry
    first = await opened(sessions, 1)
    model_folder.save(served.models / "small", Network.create(SMALL, 9, "cpu"), 2)
    await registry.load("small")
    second = await opened(sessions, 2)
    assert (first.weights_version, second.weights_version) == (1, 2)
    assert first.fingerprint != second.fingerprint
    known = pb.Resumption(fingerprint=first.fingerprint)
    assert await opened(sessions, 3, resumed=known) == first  # session 1 keeps them
    await sessions.send(entry(1, cancel=True), entry(3, cancel=True))
    await until(lambda: served.engine.open_sessions == 1)
    await sessions.send(entry(4, open=pb.OpenSession(model="small", resumed=known)))
    failure = await sessions.error(4)
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "WEIGHTS_GONE")
    # the same numbers under another version are the same weights
    model_folder.save(served.models / "small", Network.create(SMALL, 0, "cpu"), 3)
    await registry.load("small")
    assert (await opened(sessions, 5, resumed=known)).weights_version == 3


def test_a_fingerprint_is_of_specification_and_numbers_and_nothing_else():
    spec = ModelSpec("lstm", 5, 7, 3, 2, conv_channels=4, conv_width=3)
    same = [fingerprint(Network.create(spec, 1)) for _ in range(2)]
    assert same[0] == same[1]
    others = [
        fingerprint(Network.create(spec, 2)),
        fingerprint(Network.create(ModelSpec("lstm", 5, 7, 3, 2, conv_channels=4, conv_width=3, precision="bf16"), 1)),
    ]
    network = Network.create(spec, 1)
    network.parameters()["output.bias"][0] += 1e-6
    assert len({same[0], *others, fingerprint(network)}) == 4


async def test_a_server_that_stops_tells_each_live_session_at_once_with_its_state(serve):
    async with serve() as served, open_channel(served.address) as channel:
        x, sessions = frames(30), Sessions(channel)
        for number in (1, 2, 3):
            await opened(sessions, number)
        await sessions.send(entry(1, x[:9]), entry(2, x[:20]))
        steps = 0
        while steps < 29:
            steps += len(tensors.decode((await sessions.next()).outputs.outputs.values))
        stopping = asyncio.ensure_future(served.server.stop(30))
        told = {}
        while len(told) < 3:
            reply = await sessions.next()
            assert reply.going_away
            told[reply.session] = reply.snapshot
        assert {number: snapshot.steps for number, snapshot in told.items()} == {1: 9, 2: 20, 3: 0}
        for number, steps in ((1, 9), (2, 20)):
            expected = served.expected("small", x[:steps])[1][0]
            np.testing.assert_allclose(tensors.decode(told[number].state.hidden), expected, **CLOSE)
        # it goes on for those who stay, and ends as soon as all have left
        await sessions.send(entry(1, x[9:], end=True), entry(2, cancel=True), entry(3, cancel=True))
        values, _ = await sessions.until_ended(1)
        np.testing.assert_allclose(values, served.expected("small", x)[0][9:], **CLOSE)
        await stopping


async def test_weights_that_were_replaced_are_kept_for_a_while_for_who_was_lost_with_them(serve):
    async with serve(max_live_versions=2, max_live_bytes=1) as served:
        registry = served.engine.registry

        async def replace(version):
            model_folder.save(served.models / "small", Network.create(SMALL, version, "cpu"), version)
            await registry.load("small")

        async with open_channel(served.address) as lost:
            first = await opened(Sessions(lost), 1)
        await until(lambda: not served.engine.open_sessions)
        await replace(2)
        async with open_channel(served.address) as channel:
            sessions, known = Sessions(channel), pb.Resumption(fingerprint=first.fingerprint)
            assert await opened(sessions, 1, resumed=known) == first
            await sessions.send(entry(1, cancel=True))
            await until(lambda: not served.engine.open_sessions)
            assert (await opened(sessions, 2)).weights_version == 2
            await replace(3)  # which needs the place of those that nobody has open
            await sessions.send(entry(3, open=pb.OpenSession(model="small", resumed=known)))
            assert (await sessions.error(3)).reason == "WEIGHTS_GONE"


async def test_what_never_finds_room_holds_nobody_back(served, channel):
    sessions, known = Sessions(channel), pb.Resumption(steps=1)
    await sessions.send(entry(1, open=pb.OpenSession(model="small", resumed=known, steps_per_second=1e9)))
    assert (await sessions.error(1)).reason == "OVERLOADED"
    assert (await opened(sessions, 2)).weights_version == 1
