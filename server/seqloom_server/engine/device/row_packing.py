"""Computes the indices that pack the members of a slice into the rows of a batch and back, in numpy, once a slice.

Packed rows: members longest first, time-major, each step a prefix of the members, so that there is no padding. Row
(t, r) of the batch, step t of the member of rank r, is at offset[t] + r. For a device that needs few shapes the batch
is a rectangle instead: offset[t] = t times its rows, and rows without a member are padding.
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
    """The packing of a slice's rows.

    ranked: the N members with at least one step, longest first. lengths: [N], their steps. batch_sizes: [T], the number
    of members at each step. to_packed: [cells], the member-major row of each row of the batch, None if both orders are
    the same; for padding the first row. groups: for each output spec, its members and the batch's rows [their cells]
    of their steps, member by member; None for all rows in order. shape: the rectangle, None for packed rows.
    """

    ranked: list[Member]
    lengths: Index
    batch_sizes: Index
    to_packed: Index | None
    groups: list[tuple[OutputSpec, list[Member], Index | None]]
    shape: Rectangle | None = None


def pack(members: list[Member], rectangle: Callable[[Index], Rectangle | None] | None = None) -> RowPacking:
    """Returns the packing of a slice's members; members without steps (a reset or end without frames) are left out.

    rectangle: returns the rectangle for given batch sizes, or None for packed rows.
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
    shape = None if rectangle is None else rectangle(batch_sizes)
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
    ranks_by_output: dict[OutputSpec, list[int]] = {}
    for rank, member in enumerate(ranked):
        ranks_by_output.setdefault(member.sequence.output, []).append(rank)
    groups: list[tuple[OutputSpec, list[Member], Index | None]] = []
    for spec, ranks in ranks_by_output.items():
        positions = None if trivial and len(ranks_by_output) == 1 else batch_row[:, ranks].T[valid[:, ranks].T]
        groups.append((spec, [ranked[rank] for rank in ranks], positions))
    return RowPacking(ranked, lengths, batch_sizes, to_packed, groups, shape)


def frames(packing: RowPacking) -> list[Array]:
    """Returns the frames of the ranked members, [k, D] each, member by member, to be stacked into rows."""
    return [part for member in packing.ranked for part in member.parts]
