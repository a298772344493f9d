"""A folder of runs has one server: another is refused in one line, takes over from one that ends or was killed."""

import asyncio
import errno
import fcntl
import json
import os
import shutil
import signal
import threading

import numpy as np
import pytest
import seqloom
from helpers.real_server import SMALL, serving, until, write_models
from helpers.run_helpers import SPEC, call_of
from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.folder_lock import LOCK
from seqloom_server.engine.training import checkpoint_files, runs_holder
from seqloom_server.engine.training.runs_holder import HOLDER
from seqloom_server.nn.files import atomic_folder, model_folder
from seqloom_server.rpc.server import CannotStart, Server

SGD = seqloom.SGD(0.1)


@pytest.fixture
def start(server_process, tmp_path):
    """Starts a server on the one folder of runs; options as in server_process."""
    write_models(tmp_path / "models", {"m": SPEC, "small": SMALL})

    def factory(*options, **more):
        return server_process("--models", tmp_path / "models", "--runs", tmp_path / "runs", *options, **more)

    return factory


async def trained(address, steps=3):
    """The id of a run of so many steps, of which the last is durable only if its server ends in order."""
    async with seqloom.AsyncClient(address, timeout=60) as client:
        run = await client.create_run("m", optimizer=SGD, checkpoint_interval=0)
        for seed in range(steps):
            await run.forward_backward(*call_of(seed))
            await run.step()
            if seed == 0:
                await run.save()
    return run.id


async def steps_of(address):
    async with seqloom.AsyncClient(address, timeout=60) as client:
        return [(info.id, info.step) for info in await client.runs()]


async def test_a_second_server_is_refused_in_one_line_and_the_first_goes_on(start, tmp_path):
    first = start()
    run = await trained(first.address)
    for options in ([], ["--strict-models"]):
        status, stderr = start(*options, ready=False).end()
        whose = f"pid {first.process.pid}, {first.address}"
        said = f"seqloom-server: runs: {tmp_path / 'runs'} is in use by another server: {whose}\n"
        assert (status, stderr) == (1, said)
    assert await steps_of(first.address) == [(run, 3)]
    assert await trained(first.address, 2)


async def test_who_was_killed_is_no_obstacle(start, tmp_path):
    for _ in range(2):
        first = start()
        run = await trained(first.address)
        first.end(signal.SIGKILL)
        told = json.loads((tmp_path / "runs" / HOLDER).read_text())
        assert told == {"pid": first.process.pid, "address": first.address, "draining": False}
        second = start()
        assert (run, 1) in await steps_of(second.address)
        second.end(signal.SIGTERM)
        assert not (tmp_path / "runs" / HOLDER).exists()


async def until_it_waits(waiting, for_whom):
    said = f"waiting for pid {for_whom.process.pid} at {for_whom.address}, which is shutting down"
    await until(lambda: any(said in line for line in waiting.stderr) or waiting.process.poll() is not None)
    assert waiting.process.poll() is None, waiting.end()


async def test_a_server_that_ends_hands_its_runs_over_with_all_steps_to_one_that_waits(start):
    first = start("--grace-seconds", 60)
    run = await trained(first.address)
    async with seqloom.AsyncClient(first.address, timeout=60) as client:
        stream = client.stream("small", resume=False)
        async with stream:
            await stream.send(np.zeros((3, 5), "f4"))
            await stream.receive()
            first.process.send_signal(signal.SIGTERM)
            waiting = start(ready=False)
            await until_it_waits(waiting, first)
            assert first.process.poll() is None
    await asyncio.to_thread(waiting.until_ready)
    assert await steps_of(waiting.address) == [(run, 3)]
    async with seqloom.AsyncClient(waiting.address, timeout=60) as client:
        attached = await client.attach_run(run)
        await attached.forward_backward(*call_of(7))
        assert (await attached.step()).step_number == 4
    assert (await asyncio.to_thread(first.end))[0] == 0
    assert sum("waiting for" in line for line in waiting.stderr) == 1


