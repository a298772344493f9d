"""The indices that gather the states of a slice's members from their slots, and scatter them back."""

from dataclasses import dataclass, field

import numpy as np

from seqloom_server.engine.core.sequence import Member, StateArrays
from seqloom_server.engine.core.state_slots import DISCARD, ZERO, Index, Slot, SlotBlock, SlotPool


@dataclass(slots=True)
class StateIndices:
    """Where the states of members come from and go to. N: their streams, those of a group one after the other.

    sources: [N], slots read. targets: [N], slots written, None if no state is kept. returned: [M], streams whose states
    are returned to callers, None for none; returning: the members whose streams these are. given: [K], streams that
    begin with a state that was given, None for none; states: those, [rows, k, width] per part, to be joined.
    """

    members: list[Member]
    sources: Index
    targets: Index | None
    returned: Index | None
    returning: list[Member]
    given: Index | None = None
    states: list[StateArrays] = field(default_factory=list)

    @classmethod
    def of(cls, pool: SlotPool, members: list[Member]) -> "StateIndices":
        """Returns the indices of the states of members, in their order. Raises StaleSlot."""
        if any(member.sequence.group is not None for member in members):
            return _of_groups(pool, members)
        slots = [None if member.sequence.slot is None else _index(pool, member) for member in members]
        sources = [ZERO if member.fresh or slot is None else slot for member, slot in zip(members, slots, strict=True)]
        targets = [DISCARD if slot is None else slot for slot in slots]
        returned = [n for n, member in enumerate(members) if _returns(member)]
        given = [n for n, member in enumerate(members) if member.initial_state is not None]
        return cls(
            members,
            np.array(sources, np.int64),
            None if all(target == DISCARD for target in targets) else np.array(targets, np.int64),
            np.array(returned, np.int64) if returned else None,
            [members[n] for n in returned],
            np.array(given, np.int64) if given else None,
            [member.initial_state for member in members if member.initial_state is not None],
        )

    def arrays(self) -> list[Index | None]:
        """Returns sources, targets, returned and given."""
        return [self.sources, self.targets, self.returned, self.given]


def _of_groups(pool: SlotPool, members: list[Member]) -> StateIndices:
    """Returns the indices of members of which some are groups."""
    sources, targets, returned, given, states = [], [], [], [], []
    begin = 0
    for member in members:
        streams = np.arange(begin, begin + member.width)
        begin += member.width
        slot = member.sequence.slot
        if isinstance(slot, SlotBlock):
            indices = pool.check_block(slot)
            indices = indices if member.streams is None else indices[member.streams]
            target = indices
        else:
            indices = np.array([ZERO if slot is None or member.fresh else _index(pool, member)])
            target = np.array([DISCARD if slot is None else _index(pool, member)])
        if member.beginnings is not None:
            indices = np.where(member.beginnings.fresh, ZERO, indices)
            if member.beginnings.states:
                given.append(streams[member.beginnings.given])
                states.append(member.beginnings.states)
        elif member.initial_state is not None:
            given.append(streams)
            states.append(member.initial_state)
        sources.append(indices)
        targets.append(target)
        if _returns(member):
            returned.append(streams)
    return StateIndices(
        members,
        _joined(sources),
        _joined(targets),
        _joined(returned) if returned else None,
        [member for member in members if _returns(member)],
        _joined(given) if given else None,
        states,
    )


def _index(pool: SlotPool, member: Member) -> int:
    slot = member.sequence.slot
    assert isinstance(slot, Slot)
    return pool.check(slot)


def _returns(member: Member) -> bool:
    return member.final or member.snapshot or member.asks


def _joined(parts: list[Index]) -> Index:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
