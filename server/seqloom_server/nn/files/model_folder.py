"""Reads and writes model folders, config.json and model.safetensors: replaced atomically, and checked when read.

config.json holds the fields of ModelSpec and "weights_version"; model.safetensors one tensor for each name of
ModelSpec.parameter_shapes(), or the name of a tensor that it is tied to. Nothing is ever unpickled.
"""

import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping

import safetensors
import safetensors.torch
import torch

from seqloom_server.nn.files import atomic_folder, state_dict_file, strict_json, tied_tensors
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import InvalidSpec, ModelSpec

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAX_VERSION = 2**53  # the integers that every JSON reader represents exactly

_VERSION = "weights_version"
_MAX_CONFIG_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 64 * 1024  # of model.safetensors: names, shapes and metadata of at most 132 tensors

recover_all = atomic_folder.recover_all  # removes the leftovers of crashes in a folder of model folders


class BrokenModel(atomic_folder.BrokenFolder):
    """A model folder that cannot be loaded."""


def _accept(spec: ModelSpec) -> None:
    """The default check of load() and load_bytes(): accepts every specification."""


def load(
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    check: Callable[[ModelSpec], None] = _accept,
) -> tuple[Network, int]:
    """Returns the network of a model folder on `device`, and its weights version.

    check: called with the specification before any weights are read; may raise. Raises BrokenModel.
    """
    path = pathlib.Path(folder)
    try:
        try:
            for name in (CONFIG, WEIGHTS):
                if (path / name).exists() and not (path / name).is_file():  # opening a pipe would block
                    raise BrokenModel(f"{name} is not a regular file")
            with open(path / CONFIG, "rb") as file:
                config = file.read(_MAX_CONFIG_BYTES + 1)
            spec, version = _read_config(config)
            check(spec)
            open(path / WEIGHTS, "rb").close()  # safetensors reports an unreadable file as missing
            with safetensors.safe_open(path / WEIGHTS, "pt") as archive:
                kept = _kept_names(archive.metadata(), archive.keys(), archive.get_tensor)
                headers = {name: archive.get_slice(kept_name) for name, kept_name in kept.items()}
                _check_names_and_shapes(spec, {name: tuple(header.get_shape()) for name, header in headers.items()})
                # copies, since a tensor of an archive is a view on the file, which may be overwritten
                tensors = {name: archive.get_tensor(kept[name]).clone() for name in spec.parameter_shapes()}
        except FileNotFoundError as error:
            raise BrokenModel(f"{CONFIG if not (path / CONFIG).exists() else WEIGHTS} is missing") from error
        except OSError as error:
            raise BrokenModel(f"cannot be read: {error.strerror or error}") from error
        except safetensors.SafetensorError as error:
            raise _unreadable_weights(error, path / WEIGHTS) from error
        _check_numbers(spec, tensors)
    except BrokenModel as error:
        raise BrokenModel(f"{path.name}: {error}") from error.__cause__
    return Network(spec, tensors, device), version