async def test_one_that_waits_takes_over_from_one_that_is_killed_while_it_ends(start):
    first = start("--grace-seconds", 600)
    run = await trained(first.address)
    async with seqloom.AsyncClient(first.address, timeout=60) as client:
        stream = client.stream("small", resume=False)
        await stream.__aenter__()
        await stream.send(np.zeros((3, 5), "f4"))
        await stream.receive()
        first.process.send_signal(signal.SIGTERM)
        waiting = start(ready=False)
        await until_it_waits(waiting, first)
        first.end(signal.SIGKILL)
    await asyncio.to_thread(waiting.until_ready)
    assert await steps_of(waiting.address) == [(run, 1)]


async def test_of_two_that_wait_one_takes_over_and_the_other_is_refused(start):
    first = start("--grace-seconds", 60)
    run = await trained(first.address)
    async with seqloom.AsyncClient(first.address, timeout=60) as client, client.stream("small", resume=False) as stream:
        await stream.send(np.zeros((3, 5), "f4"))
        await stream.receive()
        first.process.send_signal(signal.SIGTERM)
        waiting = [start(ready=False) for _ in range(2)]
        for each in waiting:
            await until_it_waits(each, first)
    await until(lambda: any(each.process.poll() is not None for each in waiting))
    (loser,) = [each for each in waiting if each.process.poll() is not None]
    (winner,) = [each for each in waiting if each is not loser]
    await asyncio.to_thread(winner.until_ready)
    status, stderr = loser.end()
    assert status == 1
    assert stderr.splitlines()[-1].endswith(f"is in use by another server: pid {winner.process.pid}, {winner.address}")
    assert await steps_of(winner.address) == [(run, 3)]


def server_on(tmp_path, name="models"):
    (tmp_path / name).mkdir(exist_ok=True)
    options = {"models": str(tmp_path / name), "runs": str(tmp_path / "runs"), "device": "cpu", "threads": 1}
    return Server(ServerConfig(**options, listen="127.0.0.1:0", http="127.0.0.1:0"))


async def test_two_servers_of_one_process_are_refused_too(tmp_path):
    first, second = server_on(tmp_path), server_on(tmp_path)
    await first.start()
    with pytest.raises(CannotStart, match=rf"is in use by another server: pid {os.getpid()}, {first.address}$"):
        await second.start()
    await first.stop(0)
    third = server_on(tmp_path)
    await third.start()
    await third.stop(0)


