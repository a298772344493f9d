"""Every training call that cannot be: refused in words that name the field; nothing changes, and good ones go on."""

import math

import numpy as np
import pytest
from helpers.raw_calls import assert_serves, frames, refused
from helpers.raw_training_calls import SGD, Client, create_run, encoded, examples, gradients, labels, stub
from helpers.real_server import open_channel
from seqloom import tensors
from seqloom.v1 import model_service_pb2, model_service_pb2_grpc, tensor_pb2
from seqloom.v1 import training_service_pb2 as pb
from seqloom_server.nn.spec import ModelSpec

NAN = np.array([[0, 1, 2, 3, math.nan]], "f4")
CTC = pb.LOSS_KIND_CTC
MSE = pb.LOSS_KIND_MSE


def state(*shape):
    return tensor_pb2.State(hidden=tensors.encode(np.zeros(shape, "f4")))


WRONG = [
    ("no sequences", pb.Examples(loss=1), "examples.sequences.rows"),
    ("an empty batch", examples([frames(0)], labels(0)), "examples.sequences.lengths"),
    ("a target too few", examples(targets=labels(12)), "examples.targets"),
    ("a target too many", examples(targets=labels(14)), "examples.targets"),
    ("a label beyond the classes", examples(targets=np.full(13, 3, "i4")), "examples.targets"),
    ("a label below 0", examples(targets=np.full(13, -1, "i4")), "examples.targets"),
    ("labels that are no integers", examples(targets=np.zeros(13, "f4")), "examples.targets"),
    ("labels as a matrix", examples(targets=np.zeros((13, 1), "i4")), "examples.targets"),
    ("NaN in the inputs", examples([NAN], labels(1)), "examples.sequences.rows"),
    ("NaN in the targets", examples([frames(1)], np.full((1, 3), np.nan, "f4"), MSE), "examples.targets"),
    ("targets of another width", examples([frames(2)], np.zeros((2, 4), "f4"), MSE), "examples.targets"),
    ("targets of another type", examples([frames(2)], np.zeros((2, 3), "f8"), MSE), "examples.targets"),
    ("inputs of another width", examples([frames(2, 4)], labels(2)), "examples.sequences.rows"),
    ("more labels than steps", examples([frames(3)], labels(4) * 0 + 1, CTC, target_lengths=[4]), "examples.targets"),
    (
        "repeats without a step between them",
        examples([frames(3)], np.array([1, 1], "i4"), CTC, target_lengths=[2]),
        None,  # it fits: 2 labels and 1 repeat in 3 steps
    ),
    (
        "repeats that do not fit",
        examples([frames(2)], np.array([1, 1], "i4"), CTC, target_lengths=[2]),
        "examples.targets",
    ),
    ("the blank as a label", examples([frames(3)], np.array([0], "i4"), CTC, target_lengths=[1]), "examples.targets"),
    ("no lengths of the labels", examples([frames(3)], np.array([1], "i4"), CTC), "examples.target_lengths"),
    (
        "lengths of labels below 0",
        examples([frames(3), frames(3)], np.array([1], "i4"), CTC, target_lengths=[2, -1]),
        "examples.target_lengths",
    ),
    ("lengths of labels without ctc", examples(target_lengths=[9, 4]), "examples.target_lengths"),
    ("no targets", pb.Examples(sequences=encoded([frames(3)]), loss=1), "examples.targets"),
    ("neither targets nor gradients", pb.Examples(sequences=encoded([frames(3)])), "examples.targets"),
    (
        "targets and gradients",
        examples(output_gradients=tensors.encode(np.zeros((13, 3), "f4"))),
        "examples.output_gradients",
    ),
    (
        "gradients of another length",
        pb.Examples(sequences=encoded([frames(3)]), output_gradients=tensors.encode(np.zeros((4, 3), "f4"))),
        "examples.output_gradients",
    ),
    ("a loss that is none", examples(loss=99), "examples.loss"),
    ("no loss for the targets", examples(loss=0), "examples.loss"),
    ("a divisor below 0", examples(divisor=-1), "examples.divisor"),
    ("a divisor that is no number", examples(divisor=math.nan), "examples.divisor"),
    ("a state of another shape", examples(initial_state=state(1, 1, 7)), "examples.initial_state.hidden"),
    (
        "a gradient of another shape",
        examples(final_state_gradient=state(2, 2, 7)),
        "examples.final_state_gradient.hidden",
    ),
]


