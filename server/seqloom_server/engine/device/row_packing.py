"""From the members of a slice to the rows of a batch and back: indices only, computed once a slice, in numpy.

Packed: members longest first, time-major, each step a prefix of them, so that no padding is computed or stored. Row
(t, r) of the batch, step t of the member of rank r, lies at offset[t] + r. Where a device wants few shapes the batch is
a rectangle instead: offset[t] = t times its rows, and what no member has is padding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqloom_server.engine.core.sequence import Array, Member, OutputSpec, steps_of
from seqloom_server.nn.cuda_graphs.buckets import Rectangle

Index = npt.NDArray[np.int64]


@dataclass(slots=True)
class RowPacking:
    """Where the rows of a slice lie.

    ranked: members with at least one step, longest first (N of them). lengths: [N], their steps. batch_sizes: [T], how
    many members each step has. to_packed: [cells], the member-major row that each row of the batch takes; None where
    both orders are the same; padding takes the first one. positions: per output wanted, the members that want it and
    the batch's rows [their cells] of their steps, member by member; positions None where that is every row in its
    order. shape: the rectangle, None where rows are packed.
    """

    ranked: list[Member]
    lengths: Index
    batch_sizes: Index
    to_packed: Index | None
    groups: list[tuple[OutputSpec, list[Member], Index | None]]
    shape: Rectangle | None = None


def pack(members: list[Member], shaped: Callable[[Index], Rectangle | None] | None = None) -> RowPacking:
    """Returns the packing of a slice's members; those without steps (a bare reset or end) are left out.

    shaped: says by the batch sizes which rectangle to use, or None for packed rows, which is also what is done without.
    """
    lengths = steps_of(members)
    order = np.argsort(-lengths, kind="stable")
    ranked = [members[i] for i in order if members[i].steps]
    lengths = lengths[order][: len(ranked)]
    if not ranked:
        return RowPacking([], lengths, lengths, None, [])
    count, steps = len(ranked), int(lengths[0])
    valid = np.arange(steps)[:, None] < lengths  # [T, N]
    batch_sizes = valid.sum(1)
    shape = None if shaped is None else shaped(batch_sizes)
    trivial = shape is None and (count == 1 or steps == 1)
    offsets = np.cumsum(batch_sizes) - batch_sizes if shape is None else np.arange(steps) * shape.rows
    batch_row = offsets[:, None] + np.arange(count)  # [T, N]
    to_packed = None
    if not trivial:
        starts = np.cumsum(lengths) - lengths
        to_packed = (starts + np.arange(steps)[:, None])[valid]
        if shape is not None:
            rows, to_packed = to_packed, np.zeros(shape.cells, np.int64)
            to_packed[batch_row[valid]] = rows
    wanted: dict[OutputSpec, list[int]] = {}
    for rank, member in enumerate(ranked):
        wanted.setdefault(member.sequence.output, []).append(rank)
    groups: list[tuple[OutputSpec, list[Member], Index | None]] = []
    for spec, ranks in wanted.items():
        positions = None if trivial and len(wanted) == 1 else batch_row[:, ranks].T[valid[:, ranks].T]
        groups.append((spec, [ranked[rank] for rank in ranks], positions))
    return RowPacking(ranked, lengths, batch_sizes, to_packed, groups, shape)


def frames(packing: RowPacking) -> list[Array]:
    """Returns the frames of the ranked members, [k, D] each, member by member: what rows are stacked from."""
    return [part for member in packing.ranked for part in member.parts]
