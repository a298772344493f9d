"""Which unix sockets a server may take: none that another listens on, nor anything that is no socket."""

import errno
import os
import pathlib
import socket

import pytest
from seqloom_server.rpc.unix_sockets import claim


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One that is short enough for a socket."""
    return tmp_path_factory.mktemp("s") / "s.sock"


def test_a_path_where_nothing_is_can_be_taken_and_is_left_free(path):
    claim(str(path))
    assert not path.exists()


def test_a_socket_that_nobody_listens_on_any_more_is_removed(path):
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(path))
        ended.listen()
    assert path.is_socket()
    claim(str(path))
    assert not path.exists()


@pytest.mark.parametrize("callers", [0, 1, 5])
def test_a_socket_that_another_listens_on_is_kept_however_many_call_it(path, callers):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(callers)]
        for caller in waiting:
            caller.setblocking(False)
            caller.connect_ex(str(path))
        inode = path.stat().st_ino
        with pytest.raises(OSError, match="Address already in use") as caught:
            claim(str(path))
        assert caught.value.errno == errno.EADDRINUSE
        assert path.stat().st_ino == inode
        for caller in waiting:
            caller.close()


def test_a_socket_of_another_kind_is_kept(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(OSError, match="type"):
            claim(str(path))
        assert path.is_socket()


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_no_socket_is_kept(path, what):
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(OSError, match="exists and is not a socket"):
        claim(str(path))
    assert os.path.lexists(path)
    assert what != "file" or path.read_text() == "precious"


def test_a_folder_that_is_not_there_is_told(path):
    with pytest.raises(FileNotFoundError):
        claim(str(path / "none"))


def test_an_abstract_name_is_taken_unless_it_is_in_use():
    name = f"\0seqloom-test-{os.getpid()}"
    claim(name)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(name)
        with pytest.raises(OSError, match="Address already in use"):
            claim(name)
    claim(name)
