"""Infer over a real channel: outputs are the mathematics', and whatever is wrong is named, and breaks nothing."""

import math

import numpy as np
import pytest
from helpers.raw_calls import assert_serves, frames, infer, infer_request, refused
from helpers.real_server import open_channel
from helpers.tolerances import assert_labels, near
from seqloom import tensors
from seqloom.v1 import tensor_pb2
from seqloom_server.nn.spec import ModelSpec


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


async def test_sequences_of_unequal_lengths_come_back_in_order_with_their_final_states(served, channel):
    xs = [frames(steps, seed=steps) for steps in (7, 1, 30)]
    reply = await infer(channel, infer_request("small", *xs))
    expected = [served.expected("small", x) for x in xs]
    assert list(reply.lengths) == [7, 1, 30]
    assert reply.weights_version == 1
    values = tensors.decode(reply.outputs.values)
    np.testing.assert_allclose(values, np.concatenate([out for out, _ in expected]), **near(rtol=1e-4, atol=1e-5))
    finals = np.concatenate([final[0] for _, final in expected], axis=1)
    np.testing.assert_allclose(tensors.decode(reply.final_state.hidden), finals, **near(rtol=1e-4, atol=1e-5))
    assert reply.timing.compute_seconds > 0
    assert reply.timing.queue_seconds >= 0


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
async def test_a_sequence_cut_in_two_calls_gives_what_one_call_gives(serve, cell):
    spec = ModelSpec(cell=cell, input_size=5, hidden_size=6, output_size=4, num_layers=2, dtype="float64")
    x = frames(20).astype("f8")
    async with serve({"deep": spec}) as served, open_channel(served.address) as channel:
        first = await infer(channel, infer_request("deep", x[:13]))
        second = await infer(channel, infer_request("deep", x[13:], initial_state=first.final_state))
        expected, final = served.expected("deep", x)
    values = np.concatenate([tensors.decode(reply.outputs.values) for reply in (first, second)])
    np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(tensors.decode(second.final_state.hidden), final[0], rtol=1e-10, atol=1e-12)


async def test_every_kind_of_output_is_what_the_logits_say(served, channel):
    x = frames(12)
    logits, _ = served.expected("small", x)
    best = np.argsort(-logits, axis=1)

    async def outputs(kind, **more):
        request = infer_request("small", x)
        request.output.CopyFrom(tensor_pb2.OutputSpec(kind=kind, **more))
        return (await infer(channel, request)).outputs

    close = near(rtol=1e-4, atol=1e-5)
    probs = await outputs(tensor_pb2.OUTPUT_KIND_PROBS)
    np.testing.assert_allclose(tensors.decode(probs.values), softmax(logits), **close)
    log_probs = await outputs(tensor_pb2.OUTPUT_KIND_LOG_PROBS)
    np.testing.assert_allclose(tensors.decode(log_probs.values), np.log(softmax(logits)), **close)
    labels = await outputs(tensor_pb2.OUTPUT_KIND_LABELS)
    assert not labels.HasField("values")
    assert_labels(tensors.decode(labels.labels), logits)
    top = await outputs(tensor_pb2.OUTPUT_KIND_TOP_K, top_k=2)
    assert_labels(tensors.decode(top.labels), logits)
    np.testing.assert_allclose(
        tensors.decode(top.values), np.take_along_axis(np.log(softmax(logits)), best[:, :2], 1), **close
    )
    hidden = await outputs(tensor_pb2.OUTPUT_KIND_HIDDEN)
    assert tensors.decode(hidden.values).shape == (12, 7)


@pytest.mark.parametrize("name", ["PROBS", "LOG_PROBS", "LABELS", "TOP_K"])
async def test_what_tells_nothing_of_one_output_is_refused(serve, name):
    async with serve({"small": ModelSpec("gru", 5, 4, 1)}) as served, open_channel(served.address) as channel:
        wanted = tensor_pb2.OutputSpec(kind=tensor_pb2.OutputKind.Value(f"OUTPUT_KIND_{name}"), top_k=1)
        request = infer_request("small", frames(4))
        request.output.CopyFrom(wanted)
        failure = await refused(infer(channel, request))
        assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ["output.kind"])
        assert f"is {name.lower()}: the model has one output, whose softmax is always 1" in failure.message
        await assert_serves(served, channel)


def changed(change):
    request = infer_request("small", frames(4), frames(3))
    change(request)
    return request


def put(x):
    def change(request):
        request.sequences.rows.CopyFrom(tensors.encode(x))

    return change


