"""Computes the indices that pack the members of a slice into the rows of a batch and back, in numpy, once a slice.

Packed rows: members longest first, time-major, each step a prefix of the members, so that there is no padding. Row
(t, r) of the batch, step t of the stream of rank r, is at offset[t] + r. For a device that needs few shapes the batch
is a rectangle instead: offset[t] = t times its rows, and rows without a member are padding.

A member is one stream, but for a group, whose streams have ranks one after the other. Its frames come step by step,
each a row for each stream, as a batch has them; its outputs leave stream by stream, as those of all members do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from seqloom_server.engine.core.sequence import Array, Member, OutputSpec, steps_of, widths_of
from seqloom_server.nn.cuda_graphs.buckets import Rectangle

Index = npt.NDArray[np.int64]


@dataclass(slots=True)
class RowPacking:
    """The packing of a slice's rows.

    ranked: the members with at least one step, longest first. lengths: [N], the steps of their N streams. batch_sizes:
    [T], the number of streams at each step. to_packed: [cells], the row of the members' frames, one member after the
    other, of each row of the batch, None if both orders are the same; for padding the first row. groups: for each
    output spec, its members and the batch's rows [their cells] of their steps, stream by stream; None for all rows in
    order. shape: the rectangle, None for packed rows.
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
    if len(members) == 1 and rectangle is None and members[0].steps:
        return _alone(members[0])
    lengths = steps_of(members)
    order = np.argsort(-lengths, kind="stable")
    ranked = [members[i] for i in order if members[i].steps]
    lengths = lengths[order][: len(ranked)]
    if not ranked:
        return RowPacking([], lengths, lengths, None, [])
    widths = widths_of(ranked)
    first: Index | None = None  # the first rank of each member
    strides: Index | int = 1
    starts = np.cumsum(lengths * widths) - lengths * widths  # of each member's frames
    if int(widths.max()) > 1:
        first = np.cumsum(widths) - widths
        starts = np.repeat(starts - first, widths) + np.arange(first[-1] + widths[-1])
        lengths, strides = np.repeat(lengths, widths), np.repeat(widths, widths)
    count, steps = len(lengths), int(lengths[0])
    valid = np.arange(steps)[:, None] < lengths  # [T, N]
    batch_sizes = valid.sum(1)
    shape = None if rectangle is None else rectangle(batch_sizes)
    in_order = shape is None and (steps == 1 or len(ranked) == 1)
    offsets = np.cumsum(batch_sizes) - batch_sizes if shape is None else np.arange(steps) * shape.rows
    batch_row = offsets[:, None] + np.arange(count)  # [T, N]
    to_packed = None
    if not in_order:
        to_packed = (starts + np.arange(steps)[:, None] * strides)[valid]
        if shape is not None:
            rows, to_packed = to_packed, np.zeros(shape.cells, np.int64)
            to_packed[batch_row[valid]] = rows
    members_by_output: dict[OutputSpec, list[int]] = {}
    for number, member in enumerate(ranked):
        members_by_output.setdefault(member.sequence.output, []).append(number)
    all_in_order = shape is None and (steps == 1 or count == 1) and len(members_by_output) == 1
    groups: list[tuple[OutputSpec, list[Member], Index | None]] = []
    for spec, numbers in members_by_output.items():
        positions = None
        if not all_in_order:
            ranks = numbers if first is None else _ranks(first, widths, numbers)
            positions = batch_row[:, ranks].T[valid[:, ranks].T]
        groups.append((spec, [ranked[number] for number in numbers], positions))
    return RowPacking(ranked, lengths, batch_sizes, to_packed, groups, shape)


def _alone(member: Member) -> RowPacking:
    """Returns the packing of one member, whose frames are in order."""
    steps, width = member.steps, member.width
    positions = None
    if steps > 1 and width > 1:
        positions = np.arange(steps * width).reshape(steps, width).T.reshape(-1)
    return RowPacking(
        [member],
        np.full(width, steps),
        np.full(steps, width),
        None,
        [(member.sequence.output, [member], positions)],
    )


def _ranks(first: Index, widths: Index, numbers: list[int]) -> Index:
    """Returns the ranks of the streams of some members."""
    return np.concatenate([np.arange(first[number], first[number] + widths[number]) for number in numbers])


def frames(packing: RowPacking) -> list[Array]:
    """Returns the frames of the ranked members, [k, D] each, member by member, to be stacked into rows."""
    return [
        part if part.ndim == 2 else part.reshape(-1, part.shape[2])
        for member in packing.ranked
        for part in member.parts
    ]
