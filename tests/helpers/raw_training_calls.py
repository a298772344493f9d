"""Raw training calls on the generated stubs: examples, gradients and runs, with numpy in and out."""

import itertools

import numpy as np
from seqloom import tensors
from seqloom.v1 import tensor_pb2, training_service_pb2_grpc
from seqloom.v1 import training_service_pb2 as pb

from helpers.raw_calls import frames

SGD = pb.Optimizer(kind=pb.OPTIMIZER_KIND_SGD, learning_rate=0.1)
ADAM = pb.Optimizer(kind=pb.OPTIMIZER_KIND_ADAM, learning_rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8)


def labels(steps, classes=3, seed=0):
    """int32 [steps]."""
    return np.random.default_rng(seed).integers(0, classes, steps).astype("i4")


def encoded(xs):
    return tensor_pb2.SequenceBatch(rows=tensors.encode(np.concatenate(xs)), lengths=[len(x) for x in xs])


def examples(xs=None, targets=None, loss=pb.LOSS_KIND_CROSS_ENTROPY, **more):
    """Examples of the model "small": by default two sequences with a label for each step."""
    xs = [frames(9, seed=1), frames(4)] if xs is None else xs
    targets = labels(sum(map(len, xs))) if targets is None else targets
    return pb.Examples(sequences=encoded(xs), targets=tensors.encode(targets), loss=loss, **more)


def stub(channel):
    return training_service_pb2_grpc.TrainingServiceStub(channel)


class Gradients:
    """A reply put together: summary, and arrays by (role, name)."""

    def __init__(self, parts):
        self.parts = parts
        self.summary = parts[0].summary
        data, start, self.arrays, self.in_order = b"".join(part.data for part in parts), 0, {}, []
        for tensor in self.summary.tensors:
            size = tensors.stored_bytes(tensor.data_type, tensor.shape)
            array = tensors.from_bytes(tensor.data_type, tensor.shape, data[start : start + size])
            self.arrays[tensor.role, tensor.name] = array
            self.in_order.append(array)
            start += size
        assert start == len(data)

    def parameters(self):
        """Gradients by parameter, whatever form they came in."""
        found = {name: array for (role, name), array in self.arrays.items() if role == pb.GRADIENT_ROLE_PARAMETER}
        for product in self.summary.products:
            left = self.in_order[product.left]
            whole = left.sum(0) if product.sum_of_rows else left.T @ self.in_order[product.right]
            found[product.parameter] = whole.reshape(tuple(product.shape))
        return found


def in_parts(*messages):
    """The messages of one request, the last of which says how many they are."""
    messages[-1].parts = len(messages)
    return iter(messages)


async def gradients(channel, *parts, wrt=(pb.WITH_RESPECT_TO_PARAMETERS,), model="small", **more):
    """parts: Examples, the first of which goes with everything else."""
    first, *others = parts or (examples(),)
    messages = [
        pb.ComputeGradientsRequest(model=model, examples=first, with_respect_to=wrt, **more),
        *(pb.ComputeGradientsRequest(examples=part) for part in others),
    ]
    call = stub(channel).ComputeGradients(in_parts(*messages), timeout=30)
    return Gradients([part async for part in call])


class Client:
    """One client of one run: it numbers its calls, or sends the number that it is told to."""

    def __init__(self, channel, run, name="ann"):
        self.stub, self.run, self.name = stub(channel), run, name
        self._numbers = itertools.count(1)

    def id(self, number=None, **more):
        return pb.CallId(run=self.run, client=self.name, number=number or next(self._numbers), **more)

    async def forward_backward(self, batch=None, *, number=None, step=0):
        batch = examples() if batch is None else batch
        request = pb.ForwardBackwardRequest(call=self.id(number, step=step), examples=batch)
        return await self.stub.ForwardBackward(in_parts(request), timeout=30)

    async def step(self, *, number=None, step=0, **more):
        return await self.stub.OptimStep(pb.OptimStepRequest(call=self.id(number, step=step), **more), timeout=30)

    async def save(self, name="", *, number=None):
        return await self.stub.SaveCheckpoint(pb.SaveCheckpointRequest(call=self.id(number), name=name), timeout=30)

    async def load(self, name, *, number=None):
        return await self.stub.LoadCheckpoint(pb.LoadCheckpointRequest(call=self.id(number), name=name), timeout=30)

    async def publish(self, *, number=None):
        return await self.stub.PublishRun(pb.PublishRunRequest(call=self.id(number)), timeout=30)

    async def get(self):
        return (await self.stub.GetRun(pb.GetRunRequest(run=self.run, client=self.name), timeout=30)).run


async def create_run(channel, optimizer=SGD, model="small", **more):
    """Returns the run's message."""
    request = pb.CreateRunRequest(model=model, optimizer=optimizer, **more)
    return (await stub(channel).CreateRun(request, timeout=30)).run
