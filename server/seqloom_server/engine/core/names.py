"""Checks the names of models, runs and checkpoints, which are also names of folders."""

import re

from seqloom_server.errors import invalid

PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"

_NAME = re.compile(PATTERN)


def is_name(text: str) -> bool:
    """Returns whether the text is a valid name."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, field: str = "name") -> str:
    """Returns the name. Raises ServerError INVALID_FIELD if it is not valid."""
    if not is_name(name):
        raise invalid(
            field, f"is {name[:80]!r}: expected 1 to 64 characters of a-z 0-9 . _ - that begin with a letter or digit"
        )
    return name
