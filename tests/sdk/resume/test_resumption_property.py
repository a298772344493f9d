"""Cuts at any point of a stream, and servers that go away: its caller sees what a plain computation gives, once."""

import asyncio
import math

import numpy as np
from helpers.plain_sessions import PlainCall, run
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom import tensors
from seqloom._resume import reattachment, snapshot_interval
from seqloom._resume.resuming_session import ResumingSession
from seqloom._streaming.stream_budget import StreamBudget
from seqloom.v1 import inference_service_pb2 as pb

WINDOW = 64
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([0, 1, 2, 3, 7, 30, 64, 150])),
        st.tuples(st.just("handle"), st.integers(1, 6)),
        st.tuples(st.just("reply"), st.integers(1, 6)),
        st.tuples(
            st.sampled_from(["receive", "reset", "cut", "go_away", "settle", "settle_and_cut", "reset_by_nothing"]),
            st.just(0),
        ),
    ),
    max_size=60,
)


async def pause():
    """Lets every task run that can."""
    for _ in range(6):
        await asyncio.sleep(0)


async def use(acts, interval, begins, windows):
    call = PlainCall(WINDOW)
    opening = pb.OpenSession(model="m", snapshot_interval_steps=interval)
    state = 0.0
    if begins:
        state = 3.0
        opening.initial_state.hidden.CopyFrom(tensors.encode(np.full((1, 1, 1), state)))
    budget = StreamBudget()
    session = call.session = ResumingSession(
        call, 1, WINDOW, budget=budget, calls=call, opening=opening, seconds=math.inf
    )
    call.numbers = 1
    session.open(opening, math.inf)
    call.handle(1)
    call.reply(1)
    assert session.weights_version == 1
    windows = iter(windows)
    step, expected, got, sending = 0, [], [], None

    async def progress():
        await pause()
        call.handle(100)
        call.reply(100)
        await pause()

    for act, count in acts:
        if act in ("send", "reset_by_nothing"):
            if sending is not None:
                continue
            if act == "reset_by_nothing":
                session.reset()
                state = 0.0
            x = np.arange(step, step + count, dtype=float)
            states = run(x, state)
            expected.append((step, states))
            state = states[-1] if states else state
            step += count
            sending = asyncio.create_task(session.send(x.reshape(-1, 1), math.inf))
        elif act == "receive":
            if session.ready:
                got.append(session.receive())
        elif act == "reset":
            if sending is None or sending.done():
                session.reset()
                state = 0.0
        elif act in ("cut", "go_away"):
            getattr(call, act)()
            call.window = next(windows, WINDOW)
        elif act.startswith("settle"):
            await progress()
            if act.endswith("cut"):
                call.cut()
        else:
            getattr(call, act)(count)
        await asyncio.sleep(0)
        if sending is not None and sending.done():
            sending.result()
            sending = None
    while len(got) < len(expected):
        await progress()
        if session.ready:
            got.append(session.receive())
        if sending is not None and sending.done():
            sending.result()
            sending = None
    ending = asyncio.create_task(session.end(math.inf))
    await pause()
    call.cut()
    while session.final_state is None:
        await progress()
    await ending
    assert session.final_state.hidden[0, 0, 0] == state
    for chunk, (first, states) in zip(got, expected, strict=True):
        assert chunk.first_step == first
        np.testing.assert_array_equal(chunk.outputs[:, 0], states)
    if interval:
        assert (session.snapshot.steps if session.snapshot else 0) == step - step % interval
    else:
        assert session.snapshot is None
    assert budget.free == budget.size
    assert session._kept.size == 0
    await pause()
    assert not call.pauses.resuming


@settings(max_examples=300)
@given(
    ACTS,
    st.sampled_from([0, 0, 1, 5, 64]),
    st.booleans(),
    st.lists(st.sampled_from([64, 64, 100, 4096]), max_size=10),
    st.sampled_from([1, 2, 5, 128]),
)
def test_whatever_is_cut_the_outputs_are_those_of_an_unbroken_stream(acts, interval, begins, windows, every):
    entries, quickly = snapshot_interval._ENTRIES, reattachment._QUICKLY
    snapshot_interval._ENTRIES, reattachment._QUICKLY = every, -1.0  # a snapshot every so many entries; no pauses
    try:
        asyncio.run(asyncio.wait_for(use(acts, interval, begins, windows), 60))
    finally:
        snapshot_interval._ENTRIES, reattachment._QUICKLY = entries, quickly
