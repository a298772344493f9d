"""Whatever entries of groups and sessions a caller sends, it is told what is wrong, and nothing breaks."""

import asyncio

import numpy as np
from google.rpc import code_pb2
from helpers.raw_calls import assert_serves, entry
from helpers.raw_groups import Groups, assert_free, numbers, some, state_message
from helpers.real_server import open_channel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb

N = 5
mostly = st.integers(0, 19).map(bool)


@st.composite
def sets(draw):
    """StreamSets, most of them right."""
    if not draw(mostly):
        return draw(st.sampled_from([pb.StreamSet(), some([N]), some([0, 0]), some([]), pb.StreamSet(all=True)]))
    return some(draw(st.just("all") | st.lists(st.integers(0, N - 1), min_size=1, unique=True)))


@st.composite
def requests(draw):
    """Entries of a few groups of five streams, and of sessions with their numbers."""
    number = draw(st.integers(1, 3))
    if not draw(mostly):
        return entry(
            number, np.zeros((2, 5), "f4"), open=draw(st.sampled_from([None, "small"])), end=draw(st.booleans())
        )
    request = pb.GroupRequest(group=number, failures=draw(st.sampled_from([0, 0, 0, 1, 2])))
    if draw(st.integers(0, 3)) == 0:
        request.open.CopyFrom(pb.OpenGroup(model="small", streams=N, snapshot_interval_steps=draw(st.integers(0, 3))))
    width, steps = N, draw(st.integers(0, 4))
    if draw(st.booleans()):
        chosen = draw(st.lists(st.integers(0, N - 1), min_size=1, unique=True))
        if draw(mostly):
            width = len(chosen)
        request.streams.CopyFrom(numbers(chosen))
    if draw(st.booleans()):
        x = np.full((width, steps, 5), draw(st.sampled_from([0.5, 0.5, 0.5, np.nan])), "f4")
        request.frames.CopyFrom(tensors.encode(x))
    if draw(st.integers(0, 3)) == 0:
        request.place.CopyFrom(
            pb.GroupBlock(stream=draw(st.integers(0, 1)), step=draw(st.integers(0, 2)), streams=width, steps=steps)
        )
    for field in ("reset", "get"):
        if draw(st.integers(0, 4)) == 0:
            getattr(request, field).CopyFrom(draw(sets()))
    if draw(st.integers(0, 4)) == 0:
        state = state_message((np.ones((1, draw(st.integers(1, N)), 7), "f4"),))
        request.set.CopyFrom(pb.StreamStates(streams=draw(sets()), state=state))
    request.more = draw(st.integers(0, 5)) == 0
    request.end = draw(st.integers(0, 9)) == 0
    request.cancel = draw(st.integers(0, 19)) == 0
    request.acknowledged_steps = draw(st.sampled_from([0, 0, 0, 1]))
    return request


def test_no_entries_break_anything(serve):
    with asyncio.Runner() as runner:
        serving = serve(max_batch_steps=4, window_steps=64, poison_slots=True)
        served = runner.run(serving.__aenter__())

        async def scenario(messages):
            async with open_channel(served.address) as channel:
                groups = Groups(channel)
                for message in messages:
                    await groups.send(*message)
                for reply in await groups.rest():
                    assert reply.error.code != code_pb2.INTERNAL, reply
                await assert_free(served)
                await assert_serves(served, channel)

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(st.lists(requests(), min_size=1, max_size=6), min_size=1, max_size=5))
        def holds(messages):
            runner.run(scenario(messages))

        try:
            holds()
        finally:
            runner.run(serving.__aexit__(None, None, None))
