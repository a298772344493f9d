"""Files that are read again: when they have changed and settled, or are never at rest; and once for each change."""

import asyncio
import itertools
import os

import pytest
from helpers.real_server import until
from seqloom_server.rpc.security import watched_files
from seqloom_server.rpc.security.watched_files import BrokenFile, WatchedFiles, read_file


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Two files whose texts are read together, what was read, and how often reading failed."""
    monkeypatch.setattr(watched_files, "LOOK_SECONDS", 0.001)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("1")
    read, failed = [], []

    def both():
        texts = [read_file(str(path)).decode() for path in paths]
        if texts[0] != texts[1]:
            raise BrokenFile("they do not fit")
        return texts[0]

    one = WatchedFiles("texts", list(map(str, paths)), both, read.append, lambda: failed.append(1))
    return one, paths, read, failed


@pytest.fixture
async def watching(watched):
    one, paths, read, failed = watched
    assert one.first() == "1"
    task = asyncio.create_task(one.watch())
    yield paths, read, failed
    assert not task.done()
    task.cancel()


async def looks(count=30):
    for _ in range(count):
        await asyncio.sleep(0.002)


async def test_what_has_not_changed_is_not_read(watching):
    _, read, failed = watching
    await looks()
    assert (read, failed) == ([], [])


async def test_a_change_is_read_once(watching):
    paths, read, failed = watching
    for path in paths:
        path.write_text("22")
    await until(lambda: read)
    await looks()
    assert (read, failed) == (["22"], [])


async def test_files_that_do_not_fit_change_nothing_until_they_do(watching):
    paths, read, failed = watching
    paths[0].write_text("22")
    await until(lambda: failed)
    await looks()
    assert (read, failed) == ([], [1]), "told once"
    paths[1].write_text("22")
    await until(lambda: read)
    assert (read, failed) == (["22"], [1])


async def test_a_file_that_is_gone_and_comes_back_is_read(watching):
    paths, read, failed = watching
    paths[0].unlink()
    await until(lambda: failed)
    paths[0].write_text("1")
    await until(lambda: read)
    assert read == ["1"]


async def test_another_file_of_the_same_size_and_time_is_a_change(watching):
    paths, read, _ = watching
    for path in paths:
        new = path.with_name("new")
        new.write_text("2")
        status = path.stat()
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
        new.replace(path)
    await until(lambda: read)
    assert read == ["2"]


async def test_a_change_in_place_that_keeps_size_and_time_is_a_change(watching):
    paths, read, _ = watching
    for path in paths:
        status = path.stat()
        path.write_text("2")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    await until(lambda: read)
    assert read == ["2"]


async def test_what_could_not_be_read_is_read_as_soon_as_it_can_be_without_another_change(watched, monkeypatch):
    one, paths, read, failed = watched
    one.first()
    whole = one._read

    def short():
        raise BrokenFile("too many open files")

    monkeypatch.setattr(one, "_read", short)
    task = asyncio.create_task(one.watch())
    for path in paths:
        path.write_text("22")
    await until(lambda: failed)
    await looks()
    assert failed == [1], "told once"
    monkeypatch.setattr(one, "_read", whole)
    await until(lambda: read)
    await looks()
    assert read == ["22"]
    task.cancel()


async def test_a_look_that_fails_does_not_end_the_watch(watched, monkeypatch, caplog):
    one, paths, read, _ = watched
    one.first()
    look, failures = one._look, [RuntimeError("can't start new thread")]
    monkeypatch.setattr(one, "_look", lambda: look() if not failures else (_ for _ in ()).throw(failures.pop()))
    task = asyncio.create_task(one.watch())
    await until(lambda: not failures)
    for path in paths:
        path.write_text("22")
    await until(lambda: "22" in read)
    assert "can't start new thread" in caplog.text
    assert not task.done()
    task.cancel()


async def test_files_that_are_written_all_the_time_are_read_too(watched, monkeypatch):
    one, _, read, _ = watched
    one.first()
    numbers = itertools.count(1)
    monkeypatch.setattr(one, "_look", lambda: (next(numbers), 0, 0))
    task = asyncio.create_task(one.watch())
    await until(lambda: len(read) == 2)
    assert next(numbers) >= 2 * watched_files._MOST_UNSETTLED
    task.cancel()


async def test_a_bug_in_reading_does_not_end_the_watch(watched, monkeypatch, caplog):
    one, paths, _, failed = watched
    one.first()
    monkeypatch.setattr(one, "_read", lambda: 1 / 0)
    task = asyncio.create_task(one.watch())
    paths[0].write_text("22")
    await until(lambda: failed)
    assert "ZeroDivisionError" in caplog.text
    assert not task.done()
    task.cancel()


@pytest.mark.parametrize("kind", ["folder", "missing", "too large"])
def test_what_is_no_file_is_told(tmp_path, monkeypatch, kind):
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "too large":
        monkeypatch.setattr(watched_files, "_MAX_BYTES", 3)
        path.write_text("four")
    with pytest.raises(BrokenFile, match="file: "):
        read_file(str(path))