def tree(folder):
    """Every file with its bytes and times."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in sorted(folder.rglob("*"))
    }


class Hold:
    """Stands before a function that a worker thread calls: it waits there, and goes on when it is told to."""

    def __init__(self, monkeypatch, module, name):
        self._function = getattr(module, name)
        self.arrived, self.go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(module, name, self._wait)

    def _wait(self, *arguments):
        self.arrived.set()
        assert self.go_on.wait(60)
        return self._function(*arguments)


# what is under way for long when the server ends, and at which place it is held up
SLOW = {
    "load": (checkpoint_files, "load_named", lambda client, run: run.load("one")),
    "create": (checkpoint_files, "save_run", lambda client, run: client.create_run("m", optimizer=SGD)),
    "save": (checkpoint_files, "save_run", lambda client, run: run.save("two")),
    "publish": (model_folder, "save", lambda client, run: run.publish()),
    "delete": (atomic_folder, "remove", lambda client, run: client.delete_run(run.id)),
}


@pytest.mark.parametrize("what", SLOW)
async def test_a_slow_disk_does_not_make_two_servers_write_in_the_runs(tmp_path, what, monkeypatch):
    module, name, begin = SLOW[what]
    runs = tmp_path / "runs"
    async with (
        serving(tmp_path / "models", {"m": SPEC}, runs=str(runs)) as served,
        seqloom.AsyncClient(served.address, timeout=60, retries=0) as client,
        seqloom.AsyncClient(served.address, timeout=60) as other,
    ):
        run = await client.create_run("m", optimizer=SGD, checkpoint_interval=0)
        await run.forward_backward(*call_of(0))
        await run.step()
        await run.save("one")
        await run.forward_backward(*call_of(1))
        await run.step()
        hold = Hold(monkeypatch, module, name)
        call = asyncio.ensure_future(begin(other, await other.attach_run(run.id)))
        assert await asyncio.to_thread(hold.arrived.wait, 60)
        drained = asyncio.ensure_future(served.engine.drain(0))
        await asyncio.wait({drained}, timeout=1)  # either it waits for the call, or the call writes nothing any more
        if not drained.done():
            hold.go_on.set()
            await drained
        second = server_on(tmp_path, "others")
        await second.start()
        before = tree(runs)
        hold.go_on.set()
        await served.server.stop(0)
    await asyncio.wait({call})
    assert tree(runs) == before
    assert second.engine.runs.broken == {}
    steps = {each.meta.id: each.step for each in second.engine.runs.all()}
    assert steps.get(run.id) == (None if what == "delete" else 2)
    await second.stop(0)


@pytest.mark.parametrize("moment", range(4))
async def test_whoever_has_handed_over_writes_nothing_more_whatever_was_under_way(tmp_path, moment):
    """The first server drains at any moment of calls of all kinds; from there on the folder is the second one's."""
    runs = tmp_path / "runs"
    async with serving(tmp_path / "models", {"m": SPEC}, runs=str(runs), training_piece_gflop=1e-6) as served:
        async with (
            seqloom.AsyncClient(served.address, timeout=60) as client,
            seqloom.AsyncClient(served.address, timeout=60, retries=0) as other,
        ):
            made = [await client.create_run("m", optimizer=SGD, checkpoint_interval=1) for _ in range(3)]
            await made[0].save("one")
            calls = []
            for seed in range(40):
                for run in made:
                    calls.append(run.forward_backward(*call_of(seed)))
                    calls.append(asyncio.ensure_future(run.step()))
                calls.append(asyncio.ensure_future(made[seed % 3].save(f"at-{seed}")))
            calls.append(asyncio.ensure_future(made[0].load("one")))
            calls += [asyncio.ensure_future(other.create_run("m", optimizer=SGD)) for _ in range(3)]
            calls.append(asyncio.ensure_future(other.delete_run(made[2].id)))
            await until(lambda: sum(call.done() for call in calls) >= 15 * moment)
            await served.engine.drain(0)
            assert not (runs / HOLDER).exists()
            before = tree(runs)
            second = server_on(tmp_path, "others")
            await second.start()
            told = {HOLDER, LOCK}
            state = {path: content for path, content in tree(runs).items() if path.name not in told}
            assert state == {path: content for path, content in before.items() if path.name not in told}
            calls += [made[0].forward_backward(*call_of(1)), asyncio.ensure_future(made[1].save("late"))]
            infos = second.engine.runs.all()
            assert second.engine.runs.broken == {}
        await asyncio.gather(*calls, return_exceptions=True)
        await served.server.stop(0)
        after = {path: content for path, content in tree(runs).items() if path.name not in told}
        assert after == state
        assert [run.meta.id for run in second.engine.runs.all()] == [run.meta.id for run in infos]
        await second.stop(0)


async def test_a_run_is_refused_as_by_a_server_that_ends_once_it_is_handed_over(tmp_path):
    async with (
        serving(tmp_path / "models", {"m": SPEC}, runs=str(tmp_path / "runs")) as served,
        seqloom.AsyncClient(served.address, retries=0, timeout=10) as client,
    ):
        run = await client.create_run("m", optimizer=SGD)
        await served.engine.drain(0)
        for call in (client.attach_run(run.id), client.delete_run(run.id), client.create_run("m", optimizer=SGD)):
            with pytest.raises(seqloom.Unavailable) as refused:
                await call
            assert refused.value.reason == "SHUTTING_DOWN"


