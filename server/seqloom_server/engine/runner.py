"""Runs slices on the device: states in by slot, one call of the network, outputs and states back out.

The only module of the engine that touches tensors. It runs on the device thread; what it returns is numpy.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch

from seqloom_server.engine import collate
from seqloom_server.engine.cost import SliceCost
from seqloom_server.engine.request import Array, Member, Piece, Slice, StateArrays
from seqloom_server.engine.slots import SlotPool
from seqloom_server.nn.network import Network
from seqloom_server.nn.outputs import chunk_rows
from seqloom_server.nn.spec import ModelSpec

_ZERO, _DISCARD = 0, 1  # the reserved slots
# A smaller network's products end before a second thread has joined in, and the event loop has a use for its core
# (benchmarks/results: the tuning tables).
_THREADED_PARAMETERS = 500_000
_CORES = torch.get_num_threads()  # as torch finds them, before anybody tells it otherwise
_FLOPS_GUESS = {"cpu": 5e10, "cuda": 1e13}  # only until the first slices have run
_WARM_UP = ((1, 8), (8, 8), (64, 4))  # sequences, steps

States = tuple[torch.Tensor, ...]  # one [rows, N, width] per part of the model's state


def threads_for(spec: ModelSpec) -> int:
    """How many of torch's threads a network of this size is run with on the CPU."""
    return _CORES if spec.parameter_count >= _THREADED_PARAMETERS else 1


class ServedWeights:
    """One version of one model's weights on the device, with the states of the sequences that run under it.

    states: [rows, capacity, width] per part of spec.state_shapes(); slot 0 stays zero, slot 1 takes what nobody needs.
    max_cells: a slice has no more rows, so that no [rows, O] buffer is too large. threads: torch's, on the CPU.
    """

    def __init__(self, model: str, version: int, network: Network) -> None:
        self.model = model
        self.version = version
        self.network = network
        self.slots = SlotPool(reserved=2)
        self.cost = SliceCost(2.0 * network.spec.parameter_count, _FLOPS_GUESS[network.device.type])
        self.states = self._allocate(16)
        self.threads = threads_for(network.spec)
        self.whole_only = network.spec.bidirectional
        self.max_cells = chunk_rows(network.spec.output_size, self.states[0].element_size())

    def _allocate(self, capacity: int) -> States:
        spec = self.network.spec
        dtype = getattr(torch, spec.dtype)
        return tuple(
            torch.zeros((rows, capacity, width), dtype=dtype, device=self.network.device)
            for rows, width in spec.state_shapes().values()
        )

    def reserve(self) -> None:
        """Grows the states to the slots handed out."""
        capacity, wanted = self.states[0].shape[1], self.slots.capacity
        if wanted > capacity:
            grown = self._allocate(max(wanted, 2 * capacity))
            for new, old in zip(grown, self.states, strict=True):
                new[:, :capacity] = old
            self.states = grown

    def poison(self) -> None:
        """Fills every slot that no one holds with NaN, so that state which outlives its sequence is seen."""
        free = _index([_DISCARD, *self.slots.free], self.network.device)
        for state in self.states:
            state.index_fill_(1, free, float("nan"))

    @property
    def state_bytes(self) -> int:
        return sum(state.nbytes for state in self.states)


@torch.inference_mode()
def run(piece: Slice, *, poison: bool = False) -> list[tuple[Member, Piece]]:
    """Runs a slice; returns what each member gets, in no particular order. poison: see ServedWeights.poison."""
    weights = piece.weights
    assert isinstance(weights, ServedWeights)
    weights.reserve()
    if poison:
        weights.poison()
    results: list[tuple[Member, Piece]] = []
    bare = [member for member in piece.members if not member.steps]
    if bare:
        results += _run_bare(weights, bare)
    packing = collate.pack(piece.members)
    if packing.ranked:
        results += _run_packed(weights, packing)
    return results


