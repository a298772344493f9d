"""Receives a training call, in one part or many, charges its bytes and hashes its contents; decodes nothing."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.descriptor import FieldDescriptor
from seqloom.v1 import tensor_pb2
from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.errors import ServerError, invalid, over_limit
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.request_parts import LEAST_BYTES, Part, parts_of, pass_over

_TENSORS = ("targets", "output_gradients")


class TrainingPart(Part, Protocol):
    """A part of ComputeGradients or ForwardBackward."""

    @property
    def examples(self) -> pb.Examples: ...

    def HasField(self, field_name: Any, /) -> bool: ...

    def ListFields(self) -> Sequence[tuple[FieldDescriptor, Any]]: ...


@dataclass(slots=True)
class ReceivedExamples:
    """The parts of a call. first: the first message, with all other fields. parts: the examples of each, in order.

    nbytes: of all parts. digest: a hash of their contents.
    """

    first: Any  # the request message of either method
    parts: list[pb.Examples] = field(default_factory=list)
    nbytes: int = 0
    digest: str = ""

    def free(self) -> None:
        """Drops the messages, which are not needed any more."""
        self.first = None
        self.parts.clear()


async def receive(
    requests: AsyncIterator[TrainingPart], max_bytes: int, budget: ByteBudget, caller: str
) -> ReceivedExamples:
    """Reads the parts of a call. They are charged to the budget, as the caller's, which gets `nbytes` back later.

    Raises ServerError INVALID_FIELD, OVER_LIMIT, OVERLOADED, CUT_OFF, or DEADLINE_EXCEEDED if no next part arrives in
    time; nothing stays charged then.
    """
    try:
        return await _receive(requests, max_bytes, budget, caller)
    except ServerError as error:
        await pass_over(requests, error)
        raise


async def _receive(
    requests: AsyncIterator[TrainingPart], max_bytes: int, budget: ByteBudget, caller: str
) -> ReceivedExamples:
    received: ReceivedExamples | None = None
    contents = _Digest()
    try:
        async for part in parts_of(requests):
            examples: pb.Examples = part.examples
            size = max(LEAST_BYTES, part.ByteSize())
            if received is None:
                received = ReceivedExamples(part)
            elif _carries_more_than_rows(part):
                raise invalid("examples", "has more than rows in a later part: expected all else in the first part")
            check_bytes(received.nbytes + size, max_bytes)
            budget.take(size, caller)
            received.nbytes += size
            if part.HasField("examples") or not received.parts:  # else it only marks the end of the request
                received.parts.append(examples)
            contents.add(examples)
    except BaseException:
        if received is not None:
            budget.give(received.nbytes, caller)
        raise
    if received is None:
        raise invalid("examples", "is missing: the call has no part")
    received.digest = contents.hexdigest(received.parts[0])
    return received


class _Digest:
    """A hash of a call's contents that does not depend on its parts: of the tensors' bytes, then of all else."""

    def __init__(self) -> None:
        self._tensors = [hashlib.blake2b(digest_size=16) for _ in range(3)]

    def add(self, part: pb.Examples) -> None:
        for tensor, digest in zip(
            (part.sequences.rows, part.targets, part.output_gradients), self._tensors, strict=True
        ):
            digest.update(tensor.data)

    def hexdigest(self, first: pb.Examples) -> str:
        whole = hashlib.blake2b(digest_size=16)
        for digest in self._tensors:
            whole.update(digest.digest())
        rest = pb.Examples(
            sequences=tensor_pb2.SequenceBatch(lengths=first.sequences.lengths),
            target_lengths=first.target_lengths,
            initial_state=first.initial_state,
            final_state_gradient=first.final_state_gradient,
            loss=first.loss,
            divisor=first.divisor,
        )
        whole.update(rest.SerializeToString(deterministic=True))
        return whole.hexdigest()


def _carries_more_than_rows(part: TrainingPart) -> bool:
    examples = part.examples
    others = [field.name for field, _ in part.ListFields() if field.name not in ("examples", "parts")]
    allowed = {"sequences", *_TENSORS}
    return bool(others or examples.sequences.lengths) or any(f.name not in allowed for f, _ in examples.ListFields())


def check_bytes(size: int, max_bytes: int) -> None:
    """Raises ServerError OVER_LIMIT for a call of too many bytes in all its parts."""
    if size > max_bytes:
        raise over_limit("examples", f"has more than {max_bytes} bytes in all parts: expected at most that")


def whole(request: pb.ForwardBackwardRequest, nbytes: int) -> ReceivedExamples:
    """Returns a call that came in one message, of so many bytes. Raises ServerError INVALID_FIELD if it is a part."""
    if request.parts != 1:
        raise invalid("parts", f"is {request.parts}: expected 1, the whole call in one entry")
    contents = _Digest()
    contents.add(request.examples)
    return ReceivedExamples(request, [request.examples], nbytes, contents.hexdigest(request.examples))
