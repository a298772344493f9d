"""Sessions of a bidirectional model: whole ones in several entries; what only live ones can have is refused."""

import numpy as np
import pytest
from helpers.raw_calls import Sessions, assert_serves, entry, frames, infer_request, refused
from helpers.raw_calls import infer as infer_once
from helpers.real_server import open_channel
from helpers.tolerances import near
from seqloom.v1 import inference_service_pb2 as pb
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.inference import outbox

BOTH = ModelSpec("gru", 5, 7, 3, bidirectional=True)
WHOLE = pb.OpenSession(model="m", whole_sequence=True)
CLOSE = near(rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ([entry(1, open="m")], "entries.open.whole_sequence"),
        ([entry(1, frames(3), open="m")], "entries.open.whole_sequence"),
        (
            [entry(1, open=pb.OpenSession(model="m", whole_sequence=True, snapshot_interval_steps=2))],
            "entries.open.snapshot_interval_steps",
        ),
        ([entry(1, open=WHOLE), entry(1, frames(2), reset=True)], "entries.reset"),
        ([entry(1, open=WHOLE), entry(1, frames(0))], "entries.frames"),
    ],
)
async def test_what_only_a_live_session_can_have_is_refused_by_its_field(serve, entries, field):
    async with serve({"m": BOTH}) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.send(*entries)
        failure = await sessions.error(1)
        assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", [field])
        await assert_serves(served, channel, "m")


async def test_a_sequence_beyond_a_batch_is_refused_in_either_call(serve):
    async with serve({"m": BOTH}, max_batch_steps=100) as served, open_channel(served.address) as channel:
        failure = await refused(infer_once(channel, infer_request("m", frames(101))))
        assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "OVER_LIMIT")
        assert "at most 100" in failure.message
        sessions = Sessions(channel)
        assert (await sessions.open(1, "m", whole_sequence=True)).window_steps > 100
        await sessions.send(entry(1, frames(60)), entry(1, frames(41), end=True))
        failure = await sessions.error(1)
        assert (failure.reason, failure.fields) == ("OVER_LIMIT", ["entries.frames"])
        await assert_serves(served, channel, "m")


async def test_sequences_that_lack_their_last_frames_keep_nobody_from_sending_them(serve, monkeypatch):
    # a caller that has promised outputs to read is read from no longer, and these can be read only when all is there
    monkeypatch.setattr(outbox, "_MAX_UNREAD_BYTES", 1000)
    xs = {number: frames(100, seed=number) for number in range(1, 9)}
    async with serve({"m": BOTH}) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        for number, x in xs.items():
            await sessions.send(entry(number, x[:60], open=WHOLE))
        for number, x in xs.items():
            await sessions.send(entry(number, x[60:], end=True))
        got = {}
        parts = {number: [] for number in xs}
        while len(got) < len(xs):
            reply = await sessions.next()
            assert not reply.HasField("error"), reply
            if reply.HasField("outputs"):
                parts[reply.session].append(np.frombuffer(reply.outputs.outputs.values.data, "<f4").reshape(-1, 3))
            if reply.HasField("ended"):
                got[reply.session] = np.concatenate(parts[reply.session])
        for number, x in xs.items():
            np.testing.assert_allclose(got[number], served.expected("m", x)[0], **CLOSE)


async def test_a_sequence_whose_caller_falls_silent_ends_by_itself(serve):
    async with serve({"m": BOTH}, idle_seconds=0.2) as served, open_channel(served.address) as channel:
        sessions = Sessions(channel)
        await sessions.open(1, "m", whole_sequence=True)
        await sessions.send(entry(1, frames(5)))
        assert (await sessions.error(1)).reason == "SESSION_IDLE"
        await assert_serves(served, channel, "m")
