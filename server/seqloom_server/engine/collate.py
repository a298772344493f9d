"""From the members of a slice to packed rows and back: indices only, computed once a slice, in numpy.

Packed: members longest first, time-major, each step a prefix of them, so that no padding is computed or stored. Row
(t, r) of the packed batch, step t of the member of rank r, lies at offset[t] + r.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqloom_server.engine.request import Array, Member, OutputSpec, steps_of

Index = npt.NDArray[np.int64]


@dataclass(slots=True)
class Packing:
    """Where the rows of a slice lie.

    ranked: members with at least one step, longest first (N of them). batch_sizes: [T], how many members each step
    has. to_packed: [cells], the member-major row that each packed row takes; None where both orders are the same.
    positions: per output wanted, the members that want it and the packed rows [their cells] of their steps, member by
    member; positions None where that is every row in packed order.
    """

    ranked: list[Member]
    batch_sizes: Index
    to_packed: Index | None
    groups: list[tuple[OutputSpec, list[Member], Index | None]]


def pack(members: list[Member]) -> Packing:
    """Returns the packing of a slice's members; those without steps (a bare reset or end) are left out."""
    lengths = steps_of(members)
    order = np.argsort(-lengths, kind="stable")
    ranked = [members[i] for i in order if members[i].steps]
    lengths = lengths[order][: len(ranked)]
    if not ranked:
        return Packing([], lengths, None, [])
    count, steps = len(ranked), int(lengths[0])
    valid = np.arange(steps)[:, None] < lengths  # [T, N]
    batch_sizes = valid.sum(1)
    trivial = count == 1 or steps == 1
    to_packed = None
    if not trivial:
        starts = np.cumsum(lengths) - lengths
        to_packed = (starts + np.arange(steps)[:, None])[valid]
    offsets = np.cumsum(batch_sizes) - batch_sizes
    packed_row = offsets[:, None] + np.arange(count)  # [T, N]
    wanted: dict[OutputSpec, list[int]] = {}
    for rank, member in enumerate(ranked):
        wanted.setdefault(member.sequence.output, []).append(rank)
    groups: list[tuple[OutputSpec, list[Member], Index | None]] = []
    for spec, ranks in wanted.items():
        positions = None if trivial and len(wanted) == 1 else packed_row[:, ranks].T[valid[:, ranks].T]
        groups.append((spec, [ranked[rank] for rank in ranks], positions))
    return Packing(ranked, batch_sizes, to_packed, groups)


def gather(packing: Packing) -> Array:
    """Returns the frames of the ranked members, [cells, D], member by member: the one copy on the way in."""
    return np.concatenate([part for member in packing.ranked for part in member.parts])
