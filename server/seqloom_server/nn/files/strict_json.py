"""Parses JSON strictly: refuses duplicate keys, and NaN and Infinity, which JSON does not have."""

import json


def loads(text: bytes) -> object:
    """Returns the value of a JSON text. Raises ValueError, or RecursionError for too deep nesting."""
    return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"duplicate key {name[:80]!r}")
            seen.add(name)
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
