"""One call for gradients: what is asked for, checked, and the answer put together from its parts."""

from collections.abc import AsyncIterable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seqloom import tensors
from seqloom._messages import arguments
from seqloom._training.examples import Examples
from seqloom._training.results import Gradients, ParameterGradients, Product
from seqloom.errors import Internal, InvalidArgument, arrived
from seqloom.tensors import Array
from seqloom.types import State, Timing
from seqloom.v1 import tensor_pb2, training_service_pb2

WithRespectTo = Literal["parameters", "inputs", "initial_state", "outputs", "hidden"]
ParameterForm = Literal["smallest", "dense", "norms"]

_TARGETS: dict[WithRespectTo, training_service_pb2.WithRespectTo] = {
    "parameters": training_service_pb2.WITH_RESPECT_TO_PARAMETERS,
    "inputs": training_service_pb2.WITH_RESPECT_TO_INPUTS,
    "initial_state": training_service_pb2.WITH_RESPECT_TO_INITIAL_STATE,
    "outputs": training_service_pb2.WITH_RESPECT_TO_OUTPUTS,
    "hidden": training_service_pb2.WITH_RESPECT_TO_HIDDEN,
}
_FORMS: dict[ParameterForm, training_service_pb2.ParameterForm] = {
    "smallest": training_service_pb2.PARAMETER_FORM_SMALLEST,
    "dense": training_service_pb2.PARAMETER_FORM_DENSE,
    "norms": training_service_pb2.PARAMETER_FORM_NORMS,
}
_DTYPES: dict[Literal["bfloat16"] | None, tensor_pb2.DataType] = {
    None: tensor_pb2.DATA_TYPE_UNSPECIFIED,
    "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16,
}


@dataclass(frozen=True, slots=True)
class Request:
    """One checked call. first: its first message, but for the examples."""

    first: training_service_pb2.ComputeGradientsRequest
    examples: Examples

    @classmethod
    def checked(
        cls,
        model: str,
        examples: Examples,
        wrt: WithRespectTo | Iterable[WithRespectTo],
        parameter_form: ParameterForm,
        parameter_dtype: Literal["bfloat16"] | None,
        weights_version: int | None,
    ) -> "Request":
        """Raises InvalidArgument."""
        wanted: list[WithRespectTo] = [wrt] if isinstance(wrt, str) else list(wrt)
        for name in wanted:
            if name not in _TARGETS:
                raise InvalidArgument(f"wrt: has {name!r}: expected some of {', '.join(_TARGETS)}")
        if parameter_form not in _FORMS:
            raise InvalidArgument(f"parameter_form: is {parameter_form!r}: expected one of {', '.join(_FORMS)}")
        if parameter_dtype not in _DTYPES:
            raise InvalidArgument(f"parameter_dtype: is {parameter_dtype!r}: expected 'bfloat16', or None")
        first = training_service_pb2.ComputeGradientsRequest(
            model=model,
            weights_version=arguments.version(weights_version),
            with_respect_to=[_TARGETS[name] for name in dict.fromkeys(wanted)],
            parameter_form=_FORMS[parameter_form],
            parameter_data_type=_DTYPES[parameter_dtype],
        )
        return cls(first, examples)

    def parts(self) -> Iterator[training_service_pb2.ComputeGradientsRequest]:
        """The messages."""
        first = training_service_pb2.ComputeGradientsRequest()
        first.CopyFrom(self.first)
        return self.examples.requests(first)

    async def answer(self, parts: AsyncIterable[training_service_pb2.ComputeGradientsResponse]) -> Gradients:
        """Reads the answer. Raises what the call fails with; Internal for what is no answer."""
        reading: _Reading | None = None
        async for each in parts:
            part = arrived(each)
            if reading is None:
                reading = _Reading(part.summary)
            reading.take(part.data)
        if reading is None or reading.missing:
            raise Internal("the answer ended before all of it had come", reason="MALFORMED_REPLY")
        return _result(reading.summary, reading.arrays(), self.examples.lengths)


class _Reading:
    """The tensors of an answer, filled as its bytes come. missing: how many bytes have not come."""

    def __init__(self, summary: training_service_pb2.GradientSummary) -> None:
        self.summary = summary
        try:
            sizes = [tensors.stored_bytes(tensor.data_type, tensor.shape) for tensor in summary.tensors]
        except tensors.MalformedTensor as error:
            raise Internal(f"the server sent what cannot be read: {error}", reason="MALFORMED_REPLY") from None
        self._buffers = [np.empty(size, np.uint8) for size in sizes]
        self._at, self._filled = 0, 0  # the next byte: in which tensor, and where in it
        self.missing = sum(sizes)

    def take(self, data: bytes) -> None:
        """Takes the next bytes."""
        if len(data) > self.missing:
            raise Internal("the server sent more than it had named", reason="MALFORMED_REPLY")
        self.missing -= len(data)
        source = np.frombuffer(data, np.uint8)
        while len(source):
            target = self._buffers[self._at][self._filled :]
            piece = source[: len(target)]
            target[: len(piece)] = piece
            source = source[len(piece) :]
            self._filled += len(piece)
            if len(piece) == len(target):
                self._at, self._filled = self._at + 1, 0

    def arrays(self) -> list[Array]:
        """The tensors, in their order."""
        return [
            tensors.from_bytes(tensor.data_type, tensor.shape, buffer)
            for tensor, buffer in zip(self.summary.tensors, self._buffers, strict=True)
        ]


def _result(summary: training_service_pb2.GradientSummary, arrays: list[Array], lengths: list[int]) -> Gradients:
    by_role: dict[int, dict[str, Array]] = {}
    for tensor, array in zip(summary.tensors, arrays, strict=True):
        by_role.setdefault(tensor.role, {})[tensor.name] = array
    products = {
        product.parameter: Product(
            arrays[product.left], None if product.sum_of_rows else arrays[product.right], tuple(product.shape)
        )
        for product in summary.products
    }
    dense = by_role.get(training_service_pb2.GRADIENT_ROLE_PARAMETER, {})

    def per_sequence(role: int) -> list[Array] | None:
        rows = by_role.get(role)
        return None if rows is None else np.split(next(iter(rows.values())), np.cumsum(lengths)[:-1])

    def state(role: int) -> State | None:
        parts = by_role.get(role)
        return None if parts is None else State(**parts)

    return Gradients(
        loss=summary.loss,
        losses=np.array(summary.losses, float),
        parameters=ParameterGradients(dense, products) if dense or products else None,
        factors={name: (product.left, product.right) for name, product in products.items()},
        norms=dict(summary.norms) or None,
        inputs=per_sequence(training_service_pb2.GRADIENT_ROLE_INPUTS),
        outputs=per_sequence(training_service_pb2.GRADIENT_ROLE_OUTPUTS),
        hidden=per_sequence(training_service_pb2.GRADIENT_ROLE_HIDDEN),
        initial_state=state(training_service_pb2.GRADIENT_ROLE_INITIAL_STATE),
        final_state=state(training_service_pb2.GRADIENT_ROLE_FINAL_STATE),
        weights_version=summary.weights_version,
        timing=Timing(summary.timing.queue_seconds, summary.timing.compute_seconds),
    )
