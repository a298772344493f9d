"""What may have become of a folder on the disk: everything here is done to one, and its neighbours are left alone."""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable

import safetensors.torch
import torch

Damage = Callable[[pathlib.Path], object]


def cut(name: str, size: int) -> Damage:
    """The file's first bytes, or all but its last where `size` is below 0."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def text(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def fields(name: str, **changes: object) -> Damage:
    def change(folder: pathlib.Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **changes}))

    return change


def numbers(name: str, value: float) -> Damage:
    """Another number in the place of the first of every tensor."""

    def change(folder: pathlib.Path) -> None:
        found = safetensors.torch.load_file(folder / name)
        for tensor in found.values():
            if tensor.is_floating_point():
                tensor.view(-1)[0] = value
        safetensors.torch.save_file(found, folder / name)

    return change


def instead(make: Callable[[pathlib.Path], object], name: str = "") -> Damage:
    """Something else in the place of the folder, or of a file in it."""

    def change(folder: pathlib.Path) -> None:
        path = folder / name if name else folder
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)

    return change


def a_socket(path: pathlib.Path) -> None:
    os.mknod(path, 0o600 | 0o140000)


def sparse(name: str) -> Damage:
    """A file said to have 2^43 bytes, of which none is there."""
    return lambda folder: os.truncate(folder / name, 1 << 43)


def of_folder() -> dict[str, Damage]:
    """What stands in a folder's place."""
    return {
        "an empty folder": instead(pathlib.Path.mkdir),
        "a pipe": instead(os.mkfifo),
        "a socket": instead(a_socket),
        "a link to nowhere": instead(lambda path: path.symlink_to("nowhere")),
        "a link to itself": instead(lambda path: path.symlink_to(path.name)),
    }


def of_files(json_name: str, tensors_name: str) -> dict[str, Damage]:
    """What may be wrong with one file of JSON and one of tensors."""
    damages: dict[str, Damage] = {}
    for name in (json_name, tensors_name):
        damages |= {
            f"{name} is missing": lambda folder, name=name: (folder / name).unlink(),
            f"{name} is empty": cut(name, 0),
            f"{name} is cut short": cut(name, 20),
            f"{name} lacks its last bytes": cut(name, -9),
            f"{name} is a folder": instead(pathlib.Path.mkdir, name),
            f"{name} is a pipe": instead(os.mkfifo, name),
            f"{name} is a link to nowhere": instead(lambda path: path.symlink_to("nowhere"), name),
            f"{name} is larger than the disk": sparse(name),
        }
    damages |= {
        f"{json_name} is no JSON": text(json_name, b"{step: 1}"),
        f"{json_name} is no UTF-8": text(json_name, b'{"cell": "\xff\xfe"}'),
        f"{json_name} is a list": text(json_name, b"[]"),
        f"{json_name} is nested without end": text(json_name, b"[" * 50_000),
        f"{json_name} has a number beyond all": text(json_name, b'{"a": ' + b"9" * 5000 + b"}"),
        f"{json_name} has half a character": text(json_name, b'{"\\ud800": 1}'),
        f"{json_name} has another field": fields(json_name, more=1),
        f"{tensors_name} has NaN": numbers(tensors_name, math.nan),
        f"{tensors_name} has infinity": numbers(tensors_name, -math.inf),
        f"{tensors_name} has no tensor": lambda folder: safetensors.torch.save_file({}, folder / tensors_name),
        f"{tensors_name} has another": lambda folder: safetensors.torch.save_file(
            {"other": torch.zeros(2)}, folder / tensors_name
        ),
        f"{tensors_name} has a header of 2^60 bytes": text(tensors_name, b"\0" * 7 + b"\x10" + b"\0" * 100),
    }
    return damages
