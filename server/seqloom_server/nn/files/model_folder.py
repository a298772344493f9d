"""Models as folders of config.json and model.safetensors: written whole or not at all, read with every doubt refused.

config.json holds the fields of ModelSpec and "weights_version"; model.safetensors one tensor for each name of
ModelSpec.parameter_shapes(), or another name of one that is tied to it. Nothing is ever unpickled.
"""

import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch

from seqloom_server.nn.files import atomic_folder, state_dict_file, tied_tensors
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import InvalidSpec, ModelSpec

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAX_VERSION = 2**53  # the integers that every reader of JSON keeps

_VERSION = "weights_version"
_MAX_CONFIG_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 64 * 1024  # of model.safetensors: names, shapes and metadata of at most 132 tensors

recover_all = atomic_folder.recover_all  # after a crash, for every model folder in a root


class BrokenModel(atomic_folder.BrokenFolder):
    """A model folder that cannot be loaded."""


def _take_any(spec: ModelSpec) -> None:
    """What load() and load_bytes() do with a specification that nobody looks at."""


def load(
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    check: Callable[[ModelSpec], None] = _take_any,
) -> tuple[Network, int]:
    """Returns the network of a model folder on `device`, and its weights version.

    check: sees the specification before any weights are read, and raises what it likes. Raises BrokenModel.
    """
    path = pathlib.Path(folder)
    try:
        try:
            for name in (CONFIG, WEIGHTS):
                if (path / name).exists() and not (path / name).is_file():  # to open a pipe would wait for a writer
                    raise BrokenModel(f"{name} is no regular file")
            with open(path / CONFIG, "rb") as file:
                config = file.read(_MAX_CONFIG_BYTES + 1)
            spec, version = _read_config(config)
            check(spec)
            open(path / WEIGHTS, "rb").close()  # safetensors says of a file without rights that it is not there
            with safetensors.safe_open(path / WEIGHTS, "pt") as archive:
                kept = _kept_names(archive.metadata(), archive.keys(), archive.get_tensor)
                headers = {name: archive.get_slice(each) for name, each in kept.items()}
                _check_names_and_shapes(spec, {name: tuple(header.get_shape()) for name, header in headers.items()})
                # copies, since a tensor of an archive is a view on the file, which someone may write over
                tensors = {name: archive.get_tensor(kept[name]).clone() for name in spec.parameter_shapes()}
        except FileNotFoundError as error:
            raise BrokenModel(f"{CONFIG if not (path / CONFIG).exists() else WEIGHTS} is missing") from error
        except OSError as error:
            raise BrokenModel(f"cannot be read: {error.strerror or error}") from error
        except safetensors.SafetensorError as error:
            raise _no_weights(error, path / WEIGHTS) from error
        _check_numbers(spec, tensors)
    except BrokenModel as error:
        raise BrokenModel(f"{path.name}: {error}") from error.__cause__
    return Network(spec, tensors, device), version


def load_bytes(
    config: bytes,
    weights: bytes,
    device: torch.device | str = "cpu",
    check: Callable[[ModelSpec], None] = _take_any,
) -> tuple[Network, int]:
    """Returns the same from the contents of the two files. Raises BrokenModel."""
    spec, version = _read_config(config)
    check(spec)
    try:
        tensors = safetensors.torch.load(weights)
    except KeyError as error:  # of a table of types
        raise BrokenModel(f"{WEIGHTS}: a tensor has the type {error}: {CONFIG} says {spec.dtype}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise _no_weights(error, weights) from error
    for name, each in _kept_names(tied_tensors.metadata_of(weights), tensors.keys(), tensors.__getitem__).items():
        if name != each:
            tensors[name] = tensors[each].clone()  # what is tied in a file is trained apart
    _check_names_and_shapes(spec, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    _check_numbers(spec, tensors)
    return Network(spec, {name: tensors[name] for name in spec.parameter_shapes()}, device), version


def to_bytes(network: Network, weights_version: int = 1) -> tuple[bytes, bytes]:
    """Returns the contents of config.json and model.safetensors."""
    return _write_config(network.spec, weights_version), safetensors.torch.save(_on_cpu(network), {"format": "pt"})


def max_weights_bytes(config: bytes) -> int:
    """Returns the most bytes that model.safetensors may have beside this config.json. Raises BrokenModel."""
    return most_weights_bytes(weights_bytes(_read_config(config)[0]))


def most_weights_bytes(size: int) -> int:
    """Returns the most bytes that model.safetensors may have around weights of `size` bytes."""
    return size + _MAX_HEADER_BYTES


def weights_bytes(spec: ModelSpec) -> int:
    """Returns how many bytes the weights of such a network have."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return spec.parameter_count * dtype.itemsize


def save(folder: str | os.PathLike[str], network: Network, weights_version: int = 1) -> None:
    """Writes a model folder, in place of one that stands there. A crash leaves the old one or the new one.

    One writer to a folder at a time. Raises OSError.
    """
    with atomic_folder.replaced(folder) as new:
        (new / CONFIG).write_bytes(_write_config(network.spec, weights_version))
        write_tensors(new / WEIGHTS, _on_cpu(network))
        shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors lets nobody else read


def write_tensors(path: pathlib.Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file. Raises OSError, with the system's number where safetensors tells it."""
    try:
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
    except safetensors.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # all that it keeps of the system's
        raise OSError(*([int(number[1]), os.strerror(int(number[1]))] if number else [str(error)])) from error


def _on_cpu(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in network.parameters().items()}


def _write_config(spec: ModelSpec, weights_version: int) -> bytes:
    return (json.dumps({**spec.to_json(), _VERSION: weights_version}, indent=2) + "\n").encode()


def _read_config(config: bytes) -> tuple[ModelSpec, int]:
    if len(config) > _MAX_CONFIG_BYTES:
        raise BrokenModel(f"{CONFIG} has more than {_MAX_CONFIG_BYTES} bytes")
    try:
        fields = json.loads(config, object_pairs_hook=_without_repeats)
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
        raise BrokenModel(f"{CONFIG} is no JSON: {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BrokenModel(f"{CONFIG}: a key is given twice")
    return fields


def _no_weights(error: Exception, weights: bytes | pathlib.Path) -> BrokenModel:
    try:
        with io.BytesIO(weights) if isinstance(weights, bytes) else weights.open("rb") as file:
            what, _ = state_dict_file.what_it_is(file)
    except OSError:  # taken away since
        what = ""
    return BrokenModel(f"{WEIGHTS}: {error}{what and f'; it is {what}'}")


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
            raise BrokenModel(f"{WEIGHTS}: tensor {name[:80]!r} belongs to no {spec.num_layers}-layer {spec.cell}")


def _check_numbers(spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> None:
    for name in spec.parameter_shapes():
        tensor = tensors[name]
        if tensor.dtype != getattr(torch, spec.dtype):
            raise BrokenModel(f"{WEIGHTS}: tensor {name} is {str(tensor.dtype)[6:]}: {CONFIG} says {spec.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise BrokenModel(f"{WEIGHTS}: tensor {name} holds a number that is not finite")
