"""Work in worker threads: none is told as not done, and done later all the same, where no thread can be started."""

import asyncio
import threading

import pytest
from helpers.engine_helpers import running_engine
from helpers.specs import make_spec
from seqloom_server.engine.core.worker_thread import in_worker_thread, start_workers
from seqloom_server.errors import Reason, ServerError


def no_thread(_self):
    raise RuntimeError("can't start new thread")


async def test_what_comes_when_no_thread_can_be_started_is_done_by_those_there_are(tmp_path, monkeypatch):
    async with running_engine(tmp_path / "models", make_spec()):
        go = threading.Event()
        busy = asyncio.ensure_future(in_worker_thread("models", go.wait))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            try:
                await in_worker_thread("runs", (tmp_path / "run").mkdir)
                assert (tmp_path / "run").exists()
            finally:
                go.set()
        await busy


async def test_work_that_finds_no_memory_is_overloaded():
    def work():
        raise MemoryError

    with pytest.raises(ServerError) as refused:
        await in_worker_thread("runs", work)
    assert refused.value.reason is Reason.OVERLOADED


@pytest.mark.parametrize("started", [0, 1, 3])
def test_workers_of_whom_one_cannot_be_started_do_not_stay(monkeypatch, started):
    before, left, real = set(threading.enumerate()), [started], threading.Thread.start

    def start(thread):
        if not left[0]:
            no_thread(thread)
        left[0] -= 1
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            start_workers(lambda: None)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
