"""Replies whose values are written straight as bytes are what protobuf would have written, in the same order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqloom.v1 import inference_service_pb2 as pb
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.inference import outbox


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("f4")


@st.composite
def outgoings(draw):
    """Entries of every kind, with values of a few numbers."""
    steps = draw(st.integers(0, 6))
    maybe = st.booleans()
    ends, told, has_values, has_labels = draw(maybe), draw(maybe), draw(maybe), draw(maybe)
    return outbox.Outgoing(
        draw(st.integers(0, 2**64 - 1)),
        opened=draw(st.none() | st.tuples(st.integers(1, 2**64 - 1), st.integers(0, 2**32))),
        first_step=draw(st.integers(0, 2**40)),
        values=floats(steps, 3) if has_values else None,
        labels=np.arange(steps, dtype="i4") if has_labels else None,
        steps=draw(st.integers(0, 2**40)),
        parts=("hidden", "cell"),
        snapshot=(floats(2, 1, 3), floats(2, 1, 3)) if told else None,
        final_state=(floats(1, 1, 4), floats(1, 1, 4)) if ends else None,
        timing=(0.25, 0.5),
    )


@given(st.lists(outgoings(), min_size=1, max_size=6))
def test_entries_are_what_protobuf_would_have_written(entries):
    expected = pb.StreamInferResponse()
    for each in entries:
        each.fill(expected.entries.add())
    box = outbox.Outbox(1 << 20, ByteBudget(1 << 30), "caller")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "_LARGE_BYTES", 40)  # so that some values are, and some are not
        for each in entries:
            box.put(each)
        assert pb.StreamInferResponse.FromString(box.next_message()) == expected
    assert not box


def test_a_message_takes_what_it_has_room_for_and_at_least_one_entry():
    box = outbox.Outbox(1 << 20, ByteBudget(1 << 30), "caller")
    for number, rows in enumerate((1, 200, 200, 1, 600, 1)):
        box.put(outbox.Outgoing(number, values=floats(rows, 500)))
    taken = []
    while box:
        message = box.next_message()
        taken.append([entry.session for entry in pb.StreamInferResponse.FromString(message).entries])
        assert len(message) <= 1 << 20 or len(taken[-1]) == 1
    assert taken == [[0, 1, 2, 3], [4], [5]]
