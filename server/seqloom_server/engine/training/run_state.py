"""The state of a training run, as checkpoints store it, and strict reading and writing of its JSON part, state.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from seqloom_server.engine.core.names import PATTERN, is_name
from seqloom_server.nn.files import strict_json
from seqloom_server.nn.files.atomic_folder import BrokenFolder
from seqloom_server.nn.optimizer_spec import OptimizerSpec, is_finite_number
from seqloom_server.nn.spec import InvalidSpec, ModelSpec

Tensors = dict[str, torch.Tensor]

MAX_CLIENTS = 4096
MAX_REPLIES = 1024  # unacknowledged replies kept for each client

_MAX_INTEGER = 2**53  # that every JSON reader represents exactly
_MAX_TEXT = 1024


class BrokenCheckpoint(BrokenFolder):
    """A checkpoint that cannot be loaded."""


@dataclass(frozen=True, slots=True)
class RunMeta:
    """The settings of a run, which never change. clip_norm, checkpoint_interval (in steps): 0 for none.

    owner: the name of the token that made it, "" where none was asked for.
    """

    id: str
    model: str
    weights_version: int
    optimizer: OptimizerSpec
    clip_norm: float = 0.0
    checkpoint_interval: int = 0
    request_id: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class StoredReply:
    """The reply to a call, as JSON. digest: a hash of the request."""

    number: int
    digest: str
    reply: dict[str, Any]


@dataclass(slots=True)
class CallsDone:
    """The calls of one client: the number of the last one done, and the replies that it has not acknowledged."""

    done: int
    replies: list[StoredReply] = field(default_factory=list)


@dataclass(slots=True)
class RunState:
    """A run's state between two calls, all tensors on the CPU.

    step: steps applied. loss: of the last call, None before. optimizer: see Optimizer.state(). accumulated: by
    parameter, the gradient of accumulated_calls calls since the last step. calls: by client.
    """

    meta: RunMeta
    spec: ModelSpec
    step: int
    loss: float | None
    accumulated_calls: int
    parameters: Tensors
    optimizer: Tensors
    accumulated: Tensors | None = None
    calls: dict[str, CallsDone] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Header:
    """The part of a RunState in state.json."""

    meta: RunMeta
    spec: ModelSpec
    step: int
    loss: float | None
    accumulated_calls: int
    accumulated: bool
    calls: dict[str, CallsDone]


def header_of(state: RunState) -> Header:
    """Returns the part of a state that goes into state.json."""
    return Header(
        meta=state.meta,
        spec=state.spec,
        step=state.step,
        loss=state.loss,
        accumulated_calls=state.accumulated_calls,
        accumulated=state.accumulated is not None,
        calls=state.calls,
    )


def to_bytes(header: Header) -> bytes:
    """Returns state.json. Raises BrokenCheckpoint for what from_bytes() would refuse."""
    try:
        text = json.dumps(asdict(header), indent=1, allow_nan=False).encode() + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        raise BrokenCheckpoint(str(error)) from error
    from_bytes(text)
    return text


def from_bytes(text: bytes) -> Header:
    """Reads state.json. Raises BrokenCheckpoint, which names the invalid field."""
    try:
        value = strict_json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"is not valid JSON: {error}") from error
    if isinstance(value, dict) and value.get("generator") == 0:
        del value["generator"]  # older servers wrote it, always as 0
    top = _object(value, "", Header)
    accumulated = top["accumulated"]
    if not isinstance(accumulated, bool):
        raise _wrong("accumulated", accumulated, "true or false")
    return Header(
        meta=_meta(top["meta"]),
        spec=_spec(top["spec"]),
        step=_integer(top["step"], "step"),
        loss=None if top["loss"] is None else _number(top["loss"], "loss"),
        accumulated_calls=_integer(top["accumulated_calls"], "accumulated_calls"),
        accumulated=accumulated,
        calls=_calls(top["calls"]),
    )


def owner_in(text: bytes) -> str:
    """Returns the owner that a state.json names, which may be broken in other ways; "" if it names none."""
    try:
        owner = json.loads(text)["meta"]["owner"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return owner if isinstance(owner, str) else ""


def _meta(value: object) -> RunMeta:
    if isinstance(value, dict):
        value = {"owner": "", **value}  # older servers knew none
    meta = _object(value, "meta", RunMeta)
    clip_norm = _number(meta["clip_norm"], "meta.clip_norm")
    if clip_norm < 0:
        raise _wrong("meta.clip_norm", clip_norm, "a number of at least 0")
    for key in ("id", "model"):
        if not is_name(_text(meta[key], f"meta.{key}")):
            raise _wrong(f"meta.{key}", meta[key], f"a name like {PATTERN}")
    optimizer = _object(meta["optimizer"], "meta.optimizer", OptimizerSpec)
    try:
        spec = OptimizerSpec(**optimizer)
    except InvalidSpec as error:
        raise BrokenCheckpoint(f"meta.optimizer.{error}") from error
    return RunMeta(
        id=meta["id"],
        model=meta["model"],
        weights_version=_integer(meta["weights_version"], "meta.weights_version", 1),
        optimizer=spec,
        clip_norm=clip_norm,
        checkpoint_interval=_integer(meta["checkpoint_interval"], "meta.checkpoint_interval", most=2**32 - 1),
        request_id=_text(meta["request_id"], "meta.request_id"),
        owner=_text(meta["owner"], "meta.owner"),
    )


def _spec(value: object) -> ModelSpec:
    if not isinstance(value, dict):
        raise _wrong("spec", value, "an object")
    try:
        return ModelSpec.from_json(value)
    except InvalidSpec as error:
        raise BrokenCheckpoint(f"spec.{error}") from error


def _calls(value: object) -> dict[str, CallsDone]:
    if not isinstance(value, dict) or len(value) > MAX_CLIENTS:
        raise _wrong("calls", value, f"an object of at most {MAX_CLIENTS} clients")
    calls: dict[str, CallsDone] = {}
    for client, entry in value.items():
        path = f"calls[{_text(client, 'calls')[:80]!r}]"
        done = _object(entry, path, CallsDone)
        replies = done["replies"]
        if not isinstance(replies, list) or len(replies) > MAX_REPLIES:
            raise _wrong(f"{path}.replies", replies, f"a list of at most {MAX_REPLIES} replies")
        stored = [_reply(reply, f"{path}.replies[{index}]") for index, reply in enumerate(replies)]
        calls[client] = CallsDone(_integer(done["done"], f"{path}.done"), stored)
    return calls


def _reply(value: object, path: str) -> StoredReply:
    entry = _object(value, path, StoredReply)
    if not isinstance(entry["reply"], dict):
        raise _wrong(f"{path}.reply", entry["reply"], "an object")
    return StoredReply(
        _integer(entry["number"], f"{path}.number", 1), _text(entry["digest"], f"{path}.digest"), entry["reply"]
    )


def _object(value: object, path: str, kind: type) -> Mapping[str, Any]:
    """Returns a JSON object that has the fields of a dataclass and no others."""
    if not isinstance(value, dict):
        raise _wrong(path or "it", value, "an object")
    names = [known.name for known in fields(kind)]
    prefix = f"{path}." if path else ""
    for name in names:
        if name not in value:
            raise BrokenCheckpoint(f"{prefix}{name}: is missing")
    for name in value:
        if name not in names:
            raise BrokenCheckpoint(f"{prefix}{name!r:.80}: unknown field: expected {', '.join(names)}")
    return value


def _integer(value: object, path: str, least: int = 0, most: int = _MAX_INTEGER) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(path, value, f"an integer from {least} to {most}")
    return value


def _number(value: object, path: str) -> float:
    if not is_finite_number(value):
        raise _wrong(path, value, "a finite number")
    return float(value)  # type: ignore[arg-type]


def _text(value: object, path: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise _wrong(path, value, f"a text of at most {_MAX_TEXT} characters")
    return value


def _wrong(path: str, value: object, expected: str) -> BrokenCheckpoint:
    return BrokenCheckpoint(f"{path}: is {repr(value)[:80]}: expected {expected}")
