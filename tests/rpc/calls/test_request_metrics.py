"""Requests that ended are counted by method, model and code; a session is one, and what is gone leaves no series."""

from helpers.raw_calls import Sessions, assert_serves, entry, frames
from helpers.real_server import until
from seqloom.v1 import model_service_pb2, model_service_pb2_grpc

SESSION = "seqloom.v1.InferenceService/StreamInfer/session"


def counted(served, **labels):
    return {
        tuple(sample.labels[name] for name in ("method", "model", "code")): sample.value
        for metric in served.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "seqloom_requests_total" and labels.items() <= sample.labels.items()
    }


async def test_each_session_of_a_call_is_counted_by_how_it_ended(served, channel):
    sessions = Sessions(channel)
    await sessions.send(
        entry(1, frames(5), open="small", end=True),
        entry(2, frames(5, width=4), open="small", end=True),
        entry(3, frames(5), open="none-of-this-name", end=True),
        entry(4, open="small"),
    )
    await sessions.until_ended(1)
    await sessions.send(entry(4, cancel=True))
    await sessions.rest()
    assert counted(served, method=SESSION) == {
        (SESSION, "small", "OK"): 1,
        (SESSION, "small", "INVALID_ARGUMENT"): 1,
        (SESSION, "", "NOT_FOUND"): 1,
        (SESSION, "small", "CANCELLED"): 1,
    }


async def test_a_model_that_is_gone_leaves_no_series(served, channel):
    await assert_serves(served, channel)
    sessions = Sessions(channel)
    await sessions.open(1)
    await until(lambda: len(counted(served, model="small")) == 1)
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    await models.UnloadModel(model_service_pb2.UnloadModelRequest(name="small"))
    await sessions.send(entry(1, cancel=True))
    await sessions.rest()
    assert not [key for key in counted(served) if key[1] == "small"]
    text = "".join(str(sample.labels) for metric in served.metrics.registry.collect() for sample in metric.samples)
    assert "'small'" not in text