def load_bytes(
    config: bytes,
    weights: bytes,
    device: torch.device | str = "cpu",
    check: Callable[[ModelSpec], None] = _accept,
) -> tuple[Network, int]:
    """Returns the network and the weights version from the contents of the two files. Raises BrokenModel."""
    spec, version = _read_config(config)
    check(spec)
    try:
        tensors = safetensors.torch.load(weights)
    except KeyError as error:  # from safetensors' table of types
        raise BrokenModel(f"{WEIGHTS}: a tensor has the type {error}: {CONFIG} says {spec.dtype}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise _unreadable_weights(error, weights) from error
    kept = _kept_names(tied_tensors.metadata_of(weights), tensors.keys(), tensors.__getitem__)
    for name, kept_name in kept.items():
        if name != kept_name:
            tensors[name] = tensors[kept_name].clone()  # tensors tied in a file are trained separately
    _check_names_and_shapes(spec, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    _check_numbers(spec, tensors)
    return Network(spec, {name: tensors[name] for name in spec.parameter_shapes()}, device), version


def to_bytes(network: Network, weights_version: int = 1) -> tuple[bytes, bytes]:
    """Returns the contents of config.json and model.safetensors."""
    return _write_config(network.spec, weights_version), safetensors.torch.save(_on_cpu(network), {"format": "pt"})


def max_weights_bytes(config: bytes) -> int:
    """Returns the most bytes of model.safetensors for this config.json. Raises BrokenModel."""
    return most_weights_bytes(weights_bytes(_read_config(config)[0]))


def most_weights_bytes(size: int) -> int:
    """Returns the most bytes of model.safetensors for weights of `size` bytes."""
    return size + _MAX_HEADER_BYTES


def weights_bytes(spec: ModelSpec) -> int:
    """Returns the bytes of a network's weights."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return spec.parameter_count * dtype.itemsize


def save(folder: str | os.PathLike[str], network: Network, weights_version: int = 1) -> None:
    """Writes a model folder, replacing an existing one. A crash leaves the old one or the new one.

    One writer to a folder at a time. Raises OSError.
    """
    with atomic_folder.replaced(folder) as new:
        (new / CONFIG).write_bytes(_write_config(network.spec, weights_version))
        write_tensors(new / WEIGHTS, _on_cpu(network))
        shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors makes the file private


def write_tensors(path: pathlib.Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file. Raises OSError, with the system's errno if safetensors reports it."""
    try:
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # it reports errno only in its text
        raise OSError(*([int(number[1]), os.strerror(int(number[1]))] if number else [str(error)])) from error


def _on_cpu(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in network.parameters().items()}


def _write_config(spec: ModelSpec, weights_version: int) -> bytes:
    return (json.dumps({**spec.to_json(), _VERSION: weights_version}, indent=2) + "\n").encode()


def _read_config(config: bytes) -> tuple[ModelSpec, int]:
    if len(config) > _MAX_CONFIG_BYTES:
        raise BrokenModel(f"{CONFIG} has more than {_MAX_CONFIG_BYTES} bytes")
    try:
        fields = strict_json.loads(config)
        if not isinstance(fields, dict):
            raise BrokenModel(f"{CONFIG} holds a {type(fields).__name__}: expected an object")
        version = fields.pop(_VERSION, 1)
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= MAX_VERSION:
            raise BrokenModel(f"{CONFIG}: {_VERSION}: is {version!r:.80}: expected an integer from 1 to {MAX_VERSION}")
        return ModelSpec.from_json(fields), version
    except InvalidSpec as error:
        raise BrokenModel(f"{CONFIG}: {error}") from error
    except BrokenModel:
        raise
    except (ValueError, RecursionError) as error:
        raise BrokenModel(f"{CONFIG} is not valid JSON: {error}") from error


def _unreadable_weights(error: Exception, weights: bytes | pathlib.Path) -> BrokenModel:
    try:
        with io.BytesIO(weights) if isinstance(weights, bytes) else weights.open("rb") as file:
            kind, _ = state_dict_file.identify(file)
    except OSError:  # removed meanwhile
        kind = ""
    return BrokenModel(f"{WEIGHTS}: {error}{kind and f'; it is {kind}'}")


def _kept_names(
    metadata: Mapping[str, str] | None, kept: Collection[str], read: Callable[[str], torch.Tensor]
) -> dict[str, str]:
    try:
        return tied_tensors.kept_names(metadata, kept, read)
    except InvalidSpec as error:
        raise BrokenModel(f"{WEIGHTS}: tensor {error}") from error


def _check_names_and_shapes(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    expected = spec.parameter_shapes()
    for name, shape in expected.items():
        if name not in shapes:
            raise BrokenModel(f"{WEIGHTS}: tensor {name} is missing")
        if shapes[name] != shape:
            raise BrokenModel(f"{WEIGHTS}: tensor {name} has shape {list(shapes[name])}: expected {list(shape)}")
    for name in sorted(shapes):
        if name not in expected:
            raise BrokenModel(f"{WEIGHTS}: tensor {name[:80]!r} is not part of a {spec.num_layers}-layer {spec.cell}")


def _check_numbers(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> None:
    for name in spec.parameter_shapes():
        tensor = tensors[name]
        if tensor.dtype != getattr(torch, spec.dtype):
            raise BrokenModel(f"{WEIGHTS}: tensor {name} is {str(tensor.dtype)[6:]}: {CONFIG} says {spec.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise BrokenModel(f"{WEIGHTS}: tensor {name} holds a number that is not finite")
