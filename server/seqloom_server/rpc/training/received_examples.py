"""Decodes the examples of a training call that was received, with every field checked."""

import asyncio
import math

import numpy as np
from seqloom import tensors
from seqloom.v1 import tensor_pb2
from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.config import ServerConfig
from seqloom_server.engine.core.sequence import Array, StateArrays
from seqloom_server.engine.training.batch_programs import max_cells
from seqloom_server.errors import invalid
from seqloom_server.nn.losses.row_losses import IGNORED
from seqloom_server.nn.losses.training_example import Example, LossKind
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.calls import converters
from seqloom_server.rpc.training.received_call import ReceivedExamples

_LOSSES: dict[int, LossKind] = {
    pb.LOSS_KIND_CROSS_ENTROPY: "cross_entropy",
    pb.LOSS_KIND_MSE: "mse",
    pb.LOSS_KIND_CTC: "ctc",
}
_LARGE_BYTES = 1 << 20  # checking every number of so many would hold up the event loop


async def decode_soon(received: ReceivedExamples, spec: ModelSpec, config: ServerConfig) -> list[Example]:
    """As `decode`, off the event loop where that would be held up. The longest sequence is what a batch can hold."""
    most = min(config.max_training_steps, max_cells(spec, config.max_activation_bytes))
    if received.nbytes <= _LARGE_BYTES:
        return decode(received, spec, config, most)
    return await asyncio.to_thread(decode, received, spec, config, most)


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
