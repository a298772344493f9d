"""States of a stream group that are set in several calls, where one before them fails: all of them or none."""

import asyncio

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE, assert_state
from helpers.gate import Gate
from helpers.plain_group import PlainGroup
from helpers.raw_groups import assert_free
from helpers.real_server import until
from seqloom._groups import group_request

LEAST_CALLS = 64  # that may wait for their answers


async def test_states_in_blocks_behind_a_call_that_fails_are_not_set_in_part(serve, monkeypatch):
    monkeypatch.setattr(group_request, "MESSAGE_BYTES", 3 * 5 * 4)  # two streams' states, and a frame of each of three
    async with serve(window_steps=64) as served, seqloom.AsyncClient(served.address, timeout=30) as client:
        gate, plain = Gate(served.engine.registry.current("small")), PlainGroup(served.networks["small"], 3)
        async with client.stream_group("small", 3) as group:
            x = np.random.default_rng(0).standard_normal((3, 1, 5)).astype("f4")
            await group.send(x)
            plain.run(range(3), x)
            await gate.arrived()
            await group.send(np.full((3, 1, 5), np.nan, "f4"))
            for _ in range(LEAST_CALLS - 3):
                await group.send(x[:, :0])
            new = np.full((1, 3, 7), 0.5, "f4")
            setting = asyncio.ensure_future(group.set_state(seqloom.State(hidden=new)))
            room = group._require_open()[0]._room
            await until(lambda: room.calls == LEAST_CALLS)  # one block is sent, the other waits for room
            assert not setting.done()
            gate.open()
            with pytest.raises(seqloom.InvalidArgument, match="nan"):
                await setting
            assert_state(await group.state(), plain.states, **CLOSE)
            await group.set_state(seqloom.State(hidden=new))
            assert_state(await group.finish(), (new,), **CLOSE)
        await assert_free(served)
