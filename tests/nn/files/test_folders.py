"""Folders replaced whole or not at all: a body that fails, names beside them, and everything on the disk in time."""

import errno
import os
import shutil

import pytest
from seqloom_server.nn.files import atomic_folder


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def write(folder, **files):
    with atomic_folder.replaced(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text)


def test_the_new_folder_stands_in_place_of_the_old_one_and_nothing_beside_it(tmp_path):
    folder = tmp_path / "in" / "a"
    write(folder, one="1", both="old")
    assert contents(folder) == {"one": "1", "both": "old"}
    write(folder, two="2", both="new")
    assert contents(folder) == {"two": "2", "both": "new"}
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def test_until_the_body_is_through_the_old_folder_is_whole(tmp_path):
    write(tmp_path / "a", one="old")
    with atomic_folder.replaced(tmp_path / "a") as new:
        (new / "one").write_text("new")
        assert contents(tmp_path / "a") == {"one": "old"}
    assert contents(tmp_path / "a") == {"one": "new"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full disk", "interrupt"])
def test_a_body_that_fails_leaves_the_old_folder_alone(error, tmp_path):
    write(tmp_path / "a", one="old")

    def fail(folder):
        with atomic_folder.replaced(folder) as new:
            (new / "one").write_text("new")
            raise error

    for name in ("a", "b"):
        with pytest.raises(type(error)):
            fail(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert contents(tmp_path / "a") == {"one": "old"}


def test_everything_is_synced_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    synced = []

    def watch(descriptor, sync=os.fsync):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((os.path.relpath(path, tmp_path), (tmp_path / "a").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write(tmp_path / "a", one="1", two="2")
    before = [(".a.being-written/one", False), (".a.being-written/two", False)]
    assert sorted(synced[:2]) == before
    assert synced[2:] == [(".a.being-written", False), (".", True)]


@pytest.mark.parametrize("name", ["a", "a.being-written", "..a", "a.b"])
@pytest.mark.parametrize("stopped_at", ["written", "moved", "both"])
def test_what_a_crash_leaves_is_cleared_up_whatever_the_name(name, stopped_at, tmp_path):
    folder = tmp_path / name
    write(folder, one="old")
    write(tmp_path / "other", one="other")
    new, old = tmp_path / f".{name}.being-written", tmp_path / f".{name}.being-replaced"
    if stopped_at == "both":
        folder.rename(old)
        write(folder, one="new")
    else:
        new.mkdir()
        (new / "one").write_text("ne")
        if stopped_at == "moved":
            folder.rename(old)
    atomic_folder.recover_all(tmp_path)
    assert contents(folder) == {"one": "new" if stopped_at == "both" else "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "other"])


def test_a_root_that_is_not_there_has_nothing_to_clear_up(tmp_path):
    atomic_folder.recover_all(tmp_path / "nowhere")
    atomic_folder.recover(tmp_path / "nowhere" / "a")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["file", "pipe", "link", "link to nowhere"])
def test_a_folder_takes_the_place_of_whatever_stood_there_and_of_nothing_else(kind, tmp_path):
    write(tmp_path / "other", one="other")
    path = tmp_path / "a"
    if kind == "file":
        path.write_text("")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("other" if kind == "link" else "nowhere"))
    write(path, one="new")
    assert contents(path) == {"one": "new"}
    assert contents(tmp_path / "other") == {"one": "other"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "other"]


@pytest.mark.parametrize("kind", ["folder", "file", "pipe", "link"])
def test_what_is_removed_is_gone_whatever_it_was_and_a_link_leads_on(kind, tmp_path):
    write(tmp_path / "other", one="other")
    path = tmp_path / "a"
    if kind == "folder":
        write(path, one="1")
    elif kind == "file":
        path.write_text("")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "other")
    atomic_folder.remove(path)
    assert [each.name for each in tmp_path.iterdir()] == ["other"]
    assert contents(tmp_path / "other") == {"one": "other"}
    with pytest.raises(FileNotFoundError):
        atomic_folder.remove(path)


def test_a_removal_that_is_cut_off_leaves_no_part_under_the_name(tmp_path, monkeypatch):
    write(tmp_path / "a", one="1")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        atomic_folder.remove(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert atomic_folder.unfinished(tmp_path) == ["a"]
    atomic_folder.recover_all(tmp_path)
    assert list(tmp_path.iterdir()) == []


def refuse(path, *_):
    raise PermissionError(errno.EACCES, "no rights here", str(path))


def test_what_cannot_be_cleared_up_is_told_and_the_rest_is_cleared_up(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write(tmp_path / name, one=name)
        (tmp_path / f".{name}.being-written").mkdir()
    (tmp_path / "c").rename(tmp_path / ".c.being-replaced")
    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path: (refuse if ".b." in str(path) else rmtree)(path))
    assert atomic_folder.unfinished(tmp_path) == ["a", "b", "c"]
    failed = atomic_folder.recover_all(tmp_path)
    assert {name: error.strerror for name, error in failed.items()} == {"b": "no rights here"}
    assert atomic_folder.unfinished(tmp_path) == ["b"]
    assert contents(tmp_path / "c") == {"one": "c"}


def test_a_folder_is_the_same_until_it_is_replaced(tmp_path):
    path = tmp_path / "a"
    assert atomic_folder.identity(path) is None
    seen = []
    for number in range(20):
        write(path, one=str(number))
        assert atomic_folder.identity(path) == atomic_folder.identity(path)
        assert atomic_folder.identity(path) not in seen, "an inode that was another's is another one"
        seen.append(atomic_folder.identity(path))
    atomic_folder.remove(path)
    path.symlink_to("nowhere")
    assert atomic_folder.identity(path) not in (None, *seen)
