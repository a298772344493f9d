"""Compares two files of results by ratio: what became worse, and which rows only one of them has.

    python -m benchmarks.compare BEFORE.json AFTER.json [--tolerance 0.15]

It says so where the two were taken on different processors, where the same code has other ratios.

Rows are matched by work and network. Of each the ratio to what stood beside it is compared; of a row that has none, its
speed as a share of a yardstick that was measured in the same sitting, since speeds of two sittings say nothing. It ends
with status 1 where a row is worse by more than the tolerance, 2 where nothing can be compared.
"""

import argparse
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

YARDSTICKS = ("the network alone", "one autograd pass", "a bare grpc.aio unary echo", "Triton:")
"""How the works of rows begin that no change of Seqloom makes faster; of the same network, the first that is there."""

Key = tuple[str, str]
"""Work and network."""


@dataclass(frozen=True)
class Change:
    """One number in two sittings. grown: how much better it became: 1 is the same, less is worse."""

    key: Key
    before: float
    after: float
    grown: float


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("before", type=pathlib.Path)
    options.add_argument("after", type=pathlib.Path)
    options.add_argument(
        "--tolerance", type=float, default=0.15, metavar="X", help="how much worse is still well (0.15)"
    )
    given = options.parse_args()
    try:
        before, after = read(given.before), read(given.after)
        processors = [processor_of(given.before), processor_of(given.after)]
    except ValueError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    if processors[0] != processors[1]:
        print(f"other processors: {processors[0]} before, {processors[1]} after")
    for told, here, there in (("missing", before, after), ("new", after, before)):
        for work, network in here:
            if (work, network) not in there:
                print(f"{told}: {work}, {network}")
    changes = list(compared(before, after))
    worse = [change for change in changes if change.grown < 1 - given.tolerance]
    for change in changes:
        verdict = "WORSE" if change in worse else "ok"
        print(f"{verdict}: {', '.join(change.key)}: {change.before:.3g} before, {change.after:.3g} after")
    if not changes:
        print("compare: the two have no row in common that can be compared", file=sys.stderr)
        return 2
    print(f"{len(changes)} rows compared, {len(worse)} worse by more than {given.tolerance:.0%}")
    return 1 if worse else 0


def read(path: pathlib.Path) -> dict[Key, dict[str, Any]]:
    """The rows of a file of results. Raises ValueError where it is none."""
    try:
        rows = json.loads(path.read_text())["rows"]
        return {(row["work"], row["model"]): row for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of results: {error}") from error


def processor_of(path: pathlib.Path) -> str:
    """What a file of results was taken on; "unknown" where it does not say."""
    return str(json.loads(path.read_text()).get("conditions", {}).get("processor", "unknown"))


def compared(before: Mapping[Key, dict[str, Any]], after: Mapping[Key, dict[str, Any]]) -> Iterator[Change]:
    """Yields the change of each row that both have, and that has a number in both which can be compared."""
    for key in before:
        if key not in after:
            continue
        one, other = before[key], after[key]
        old, new = one.get("ratio"), other.get("ratio")
        if one.get("beside") != other.get("beside") and old is not None:
            continue  # ratios to different things
        if old is not None and new is not None:
            # a file from before rows told it has the other's word
            lower = other.get("lower_is_better", one.get("lower_is_better", False))
            yield Change(key, old, new, _grown(new, old) if lower else _grown(old, new))
        elif (shares := (_share(before, after, key), _share(after, before, key))) and all(shares):
            yield Change(key, *shares, _grown(*shares))


def _grown(old: float, new: float) -> float:
    """New over old; what is nothing in both has not changed."""
    if old == new:
        return 1.0
    return new / old if old else math.inf


def _share(rows: Mapping[Key, dict[str, Any]], others: Mapping[Key, dict[str, Any]], key: Key) -> float | None:
    """A row's speed as a share of its yardstick's, which must stand in both files; none for a yardstick."""
    work, network = key
    speed = rows[key]["values"].get("frames_per_second")
    if speed is None or work.startswith(YARDSTICKS):
        return None
    for beginning in YARDSTICKS:
        for other, beside in rows:
            if other.startswith(beginning) and beside == network and (other, beside) in others:
                of = rows[other, beside]["values"].get("frames_per_second")
                return speed / of if of else None
    return None


if __name__ == "__main__":
    sys.exit(main())
