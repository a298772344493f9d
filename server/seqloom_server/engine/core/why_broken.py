"""Describes in one line why a model's or a run's folder cannot be loaded, whatever the exception."""

import logging

from seqloom_server.errors import ServerError
from seqloom_server.memory import is_memory_short
from seqloom_server.nn.files.atomic_folder import BrokenFolder
from seqloom_server.nn.spec import InvalidSpec

_MAX_CHARACTERS = 500

log = logging.getLogger(__name__)


def why_broken(name: str, error: BaseException) -> str:
    """Returns one line of printable text, without the folder's name, which callers put in front."""
    match error:
        case ServerError():
            text = error.message
        case _ if is_memory_short(error):
            text = "the server is out of memory for it"
        case OSError():
            text = error.strerror or str(error)
        case BrokenFolder() | InvalidSpec():
            text = str(error)
        case _:
            log.error("%s: unexpected error:", name, exc_info=error)
            text = f"{type(error).__name__}: {error}"
    line = " ".join(text.removeprefix(f"{name}: ").split())
    shown = "".join(character if character.isprintable() else "?" for character in line)
    return shown[: _MAX_CHARACTERS - 3] + "..." if len(shown) > _MAX_CHARACTERS else shown or type(error).__name__
