"""Torch's threads go by the size of the network, whichever ran before and wherever it was loaded; one team stays."""

import asyncio
import contextlib
import gc
import os
import pathlib
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from helpers.engine_helpers import feed, make_frames, open_sequence, running_engine
from helpers.specs import make_spec
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.nn.cpu_threads import CORES, compute_alone, in_passing_thread, set_threads
from seqloom_server.nn.forward.network import Network

SMALL, LARGE = make_spec(), make_spec(sizes=(3, 800, 5))


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


async def test_a_large_network_gets_all_cores_also_when_a_small_one_has_run(tmp_path):
    async with running_engine(tmp_path, SMALL, threads=0) as engine:
        sequence, sink = open_sequence(engine)
        feed(engine, sequence, *make_frames(SMALL, 5), end=True)
        await sink.wait()
    made = []
    thread = threading.Thread(target=lambda: made.append(ServedWeights("m", 1, Network.create(LARGE, 0))))
    thread.start()
    thread.join()
    assert made[0].threads == CORES
    assert ServedWeights("m", 1, Network.create(SMALL, 0)).threads == 1


async def test_no_lasting_thread_but_the_device_s_computes_in_parallel(tmp_path):
    async with running_engine(tmp_path, LARGE, threads=2) as engine:
        sequence, sink = open_sequence(engine)
        feed(engine, sequence, *make_frames(LARGE, 5), end=True)
        await sink.wait()
        together = threading.Barrier(4)  # so that there are as many worker threads

        def count():
            together.wait()
            return torch.get_num_threads()

        workers = await asyncio.gather(*(asyncio.to_thread(count) for _ in range(4)))
        assert workers == [1] * 4
        assert torch.get_num_threads() == 1  # the event loop's


_LOADING = """
import asyncio, os, pathlib, sys, threading, time, torch
from helpers.engine_helpers import feed, make_frames, open_sequence, running_engine
from helpers.specs import make_spec

LARGE = make_spec(sizes=(3, 800, 5))

def of_libraries():
    return len(os.listdir("/proc/self/task")) - threading.active_count()

async def run(folder):
    async with running_engine(folder, LARGE, threads=2) as engine:
        sequence, sink = open_sequence(engine)
        feed(engine, sequence, *make_frames(LARGE, 5), end=True)
        await sink.wait()
        before = of_libraries()
        await asyncio.gather(*(engine.registry.create(f"more{number}", LARGE, seed=number) for number in range(3)))
        await asyncio.gather(*(asyncio.to_thread(torch.tanh, torch.ones(2**20)) for _ in range(8)))
        deadline = time.monotonic() + 20
        while of_libraries() > before and time.monotonic() < deadline:  # a team ends a moment after its thread
            await asyncio.sleep(0.05)
        print(before, of_libraries())

asyncio.run(run(pathlib.Path(sys.argv[1])))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="threads of libraries are counted on Linux")
def test_loading_models_leaves_no_team_of_openmp_behind(tmp_path):
    """In a process of its own: other tests have teams."""
    command = [sys.executable, "-c", _LOADING, str(tmp_path)]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, timeout=300, check=True
    )
    before, after = map(int, done.stdout.split())
    assert 0 < after <= before


async def test_a_thread_s_count_stays_whoever_sets_another_before_it_computes(tmp_path):
    """Torch's own call does not hold in a thread that has not computed yet."""
    async with running_engine(tmp_path, SMALL, threads=1):
        together = threading.Barrier(4)
        await asyncio.gather(*(asyncio.to_thread(together.wait) for _ in range(4)))  # their first work: no product
        in_passing_thread(2, torch.get_num_threads)

        def count():
            together.wait()
            return torch.get_num_threads()

        assert await asyncio.gather(*(asyncio.to_thread(count) for _ in range(4))) == [1] * 4

    counts = []

    def device():
        set_threads(2)
        torch_set_elsewhere.wait()
        counts.append(torch.get_num_threads())

    torch_set_elsewhere = threading.Event()
    thread = threading.Thread(target=device)
    thread.start()
    other = threading.Thread(target=compute_alone)
    other.start()
    other.join()
    torch_set_elsewhere.set()
    thread.join()
    assert counts == [2]


def test_an_error_of_a_passing_thread_keeps_nothing_alive():
    class Held:
        pass

    def fail():
        held = Held()
        alive.append(weakref.ref(held))
        raise MemoryError

    alive = []
    gc.disable()
    try:
        with contextlib.suppress(MemoryError):
            in_passing_thread(1, fail)
        assert alive[0]() is None
    finally:
        gc.enable()


def test_a_passing_thread_has_its_own_count_and_hands_errors_on():
    torch.set_num_threads(1)
    assert in_passing_thread(2, torch.get_num_threads) == 2
    assert torch.get_num_threads() == 1
    with pytest.raises(ZeroDivisionError):
        in_passing_thread(1, lambda: 1 / 0)
