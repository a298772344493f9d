"""A good call of every method of every service, as fuzzing changes them: the messages that it sends."""

from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as inference
from seqloom.v1 import model_service_pb2 as models
from seqloom.v1 import tensor_pb2
from seqloom.v1 import training_service_pb2 as training

from helpers import raw_groups
from helpers.frames import noise
from helpers.raw_calls import entry

MODEL = "small"  # of 5 inputs, 7 units and 3 outputs
MADE = "made"  # which is unloaded again and again


def _batch(*lengths: int) -> tensor_pb2.SequenceBatch:
    return tensor_pb2.SequenceBatch(rows=tensors.encode(noise(sum(lengths), 5, 0, "f4")), lengths=lengths)


def _state(streams: int) -> tensor_pb2.State:
    return tensor_pb2.State(hidden=tensors.encode(np.full((1, streams, 7), 0.5, "f4")))


def _examples(*lengths: int) -> training.Examples:
    targets = tensors.encode(np.zeros(sum(lengths), "i4"))
    return training.Examples(sequences=_batch(*lengths), targets=targets, loss=training.LOSS_KIND_CROSS_ENTROPY)


def _cut(*lengths: int) -> training.Examples:
    """Examples whose last two rows are in the next part."""
    examples = _examples(*lengths)
    steps = sum(lengths) - 2
    examples.sequences.rows.CopyFrom(tensors.encode(noise(steps, 5, 0, "f4")))
    examples.targets.CopyFrom(tensors.encode(np.zeros(steps, "i4")))
    return examples


def _rows(steps: int) -> training.Examples:
    rows = tensor_pb2.SequenceBatch(rows=tensors.encode(noise(steps, 5, 1, "f4")))
    return training.Examples(sequences=rows, targets=tensors.encode(np.zeros(steps, "i4")))


def _brought(*lengths: int) -> training.Examples:
    """Examples whose output gradients are the caller's own."""
    gradients = tensors.encode(np.ones((sum(lengths), 3), "f4"))
    return training.Examples(sequences=_batch(*lengths), output_gradients=gradients, initial_state=_state(len(lengths)))


def _sessions() -> list[inference.StreamInferRequest]:
    x = noise(9, 5, 0, "f4")
    whole = inference.OpenSession(model=MODEL, whole_sequence=True, total_steps=9, timeout_seconds=5)
    live = inference.OpenSession(model=MODEL, initial_state=_state(1), snapshot_interval_steps=2, steps_per_second=1)
    return [
        inference.StreamInferRequest(entries=[entry(1, x[:4], open=live), entry(2, x, open=whole, end=True)]),
        inference.StreamInferRequest(entries=[entry(1, x[4:], reset=True)]),
        inference.StreamInferRequest(entries=[entry(3, x, open=MODEL), entry(3, cancel=True)]),
        inference.StreamInferRequest(entries=[entry(1, end=True)]),
    ]


def _groups(number: int) -> list[inference.StreamInferRequest]:
    x = np.stack([noise(6, 5, n, "f4") for n in range(4)])
    opening = raw_groups.opening(number, 4, MODEL, x[:, :2], snapshot_interval_steps=3)
    part = raw_groups.parts_of(number, x[:, 2:], [(0, 0, 2, 4), (2, 0, 2, 4)])
    parts = [np.full((1, 2, 7), 0.5, "f4")]
    some = raw_groups.call(number, x[:2, :1], streams=[1, 3], set=([1, 3], parts), get="all")
    messages = [[opening], part, [some], [raw_groups.call(number, reset=[0, 2])], [raw_groups.call(number, end=True)]]
    return [inference.StreamInferRequest(groups=groups) for groups in messages]


