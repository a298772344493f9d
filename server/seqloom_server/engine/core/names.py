"""The names of models, runs and checkpoints, which are names of folders, too."""

import re

from seqloom_server.errors import invalid

PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"

_NAME = re.compile(PATTERN)


def is_name(text: str) -> bool:
    """Whether it is a name, and so could be a folder's."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, field: str = "name") -> str:
    """Returns the name. Raises ServerError INVALID_FIELD where it is none."""
    if not is_name(name):
        raise invalid(field, f"is {name[:80]!r}: expected 1 to 64 of a-z 0-9 . _ - beginning with a letter or digit")
    return name