STRANGE = {
    "nothing": lambda path: path.write_bytes(b""),
    "no JSON": lambda path: path.write_bytes(b"{"),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
    "a list": lambda path: path.write_bytes(b"[]"),
    "a pid beyond all": lambda path: path.write_text('{"pid": 1e999, "address": "", "draining": false}'),
    "half a character": lambda path: path.write_text('{"pid": 1, "address": "\\ud800\\n", "draining": false}'),
    "nested without end": lambda path: path.write_text("[" * 3000),
    "very much": lambda path: path.write_text('"' + "x" * 100_000 + '"'),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("what", STRANGE)
async def test_whatever_lies_where_a_holder_is_told_hinders_nobody(tmp_path, what, monkeypatch):
    monkeypatch.setattr(runs_holder, "_SECONDS_TO_WRITE", 0.1)  # nobody is about to tell anything
    (tmp_path / "runs").mkdir()
    STRANGE[what](tmp_path / "runs" / HOLDER)
    first = server_on(tmp_path)
    await first.start()
    if (tmp_path / "runs" / HOLDER).is_file():
        (tmp_path / "runs" / HOLDER).unlink()
        STRANGE[what](tmp_path / "runs" / HOLDER)
    with pytest.raises(CannotStart, match=r"is in use by another server"):
        await server_on(tmp_path).start()
    await first.stop(0)


async def test_a_file_system_without_locks_is_told_in_one_line(tmp_path, monkeypatch):
    for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):

        def flock(*_, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", flock)
            with pytest.raises(CannotStart) as ended:
                await server_on(tmp_path).start()
        assert str(ended.value) == f"runs: {tmp_path / 'runs'} cannot be locked: the file system has no locks"
    server = server_on(tmp_path)
    await server.start()
    await server.stop(0)


def test_a_lock_that_cannot_be_is_told_in_one_line(start, tmp_path):
    (tmp_path / "runs" / LOCK).mkdir(parents=True)
    status, stderr = start(ready=False).end()
    assert (status, stderr) == (
        1,
        f"seqloom-server: runs: {tmp_path / 'runs'} cannot be locked: Is a directory\n",
    )


async def test_who_removes_the_file_of_the_lock_lets_no_second_server_in(tmp_path):
    first = server_on(tmp_path)
    await first.start()
    (tmp_path / "runs" / LOCK).unlink()
    for _ in range(2):  # the first of which has made the file again
        with pytest.raises(CannotStart, match=rf"is in use by another server: pid {os.getpid()}, {first.address}$"):
            await server_on(tmp_path).start()
    await first.stop(0)
    again = server_on(tmp_path)
    await again.start()
    await again.stop(0)


async def test_a_folder_that_is_put_in_the_place_of_the_runs_is_another_servers_and_is_not_written(tmp_path):
    runs, moved = tmp_path / "runs", tmp_path / "moved"
    async with (
        serving(tmp_path / "models", {"m": SPEC}, runs=str(runs)) as served,
        seqloom.AsyncClient(served.address, timeout=60, retries=0) as client,
    ):
        run = await client.create_run("m", optimizer=SGD, checkpoint_interval=0)
        await run.forward_backward(*call_of(0))
        await run.step()
        runs.rename(moved)
        shutil.copytree(moved, runs)
        second = server_on(tmp_path, "others")
        await second.start()
        before = tree(runs)
        for change in (run.save(), client.create_run("m", optimizer=SGD), client.delete_run(run.id)):
            with pytest.raises(seqloom.Internal, match="another folder is in its place") as failed:
                await change
            assert failed.value.reason == "STORAGE_FAILED"
        await served.engine.drain(0)
    assert tree(runs) == before
    await second.stop(0)
