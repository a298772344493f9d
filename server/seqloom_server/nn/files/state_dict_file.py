"""Reads a state dict from a safetensors file; identifies other files, and says how to convert them.

Nothing is ever unpickled: users convert files that they trust.
"""

import os
import pathlib
import zipfile
from typing import BinaryIO

import safetensors
import torch

from seqloom_server.nn.files import tied_tensors

_HEAD_BYTES = 1024
_MAX_SAFETENSORS_HEADER = 100_000_000  # bytes; safetensors' own limit

_SAVE = 'safetensors.torch.save_file({name: tensor.clone() for name, tensor in TENSORS.items()}, "m.safetensors")'
_FROM_TORCH = "if you trust it, " + _SAVE.replace("TENSORS", "torch.load(PATH, weights_only=True)") + " makes one"
_FROM_SCRIPT = "if you trust it, " + _SAVE.replace("TENSORS", "torch.jit.load(PATH).state_dict()") + " makes one"
_FROM_NUMPY = 'safetensors.numpy.save_file(dict(numpy.load(PATH)), "m.safetensors") makes one'
_FROM_MODULE = _SAVE.replace("TENSORS", "module.state_dict()") + " makes one of a torch.nn.Module with these weights"
_FETCH = "fetch the file itself"

# (first bytes, kind of file, what to do)
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "a file of torch.save, of the old kind", _FROM_TORCH),
    *((b"\x80" + bytes([protocol]), "a pickle", _FROM_MODULE) for protocol in range(2, 6)),
    (b"PK\x03\x04", "a zip archive, cut short or damaged", "torch.save and numpy.savez write such: " + _FETCH),
    (b"\x93NUMPY", "one array of numpy.save", _FROM_MODULE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", _FROM_MODULE),
    (b"GGUF", "a GGUF file", _FROM_MODULE),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS to the file", 'fetch the file itself by "git lfs pull"'),
    (b"<!doctype html", "an HTML page", _FETCH),
    (b"<html", "an HTML page", _FETCH),
    (b"{", "JSON", _FETCH),
)


class NoStateDict(ValueError):
    """A file that is not a state dict; the text says what it is, what is expected and what to do."""


def read(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Returns a state dict on the CPU, with tied tensors under each of their names; tensors are views on the file.

    Raises NoStateDict, and InvalidSpec for metadata of tied tensors that contradicts the tensors.
    """
    file = pathlib.Path(path)
    try:
        if file.is_dir():
            raise NoStateDict("is a folder: expected the safetensors file of a state dict")
        if file.exists() and not file.is_file():  # opening a pipe would block
            raise NoStateDict("is not a regular file: expected the safetensors file of a state dict")
        file.open("rb").close()  # safetensors 0.8.0 reports an unreadable file as missing
        try:
            archive = safetensors.safe_open(file, "pt")
        except safetensors.SafetensorError as error:
            with file.open("rb") as content:
                kind, remedy = identify(content)
            if not kind:
                raise NoStateDict(f"is not a complete safetensors file: {error}") from error
            remedy = remedy.replace("PATH", repr(str(path)))
            raise NoStateDict(f"is {kind}: expected a safetensors file{remedy and '; ' + remedy}") from error
        with archive as opened:
            names = tied_tensors.kept_names(opened.metadata(), opened.keys(), opened.get_tensor)
            return {name: opened.get_tensor(kept) for name, kept in names.items()}
    except OSError as error:
        raise NoStateDict(f"cannot be read: {error.strerror or str(error).partition(':')[0]}") from error
    except safetensors.SafetensorError as error:  # a data type that torch does not have
        raise NoStateDict(f"cannot be read: {error}") from error


def identify(file: BinaryIO) -> tuple[str, str]:
    """Returns the kind of a file that safetensors cannot read, and how to convert it, in words; "" if unknown.

    PATH in the words stands for the file's path.
    """
    head = file.read(_HEAD_BYTES)
    if not head:
        return "empty", ""
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return "", ""  # safetensors, cut short or damaged
    if head.startswith(b"PK") and zipfile.is_zipfile(file):
        return _identify_zip(file)
    for magic, kind, remedy in _MAGIC:
        if head.startswith(magic) or head.lstrip().lower().startswith(magic):
            return kind, remedy
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):  # version, then producer, graph or operators
        return "an ONNX model by its first bytes", _FROM_MODULE
    return "", ""


def _identify_zip(file: BinaryIO) -> tuple[str, str]:
    with zipfile.ZipFile(file) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        return "a TorchScript archive", _FROM_SCRIPT
    if "data.pkl" in names:
        return "an archive of torch.save", _FROM_TORCH
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of numpy.savez", _FROM_NUMPY
    return "a zip archive", "unpack it first"
