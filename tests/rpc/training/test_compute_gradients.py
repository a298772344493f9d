"""ComputeGradients over a real channel: every gradient against autograd, parts, forms, bfloat16, company."""

import asyncio

import numpy as np
import pytest
import torch
from helpers.raw_calls import assert_serves, frames
from helpers.raw_training_calls import examples, gradients, labels
from helpers.real_server import ModelSpec, open_channel, until
from seqloom import tensors
from seqloom.v1 import tensor_pb2
from seqloom.v1 import training_service_pb2 as pb

EVERYTHING = (
    pb.WITH_RESPECT_TO_PARAMETERS,
    pb.WITH_RESPECT_TO_INPUTS,
    pb.WITH_RESPECT_TO_INITIAL_STATE,
    pb.WITH_RESPECT_TO_OUTPUTS,
    pb.WITH_RESPECT_TO_HIDDEN,
)


def reference(network, xs, ys, scale=1.0):
    """Float64 autograd, one sequence after the other: (losses, parameters, inputs, outputs, initial states)."""
    parameters = {name: tensor.double().requires_grad_() for name, tensor in network.parameters().items()}
    rnn = torch.nn.RNN(network.spec.input_size, network.spec.hidden_size).double()
    losses, inputs, outputs, states = [], [], [], []
    for x, y in zip(xs, ys, strict=True):
        given = torch.from_numpy(x.astype(float)).requires_grad_()
        start = torch.zeros(1, network.spec.hidden_size, dtype=torch.float64, requires_grad=True)
        weights = {name.removeprefix("rnn."): p for name, p in parameters.items() if name.startswith("rnn.")}
        hidden, _ = torch.func.functional_call(rnn, weights, (given, start))
        logits = hidden @ parameters["output.weight"].t() + parameters["output.bias"]
        logits.retain_grad()
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y).long(), reduction="sum") * scale
        loss.backward()
        losses.append(loss.item())
        inputs.append(given.grad.numpy())
        outputs.append(logits.grad.numpy())
        states.append(start.grad.numpy())
    return losses, {name: p.grad.numpy() for name, p in parameters.items()}, inputs, outputs, states


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", [pb.PARAMETER_FORM_SMALLEST, pb.PARAMETER_FORM_DENSE])
async def test_every_gradient_is_that_of_autograd(served, channel, form):
    xs, ys = [frames(9, seed=1), frames(4)], [labels(9), labels(4, seed=1)]
    reply = await gradients(channel, examples(xs, np.concatenate(ys), divisor=13), wrt=EVERYTHING, parameter_form=form)
    losses, parameters, inputs, outputs, states = reference(served.networks["small"], xs, ys, 1 / 13)
    close(reply.summary.losses, losses)
    close(reply.summary.loss, sum(losses))
    assert reply.parameters().keys() == parameters.keys()
    for name, wanted in parameters.items():
        close(reply.parameters()[name], wanted)
    close(reply.arrays[pb.GRADIENT_ROLE_INPUTS, ""], np.concatenate(inputs))
    close(reply.arrays[pb.GRADIENT_ROLE_OUTPUTS, ""], np.concatenate(outputs))
    close(reply.arrays[pb.GRADIENT_ROLE_INITIAL_STATE, "hidden"], np.stack(states, 1))
    final = [served.expected("small", x)[1][0] for x in xs]
    close(reply.arrays[pb.GRADIENT_ROLE_FINAL_STATE, "hidden"], np.concatenate(final, 1))
    assert reply.summary.weights_version == 1
    assert reply.summary.timing.compute_seconds > 0


async def test_a_call_in_parts_is_the_call_as_a_whole(served, channel):
    xs, ys = [frames(9, seed=1), frames(4)], labels(13)
    rows = np.concatenate(xs)
    whole = await gradients(channel, examples(xs, ys), wrt=EVERYTHING)
    first = examples(xs, ys[:3])
    first.sequences.rows.CopyFrom(tensors.encode(rows[:2]))
    rest = [
        pb.Examples(sequences=tensor_pb2.SequenceBatch(rows=tensors.encode(rows[a:b])), targets=tensors.encode(ys[c:d]))
        for a, b, c, d in ((2, 5, 3, 3), (5, 13, 3, 13))
    ]
    parts = await gradients(channel, first, *rest, wrt=EVERYTHING)
    for one, other in zip(whole.in_order, parts.in_order, strict=True):
        np.testing.assert_array_equal(one, other)


