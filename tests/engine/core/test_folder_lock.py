"""The lock of a folder: it is the folder's, wherever that is moved and whatever is removed in it."""

import errno
import fcntl
import os
import stat
import threading

import pytest
from seqloom_server.engine.core.folder_lock import LOCK, FolderLock


def test_one_holds_it_at_a_time_and_may_take_it_twice(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.take(0)
    assert first.take(0)
    assert not second.take(0)
    assert not second.take(0.1)
    first.give_back()
    assert not second.take(0)
    first.give_back()
    assert second.take(0)
    second.give_back()
    second.give_back()  # which is held no more


@pytest.mark.parametrize("what", ["the file is removed", "the file is replaced", "the folder is moved"])
def test_nothing_that_happens_in_the_folder_or_to_it_opens_it(tmp_path, what):
    folder = tmp_path / "folder"
    folder.mkdir()
    first, path = FolderLock(folder), folder
    assert first.take(0)
    if what == "the folder is moved":
        path = folder.rename(tmp_path / "moved")
    else:
        (folder / LOCK).unlink()
    if what == "the file is replaced":
        (folder / LOCK).write_text("")
    second = FolderLock(path)
    assert not second.take(0)
    assert not second.take(0.1)
    first.give_back()
    assert second.take(0)
    second.give_back()


def test_who_waits_gets_it_once_it_is_given_back(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.take(0)
    (tmp_path / LOCK).unlink()  # so that it is the folder's lock that is waited for
    got = []
    waiting = threading.Thread(target=lambda: got.append(second.take(60)))
    waiting.start()
    waiting.join(0.2)
    assert not got
    first.give_back()
    waiting.join(60)
    assert got == [True]
    second.give_back()


def test_where_folders_have_no_locks_the_file_has_one(tmp_path, monkeypatch):
    flock = fcntl.flock

    def as_on_nfs(descriptor, operation):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.take(0)
    assert not second.take(0)
    first.check_in_place()
    first.give_back()
    assert second.take(0)
    second.give_back()
    assert before is None or len(os.listdir("/proc/self/fd")) == before


def test_it_is_told_when_another_folder_is_in_its_place(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    lock = FolderLock(folder)
    assert lock.take(0)
    lock.check_in_place()
    folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        lock.check_in_place()
    folder.mkdir()
    with pytest.raises(OSError, match="another folder is in its place"):
        lock.check_in_place()
    folder.rmdir()
    (tmp_path / "moved").rename(folder)
    lock.check_in_place()
    lock.give_back()
