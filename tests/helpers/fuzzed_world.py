"""A server in a process of its own for fuzzing: a neighbour's stream on it, what good calls need, and its memory."""

import collections
import itertools
import urllib.request
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import psutil
import seqloom
from google.protobuf.message import Message
from prometheus_client.parser import text_string_to_metric_families
from seqloom.v1 import model_service_pb2 as models
from seqloom.v1 import model_service_pb2_grpc, training_service_pb2_grpc
from seqloom.v1 import training_service_pb2 as training
from seqloom_server.nn.forward.network import Network

from helpers.frames import noise
from helpers.fuzzed_calls import Answer, FuzzedCall
from helpers.good_requests import MADE, MODEL, good_requests
from helpers.plain_twin import plain_outputs
from helpers.real_server import ServerProcess, total
from helpers.tolerances import near

NEIGHBOUR = "neighbour"
_CHUNK = 2  # frames of the neighbour
_PERIOD = 500  # chunks after which it begins again


class World:
    """The server and all about it. outcomes: by method, how often each code came back. run: one of MODEL.

    networks: by model, as in real_server. MODEL, MADE and NEIGHBOUR are served.
    """

    def __init__(self, started: ServerProcess, networks: Mapping[str, Network]) -> None:
        self.started = started
        self.channel = grpc.insecure_channel(started.address, [("grpc.use_local_subchannel_pool", 1)])
        self.outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.memory: list[int] = []
        self.run = self._spare = ""
        self._process = psutil.Process(started.process.pid)
        self._models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self._runs = training_service_pb2_grpc.TrainingServiceStub(self.channel)
        self._spec = self._models.GetModel(models.GetModelRequest(name=MODEL)).model.spec
        parts = list(self._models.ExportModel(models.ExportModelRequest(name=MODEL)))
        self._exported = parts[0].config, b"".join(part.weights for part in parts)
        self._clients = (f"client{number}" for number in itertools.count())
        self._x = noise(_CHUNK * _PERIOD, 5, 1, "f4")
        self._expected = plain_outputs(networks[NEIGHBOUR], self._x)[1]
        self._step = 0
        self._client = seqloom.Client(started.address)
        self._stream = self._client.stream(NEIGHBOUR)
        self._stream.__enter__()
        self.mend()

    def good(self) -> tuple[Mapping[str, Sequence[Sequence[Message]]], tuple[str, ...]]:
        """Good calls by method, of a client that has called nothing yet; and the names that mean something."""
        client = next(self._clients)
        good = good_requests(self.run, self._spare, client, self._exported)
        return good, (MODEL, MADE, NEIGHBOUR, self.run, client, "kept")

    def mend(self) -> None:
        """Puts back what calls have taken away: MODEL as it was, two runs of it, and no others."""
        served = {model.name: model for model in self._models.ListModels(models.ListModelsRequest()).models}
        if MADE not in served:
            self._models.LoadModel(models.LoadModelRequest(name=MADE))
        for name in served.keys() - {MODEL, MADE, NEIGHBOUR}:
            self._models.UnloadModel(models.UnloadModelRequest(name=name))
        if MODEL not in served or served[MODEL].spec != self._spec:
            if MODEL in served:
                self._models.UnloadModel(models.UnloadModelRequest(name=MODEL))
            config, weights = self._exported
            self._models.ImportModel(
                iter([models.ImportModelRequest(name=MODEL, config=config, weights=weights, parts=1)])
            )
        for run in self._runs.ListRuns(training.ListRunsRequest()).runs:
            self._runs.DeleteRun(training.DeleteRunRequest(run=run.id))
        optimizer = training.Optimizer(kind=training.OPTIMIZER_KIND_SGD, learning_rate=1e-3)
        creation = training.CreateRunRequest(model=MODEL, optimizer=optimizer)
        self.run, self._spare = (self._runs.CreateRun(creation).run.id for _ in range(2))
        good, _ = self.good()
        [forward], *_ = good["seqloom.v1.TrainingService/ForwardBackward"]  # so that there is something for a step
        self._runs.ForwardBackward(iter([forward]))
        saving = training.CallId(run=self.run, client=next(self._clients), number=1)
        self._runs.SaveCheckpoint(training.SaveCheckpointRequest(call=saving, name="kept"))

    def count(self, call: FuzzedCall, answer: Answer) -> None:
        self.outcomes[call.name][answer.code.name] += 1

    def neighbour_goes_on(self) -> None:
        """Fails if the neighbour's stream has other outputs than it has alone."""
        at = slice(self._step, self._step + _CHUNK)
        self._stream.send(self._x[at])
        np.testing.assert_allclose(self._stream.receive().outputs, self._expected[at], **near(rtol=1e-4, atol=1e-5))
        self._step += _CHUNK
        if self._step == len(self._x):
            self._step = 0
            self._stream.reset()

    def measure(self) -> None:
        self.memory.append(self._process.memory_info().rss)

    def metric(self, name: str, **labels: str) -> float:
        """The metric seqloom_NAME; see real_server.total()."""
        with urllib.request.urlopen(f"http://{self.started.http_address}/metrics") as reply:
            return total(text_string_to_metric_families(reply.read().decode()), name, **labels)

    def close(self) -> None:
        self._stream.__exit__(None, None, None)
        self._client.close()
        self.channel.close()


def good_of(calls: Mapping[str, Sequence[Sequence[Message]]]) -> list[tuple[str, list[Message]]]:
    """(method, messages) of each."""
    return [(name, list(messages)) for name, all_ in calls.items() for messages in all_]
