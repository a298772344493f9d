"""Reads and writes checkpoints of training runs: folders of state.json and tensors.safetensors, replaced atomically.

A run's folder holds "latest", from which it resumes after a restart, and "checkpoints/NAME". Tensors are named
"parameters.NAME", "optimizer.NAME" and "accumulated.NAME". Nothing is ever unpickled.
"""

import contextlib
import os
import pathlib
import re
import shutil
import stat
from dataclasses import replace

import safetensors
import torch

from seqloom_server.engine.core.names import check_name, is_name
from seqloom_server.engine.training.run_state import (
    BrokenCheckpoint,
    CallsDone,
    Header,
    RunMeta,
    RunState,
    StoredReply,
    Tensors,
    from_bytes,
    header_of,
    owner_in,
    to_bytes,
)
from seqloom_server.nn.files import atomic_folder, model_folder
from seqloom_server.nn.optimizer_spec import STEP

__all__ = ["BrokenCheckpoint", "CallsDone", "RunMeta", "RunState", "StoredReply"]

STATE = "state.json"
TENSORS = "tensors.safetensors"
LATEST = "latest"
NAMED = "checkpoints"
RUN_ID = re.compile(r"run-[0-9a-f]{12}")  # as RunTable.create() generates them

_MAX_STATE_BYTES = 256 << 20
_MAX_HEADER_BYTES = 1 << 20  # of tensors.safetensors: names and shapes of some hundred tensors
_TYPES = {"float32": "F32", "float64": "F64"}

Layout = dict[str, tuple[str, tuple[int, ...]]]  # tensor name: safetensors' name of its type, and its shape


def check_checkpoint_name(name: str) -> str:
    """Returns the name. Raises ServerError INVALID_FIELD if it is not valid."""
    return check_name(name, "name")