def lengths(*numbers):
    def change(request):
        request.sequences.lengths[:] = numbers

    return change


def state(hidden=None, cell=None):
    def change(request):
        request.initial_state.SetInParent()
        for name, array in (("hidden", hidden), ("cell", cell)):
            if array is not None:
                getattr(request.initial_state, name).CopyFrom(tensors.encode(array))

    return change


def not_finite(value):
    x = frames(7)
    x[5, 2] = value
    return put(x)


# what is wrong; the status; the field at fault; what the message must hold: what was sent and what is expected
WRONG = {
    "rank 1": (put(np.zeros(35, "f4")), "INVALID_ARGUMENT", "sequences.rows", ["[35]", "[steps, 5]"]),
    "rank 3": (put(np.zeros((7, 5, 1), "f4")), "INVALID_ARGUMENT", "sequences.rows", ["[7, 5, 1]", "[steps, 5]"]),
    "rank 0": (put(np.zeros((), "f4")), "INVALID_ARGUMENT", "sequences.rows", ["[]", "[steps, 5]"]),
    "width": (put(np.zeros((7, 6), "f4")), "INVALID_ARGUMENT", "sequences.rows", ["[7, 6]", "[steps, 5]"]),
    "float64": (put(np.zeros((7, 5))), "INVALID_ARGUMENT", "sequences.rows", ["float64", "float32"]),
    "int32": (put(np.zeros((7, 5), "i4")), "INVALID_ARGUMENT", "sequences.rows", ["int32", "float32"]),
    "NaN": (not_finite(math.nan), "INVALID_ARGUMENT", "sequences.rows", ["nan", "[5, 2]", "finite"]),
    "infinity": (not_finite(-math.inf), "INVALID_ARGUMENT", "sequences.rows", ["-inf", "[5, 2]", "finite"]),
    "no data type": (
        lambda r: setattr(r.sequences.rows, "data_type", 0),
        "INVALID_ARGUMENT",
        "sequences.rows",
        ["is 0", "FLOAT32"],
    ),
    "bytes missing": (
        lambda r: setattr(r.sequences.rows, "data", bytes(139)),
        "INVALID_ARGUMENT",
        "sequences.rows",
        ["139", "140"],
    ),
    "bytes too many": (
        lambda r: setattr(r.sequences.rows, "data", bytes(141)),
        "INVALID_ARGUMENT",
        "sequences.rows",
        ["141", "140"],
    ),
    "negative shape": (
        lambda r: r.sequences.rows.shape.__setitem__(slice(None), [-7, -5]),
        "INVALID_ARGUMENT",
        "sequences.rows",
        ["[-7, -5]", "negative"],
    ),
    "a shape beyond any memory": (
        lambda r: r.sequences.rows.shape.__setitem__(slice(None), [2**62, 2**62]),
        "INVALID_ARGUMENT",
        "sequences.rows",
        ["140 bytes"],
    ),
    "an empty shape beyond any memory": (
        lambda r: (r.sequences.rows.shape.__setitem__(slice(None), [0, 2**62]), r.sequences.rows.ClearField("data")),
        "INVALID_ARGUMENT",
        "sequences.rows",
        ["too big"],
    ),
    "no sequences at all": (
        lambda r: r.ClearField("sequences"),
        "INVALID_ARGUMENT",
        "sequences.rows",
        ["data_type is 0"],
    ),
    "a batch of 0 sequences": (
        lambda r: (put(np.zeros((0, 5), "f4"))(r), lengths()(r)),
        "INVALID_ARGUMENT",
        "sequences.lengths",
        ["empty", "at least one"],
    ),
    "rows that no length owns": (lengths(), "INVALID_ARGUMENT", "sequences.lengths", ["empty"]),
    "lengths that add up to less": (lengths(4, 2), "INVALID_ARGUMENT", "sequences.lengths", ["6", "7"]),
    "lengths that add up to more": (lengths(4, 3, 1), "INVALID_ARGUMENT", "sequences.lengths", ["8", "7"]),
    "a length of 0": (lengths(7, 0), "INVALID_ARGUMENT", "sequences.lengths", ["0 at 1", "at least 1"]),
    "a negative length": (lengths(9, -2), "INVALID_ARGUMENT", "sequences.lengths", ["-2 at 1", "at least 1"]),
    "an unknown model": (lambda r: setattr(r, "model", "smell"), "NOT_FOUND", "model", ["'smell'"]),
    "a name that no model can have": (
        lambda r: setattr(r, "model", "../" + "x" * 10_000),
        "NOT_FOUND",
        "model",
        ["'../xxx"],
    ),
    "another weights version": (
        lambda r: setattr(r, "weights_version", 7),
        "FAILED_PRECONDITION",
        "weights_version",
        ["7", "version 1 is served"],
    ),
    "an unknown output": (
        lambda r: setattr(r.output, "kind", 77),
        "INVALID_ARGUMENT",
        "output.kind",
        ["77", "OutputKind"],
    ),
    "a top_k of 0": (
        lambda r: setattr(r.output, "kind", tensor_pb2.OUTPUT_KIND_TOP_K),
        "INVALID_ARGUMENT",
        "output.top_k",
        ["is 0", "1 to 3"],
    ),
    "a top_k above the classes": (
        lambda r: r.output.CopyFrom(tensor_pb2.OutputSpec(kind=tensor_pb2.OUTPUT_KIND_TOP_K, top_k=4)),
        "INVALID_ARGUMENT",
        "output.top_k",
        ["is 4", "1 to 3"],
    ),
    "a state of too few sequences": (
        state(np.zeros((1, 1, 7), "f4")),
        "INVALID_ARGUMENT",
        "initial_state.hidden",
        ["[1, 1, 7]", "[1, 2, 7]"],
    ),
    "a state of another dtype": (
        state(np.zeros((1, 2, 7))),
        "INVALID_ARGUMENT",
        "initial_state.hidden",
        ["float64", "float32"],
    ),
    "a state with NaN": (
        state(np.full((1, 2, 7), np.nan, "f4")),
        "INVALID_ARGUMENT",
        "initial_state.hidden",
        ["nan", "finite"],
    ),
    "a state that is empty": (state(), "INVALID_ARGUMENT", "initial_state.hidden", ["data_type is 0"]),
    "the cell state of an LSTM": (
        state(np.zeros((1, 2, 7), "f4"), np.zeros((1, 2, 7), "f4")),
        "INVALID_ARGUMENT",
        "initial_state.cell",
        ["elman has none"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_is_refused_by_name_and_the_server_serves_on(served, channel, what):
    change, code, field, words = WRONG[what]
    failure = await refused(infer(channel, changed(change)))
    assert (failure.code, failure.fields) == (code, [field])
    assert all(word in failure.message for word in words), failure.message
    assert failure.retry_after is None
    await assert_serves(served, channel)
    assert served.value("requests_total", code=code, method="seqloom.v1.InferenceService/Infer") == 1


async def test_more_sequences_or_steps_than_the_server_ever_takes_are_refused_with_the_limit(serve):
    async with (
        serve(max_sequences_per_request=3, max_steps_per_sequence=20) as served,
        open_channel(served.address) as channel,
    ):
        many = await refused(infer(channel, infer_request("small", *[frames(1)] * 4)))
        assert (many.code, many.reason, many.fields) == ("INVALID_ARGUMENT", "OVER_LIMIT", ["sequences.lengths"])
        assert "4 sequences" in many.message
        assert "at most 3" in many.message
        long = await refused(infer(channel, infer_request("small", frames(21))))
        assert (long.code, long.reason, long.fields) == ("INVALID_ARGUMENT", "OVER_LIMIT", ["sequences.lengths"])
        assert "21 steps" in long.message
        assert "at most 20" in long.message
        assert len((await infer(channel, infer_request("small", *[frames(20)] * 3))).lengths) == 3
        await assert_serves(served, channel)


async def test_a_reply_that_no_message_holds_is_refused_before_it_is_computed(serve):
    wide = ModelSpec(cell="elman", input_size=1, hidden_size=4, output_size=5000)
    async with serve({"wide": wide}) as served, open_channel(served.address) as channel:
        x = np.zeros((300, 1), "f4")
        failure = await refused(infer(channel, infer_request("wide", x)))
        assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "OVER_LIMIT", ["output"])
        assert str(4 << 20) in failure.message
        assert served.value("steps_total") == 0
        labels = await infer(channel, infer_request("wide", x, kind=tensor_pb2.OUTPUT_KIND_LABELS))
        assert tensors.decode(labels.outputs.labels).shape == (300,)


async def test_a_full_queue_refuses_at_once_with_retry_info_and_nothing_is_done(serve):
    async with serve(max_queue_steps=50) as served, open_channel(served.address) as channel:
        failure = await refused(infer(channel, infer_request("small", frames(30), frames(30))))
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after > 0
        assert served.value("rejected_total", reason="queue_full") == 1
        await assert_serves(served, channel)
