"""Slots of a pool of hidden states, allocated and released by index and generation.

A slot that is released twice, or used after its release, would let two callers share a hidden state (Triton #7117); the
generation makes that an error.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]

ZERO, DISCARD = 0, 1  # the reserved slots: of the zero state, and of states that nobody keeps


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot: `index` in the pool, valid while the pool's generation of that index is `generation`."""

    index: int
    generation: int


@dataclass(frozen=True, slots=True, eq=False)
class SlotBlock:
    """The slots of a group's streams, allocated and released together: indices and generations, int64 [n]."""

    indices: Index
    generations: Index


class StaleSlot(RuntimeError):
    """A slot was used or released after it had been released."""


class SlotPool:
    """The slots of one version of one model's weights; the states themselves are on the device.

    Indices below `reserved` are never allocated.
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

    def take_block(self, count: int) -> SlotBlock:
        """Allocates `count` slots; the pool grows if so many are not free."""
        kept = max(0, len(self._free) - count)
        indices, self._free = self._free[kept:], self._free[:kept]
        missing, first = count - len(indices), len(self._generations)
        indices += range(first, first + missing)
        self._generations += [0] * missing
        generations = [self._generations[index] for index in indices]
        return SlotBlock(np.array(indices, np.int64), np.array(generations, np.int64))

    def check(self, slot: Slot) -> int:
        """Returns the slot's index. Raises StaleSlot if it was released."""
        if self._generations[slot.index] != slot.generation:
            raise StaleSlot(f"slot {slot.index} of generation {slot.generation} was released")
        return slot.index

    def check_block(self, block: SlotBlock) -> Index:
        """Returns the slots' indices. Raises StaleSlot if they were released, which they are together."""
        first = int(block.indices[0])
        if self._generations[first] != block.generations[0]:
            raise StaleSlot(f"slots of a group, {first} the first of them, were released")
        return block.indices

    def release(self, slot: Slot | SlotBlock) -> None:
        """Releases the slot, or all of a block. Raises StaleSlot if it was released already."""
        indices = [self.check(slot)] if isinstance(slot, Slot) else self.check_block(slot).tolist()
        for index in indices:
            self._generations[index] += 1
        self._free += indices
