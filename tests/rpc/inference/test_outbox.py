"""Replies whose values are written straight as bytes are what protobuf would have written, in the same order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqloom.v1 import inference_service_pb2 as pb
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.inference import outbox, outgoing
from seqloom_server.rpc.inference.group_outgoing import Block, GroupOutgoing
from seqloom_server.rpc.inference.outgoing import Opened, Outgoing


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


@st.composite
def outgoings(draw):
    """Entries of every kind, with values of a few numbers."""
    steps = draw(st.integers(0, 6))
    maybe = st.booleans()
    ends, told, has_values, has_labels = draw(maybe), draw(maybe), draw(maybe), draw(maybe)
    return Outgoing(
        draw(st.integers(0, 2**64 - 1)),
        opened=draw(st.none() | st.builds(Opened, st.integers(1, 2**64 - 1), st.integers(0, 2**32), st.binary())),
        first_step=draw(st.integers(0, 2**40)),
        values=floats(steps, 3) if has_values else None,
        labels=np.arange(steps, dtype="i4") if has_labels else None,
        steps=draw(st.integers(0, 2**40)),
        parts=("hidden", "cell"),
        snapshot=(floats(2, 1, 3), floats(2, 1, 3)) if told else None,
        final_state=(floats(1, 1, 4), floats(1, 1, 4)) if ends else None,
        timing=(0.25, 0.5),
        going_away=draw(maybe),
    )


@st.composite
def of_groups(draw):
    """Outputs of groups, all of a call's or a block of them, and other answers."""
    number, opened = draw(st.integers(0, 2**64 - 1)), draw(st.none() | st.just(Opened(3, 64, b"\1\2")))
    if draw(st.booleans()):
        return GroupOutgoing(number, opened, done=True)
    streams, steps = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    place = draw(st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9), st.just(streams), st.just(steps)))
    first = draw(st.integers(0, 2**40) | st.just(np.arange(streams)))
    has_values, has_labels = draw(st.booleans()), draw(st.booleans())
    values = floats(streams * steps, 3) if has_values else None
    labels = np.arange(streams * steps, dtype="i4") if has_labels else None
    return GroupOutgoing(number, opened, Block(place, values, labels, first))


@given(st.lists(outgoings() | of_groups(), min_size=1, max_size=6))
def test_entries_are_what_protobuf_would_have_written(entries):
    expected = pb.StreamInferResponse()
    for each in entries:
        each.add_to(expected)
    box = outbox.Outbox(1 << 20, ByteBudget(1 << 30), "caller")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outgoing, "LARGE_BYTES", 40)  # so that some values are, and some are not
        for each in entries:
            box.put(each)
        assert pb.StreamInferResponse.FromString(box.next_message()) == expected
    assert not box


def test_a_message_takes_what_it_has_room_for_and_at_least_one_entry():
    box = outbox.Outbox(1 << 20, ByteBudget(1 << 30), "caller")
    for number, rows in enumerate((1, 200, 200, 1, 600, 1)):
        box.put(Outgoing(number, values=floats(rows, 500)))
    taken = []
    while box:
        message = box.next_message()
        taken.append([entry.session for entry in pb.StreamInferResponse.FromString(message).entries])
        assert len(message) <= 1 << 20 or len(taken[-1]) == 1
    assert taken == [[0, 1, 2, 3], [4], [5]]