@pytest.mark.parametrize(("batch", "field"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
async def test_a_wrong_call_names_its_field_and_changes_nothing(served, channel, batch, field):
    run = await create_run(channel)
    client = Client(channel, run.id)
    await client.forward_backward()
    if field is None:
        await gradients(channel, batch)
        await client.forward_backward(batch)
    else:
        for call in (gradients(channel, batch), client.forward_backward(batch)):
            failure = await refused(call)
            assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD"), failure
            assert failure.fields == [field]
            assert failure.message.startswith(f"{field}: ")
    assert (await client.get()).accumulated_calls == (1 if field else 2)
    assert (await client.step()).step == 1
    await assert_serves(served, channel)


@pytest.mark.parametrize("loss", ["CROSS_ENTROPY", "CTC"])
async def test_a_loss_that_one_output_cannot_have_is_refused(serve, loss):
    async with serve({"small": ModelSpec("gru", 5, 4, 1)}) as served, open_channel(served.address) as channel:
        batch = examples(
            [frames(4)], np.zeros(4, "i4"), getattr(pb, f"LOSS_KIND_{loss}"), target_lengths=[4] * (loss == "CTC")
        )
        failure = await refused(gradients(channel, batch))
        assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ["examples.loss"])
        assert f"is {loss.lower()}: the model has one output" in failure.message
        mse = examples([frames(4)], np.zeros((4, 1), "f4"), pb.LOSS_KIND_MSE)
        assert (await gradients(channel, mse)).summary.loss > 0


async def test_a_later_part_carries_rows_and_nothing_else(served, channel):
    failure = await refused(gradients(channel, examples(), pb.Examples(divisor=2)))
    assert failure.reason == "INVALID_FIELD"
    failure = await refused(gradients(channel, examples(), examples()))
    assert failure.reason == "INVALID_FIELD"
    failure = await refused(stub(channel).ForwardBackward(iter(()), timeout=30))
    assert failure.fields == ["examples"]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"wrt": [77]}, "with_respect_to"),
        ({"parameter_form": 9}, "parameter_form"),
        ({"parameter_data_type": tensor_pb2.DATA_TYPE_INT32}, "parameter_data_type"),
    ],
)
async def test_what_is_asked_for_must_exist(served, channel, more, field):
    assert (await refused(gradients(channel, **more))).fields == [field]


async def test_unknown_models_and_versions(served, channel):
    assert (await refused(gradients(channel, model="other"))).reason == "MODEL_NOT_FOUND"
    assert (await refused(create_run(channel, model="other"))).reason == "MODEL_NOT_FOUND"
    failure = await refused(gradients(channel, weights_version=7))
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "VERSION_MISMATCH")
    assert (await refused(create_run(channel, weights_version=7))).reason == "VERSION_MISMATCH"


async def test_a_call_beyond_the_limits_names_them(serve):
    limits = {"max_training_bytes": 1 << 16, "max_training_steps": 50, "max_sequences_per_request": 4}
    async with serve(**limits) as served, open_channel(served.address) as channel:
        failure = await refused(gradients(channel, examples([frames(51)])))
        assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "OVER_LIMIT")
        assert "50" in failure.message
        failure = await refused(gradients(channel, examples([frames(2)] * 5)))
        assert failure.reason == "OVER_LIMIT"
        failure = await refused(gradients(channel, examples([frames(4000)])))
        assert failure.reason == "OVER_LIMIT"
        assert "65536" in failure.message
        await assert_serves(served, channel)


