"""A server whose process may have no more memory: what does not fit is halved or OVERLOADED, and all else goes on."""

import asyncio
import resource
import urllib.request

import numpy as np
import psutil
import pytest
import seqloom
from helpers.frames import noise
from helpers.raw_calls import infer_request
from helpers.real_server import open_channel, total, write_models
from helpers.tolerances import near
from prometheus_client.parser import text_string_to_metric_families
from seqloom import tensors
from seqloom.v1 import inference_service_pb2_grpc, tensor_pb2
from seqloom_server.nn.spec import ModelSpec

STEPS = 30_000  # of which a slice needs 120 MB for the gates alone, half of it in bf16, and a batch of training 500
ROOMS = {"full": 100 << 20, "bf16": 50 << 20}

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")


def limit_memory(pid, room):
    """Lets the process map so many bytes more than it has."""
    soft = resource.RLIM_INFINITY if room is None else psutil.Process(pid).memory_info().vms + room
    resource.prlimit(pid, resource.RLIMIT_AS, (soft, resource.RLIM_INFINITY))


def metric(address, name, **labels):
    with urllib.request.urlopen(f"http://{address}/metrics") as reply:
        return total(text_string_to_metric_families(reply.read().decode()), name, **labels)


async def hidden_of(channel, xs):
    """The last hidden states of whole sequences, in one message, so that one slice has all of them."""
    request = infer_request("m", *xs, kind=tensor_pb2.OUTPUT_KIND_LABELS)
    reply = await inference_service_pb2_grpc.InferenceServiceStub(channel).Infer(request, timeout=300)
    return tensors.decode(reply.final_state.hidden)


@pytest.mark.parametrize("precision", ROOMS)
async def test_a_server_without_memory_refuses_what_does_not_fit_and_serves_the_rest(
    server_process, tmp_path, precision
):
    write_models(tmp_path, {"m": ModelSpec("lstm", 16, 256, 8, precision=precision)})
    started = await asyncio.to_thread(
        server_process, "--models", tmp_path, "--bulk-slice-ms", "9000", "--max-queue-seconds", "600"
    )
    few = noise(20, seed=1, width=16, dtype="f4")
    many = [noise(STEPS // 16, seed=seed, width=16, dtype="f4") for seed in range(16)]
    x, labels = np.concatenate(many), np.zeros(STEPS, np.int64)
    async with (
        open_channel(started.address) as channel,
        seqloom.AsyncClient(started.address, timeout=600, retries=0) as client,
    ):
        wanted = await hidden_of(channel, many)
        some = (await client.infer("m", [few])).outputs[0]
        own = await client.gradients("m", [few], [labels[:20]])
        limit_memory(started.process.pid, ROOMS[precision])
        for _ in range(8):  # more than the failures in a row that are a dead device
            with pytest.raises(seqloom.Overloaded) as refused:
                await client.gradients("m", [x], [labels])
            assert refused.value.retry_after > 0
            assert "memory" in refused.value.message
        np.testing.assert_allclose((await client.gradients("m", [few], [labels[:20]])).loss, own.loss, rtol=1e-5)
        np.testing.assert_allclose((await client.infer("m", [few])).outputs[0], some, **near(rtol=1e-4, atol=1e-4))
        np.testing.assert_allclose(await hidden_of(channel, many), wanted, **near(rtol=1e-4, atol=1e-4))
        limit_memory(started.process.pid, None)
        assert np.isfinite((await client.gradients("m", [x], [labels])).loss)
    assert [line for line in started.stderr if "no memory for a slice of 16 sequences" in line], started.stderr
    assert await asyncio.to_thread(metric, started.http_address, "rejected_total", reason="memory") == 8
    assert started.process.poll() is None
