"""Runs slices on the device: states in by slot, one call of the network, outputs and states back out.

The only module of the engine that computes with tensors. It runs on the device thread; what it returns is numpy. A
slice is launched, and finished when its results are there; on the CPU that is at once.
"""

from dataclasses import dataclass

import numpy as np
import torch

from seqloom_server.engine.core.sequence import Member, Slice, SliceResult, StateArrays
from seqloom_server.engine.device import row_packing
from seqloom_server.engine.device.row_packing import Index
from seqloom_server.engine.device.slice_in_flight import SliceInFlight
from seqloom_server.engine.device.transfers import InPlace, Staging
from seqloom_server.engine.models.served_weights import DISCARD, ZERO, ServedWeights

_IN_PLACE = InPlace()


@dataclass(slots=True)
class _Moves:
    """Where the states of some members come from and go to.

    sources: [N], slots. targets: [N], slots, None where nobody needs the states. returned: the places of those that are
    handed out, None for none. given: by place, the state that a member begins with instead.
    """

    members: list[Member]
    sources: Index
    targets: Index | None
    returned: Index | None
    given: dict[int, StateArrays]

    @classmethod
    def of(cls, weights: ServedWeights, members: list[Member]) -> "_Moves":
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

    def indices(self) -> list[Index | None]:
        """What run() takes as tensors, in its order."""
        return [self.sources, self.targets, self.returned, np.array(list(self.given), np.int64) if self.given else None]


def launch(slice_: Slice, staging: Staging = _IN_PLACE, *, poison: bool = False) -> SliceInFlight:
    """Launches a slice; whoever calls finishes what is returned. poison: see ServedWeights.poison."""
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
    bare = [member for member in slice_.members if not member.steps]
    moves = [_Moves.of(weights, members) for members in (packing.ranked, bare) if members]
    transfer = staging.open()
    flight = SliceInFlight(slice_, transfer, lent=staging.apart)
    wanted = [index for move in moves for index in move.indices()]
    wanted += [packing.to_packed, packing.lengths if packing.shape else None, *(each[2] for each in packing.groups)]
    indices = iter(transfer.indices(wanted))
    own = [[next(indices) for _ in move.indices()] for move in moves]
    to_packed, lengths, *positions = indices
    given = [
        [transfer.stack(list(parts), axis=1) for parts in zip(*move.given.values(), strict=True)] for move in moves
    ]
    rows = transfer.stack(row_packing.frames(packing)) if packing.ranked else None
    transfer.begin()
    for move, (sources, targets, returned, places), states in zip(moves, own, given, strict=True):
        assert sources is not None
        before = tuple(state.index_select(1, sources) for state in weights.states)
        if places is not None:
            for part, initial in zip(before, states, strict=True):
                part.index_copy_(1, places, initial.to(part.dtype))
        after = before
        if move.members is packing.ranked:
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
            _answer(flight, weights, packing, hidden, positions)
        if targets is not None:
            for state, part in zip(weights.states, after, strict=True):
                state.index_copy_(1, targets, part)
        if returned is not None and move.returned is not None:
            parts = [part.index_select(1, returned) for part in after]
            flight.add_states([move.members[n] for n in move.returned], parts)
    return flight.launched()


def _answer(
    flight: SliceInFlight,
    weights: ServedWeights,
    packing: row_packing.RowPacking,
    hidden: torch.Tensor,
    positions: list[torch.Tensor | None],
) -> None:
    """Computes what callers want of each step, for each kind of it once."""
    for (spec, members, _), own in zip(packing.groups, positions, strict=True):
        picked = hidden if own is None else hidden.index_select(0, own)
        flight.add_outputs(members, *weights.network.outputs(picked, spec.kind, spec.top_k))


def run(slice_: Slice, staging: Staging = _IN_PLACE, *, poison: bool = False) -> list[tuple[Member, SliceResult]]:
    """Runs a slice to its end; returns what each member gets, in no particular order."""
    return launch(slice_, staging, poison=poison).finish()
