"""Runs slices on the device: states in by slot, one call of the network, outputs and states back out.

The only module of the engine that touches tensors. It runs on the device thread; what it returns is numpy.
"""

import time

import numpy as np
import torch

from seqloom_server.engine import collate
from seqloom_server.engine.cost import SliceCost
from seqloom_server.engine.request import Array, Member, OutputSpec, Piece, Slice, StateArrays
from seqloom_server.engine.slots import SlotPool
from seqloom_server.nn.network import Network

_ZERO, _DISCARD = 0, 1  # the reserved slots
_FLOPS_GUESS = {"cpu": 5e10, "cuda": 1e13}  # only until the first slices have run
_WARM_UP = ((1, 8), (8, 8), (64, 4))  # sequences, steps


class ServedWeights:
    """One version of one model's weights on the device, with the states of the sequences that run under it.

    states: per part of the cell's state, [L, capacity, H]; slot 0 stays zero, slot 1 takes what nobody needs.
    """

    def __init__(self, model: str, version: int, network: Network) -> None:
        self.model = model
        self.version = version
        self.network = network
        self.slots = SlotPool(reserved=2)
        self.cost = SliceCost(2.0 * network.spec.parameter_count, _FLOPS_GUESS[network.device.type])
        self.states = self._allocate(16)

    def _allocate(self, capacity: int) -> tuple[torch.Tensor, ...]:
        spec = self.network.spec
        shape = (spec.num_layers, capacity, spec.hidden_size)
        dtype = getattr(torch, spec.dtype)
        return tuple(torch.zeros(shape, dtype=dtype, device=self.network.device) for _ in spec.state_parts)

    def reserve(self) -> None:
        """Grows the states to the slots handed out."""
        capacity, wanted = self.states[0].shape[1], self.slots.capacity
        if wanted > capacity:
            grown = self._allocate(max(wanted, 2 * capacity))
            for new, old in zip(grown, self.states, strict=True):
                new[:, :capacity] = old
            self.states = grown

    @property
    def state_bytes(self) -> int:
        return sum(state.nbytes for state in self.states)


@torch.inference_mode()
def run(piece: Slice, *, poison: bool = False) -> list[tuple[Member, Piece]]:
    """Runs a slice; returns what each member gets, in no particular order.

    poison: fills the slots of members that end with NaN, so that a test sees any state that outlives its sequence.
    """
    weights = piece.weights
    assert isinstance(weights, ServedWeights)
    weights.reserve()
    packing = collate.pack(piece.members)
    results = {member: _empty(member) for member in piece.members if not member.steps}
    states: tuple[torch.Tensor, ...] | None = None
    if packing.ranked:
        device = weights.network.device
        rows = torch.from_numpy(collate.gather(packing)).to(device, non_blocking=True)
        if packing.to_packed is not None:
            rows = rows.index_select(0, torch.from_numpy(packing.to_packed).to(device))
        before = _states_before(weights, packing.ranked)
        hidden, states = weights.network.advance(rows, torch.from_numpy(packing.batch_sizes), before)
        for spec, members, positions in packing.groups:
            picked = hidden if positions is None else hidden.index_select(0, torch.from_numpy(positions).to(device))
            for member, values, labels in _outputs(weights.network, spec, members, picked):
                results[member] = Piece(member.first_step, member.steps, values, labels, answers=True)
        _keep(weights, packing.ranked, states)
    _hand_out(weights, piece.members, packing.ranked, states, results)
    if poison:
        _poison(weights, piece.members)
    return list(results.items())


def _empty(member: Member) -> Piece:
    return Piece(member.first_step, 0, None, None, answers=member.answers)


def _outputs(
    network: Network, spec: OutputSpec, members: list[Member], hidden: torch.Tensor
) -> list[tuple[Member, Array | None, Array | None]]:
    values, labels = network.outputs(hidden, spec.kind, spec.top_k)
    count = len(members)
    split_values = collate.split(members, values.cpu().numpy()) if values is not None else [None] * count
    split_labels = collate.split(members, labels.cpu().numpy()) if labels is not None else [None] * count
    return list(zip(members, split_values, split_labels, strict=True))


