"""A connection that opens calls and resets them as fast as it can: memory stays, others are served, it is counted."""

import contextlib
import itertools
import time
import urllib.request

import grpc
import numpy as np
import psutil
import pytest
import seqloom
from helpers.raw_calls import infer_request
from helpers.raw_http2 import CANCEL, END_HEADERS, HEADERS, RST_STREAM, RawConnection, frame, header_block
from helpers.real_server import SMALL, open_channel, total, write_models
from prometheus_client.parser import text_string_to_metric_families
from seqloom.v1 import inference_service_pb2_grpc

INFER = header_block("/seqloom.v1.InferenceService/Infer")
X = [np.ones((3, 5), "f4")]


@pytest.fixture
def models(tmp_path):
    write_models(tmp_path / "models", {"small": SMALL})
    return tmp_path / "models"


def scrape(started):
    with urllib.request.urlopen(f"http://{started.http_address}/metrics") as reply:
        return list(text_string_to_metric_families(reply.read().decode()))


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_calls_that_are_reset_at_once_cost_no_memory_and_are_counted(server_process, models):
    started = server_process("--models", models, "--max-calls-per-connection", 100)
    process, streams = psutil.Process(started.process.pid), itertools.count(1, 2)

    def flood(raw, count):
        for _ in range(count // 2000):
            calls = itertools.islice(streams, 2000)
            raw.send(b"".join(frame(HEADERS, END_HEADERS, n, INFER) + frame(RST_STREAM, 0, n, CANCEL) for n in calls))
            assert len(client.infer("small", X, timeout=60).outputs[0]) == 3

    with seqloom.Client(started.address) as client, RawConnection(started.address) as raw:
        flood(raw, 10_000)
        before = process.memory_info().rss
        flood(raw, 40_000)
        assert process.memory_info().rss - before < 64 << 20, "without the bound it is four times as much"
        assert not raw.closed.is_set()
        families = scrape(started)
        assert total(families, "requests_total", model="small", code="OK") >= 25, "nobody else has lost anything"
        assert total(families, "calls_started_total") > 100, "those that were not refused, which came to no handler"
        assert total(families, "connections") == 2


def test_calls_beyond_the_bound_of_a_connection_are_refused_and_no_other_connections(server_process, models):
    started = server_process("--models", models, "--max-calls-per-connection", 10)
    with RawConnection(started.address) as raw, seqloom.Client(started.address) as client:
        assert len(client.infer("small", X).outputs[0]) == 3
        for number in range(1, 60, 2):
            raw.send(frame(HEADERS, END_HEADERS, number, INFER))
        while raw.counts.get(RST_STREAM, 0) < 20:
            assert not raw.closed.wait(0.01)
        assert len(client.infer("small", X).outputs[0]) == 3
    assert raw.counts[RST_STREAM] == 20


async def test_a_burst_of_more_calls_than_a_connection_may_have_is_answered_whole(serve):
    """Its client waits for places, and none is refused because the call before is not cleaned up yet."""
    async with serve(max_calls_per_connection=10) as served, open_channel(served.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        calls = [stub.Infer(infer_request("small", X[0]), timeout=60) for _ in range(500)]
        assert {await one.code() for one in calls} == {grpc.StatusCode.OK}


def test_calls_that_say_nothing_leave_room_for_other_addresses(server_process, models):
    started = server_process("--models", models, "--max-calls", 100)
    stream = header_block("/seqloom.v1.InferenceService/StreamInfer")
    with contextlib.ExitStack() as stack, seqloom.Client(started.address) as client:
        raws = [stack.enter_context(RawConnection(started.address, "127.0.0.2")) for _ in range(3)]
        for raw in raws:
            raw.send(b"".join(frame(HEADERS, END_HEADERS, number, stream) for number in range(1, 120, 2)))
        until(lambda: sum(raw.counts.get(HEADERS, 0) for raw in raws) == 90)  # refused: trailers, and no more
        for _ in range(3):
            assert len(client.infer("small", X).outputs[0]) == 3
        assert total(scrape(started), "rejected_total", reason="calls") == 90
    with RawConnection(started.address, "127.0.0.2") as raw:  # those that were open have ended with their connections
        raw.send(b"".join(frame(HEADERS, END_HEADERS, number, stream) for number in range(1, 40, 2)))
        raw.send(frame(HEADERS, END_HEADERS, 41, header_block("/none/None")))
        until(lambda: raw.counts.get(HEADERS, 0) >= 1)
    assert total(scrape(started), "rejected_total", reason="calls") == 90
