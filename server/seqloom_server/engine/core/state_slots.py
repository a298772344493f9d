"""Slots of a pool of hidden states, allocated and released by index and generation.

A slot that is released twice, or used after its release, would let two callers share a hidden state (Triton #7117); the
generation makes that an error.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot: `index` in the pool, valid while the pool's generation of that index is `generation`."""

    index: int
    generation: int


class StaleSlot(RuntimeError):
    """A slot was used or released after it had been released."""


class SlotPool:
    """The slots of one version of one model's weights; the states themselves are on the device.

    Indices below `reserved` are never allocated: they hold the zero state and discarded states.
    """

    def __init__(self, reserved: int = 2) -> None:
        self._reserved = reserved
        self._generations = [0] * reserved
        self._free: list[int] = []

    @property
    def capacity(self) -> int:
        """The size of the pool: every allocated index is below it."""
        return len(self._generations)

    @property
    def free(self) -> list[int]:
        """The indices of free slots."""
        return list(self._free)

    @property
    def in_use(self) -> int:
        """The number of allocated slots."""
        return len(self._generations) - self._reserved - len(self._free)

    def take(self) -> Slot:
        """Allocates a slot; the pool grows if none is free."""
        if self._free:
            index = self._free.pop()
        else:
            index = len(self._generations)
            self._generations.append(0)
        return Slot(index, self._generations[index])

    def check(self, slot: Slot) -> int:
        """Returns the slot's index. Raises StaleSlot if it was released."""
        if self._generations[slot.index] != slot.generation:
            raise StaleSlot(f"slot {slot.index} of generation {slot.generation} was released")
        return slot.index

    def release(self, slot: Slot) -> None:
        """Releases the slot. Raises StaleSlot if it was released already."""
        index = self.check(slot)
        self._generations[index] += 1
        self._free.append(index)
