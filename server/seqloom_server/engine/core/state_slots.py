"""Places in a pool of hidden states, handed out and taken back by number and generation.

A slot that is released twice, or used after its release, would let two callers share hidden state (Triton #7117): the
generation makes that an error instead.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One place: `index` in the pool, valid while the pool's generation of that index is `generation`."""

    index: int
    generation: int


class StaleSlot(RuntimeError):
    """A slot was used or released after its release."""


class SlotPool:
    """Bookkeeping of the slots of one version of one model; the states themselves lie on the device.

    Indices below `reserved` are never given out: the runner keeps a zero state and a place for discards there.
    """

    def __init__(self, reserved: int = 2) -> None:
        self._reserved = reserved
        self._generations = [0] * reserved
        self._free: list[int] = []

    @property
    def capacity(self) -> int:
        """Indices handed out so far are all below this."""
        return len(self._generations)

    @property
    def free(self) -> list[int]:
        """Indices that no one holds."""
        return list(self._free)

    @property
    def in_use(self) -> int:
        """How many slots are held."""
        return len(self._generations) - self._reserved - len(self._free)

    def take(self) -> Slot:
        """Returns a slot that no one holds; the pool grows where none is free."""
        if self._free:
            index = self._free.pop()
        else:
            index = len(self._generations)
            self._generations.append(0)
        return Slot(index, self._generations[index])

    def check(self, slot: Slot) -> int:
        """Returns the slot's index. Raises StaleSlot where it was released."""
        if self._generations[slot.index] != slot.generation:
            raise StaleSlot(f"slot {slot.index} of generation {slot.generation} was released")
        return slot.index

    def release(self, slot: Slot) -> None:
        """Takes the slot back. Raises StaleSlot at the second time."""
        index = self.check(slot)
        self._generations[index] += 1
        self._free.append(index)
