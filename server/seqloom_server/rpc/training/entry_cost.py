"""What it costs the event loop to begin an entry of RunCalls, so that no more begin together than hold it up briefly.

It depends on the entry alone, not on a clock, so that entries which came together share batches in the same way again.
"""

from seqloom.v1 import training_service_pb2 as pb

AT_ONCE = 10_000  # microseconds of entries that begin before other work has its turn
# Microseconds on one core, measured by 64 calls on a small model: its task, decoding, checking and hashing.
_ENTRY = 150
_SEQUENCE = 6.0  # of ForwardBackward: an example of its own
_NAME = 0.3  # of a client that OptimStep names
_BYTE = 4e-3


def expected(entry: pb.RunCall, kind: str | None, size: int) -> float:
    """Returns the microseconds that an entry takes. kind: which call it is. size: bytes of that."""
    sequences = len(entry.forward_backward.examples.sequences.lengths) if kind == "forward_backward" else 0
    names = len(entry.optim_step.calls) if kind == "optim_step" else 0
    return _ENTRY + _SEQUENCE * sequences + _NAME * names + _BYTE * size
