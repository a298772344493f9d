"""What calls on runs are answered, kept so that a repeat gets the same again, also after a restart of the server."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from seqloom_server.engine.training.run_weights import Accumulated, Stepped
from seqloom_server.errors import Reason, ServerError


@dataclass(frozen=True, slots=True)
class Published:
    """A run's weights became a model's. version: of the weights that are served now."""

    version: int


@dataclass(frozen=True, slots=True)
class Done:
    """A call that has nothing to tell: a checkpoint was saved or loaded."""


_MAX_MESSAGE = 800  # characters; more would not travel either

Reply = Accumulated | Stepped | Published | Done


def to_json(reply: Reply | ServerError) -> dict[str, Any]:
    """Returns a reply as JSON has it."""
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
    """Returns the reply that to_json() made this of. Raises KeyError, TypeError or ValueError where it did not."""
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