@pytest.mark.parametrize(
    ("optimizer", "field"),
    [
        (pb.Optimizer(), "optimizer.kind"),
        (pb.Optimizer(kind=1), "optimizer.learning_rate"),
        (pb.Optimizer(kind=1, learning_rate=-1), "optimizer.learning_rate"),
        (pb.Optimizer(kind=1, learning_rate=math.inf), "optimizer.learning_rate"),
        (pb.Optimizer(kind=1, learning_rate=math.nan), "optimizer.learning_rate"),
        (pb.Optimizer(kind=1, learning_rate=0.1, momentum=1), "optimizer.momentum"),
        (pb.Optimizer(kind=2, learning_rate=0.1, beta1=1, beta2=0.9, epsilon=1e-8), "optimizer.beta1"),
        (pb.Optimizer(kind=3, learning_rate=0.1, beta1=0.9, beta2=2, epsilon=1e-8), "optimizer.beta2"),
        (pb.Optimizer(kind=2, learning_rate=0.1, beta1=0.9, beta2=0.9), "optimizer.epsilon"),
        (pb.Optimizer(kind=1, learning_rate=0.1, weight_decay=-1), "optimizer.weight_decay"),
    ],
)
async def test_an_optimizer_that_cannot_be(served, channel, optimizer, field):
    failure = await refused(create_run(channel, optimizer))
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", [field])


@pytest.mark.parametrize("clip_norm", [-1, math.nan, math.inf])
async def test_a_norm_that_cannot_be(served, channel, clip_norm):
    assert (await refused(create_run(channel, clip_norm=clip_norm))).fields == ["clip_norm"]


async def test_a_step_needs_a_gradient_and_a_rate_that_is_finite_and_positive(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    failure = await refused(client.step())
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "NOTHING_ACCUMULATED")
    await client.forward_backward()
    for rate in (-0.1, math.nan, math.inf):
        assert (await refused(client.step(number=3, learning_rate=rate))).fields == ["learning_rate"]
    failure = await refused(client.step(expected_step=5))
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "STEP_MISMATCH")
    assert "5" in failure.message
    assert "1" in failure.message
    assert (await client.step(expected_step=1)).step == 1


async def test_unknown_runs_and_calls_that_cannot_be(served, channel):
    client = Client(channel, "run-0")
    for call in (
        client.forward_backward(),
        client.step(),
        client.save(),
        client.load("a"),
        client.publish(),
        client.get(),
    ):
        failure = await refused(call)
        assert (failure.code, failure.reason, failure.fields) == ("NOT_FOUND", "RUN_NOT_FOUND", ["run"])
    run = await create_run(channel)
    for name in ("", "a b", "x" * 65, "../x"):
        assert (await refused(Client(channel, run.id, name).step(number=1))).fields == ["call.client"]
    request = pb.OptimStepRequest(call=pb.CallId(run=run.id, client="ann"))
    assert (await refused(stub(channel).OptimStep(request, timeout=30))).fields == ["call.number"]


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../a", "A", "a b", "x" * 65, ".a"])
async def test_a_checkpoints_name_leads_nowhere_else(served, channel, name):
    client = Client(channel, (await create_run(channel)).id)
    for call in (client.save(name, number=1), client.load(name, number=1)):
        failure = await refused(call)
        assert (failure.code, failure.reason, failure.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["name"])
    assert (await client.get()).checkpoints == []


async def test_a_checkpoint_that_is_not_there(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    failure = await refused(client.load("first"))
    assert (failure.code, failure.reason) == ("NOT_FOUND", "CHECKPOINT_NOT_FOUND")
    await client.forward_backward()
    await client.step()


async def test_a_loss_that_overflows_is_named_and_the_accumulator_is_as_before(served, channel):
    client = Client(channel, (await create_run(channel, SGD)).id)
    await client.forward_backward()
    huge = examples([frames(2)], np.full((2, 3), 3e38, "f4"), MSE)
    failure = await refused(client.forward_backward(huge))
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "OVERFLOW")
    assert "loss" in failure.message
    assert (await refused(gradients(channel, huge))).reason == "OVERFLOW"
    alone = Client(channel, (await create_run(channel, SGD)).id)
    await alone.forward_backward()
    assert (await client.step()).gradient_norm == (await alone.step()).gradient_norm


async def test_a_run_whose_model_is_gone_trains_on_and_cannot_be_published(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    await models.UnloadModel(model_service_pb2.UnloadModelRequest(name="small"))
    await client.forward_backward()
    assert (await client.step()).step == 1
    failure = await refused(client.publish())
    assert (failure.code, failure.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    await client.forward_backward()
    assert (await client.step()).step == 2
