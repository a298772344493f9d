"""Sequences with what they are trained towards: checked, and in the parts in which a training call carries them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from seqloom import tensors
from seqloom._config import MAX_SEND_BYTES, MESSAGE_BYTES
from seqloom._messages import arguments
from seqloom.errors import InvalidArgument
from seqloom.tensors import Array
from seqloom.types import ModelSpec, State
from seqloom.v1 import training_service_pb2

Loss = Literal["cross_entropy", "mse", "ctc"]
Reduction = Literal["sum", "mean"]

Request = TypeVar("Request", training_service_pb2.ComputeGradientsRequest, training_service_pb2.ForwardBackwardRequest)

IGNORED = -100  # a label that does not count

_LOSSES: dict[Loss, training_service_pb2.LossKind] = {
    "cross_entropy": training_service_pb2.LOSS_KIND_CROSS_ENTROPY,
    "mse": training_service_pb2.LOSS_KIND_MSE,
    "ctc": training_service_pb2.LOSS_KIND_CTC,
}
_ROOM = MESSAGE_BYTES - (16 << 10)  # of a part: the rest is for what stands in the first, and for framing


@dataclass(frozen=True, slots=True)
class Examples:
    """One checked call: its own copy of N sequences and what belongs to them.

    rows: [sum of lengths, D]. targets: as on the wire, None where there are output_gradients, [sum of lengths, O].
    head: what stands in the first part.
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
    ) -> "Examples":
        """Raises InvalidArgument. What only the server judges, such as NaN, is left to it."""
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
        towards, gradients = None, None
        if targets is None:
            assert output_gradients is not None  # as checked above
            if reduction == "mean":
                raise InvalidArgument("reduction: is 'mean': output_gradients are taken as they are")
            gradients = _per_step(output_gradients, lengths, spec, "output_gradients")
        else:
            if spec.output_size == 1 and loss != "mse":
                raise InvalidArgument(
                    f"loss: is {loss!r}: the model has one output, and softmax makes 1 of it whatever it is: expected "
                    "'mse', or output_gradients"
                )
            head.loss = _LOSSES[loss]
            if loss == "mse":
                towards, valid = _per_step(targets, lengths, spec, "targets"), sum(lengths)
            elif loss == "ctc":
                labels = _transcripts(targets, lengths, spec)
                head.target_lengths.extend(len(each) for each in labels)
                towards, valid = np.concatenate(labels), len(lengths)
            else:
                towards = _step_labels(targets, lengths, spec)
                valid = int(np.count_nonzero(towards != IGNORED))
            if reduction == "mean":
                head.divisor = float(max(1, valid))
        for name, state in (("initial_state", initial_state), ("final_state_gradient", final_state_gradient)):
            if state is not None:
                for part, array in arguments.state_arrays(state, spec, len(lengths), name).items():
                    tensors.encode_into(array, getattr(getattr(head, name), part))
        examples = cls(lengths, np.concatenate(sequences), towards, gradients, head)
        examples._check_size()
        return examples

    @property
    def nbytes(self) -> int:
        """About how many bytes it takes, here and on the wire."""
        return self.head.ByteSize() + sum(column.nbytes for column in self._columns().values())

    def requests(self, first: Request) -> Iterator[Request]:
        """Yields the messages of a call, each about a MiB at most: `first` with the first part of these examples, then
        what has only further rows; the last says how many they are, without which the server does nothing."""
        message, count = first, 1
        parts = self._parts()
        message.examples.CopyFrom(next(parts))
        for part in parts:
            yield message
            message, count = type(first)(examples=part), count + 1
        message.parts = count
        yield message

    def _parts(self) -> Iterator[training_service_pb2.Examples]:
        """The first has everything but further rows."""
        columns = self._columns()
        crowded = self.head.ByteSize() > MESSAGE_BYTES - _ROOM  # then it goes ahead alone
        if crowded:
            yield self._part(self.head, {name: column[:0] for name, column in columns.items()})
        room = max(1, _ROOM - sum(map(_row_bytes, columns.values())))  # a part may have a row more of each
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
                "xs: the states, or a single step, take more than one message: call with fewer sequences"
            )


def _row_bytes(column: Array) -> int:
    return column.nbytes // max(1, len(column))


def _per_step(values: Iterable[npt.ArrayLike], lengths: list[int], spec: ModelSpec, name: str) -> Array:
    """[sum of lengths, O] of one array [T_i, O] a sequence."""
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
    """int32 [sum of lengths] of one label a step."""
    arrays = []
    for i, value in enumerate(_one_each(values, len(lengths), "targets", "[steps]")):
        labels = _labels(value, f"targets[{i}]")
        if len(labels) != lengths[i]:
            raise InvalidArgument(f"targets[{i}]: has {len(labels)} labels: xs[{i}] has {lengths[i]} steps")
        within = ((labels >= 0) & (labels < spec.output_size)) | (labels == IGNORED)
        _refuse_any(labels, ~within, f"targets[{i}]", f"0 to {spec.output_size - 1}, or {IGNORED} to ignore a step")
        arrays.append(labels.astype("<i4"))
    return np.concatenate(arrays)


def _transcripts(values: Iterable[npt.ArrayLike], lengths: list[int], spec: ModelSpec) -> list[Array]:
    """int32 [L_i] of each sequence, for ctc."""
    arrays = []
    for i, value in enumerate(_one_each(values, len(lengths), "targets", "[labels]")):
        labels = _labels(value, f"targets[{i}]")
        within = (labels >= 1) & (labels < spec.output_size)
        _refuse_any(labels, ~within, f"targets[{i}]", f"1 to {spec.output_size - 1}, as 0 is the blank")
        needed = len(labels) + int(np.count_nonzero(labels[1:] == labels[:-1]))
        if needed > lengths[i]:
            raise InvalidArgument(
                f"targets[{i}]: has {len(labels)} labels, which take {needed} steps: xs[{i}] has {lengths[i]}"
            )
        arrays.append(labels.astype("<i4"))
    return arrays


def _labels(value: npt.ArrayLike, name: str) -> Array:
    """[L] of any integers."""
    try:
        labels = np.asarray(value)
    except Exception as error:  # what __array__ of foreign types raises is theirs to choose
        raise InvalidArgument(f"{name}: is a {type(value).__name__}, which is no array: {error}") from None
    if labels.size == 0 and labels.ndim == 1:
        return labels.astype("<i4")  # an empty list has no integers to tell its dtype by
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InvalidArgument(f"{name}: is {labels.dtype} of shape {list(labels.shape)}: expected integers, [steps]")
    return labels


def _refuse_any(labels: Array, wrong: Array, name: str, expected: str) -> None:
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InvalidArgument(f"{name}: is {labels[at]} at {at}: expected {expected}")


def _one_each(values: Iterable[npt.ArrayLike], count: int, name: str, shape: str) -> list[npt.ArrayLike]:
    try:
        items = list(values)
    except TypeError:
        raise InvalidArgument(f"{name}: is a {type(values).__name__}: expected a list of arrays {shape}") from None
    if len(items) != count:
        raise InvalidArgument(f"{name}: has {len(items)} items: xs has {count}")
    return items