def save(folder: pathlib.Path, state: RunState) -> None:
    """Writes a checkpoint, replacing an existing one; a failure or a crash leaves the old one.

    Raises OSError, and BrokenCheckpoint for what load() would refuse, such as weights that are not finite.
    """
    header = header_of(state)
    text = to_bytes(header)
    if len(text) > _MAX_STATE_BYTES:
        raise BrokenCheckpoint(f"{STATE} has more than {_MAX_STATE_BYTES} bytes")
    tensors = _named(state)
    found = {name: (_type_of(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
    _check_layout(_layout(header), found)
    _check_numbers(tensors)
    with atomic_folder.replaced(folder) as new:
        (new / STATE).write_bytes(text)
        model_folder.write_tensors(new / TENSORS, tensors)
        shutil.copymode(new / STATE, new / TENSORS)


def load(folder: pathlib.Path) -> RunState:
    """Reads a checkpoint. Raises FileNotFoundError if the folder is missing, OSError, and BrokenCheckpoint."""
    if not folder.exists():
        atomic_folder.recover(folder)
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise BrokenCheckpoint(f"{folder.name} is not a folder")
    for file in (STATE, TENSORS):
        _check_file(folder / file)
    try:
        header = from_bytes(_read(folder / STATE))
    except BrokenCheckpoint as error:
        raise BrokenCheckpoint(f"{folder.name}: {STATE}: {error}") from error
    try:
        tensors = _read_tensors(folder / TENSORS, _layout(header))
        _check_numbers(tensors)
    except BrokenCheckpoint as error:
        raise BrokenCheckpoint(f"{folder.name}: {TENSORS}: {error}") from error
    return RunState(
        meta=header.meta,
        spec=header.spec,
        step=header.step,
        loss=header.loss,
        accumulated_calls=header.accumulated_calls,
        parameters=_under("parameters.", tensors),
        optimizer=_under("optimizer.", tensors),
        accumulated=_under("accumulated.", tensors) if header.accumulated else None,
        calls=header.calls,
    )


def save_run(folder: pathlib.Path, name: str, state: RunState) -> None:
    """Writes a run's latest checkpoint, and the same under `name` if given. Raises as save() does."""
    if not name:
        save(folder / LATEST, state)
    else:
        named = folder / NAMED / check_checkpoint_name(name)
        save(named, state)
        with atomic_folder.replaced(folder / LATEST) as new:
            for file in (STATE, TENSORS):
                _link(named / file, new / file)
    for parent in (folder, folder.parent):  # the entries of "checkpoints" and of the run's folder
        atomic_folder.sync(parent)


def load_latest(folder: pathlib.Path) -> RunState:
    """Returns the state from which a run resumes. Raises OSError and BrokenCheckpoint."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise BrokenCheckpoint("is not a folder")
    try:
        state = load(folder / LATEST)
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{LATEST} is missing") from None
    if state.meta.id != folder.name:
        raise BrokenCheckpoint(
            f"{LATEST}: {STATE}: meta.id: is {state.meta.id!r}: expected {folder.name!r}, the folder's name"
        )
    return state


def owner_of(folder: pathlib.Path) -> str:
    """Returns whose a run is that cannot be loaded, "" if that cannot be read either."""
    try:
        _check_file(folder / LATEST / STATE)
        return owner_in(_read(folder / LATEST / STATE))
    except (OSError, BrokenCheckpoint):
        return ""


def load_named(folder: pathlib.Path, name: str) -> RunState:
    """Returns a run's named checkpoint, with the id of that run. Raises as load() does."""
    state = load(folder / NAMED / check_checkpoint_name(name))
    return replace(state, meta=replace(state.meta, id=folder.name))


def delete_named(folder: pathlib.Path, name: str) -> None:
    """Removes a named checkpoint. Raises FileNotFoundError or OSError."""
    atomic_folder.remove(folder / NAMED / check_checkpoint_name(name))


def names(folder: pathlib.Path) -> list[str]:
    """Returns the names of a run's checkpoints, in order."""
    return [path.name for path in _folders_in(folder / NAMED)]


def run_folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of all runs, in order, after removing the leftovers of crashes.

    Files with the name of a run are among them. Raises OSError if the root cannot be read.
    """
    atomic_folder.recover_all(root)  # runs that were being removed
    runs = [path for path in root.iterdir() if RUN_ID.fullmatch(path.name)] if root.is_dir() else []
    for folder in _folders_in(root):
        with contextlib.suppress(OSError):  # loading it will raise the same
            for place in (folder, folder / NAMED):
                atomic_folder.recover_all(place)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if empty: of a run that was never saved, and so never returned to a client
        runs.append(folder)
    return sorted({folder for folder in runs if os.path.lexists(folder)})


def _folders_in(root: pathlib.Path) -> list[pathlib.Path]:
    paths = sorted(root.iterdir()) if root.is_dir() else []
    return [path for path in paths if is_name(path.name) and path.is_dir() and not path.is_symlink()]


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """Makes a hard link, or a copy if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _check_file(path: pathlib.Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{path.parent.name}: {path.name} is missing") from None
    if not stat.S_ISREG(mode):  # opening a pipe would block
        raise BrokenCheckpoint(f"{path.parent.name}: {path.name} is not a regular file")


def _read(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        text = file.read(_MAX_STATE_BYTES + 1)
    if len(text) > _MAX_STATE_BYTES:
        raise BrokenCheckpoint(f"has more than {_MAX_STATE_BYTES} bytes")
    return text


def _read_tensors(path: pathlib.Path, layout: Layout) -> Tensors:
    open(path, "rb").close()  # safetensors reports an unreadable file as missing
    try:
        with safetensors.safe_open(path, "pt") as archive:
            slices = {name: archive.get_slice(name) for name in archive.keys()}  # noqa: SIM118 - no mapping
            found = {name: (header.get_dtype(), tuple(header.get_shape())) for name, header in slices.items()}
            _check_layout(layout, found)
            # copies, since a tensor of an archive is a view on the file
            return {name: archive.get_tensor(name).clone() for name in layout}
    except safetensors.SafetensorError as error:
        raise BrokenCheckpoint(str(error)) from error


def _layout(header: Header) -> Layout:
    shapes, kind = header.spec.parameter_shapes(), _TYPES[header.spec.dtype]
    layout: Layout = {f"parameters.{name}": (kind, shape) for name, shape in shapes.items()}
    for name, shape in header.meta.optimizer.state_shapes(shapes).items():
        layout[f"optimizer.{name}"] = ("I64" if name == STEP else kind, shape)
    if header.accumulated:
        layout |= {f"accumulated.{name}": (kind, shape) for name, shape in shapes.items()}
    return layout


def _named(state: RunState) -> Tensors:
    groups = {"parameters": state.parameters, "optimizer": state.optimizer, "accumulated": state.accumulated or {}}
    return {f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()}


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _type_of(tensor: torch.Tensor) -> str:
    known = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}
    return known.get(tensor.dtype, str(tensor.dtype))


def _check_layout(expected: Layout, found: Layout) -> None:
    for name, (kind, shape) in expected.items():
        if name not in found:
            raise BrokenCheckpoint(f"tensor {name} is missing")
        if found[name][1] != shape:
            raise BrokenCheckpoint(f"tensor {name} has shape {list(found[name][1])}: expected {list(shape)}")
        if found[name][0] != kind:
            raise BrokenCheckpoint(f"tensor {name} is {found[name][0]}: expected {kind}")
    for name in sorted(found.keys() - expected.keys()):
        raise BrokenCheckpoint(f"tensor {name[:80]!r} is not part of this run")


def _check_numbers(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BrokenCheckpoint(f"tensor {name} holds a number that is not finite")
        non_negative = name.startswith("optimizer.exp_avg_sq.") or name == f"optimizer.{STEP}"
        if non_negative and bool((tensor < 0).any()):
            raise BrokenCheckpoint(f"tensor {name} holds a number below 0")
