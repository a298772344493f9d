"""The checked arguments of a training call, sequences and targets, and the messages that carry them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from seqloom import tensors, wire
from seqloom._config import MAX_SEND_BYTES, MESSAGE_BYTES
from seqloom._messages import arguments
from seqloom.errors import InvalidArgument
from seqloom.tensors import Array
from seqloom.types import ModelSpec, State
from seqloom.v1 import tensor_pb2, training_service_pb2

Loss = Literal["cross_entropy", "mse", "ctc"]
Reduction = Literal["sum", "mean"]

RequestMessage = TypeVar(
    "RequestMessage", training_service_pb2.ComputeGradientsRequest, training_service_pb2.ForwardBackwardRequest
)

IGNORED = -100  # the label of a step that is left out of the loss

_LOSSES: dict[Loss, training_service_pb2.LossKind] = {
    "cross_entropy": training_service_pb2.LOSS_KIND_CROSS_ENTROPY,
    "mse": training_service_pb2.LOSS_KIND_MSE,
    "ctc": training_service_pb2.LOSS_KIND_CTC,
}
_SEQUENCES = training_service_pb2.Examples.SEQUENCES_FIELD_NUMBER
_TARGETS = training_service_pb2.Examples.TARGETS_FIELD_NUMBER
_OUTPUT_GRADIENTS = training_service_pb2.Examples.OUTPUT_GRADIENTS_FIELD_NUMBER
_ROWS = tensor_pb2.SequenceBatch.ROWS_FIELD_NUMBER
_ROOM = MESSAGE_BYTES - (16 << 10)  # tensor bytes of one message: the rest is for its other fields


@dataclass(frozen=True, slots=True)
class TrainingExamples:
    """A copy of the checked arguments of a training call with N sequences.

    rows: [sum of lengths, D]. targets: as on the wire; None if output_gradients, [sum of lengths, O], are given. head:
    the fields of the first message only.
    """

    lengths: list[int]
    rows: Array
    targets: Array | None
    output_gradients: Array | None
    head: training_service_pb2.Examples

    @classmethod
    def checked(
        cls,
        spec: ModelSpec,
        xs: Iterable[npt.ArrayLike],
        targets: Iterable[npt.ArrayLike] | None,
        *,
        loss: Loss,
        reduction: Reduction,
        output_gradients: Iterable[npt.ArrayLike] | None,
        initial_state: State | None,
        final_state_gradient: State | None,
    ) -> "TrainingExamples":
        """Checks the arguments. Raises InvalidArgument. The server checks more, such as NaN."""
        sequences = arguments.sequences(xs, spec)
        lengths = [len(x) for x in sequences]
        if (targets is None) == (output_gradients is None):
            raise InvalidArgument("targets: expected either targets or output_gradients, and not both")
        for name, value, choices in (("loss", loss, tuple(_LOSSES)), ("reduction", reduction, ("sum", "mean"))):
            if value not in choices:
                raise InvalidArgument(f"{name}: is {value!r}: expected one of {', '.join(choices)}")
        head = training_service_pb2.Examples()
        head.sequences.lengths.extend(lengths)
        head.divisor = 1.0
        targets_array, gradients = None, None
        if targets is None:
            assert output_gradients is not None  # as checked above
            if reduction == "mean":
                raise InvalidArgument("reduction: is 'mean': expected 'sum' with output_gradients")
            gradients = _per_step(output_gradients, lengths, spec, "output_gradients")
        else:
            if spec.output_size == 1 and loss != "mse":
                raise InvalidArgument(
                    f"loss: is {loss!r}: the model has one output, whose softmax is always 1: expected 'mse' or "
                    "output_gradients"
                )
            head.loss = _LOSSES[loss]
            if loss == "mse":
                targets_array, valid = _per_step(targets, lengths, spec, "targets"), sum(lengths)
            elif loss == "ctc":
                labels = _transcripts(targets, lengths, spec)
                head.target_lengths.extend(len(each) for each in labels)
                targets_array, valid = np.concatenate(labels), len(lengths)
            else:
                targets_array = _step_labels(targets, lengths, spec)
                valid = int(np.count_nonzero(targets_array != IGNORED))
            if reduction == "mean":
                head.divisor = float(max(1, valid))
        for name, state in (("initial_state", initial_state), ("final_state_gradient", final_state_gradient)):
            if state is not None:
                for part, array in arguments.state_arrays(state, spec, len(lengths), name).items():
                    tensors.encode_into(array, getattr(getattr(head, name), part))
        examples = cls(lengths, np.concatenate(sequences), targets_array, gradients, head)
        examples._check_size()
        return examples

    @property
    def nbytes(self) -> int:
        """The approximate size in bytes, in memory and on the wire."""
        return self.head.ByteSize() + sum(column.nbytes for column in self._columns().values())

    def requests(self, first: RequestMessage) -> Iterator[RequestMessage]:
        """Yields the messages of a call, each of about a MiB at most.

        The first is `first` with the first part of these examples, the others have further rows only. The last has the
        number of messages: without it the server knows that the call was cut off, and does nothing.
        """
        message, count = first, 1
        parts = self._parts()
        message.examples.CopyFrom(next(parts))
        for part in parts:
            yield message
            message, count = type(first)(examples=part), count + 1
        message.parts = count
        yield message

    def encoded(self, field: int) -> wire.Buffers:
        """Returns the bytes of all examples as a field of a message, with views of the arrays."""
        parts: wire.Buffers = [self.head.SerializeToString()]
        # beside that of the head, which has the lengths: protobuf merges a message that is there twice
        parts += wire.message(_SEQUENCES, wire.tensor(_ROWS, self.rows))
        if self.targets is not None:
            parts += wire.tensor(_TARGETS, self.targets)
        if self.output_gradients is not None:
            parts += wire.tensor(_OUTPUT_GRADIENTS, self.output_gradients)
        return wire.message(field, parts)

    def _parts(self) -> Iterator[training_service_pb2.Examples]:
        """Yields the parts; the first has all other fields."""
        columns = self._columns()
        crowded = self.head.ByteSize() > MESSAGE_BYTES - _ROOM  # then it is sent without rows
        if crowded:
            yield self._part(self.head, {name: column[:0] for name, column in columns.items()})
        room = max(1, _ROOM - sum(map(_row_bytes, columns.values())))  # as a part may have one more row of each column
        most = max(map(len, columns.values()))
        count = min(most, -(-sum(column.nbytes for column in columns.values()) // room))
        for k in range(count):
            rows = {n: c[len(c) * k // count : len(c) * (k + 1) // count] for n, c in columns.items()}
            yield self._part(None if k or crowded else self.head, rows)

    def _part(
        self, head: training_service_pb2.Examples | None, rows: dict[str, Array]
    ) -> training_service_pb2.Examples:
        part = training_service_pb2.Examples()
        if head is not None:
            part.CopyFrom(head)
        for name, array in rows.items():
            tensors.encode_into(array, part.sequences.rows if name == "rows" else getattr(part, name))
        return part

    def _columns(self) -> dict[str, Array]:
        columns = {"rows": self.rows, "targets": self.targets, "output_gradients": self.output_gradients}
        return {name: column for name, column in columns.items() if column is not None}

    def _check_size(self) -> None:
        largest = max(self.head.ByteSize(), sum(map(_row_bytes, self._columns().values())))
        if largest > MAX_SEND_BYTES - MESSAGE_BYTES:
            raise InvalidArgument(
                "xs: the states or a single step exceed the size of a message: call with fewer sequences"
            )


def _row_bytes(column: Array) -> int:
    return column.nbytes // max(1, len(column))


def _per_step(values: Iterable[npt.ArrayLike], lengths: list[int], spec: ModelSpec, name: str) -> Array:
    """Returns [sum of lengths, O] from one array [T_i, O] for each sequence."""
    arrays = [
        arguments.numbers(value, spec, f"{name}[{i}]")
        for i, value in enumerate(_one_each(values, len(lengths), name, f"[steps, {spec.output_size}]"))
    ]
    for i, (array, length) in enumerate(zip(arrays, lengths, strict=True)):
        if array.shape != (length, spec.output_size):
            raise InvalidArgument(
                f"{name}[{i}]: has shape {list(array.shape)}: expected [{length}, {spec.output_size}]"
            )
    return np.concatenate(arrays)


def _step_labels(values: Iterable[npt.ArrayLike], lengths: list[int], spec: ModelSpec) -> Array:
    """Returns int32 [sum of lengths] from one label for each step."""
    arrays = []
    for i, value in enumerate(_one_each(values, len(lengths), "targets", "[steps]")):
        labels = _labels(value, f"targets[{i}]")
        if len(labels) != lengths[i]:
            raise InvalidArgument(
                f"targets[{i}]: has {len(labels)} labels: expected {lengths[i]}, the number of steps of xs[{i}]"
            )
        within = ((labels >= 0) & (labels < spec.output_size)) | (labels == IGNORED)
        _refuse_any(labels, ~within, f"targets[{i}]", f"0 to {spec.output_size - 1}, or {IGNORED} to ignore a step")
        arrays.append(labels.astype("<i4"))
    return np.concatenate(arrays)


def _transcripts(values: Iterable[npt.ArrayLike], lengths: list[int], spec: ModelSpec) -> list[Array]:
    """Returns the labels of each sequence, int32 [L_i], for ctc."""
    arrays = []
    for i, value in enumerate(_one_each(values, len(lengths), "targets", "[labels]")):
        labels = _labels(value, f"targets[{i}]")
        within = (labels >= 1) & (labels < spec.output_size)
        _refuse_any(labels, ~within, f"targets[{i}]", f"1 to {spec.output_size - 1}, as 0 is the blank")
        needed = len(labels) + int(np.count_nonzero(labels[1:] == labels[:-1]))
        if needed > lengths[i]:
            raise InvalidArgument(
                f"targets[{i}]: has {len(labels)} labels, which need {needed} steps: xs[{i}] has {lengths[i]}"
            )
        arrays.append(labels.astype("<i4"))
    return arrays


def _labels(value: npt.ArrayLike, name: str) -> Array:
    """Returns labels [L] of any integer type."""
    try:
        labels = np.asarray(value)
    except Exception as error:  # __array__ of other libraries' types may raise anything
        raise InvalidArgument(f"{name}: is a {type(value).__name__}: expected an array: {error}") from None
    if labels.size == 0 and labels.ndim == 1:
        return labels.astype("<i4")  # an empty list becomes an array of floats
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InvalidArgument(
            f"{name}: has dtype {labels.dtype} and shape {list(labels.shape)}: expected integers, [steps]"
        )
    return labels


def _refuse_any(labels: Array, wrong: Array, name: str, expected: str) -> None:
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InvalidArgument(f"{name}: is {labels[at]} at index {at}: expected {expected}")


def _one_each(values: Iterable[npt.ArrayLike], count: int, name: str, shape: str) -> list[npt.ArrayLike]:
    try:
        items = list(values)
    except TypeError:
        raise InvalidArgument(f"{name}: is a {type(values).__name__}: expected a list of arrays {shape}") from None
    if len(items) != count:
        raise InvalidArgument(f"{name}: has {len(items)} items: expected {count}, one for each sequence of xs")
    return items