def good_requests(
    run: str, spare: str, client: str, exported: tuple[bytes, bytes]
) -> Mapping[str, Sequence[Sequence[Message]]]:
    """By method, SERVICE/METHOD, calls that a server does which serves MODEL.

    run: of MODEL. spare: another run, to be deleted. client: that has called nothing on it. exported: config.json and
    model.safetensors of MODEL.
    """
    call = training.CallId(run=run, client=client, number=1)
    second = training.CallId(run=run, client=client, number=2)
    config, weights = exported
    spec = models.ModelSpec(cell=models.CELL_TYPE_GRU, input_size=3, hidden_size=4, output_size=2, num_layers=1)
    gradients = training.ComputeGradientsRequest(model=MODEL, examples=_examples(4, 2), with_respect_to=[1, 2, 3, 4, 5])
    forward = training.ForwardBackwardRequest(call=call, examples=_examples(4, 2))
    first_gradients = training.ComputeGradientsRequest(model=MODEL, examples=_cut(4, 2), with_respect_to=[1])
    first = training.ForwardBackwardRequest(call=call, examples=_cut(4, 2))
    entries = [
        training.RunCall(entry=1, forward_backward=_last(forward)),
        training.RunCall(entry=2, optim_step=training.OptimStepRequest(call=second)),
    ]
    optimizer = training.Optimizer(
        kind=training.OPTIMIZER_KIND_ADAM, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8
    )
    by_service: dict[str, dict[str, Sequence[Sequence[Message]]]] = {
        "InferenceService": {
            "Infer": [
                [inference.InferRequest(model=MODEL, sequences=_batch(4, 1, 3))],
                [
                    inference.InferRequest(
                        model=MODEL, sequences=_batch(2), initial_state=_state(1), output={"kind": 6, "top_k": 2}
                    )
                ],
            ],
            "StreamInfer": [_sessions(), _groups(1), [*_sessions()[:2], *_groups(7)[:3]]],
        },
        "ModelService": {
            "ListModels": [[models.ListModelsRequest()]],
            "GetModel": [[models.GetModelRequest(name=MODEL)]],
            "CreateModel": [[models.CreateModelRequest(name=f"{MADE}-{client}", spec=spec, seed=3)]],
            "LoadModel": [[models.LoadModelRequest(name=MODEL)]],
            "UnloadModel": [[models.UnloadModelRequest(name=MADE)]],
            "ImportModel": [
                [
                    models.ImportModelRequest(name=MODEL, config=config),
                    models.ImportModelRequest(weights=weights[:100]),
                    models.ImportModelRequest(weights=weights[100:], parts=3),
                ],
            ],
            "ExportModel": [[models.ExportModelRequest(name=MODEL)]],
            "GetServerInfo": [[models.GetServerInfoRequest()]],
        },
        "TrainingService": {
            "ComputeGradients": [
                [_last(gradients)],
                [first_gradients, training.ComputeGradientsRequest(examples=_rows(2), parts=2)],
                [_last(training.ComputeGradientsRequest(model=MODEL, examples=_brought(4), with_respect_to=[1, 3]))],
            ],
            "CreateRun": [
                [training.CreateRunRequest(model=MODEL, optimizer=optimizer, clip_norm=1.0, request_id=client)]
            ],
            "GetRun": [[training.GetRunRequest(run=run, client=client)]],
            "ListRuns": [[training.ListRunsRequest()]],
            "DeleteRun": [[training.DeleteRunRequest(run=spare)]],
            "ForwardBackward": [[_last(forward)], [first, training.ForwardBackwardRequest(examples=_rows(2), parts=2)]],
            "RunCalls": [
                [training.RunCallsRequest(entries=entries)],
                [training.RunCallsRequest(entries=[one]) for one in entries],
            ],
            "OptimStep": [[training.OptimStepRequest(call=call, learning_rate=1e-3)]],
            "SaveCheckpoint": [[training.SaveCheckpointRequest(call=call, name="kept")]],
            "LoadCheckpoint": [[training.LoadCheckpointRequest(call=call, name="kept")]],
            "PublishRun": [[training.PublishRunRequest(call=call)]],
        },
    }
    others: dict[str, Sequence[Sequence[Message]]] = {
        "grpc.health.v1.Health/Check": [[health_pb2.HealthCheckRequest(service="seqloom.v1.InferenceService")]],
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": [
            [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="seqloom.v1.Tensor"),
            ]
        ],
    }
    ours = {
        f"seqloom.v1.{service}/{method}": calls
        for service, methods in by_service.items()
        for method, calls in methods.items()
    }
    return {**ours, **others}


def _last(message):
    """The only part of a call."""
    copy = type(message).FromString(message.SerializeToString())
    copy.parts = 1
    return copy
