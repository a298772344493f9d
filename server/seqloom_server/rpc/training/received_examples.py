"""Receives the examples of a training call, in one part or many, and decodes them with every field checked."""

import hashlib
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from seqloom import tensors
from seqloom.v1 import tensor_pb2
from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Array, StateArrays
from seqloom_server.errors import ServerError, invalid, over_limit
from seqloom_server.nn.losses.row_losses import IGNORED
from seqloom_server.nn.losses.training_example import Example, LossKind
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.request_parts import LEAST_BYTES, Part, parts_of, pass_over

_LOSSES: dict[int, LossKind] = {
    pb.LOSS_KIND_CROSS_ENTROPY: "cross_entropy",
    pb.LOSS_KIND_MSE: "mse",
    pb.LOSS_KIND_CTC: "ctc",
}
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
            if received.nbytes + size > max_bytes:
                raise over_limit("examples", f"has more than {max_bytes} bytes in all parts: expected at most that")
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


def decode(received: ReceivedExamples, spec: ModelSpec, config: ServerConfig, max_steps: int) -> list[Example]:
    """Returns N examples; their arrays are views if the call has one part. max_steps: of one sequence.

    Raises ServerError INVALID_FIELD or OVER_LIMIT naming the field.
    """
    head = received.parts[0]
    rows = _concatenate(
        [converters.frames(part.sequences.rows, spec, "examples.sequences.rows") for part in received.parts]
    )
    lengths = converters.checked_lengths(
        head.sequences.lengths, len(rows), config.max_sequences_per_request, max_steps, "examples.sequences"
    )
    loss = _loss(head, spec)
    targets: list[Array | None] = [None] * len(lengths)
    output_gradients: list[Array | None] = [None] * len(lengths)
    if loss is None:
        output_gradients = list(_values(received, "output_gradients", spec, lengths))
    elif loss == "mse":
        targets = list(_values(received, "targets", spec, lengths))
    else:
        targets = list(_labels(received, loss, spec, lengths))
    if loss != "ctc" and head.target_lengths:
        raise invalid("examples.target_lengths", "is set: expected only with ctc, whose targets have their own lengths")
    states = _states(head, "initial_state", spec, len(lengths))
    final = _states(head, "final_state_gradient", spec, len(lengths))
    scale = 1 / _divisor(head)
    return [
        Example(x, loss, target, gradient, scale, state, after)
        for x, target, gradient, state, after in zip(
            converters.split(rows, lengths), targets, output_gradients, states, final, strict=True
        )
    ]


def _loss(head: pb.Examples, spec: ModelSpec) -> LossKind | None:
    if not head.loss:
        if head.HasField("targets"):
            raise invalid("examples.loss", "is missing: expected one for the targets")
        if not head.HasField("output_gradients"):
            raise invalid("examples.targets", "is missing: expected targets and a loss, or output_gradients")
        return None
    loss = _LOSSES.get(head.loss)
    if loss is None:
        raise invalid("examples.loss", f"is {head.loss}: expected a LossKind")
    if spec.output_size == 1 and loss != "mse":
        raise invalid(
            "examples.loss",
            f"is {loss}: the model has one output, whose softmax is always 1: expected mse, or output_gradients",
        )
    if head.HasField("output_gradients"):
        raise invalid("examples.output_gradients", f"is set together with a loss: expected none with {loss}")
    if not head.HasField("targets"):
        raise invalid("examples.targets", f"is missing: {loss} needs targets")
    return loss


def _divisor(head: pb.Examples) -> float:
    divisor: float = head.divisor or 1.0
    if not (math.isfinite(divisor) and divisor > 0):
        raise invalid("examples.divisor", f"is {divisor}: expected a finite number above 0, or 0 for 1")
    return divisor


def _values(received: ReceivedExamples, name: str, spec: ModelSpec, lengths: list[int]) -> list[Array]:
    """Returns [T_i, O] of each sequence."""
    field_name = f"examples.{name}"
    values = _concatenate(
        [
            converters.array(getattr(part, name), spec.dtype, field_name)
            for part in received.parts
            if part.HasField(name)
        ]
    )
    if values.ndim != 2 or values.shape != (sum(lengths), spec.output_size):
        raise invalid(
            field_name,
            f"has shape {list(values.shape)}: expected {[sum(lengths), spec.output_size]}, a row for each step",
        )
    return converters.split(values, lengths)


def _labels(received: ReceivedExamples, loss: LossKind, spec: ModelSpec, lengths: list[int]) -> list[Array]:
    """Returns the int32 labels of each sequence, [T_i] for cross_entropy, [L_i] for ctc."""
    name = "examples.targets"
    labels = _concatenate([_integers(part.targets, name) for part in received.parts if part.HasField("targets")])
    if loss == "ctc":
        counts = list(received.parts[0].target_lengths)
        if len(counts) != len(lengths) or min(counts) < 0:
            raise invalid(
                "examples.target_lengths",
                f"are {counts[:8]}: expected {len(lengths)}, one for each sequence, none below 0",
            )
    else:
        counts = lengths
    if labels.shape != (sum(counts),):
        raise invalid(name, f"has shape {list(labels.shape)}: expected {[sum(counts)]}")
    least = 1 if loss == "ctc" else 0
    wrong = (labels < least) | (labels >= spec.output_size)
    if loss == "cross_entropy":
        wrong &= labels != IGNORED
    if wrong.any():
        at = int(wrong.argmax())
        also = "; 0 is the blank" if loss == "ctc" else f", or {IGNORED} for a step to ignore"
        raise invalid(name, f"is {labels[at]} at {at}: expected {least} to {spec.output_size - 1}{also}")
    parts = converters.split(labels, counts)
    if loss == "ctc":
        for i, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            needed = len(part) + int(np.count_nonzero(part[1:] == part[:-1]))
            if needed > length:
                raise invalid(
                    name, f"of sequence {i} need {needed} steps, one a label and a repeat: the sequence has {length}"
                )
    return parts


def _integers(message: tensor_pb2.Tensor, name: str) -> Array:
    try:
        decoded = tensors.decode(message)
    except tensors.MalformedTensor as error:
        raise invalid(name, str(error)) from None
    if decoded.dtype != np.int32:
        raise invalid(name, f"is {decoded.dtype.name}: expected int32 labels")
    return decoded


def _concatenate(parts: list[Array]) -> Array:
    if len(parts) == 1:
        return parts[0]
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise invalid("examples", f"has parts whose shapes do not match: {error}") from None


def _states(head: pb.Examples, name: str, spec: ModelSpec, count: int) -> list[StateArrays | None]:
    """Returns [rows, 1, width] per part for each sequence, or None if the field is not set."""
    if not head.HasField(name):
        return [None] * count
    parts = converters.state(getattr(head, name), spec, count, f"examples.{name}")
    return [tuple(part[:, n : n + 1] for part in parts) for n in range(count)]
