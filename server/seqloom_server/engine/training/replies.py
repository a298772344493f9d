"""The replies to calls on runs, and their JSON, which checkpoints keep for repeats after a restart."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloom_server.engine.training.run_weights import Accumulated, Stepped
from seqloom_server.errors import Reason, ServerError


@dataclass(frozen=True, slots=True)
class Published:
    """The reply to PublishRun. version: of the weights that are served now."""

    version: int


@dataclass(frozen=True, slots=True)
class Done:
    """The reply to SaveCheckpoint and LoadCheckpoint, which says nothing more."""


_MAX_MESSAGE = 800  # characters; a status carries no more

Reply = Accumulated | Stepped | Published | Done


def to_json(reply: Reply | ServerError) -> dict[str, Any]:
    """Returns a reply as JSON."""
    match reply:
        case Accumulated(losses, step):
            return {"losses": losses.tolist(), "step": step}
        case Stepped(step, norm, calls):
            return {"step": step, "norm": norm, "calls": calls}
        case Published(version):
            return {"version": version}
        case ServerError():
            return {"reason": str(reply.reason), "message": reply.message[:_MAX_MESSAGE], "field": reply.field}
        case _:
            return {}


def from_json(fields: dict[str, Any]) -> Reply | ServerError:
    """Returns the reply of which to_json() made this. Raises KeyError, TypeError or ValueError for anything else."""
    if "reason" in fields:
        return ServerError(Reason(fields["reason"]), str(fields["message"]), field=str(fields["field"]))
    if "losses" in fields:
        return Accumulated(np.asarray(fields["losses"], np.float64), int(fields["step"]))
    if "norm" in fields:
        calls = {str(client): int(number) for client, number in fields["calls"].items()}
        return Stepped(int(fields["step"]), float(fields["norm"]), calls)
    if "version" in fields:
        return Published(int(fields["version"]))
    return Done()
