"""Memory that suffices for so many rows only: a network, or what comes after it, raises torch's own error for more."""

import torch


def fail():
    """Raises what torch raises where the machine has no memory."""
    torch.empty(1 << 60, dtype=torch.uint8)


class ShortMemory:
    """Stands before a network, and lets no more than `most` rows through. stage: where more of them fail.

    refused: how often. rows: of each call that was let through.
    """

    def __init__(self, weights, most, stage="advance"):
        self.most, self.refused, self.rows = most, 0, []
        self._inner = getattr(weights.network, stage)
        setattr(weights.network, stage, self._run)

    def _run(self, rows, *arguments):
        if len(rows) > self.most:
            self.refused += 1
            fail()
        self.rows.append(len(rows))
        return self._inner(rows, *arguments)
