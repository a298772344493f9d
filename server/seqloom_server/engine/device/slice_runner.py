"""Runs slices on the device: gathers states by slot, runs the network once, scatters states, returns outputs.

It runs on the device thread, and returns numpy arrays. A slice is launched, and finished once its results are complete;
on the CPU that is at once.
"""

from dataclasses import dataclass

import numpy as np
import torch

from seqloom_server.engine.core.sequence import Member, Slice, StateArrays
from seqloom_server.engine.device import row_packing
from seqloom_server.engine.device.row_packing import Index
from seqloom_server.engine.device.slice_in_flight import SliceInFlight
from seqloom_server.engine.device.transfers import Staging
from seqloom_server.engine.models.served_weights import DISCARD, ZERO, ServedWeights


@dataclass(slots=True)
class _StateIndices:
    """The indices that gather and scatter the states of N members.

    sources: [N], slots read. targets: [N], slots written, None if no state is kept. returned: members whose states are
    returned to callers, None for none. initial: by member, the initial state that replaces the slot's.
    """

    members: list[Member]
    sources: Index
    targets: Index | None
    returned: Index | None
    initial: dict[int, StateArrays]

    @classmethod
    def of(cls, weights: ServedWeights, members: list[Member]) -> "_StateIndices":
        slots = [
            None if member.sequence.slot is None else weights.slots.check(member.sequence.slot) for member in members
        ]
        sources = [ZERO if member.fresh or slot is None else slot for member, slot in zip(members, slots, strict=True)]
        targets = [DISCARD if slot is None else slot for slot in slots]
        returned = [n for n, member in enumerate(members) if member.final or member.snapshot]
        return cls(
            members,
            np.array(sources, np.int64),
            None if all(target == DISCARD for target in targets) else np.array(targets, np.int64),
            np.array(returned, np.int64) if returned else None,
            {n: member.initial_state for n, member in enumerate(members) if member.initial_state is not None},
        )

    def arrays(self) -> list[Index | None]:
        """Returns sources, targets, returned, and the members with an initial state."""
        initial = np.array(list(self.initial), np.int64) if self.initial else None
        return [self.sources, self.targets, self.returned, initial]


def launch(slice_: Slice, staging: Staging, *, poison: bool = False) -> SliceInFlight:
    """Launches a slice, which the caller then finishes. poison: see ServedWeights.poison()."""
    weights = slice_.weights
    assert isinstance(weights, ServedWeights)
    with torch.inference_mode(), weights.network.products:
        weights.reserve()
        if poison:
            weights.poison()
        return _launch(slice_, weights, staging)


def _launch(slice_: Slice, weights: ServedWeights, staging: Staging) -> SliceInFlight:
    rectangles = weights.rectangles
    packing = row_packing.pack(slice_.members, None if rectangles is None else rectangles.rectangle)
    stepless = [member for member in slice_.members if not member.steps]
    groups = [_StateIndices.of(weights, members) for members in (packing.ranked, stepless) if members]
    transfer = staging.open()
    flight = SliceInFlight(slice_, transfer, copy=staging.apart)
    arrays = [array for group in groups for array in group.arrays()]
    arrays += [packing.to_packed, packing.lengths if packing.shape else None, *(group[2] for group in packing.groups)]
    indices = iter(transfer.indices(arrays))
    state_indices = [[next(indices) for _ in group.arrays()] for group in groups]
    to_packed, lengths, *positions = indices
    initial_states = [
        [transfer.stack(list(parts), axis=1) for parts in zip(*group.initial.values(), strict=True)] for group in groups
    ]
    rows = transfer.stack(row_packing.frames(packing)) if packing.ranked else None
    transfer.begin()
    for group, (sources, targets, returned, fresh), initial in zip(groups, state_indices, initial_states, strict=True):
        assert sources is not None
        before = tuple(state.index_select(1, sources) for state in weights.states)
        if fresh is not None:
            for part, state in zip(before, initial, strict=True):
                part.index_copy_(1, fresh, state.to(part.dtype))
        after = before
        if group.members is packing.ranked:
            assert rows is not None
            if to_packed is not None:
                rows = rows.index_select(0, to_packed)
            if packing.shape is None:
                hidden, after = weights.network.advance(rows, torch.from_numpy(packing.batch_sizes), before)
            else:
                assert rectangles is not None
                assert lengths is not None
                hidden, after = rectangles.advance(rows, packing.shape, lengths, before)
                slice_.padded = packing.shape.cells - slice_.cells
            _add_outputs(flight, weights, packing, hidden, positions)
        if targets is not None:
            for state, part in zip(weights.states, after, strict=True):
                state.index_copy_(1, targets, part)
        if returned is not None and group.returned is not None:
            parts = [part.index_select(1, returned) for part in after]
            flight.add_states([group.members[n] for n in group.returned], parts)
    return flight.launched()


def _add_outputs(
    flight: SliceInFlight,
    weights: ServedWeights,
    packing: row_packing.RowPacking,
    hidden: torch.Tensor,
    positions: list[torch.Tensor | None],
) -> None:
    """Computes the outputs of each step, once for each output spec."""
    for (spec, members, _), group_rows in zip(packing.groups, positions, strict=True):
        selected = hidden if group_rows is None else hidden.index_select(0, group_rows)
        flight.add_outputs(members, *weights.network.outputs(selected, spec.kind, spec.top_k))