def _run_packed(weights: ServedWeights, packing: collate.Packing) -> Iterator[tuple[Member, Piece]]:
    network, device = weights.network, weights.network.device
    rows = torch.from_numpy(collate.gather(packing)).to(device)
    if packing.to_packed is not None:
        rows = rows.index_select(0, torch.from_numpy(packing.to_packed).to(device))
    before = _states_before(weights, packing.ranked)
    hidden, after = network.advance(rows, torch.from_numpy(packing.batch_sizes), before)
    _keep(weights, packing.ranked, after)
    told = _states_told(packing.ranked, after)
    for spec, members, positions in packing.groups:
        picked = hidden if positions is None else hidden.index_select(0, torch.from_numpy(positions).to(device))
        values, labels = network.outputs(picked, spec.kind, spec.top_k)
        for member, own_values, own_labels in zip(
            members, _own_rows(members, values), _own_rows(members, labels), strict=True
        ):
            state = told.get(member)
            yield (
                member,
                Piece(
                    member.first_step,
                    member.steps,
                    own_values,
                    own_labels,
                    answers=True,
                    snapshot=state if member.snapshot else None,
                    final_state=state if member.final else None,
                ),
            )


def _run_bare(weights: ServedWeights, members: list[Member]) -> Iterator[tuple[Member, Piece]]:
    """Members without steps, which the network never sees: a bare reset or end, or frames of 0 steps."""
    states = _states_before(weights, members)
    _keep(weights, members, states)
    told = _states_told(members, states)
    for member in members:
        yield member, Piece(member.first_step, 0, None, None, answers=member.answers, final_state=told.get(member))


def _own_rows(members: list[Member], rows: torch.Tensor | None) -> list[Array] | list[None]:
    """Cuts rows that belong to `members`, one after the other, into an array for each.

    They are copies: a caller that reads slowly must not keep the rows of its whole batch in memory.
    """
    if rows is None:
        return [None] * len(members)
    whole = rows.cpu().numpy()
    if len(members) == 1:
        return [whole]
    ends = np.cumsum([member.steps for member in members]).tolist()
    return [whole[start:end].copy() for start, end in zip([0, *ends], ends, strict=False)]


def _slot(weights: ServedWeights, member: Member, otherwise: int) -> int:
    slot = member.sequence.slot
    return otherwise if slot is None else weights.slots.check(slot)


def _index(indices: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.int64).to(device)


def _states_before(weights: ServedWeights, members: list[Member]) -> States:
    """[rows, N, width] per part: from the slot, the member's own initial state, or zeros."""
    sources = [_ZERO if member.fresh else _slot(weights, member, _ZERO) for member in members]
    index = _index(sources, weights.network.device)
    before = tuple(state.index_select(1, index) for state in weights.states)
    given = {n: member.initial_state for n, member in enumerate(members) if member.initial_state is not None}
    if given:
        places = _index(list(given), weights.network.device)
        for part, arrays in zip(before, zip(*given.values(), strict=True), strict=True):
            part.index_copy_(1, places, torch.from_numpy(np.concatenate(arrays, axis=1)).to(part))
    return before


def _keep(weights: ServedWeights, members: list[Member], after: States) -> None:
    """Puts the states after the slice where the next one finds them."""
    targets = [_slot(weights, member, _DISCARD) for member in members]
    if all(target == _DISCARD for target in targets):
        return
    index = _index(targets, weights.network.device)
    for state, part in zip(weights.states, after, strict=True):
        state.index_copy_(1, index, part)


def _states_told(members: list[Member], after: States) -> dict[Member, StateArrays]:
    """The states, [rows, 1, width] per part, of members that end or have a snapshot due: one copy off the device."""
    due = [n for n, member in enumerate(members) if member.final or member.snapshot]
    if not due:
        return {}
    index = _index(due, after[0].device)
    parts = [part.index_select(1, index).cpu().numpy() for part in after]
    return {members[n]: tuple(part[:, k : k + 1].copy() for part in parts) for k, n in enumerate(due)}


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