async def test_a_reply_comes_in_parts_of_bounded_size(serve):
    large = ModelSpec(cell="elman", input_size=5, hidden_size=64, output_size=3)
    async with (
        serve({"small": large}, max_stream_message_bytes=1 << 12) as served,
        open_channel(served.address) as channel,
    ):
        reply = await gradients(channel, wrt=EVERYTHING, parameter_form=pb.PARAMETER_FORM_DENSE)
        assert len(reply.parts) > 4
        assert all(part.ByteSize() <= (1 << 12) + 64 for part in reply.parts)
        assert not any(part.HasField("summary") for part in reply.parts[1:])
        ys = labels(13)
        wanted = reference(served.networks["small"], [frames(9, seed=1), frames(4)], [ys[:9], ys[9:]])[1]
        for name, gradient in wanted.items():
            close(reply.parameters()[name], gradient)


async def test_factors_come_when_they_are_smaller_and_each_once(serve):
    large = ModelSpec(cell="elman", input_size=40, hidden_size=200, output_size=500)
    async with serve({"small": large}) as served, open_channel(served.address) as channel:
        short = [frames(6, 40)]
        reply = await gradients(channel, examples(short, labels(6)))
        roles = [tensor.role for tensor in reply.summary.tensors]
        assert pb.GRADIENT_ROLE_PARAMETER not in roles
        assert {product.parameter for product in reply.summary.products} == set(large.parameter_shapes())
        size = sum(len(part.data) for part in reply.parts)
        assert size < 4 * large.parameter_count / 8
        wanted = reference(served.networks["small"], short, [labels(6)])[1]
        for name, gradient in wanted.items():
            close(reply.parameters()[name], gradient)
        long = await gradients(channel, examples([frames(400, 40)], labels(400)))
        assert not long.summary.products


async def test_norms_alone_and_half_the_bytes(served, channel):
    dense = (await gradients(channel, parameter_form=pb.PARAMETER_FORM_DENSE)).parameters()
    norms = await gradients(channel, parameter_form=pb.PARAMETER_FORM_NORMS)
    assert norms.summary.norms.keys() == dense.keys()
    for name, gradient in dense.items():
        close(norms.summary.norms[name], np.linalg.norm(gradient))
    assert not any(tensor.role == pb.GRADIENT_ROLE_PARAMETER for tensor in norms.summary.tensors)
    half = await gradients(
        channel, parameter_form=pb.PARAMETER_FORM_DENSE, parameter_data_type=tensor_pb2.DATA_TYPE_BFLOAT16
    )
    for name, gradient in dense.items():
        np.testing.assert_allclose(half.parameters()[name], gradient, rtol=2**-8)


async def test_calls_that_come_while_the_device_is_busy_share_a_pass_and_get_each_its_own(served, channel):
    batches = [([frames(3 + n, seed=n)], labels(3 + n, seed=n)) for n in range(24)]
    long = asyncio.ensure_future(gradients(channel, examples([frames(20_000)], labels(20_000))))
    await until(lambda: served.engine._scheduler.training._active is not None)
    replies = await asyncio.gather(*(gradients(channel, examples(xs, ys), wrt=EVERYTHING) for xs, ys in batches))
    await long
    assert served.value("batch_sequences_count", op="train") <= 3
    for (xs, ys), reply in zip(batches, replies, strict=True):
        losses, parameters, inputs, *_ = reference(served.networks["small"], xs, [ys])
        close(reply.summary.losses, losses)
        close(reply.arrays[pb.GRADIENT_ROLE_INPUTS, ""], inputs[0])
        for name, wanted in parameters.items():
            close(reply.parameters()[name], wanted)
    steps = sum(len(ys) for _, ys in batches)
    assert served.value("steps_total", op="train") == 20_000 + steps
    await assert_serves(served, channel)