def _slot(weights: ServedWeights, member: Member, otherwise: int) -> int:
    slot = member.sequence.slot
    return otherwise if slot is None else weights.slots.check(slot)


def _index(indices: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.int64).to(device)


def _states_before(weights: ServedWeights, members: list[Member]) -> tuple[torch.Tensor, ...]:
    """[L, N, H] per part: from the slot, the member's own initial state, or zeros."""
    sources = [_ZERO if member.fresh else _slot(weights, member, _ZERO) for member in members]
    index = _index(sources, weights.network.device)
    before = tuple(state.index_select(1, index) for state in weights.states)
    given = [(n, member.initial_state) for n, member in enumerate(members) if member.initial_state is not None]
    for n, initial in given:
        for part, array in zip(before, initial, strict=True):
            part[:, n] = torch.from_numpy(array[:, 0]).to(part)
    return before


def _keep(weights: ServedWeights, members: list[Member], after: tuple[torch.Tensor, ...]) -> None:
    """Puts the states after the slice where the next one finds them."""
    targets = [_slot(weights, member, _DISCARD) for member in members]
    if all(target == _DISCARD for target in targets):
        return
    index = _index(targets, weights.network.device)
    for state, part in zip(weights.states, after, strict=True):
        state.index_copy_(1, index, part)


def _hand_out(
    weights: ServedWeights,
    members: list[Member],
    ranked: list[Member],
    after: tuple[torch.Tensor, ...] | None,
    results: dict[Member, Piece],
) -> None:
    """Gives members that end, or whose snapshot is due, their state; one copy off the device for all of them."""
    if after is not None:
        due = [n for n, member in enumerate(ranked) if member.final or member.snapshot]
        if due:
            whole = len(due) == len(ranked)
            index = None if whole else _index(due, weights.network.device)
            parts = [(part if index is None else part.index_select(1, index)).cpu().numpy() for part in after]
            for place, n in enumerate(due):
                _attach(ranked[n], results[ranked[n]], tuple(part[:, place : place + 1] for part in parts))
    # members without steps: a bare reset or end, which the network never saw
    for member in members:
        if not member.steps:
            state = _states_before(weights, [member])
            if member.fresh and member.sequence.slot is not None:
                _keep(weights, [member], state)
            if member.final:
                _attach(member, results[member], tuple(part.cpu().numpy() for part in state))


def _attach(member: Member, piece: Piece, state: StateArrays) -> None:
    if member.snapshot:
        piece.snapshot = state
    if member.final:
        piece.final_state = state


def _poison(weights: ServedWeights, members: list[Member]) -> None:
    ended = [member.sequence.slot for member in members if member.final and member.sequence.slot is not None]
    for slot in ended:
        for state in weights.states:
            state[:, slot.index] = float("nan")


@torch.inference_mode()
def warm_up(weights: ServedWeights) -> None:
    """Runs zeros through the network, so that the first caller pays for no allocation and slices are of known cost."""
    network, spec = weights.network, weights.network.spec
    for count, steps in _WARM_UP:
        rows = torch.zeros((count * steps, spec.input_size), dtype=weights.states[0].dtype, device=network.device)
        batch_sizes = torch.from_numpy(np.full(steps, count, np.int64))
        for attempt in range(2):
            start = time.perf_counter()
            before = tuple(state[:, :1].expand(-1, count, -1).contiguous() for state in weights.states)
            hidden, _ = network.advance(rows, batch_sizes, before)
            for result in network.outputs(hidden, "labels", 0):
                if result is not None:
                    result.cpu()
            if attempt:
                weights.cost.observe(steps, count * steps, time.perf_counter() - start)
