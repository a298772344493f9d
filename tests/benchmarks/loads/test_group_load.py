"""The load of a stream group: what its streams say, that its echo is of as many bytes, what stands beside it."""

import asyncio
import itertools
import shutil

import numpy as np
import pytest
import seqloom
from helpers.pages import ROOT

from benchmarks.baselines.network_alone import Network
from benchmarks.harness.child_process import program
from benchmarks.loads import group_load

SPEC = {"cell": "gru", "input_size": 40, "hidden_size": 24, "output_size": 14}


def test_each_stream_goes_on_from_a_chunk_of_its_own():
    chunks = list(np.arange(30, dtype="f4").reshape(15, 1, 2))
    moments = group_load.frames_of(chunks, 4)
    assert all(frames.shape == (4, 1, 2) for frames in moments)
    for stream in range(4):
        said = [int(frames[stream, 0, 0]) // 2 for frames in moments]
        assert said[0] == 7 * stream % 15
        assert all((after - before) % 15 == 1 for before, after in itertools.pairwise(said))


def test_a_closed_loop_counts_a_frame_of_each_stream_and_the_echo_answers_with_a_label_for_each():
    frames = group_load.frames_of([np.zeros((1, 40), "f4")], 5)

    async def both(address: str) -> dict[str, float]:
        async with group_load.echoing(address, frames) as exchange:
            return await group_load.closed_loop(exchange, frames, 0.05)

    with program("baselines.grpc_echo") as echo:
        result = asyncio.run(both(echo.greeting[0]))
    assert result["frames_per_second"] == pytest.approx(5 * result["answers_per_second"])


async def test_in_real_time_there_is_a_message_every_10_ms_and_none_is_dropped(server_process, tmp_path):
    shutil.copytree(ROOT / "examples" / "models", tmp_path / "models")
    frames = group_load.frames_of([np.zeros((1, 40), "f4")], 6)
    async with seqloom.AsyncClient(server_process("--models", tmp_path / "models").address) as client:
        result = await group_load.real_time(client, "digits", frames, 6, 0.5)
    assert (result["streams"], result["dropped"]) == (6, 0)
    assert result["frames_per_second"] <= 6 * 100 * 50 / 49 + 1
    assert 0 < result["p50_ms"] <= result["p99_ms"]


def test_the_network_alone_keeps_the_states_of_its_streams():
    network = Network("cpu", seqloom.ModelSpec(**SPEC))
    spoken = np.random.default_rng(0).normal(size=(3, 8, 40)).astype("f4")
    state, found = None, []
    for step in range(8):
        labels, state = network.step(spoken[:, step], state)
        found.append(labels)
    whole = network.labels(list(spoken))
    np.testing.assert_array_equal(np.array(found).T, whole)
