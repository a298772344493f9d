"""Slots of hidden state: one owner each, and a slot that was given back is of no more use to who had it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from seqloom_server.engine.core.state_slots import SlotPool, StaleSlot


class SlotMachine(RuleBasedStateMachine):
    held = Bundle("held")
    returned = Bundle("returned")

    def __init__(self):
        super().__init__()
        self.pool = SlotPool(reserved=2)
        self.owned = set()
        self.most = 0

    @rule(target=held)
    def take(self):
        slot = self.pool.take()
        assert slot.index >= 2, "reserved ones are never given out"
        assert slot.index not in {other.index for other in self.owned}
        self.owned.add(slot)
        self.most = max(self.most, len(self.owned))
        return slot

    @rule(target=returned, slot=consumes(held))
    def release(self, slot):
        self.pool.release(slot)
        self.owned.remove(slot)
        return slot

    @rule(slot=returned, operation=st.sampled_from(["check", "release"]))
    def a_returned_slot_is_stale_for_ever(self, slot, operation):
        with pytest.raises(StaleSlot):
            getattr(self.pool, operation)(slot)

    @invariant()
    def held_slots_are_good_and_the_pool_is_no_larger_than_it_had_to_be(self):
        assert [self.pool.check(slot) for slot in self.owned] == [slot.index for slot in self.owned]
        assert self.pool.in_use == len(self.owned)
        assert self.pool.capacity == 2 + self.most
        assert {*self.pool.free} == {*range(2, self.pool.capacity)} - {slot.index for slot in self.owned}


TestSlots = SlotMachine.TestCase
TestSlots.settings = settings(max_examples=50, deadline=None)
