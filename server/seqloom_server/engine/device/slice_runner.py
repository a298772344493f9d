"""Runs slices on the device: gathers states by slot, runs the network once, scatters states, returns outputs.

It runs on the device thread, and returns numpy arrays. A slice is launched, and finished once its results are complete;
on the CPU that is at once. States are scattered last, so that a slice for which memory was short has changed nothing
and can be run again in parts.
"""

import torch

from seqloom_server.engine.core.sequence import Slice
from seqloom_server.engine.device import row_packing
from seqloom_server.engine.device.slice_in_flight import SliceInFlight
from seqloom_server.engine.device.state_indices import StateIndices
from seqloom_server.engine.device.transfers import Staging
from seqloom_server.engine.models.served_weights import ServedWeights
from seqloom_server.memory import is_memory_short


def launch(slice_: Slice, staging: Staging, *, poison: bool = False) -> SliceInFlight:
    """Launches a slice, which the caller then finishes. poison: see ServedWeights.poison()."""
    weights = slice_.weights
    assert isinstance(weights, ServedWeights)
    with torch.inference_mode(), weights.network.products:
        return _launch(slice_, weights, staging, poison)


def _launch(slice_: Slice, weights: ServedWeights, staging: Staging, poison: bool) -> SliceInFlight:
    rectangles = weights.rectangles
    packing = row_packing.pack(slice_.members, None if rectangles is None else rectangles.rectangle)
    stepless = [member for member in slice_.members if not member.steps]
    groups = [StateIndices.of(weights.slots, members) for members in (packing.ranked, stepless) if members]
    if weights.slots.capacity > weights.capacity:
        _reserve(weights, groups)
    if poison:
        weights.poison()
    transfer = staging.open()
    flight = SliceInFlight(slice_, transfer, copy=staging.apart)
    arrays = [array for group in groups for array in group.arrays()]
    arrays += [packing.to_packed, packing.lengths if packing.shape else None, *(group[2] for group in packing.groups)]
    indices = iter(transfer.indices(arrays))
    state_indices = [[next(indices) for _ in group.arrays()] for group in groups]
    to_packed, lengths, *positions = indices
    initial_states = [
        [transfer.stack(list(parts), axis=1) for parts in zip(*group.states, strict=True)] for group in groups
    ]
    rows = transfer.stack(row_packing.frames(packing)) if packing.ranked else None
    transfer.begin()
    scattered: list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = []
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
            scattered.append((targets, after))
        if returned is not None:
            flight.add_states(group.returning, [part.index_select(1, returned) for part in after])
    flight.launched()
    if not staging.apart:
        flight.collect()
    slice_.written = True
    for targets, after in scattered:
        for state, part in zip(weights.states, after, strict=True):
            state.index_copy_(1, targets, part)
    return flight


def _reserve(weights: ServedWeights, groups: list[StateIndices]) -> None:
    """Makes room for the states of all slots; where memory is short for that, for those of this slice is enough."""
    try:
        weights.reserve()
    except Exception as error:
        indices = [index for group in groups for index in (group.sources, group.targets) if index is not None]
        if not is_memory_short(error) or max(int(index.max()) for index in indices) >= weights.capacity:
            raise


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
