"""Messages written straight as bytes are what protobuf would have written, field for field."""

import math
from types import SimpleNamespace

from google.protobuf.unknown_fields import UnknownFieldSet
from helpers.drawn_arrays import arrays
from hypothesis import given
from hypothesis import strategies as st
from seqloom import tensors, wire
from seqloom._streaming.outgoing_entry import OutgoingEntry
from seqloom.v1 import inference_service_pb2, tensor_pb2

numbers = st.integers(0, 2**64 - 1)
openings = st.builds(inference_service_pb2.OpenSession, model=st.text(max_size=300), weights_version=numbers)


@given(st.lists(arrays(), min_size=3, max_size=3), st.permutations(["hidden", "cell", "inputs"]))
def test_tensors_are_read_by_protobuf_as_it_would_have_written_them(given_arrays, order):
    state, parts = tensor_pb2.State(), []
    for name, array in zip(order, given_arrays, strict=True):
        tensors.encode_into(array, getattr(state, name))
        parts += wire.tensor(tensor_pb2.State.DESCRIPTOR.fields_by_name[name].number, array)
    assert tensor_pb2.State.FromString(wire.joined(parts)) == state


@given(st.sampled_from([0, 1, 127, 128, 16383, 16384, 2**21]), st.integers(4, 2**29 - 1))
def test_a_message_within_another_is_found_by_its_number_and_size(size, field):
    inner = [b"x" * (size // 2), memoryview(b"y" * (size - size // 2))]
    written = wire.joined(wire.message(field, inner))
    unknown = UnknownFieldSet(tensor_pb2.State.FromString(written))
    assert [(each.field_number, each.data) for each in unknown] == [(field, b"".join(inner))]


@given(
    st.lists(
        st.tuples(
            numbers,
            st.none() | arrays(),
            st.none() | openings,
            st.booleans(),
            st.booleans(),
            st.booleans(),
            st.booleans(),
            st.integers(0, 2**62),
            st.just(math.inf) | st.floats(0, 1e9, exclude_min=True),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_entries_are_what_protobuf_would_have_written(entries, told):
    expected, parts = inference_service_pb2.StreamInferRequest(), []
    for number, frames, opening, reset, end, cancel, snapshot, received, seconds in entries:
        entry = expected.entries.add(session=number, reset=reset, end=end, cancel=cancel, snapshot=snapshot)
        if opening is not None:
            entry.open.CopyFrom(opening)
            if told and seconds < math.inf:
                entry.open.timeout_seconds = seconds
        if frames is not None:
            tensors.encode_into(frames, entry.frames)
            entry.acknowledged_steps = received
        opened = None if opening is None else opening.SerializeToString()
        sender = SimpleNamespace(number=number, failure=None, acknowledged=received)
        outgoing = OutgoingEntry(
            sender, opened, reset, frames, end, cancel, deadline=seconds, tell_timeout=told, snapshot=snapshot
        )
        parts += outgoing.buffers(now=0.0)
    assert inference_service_pb2.StreamInferRequest.FromString(wire.joined(parts)) == expected
