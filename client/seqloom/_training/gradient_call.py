"""The `gradients` call: checks its arguments, and assembles the result from the response's messages."""

from collections.abc import AsyncIterable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seqloom import tensors
from seqloom._messages import arguments
from seqloom._training.results import FactoredGradient, Gradients, ParameterGradients
from seqloom._training.training_examples import TrainingExamples
from seqloom.errors import Internal, InvalidArgument, checked_reply
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
class GradientCall:
    """The checked arguments of `gradients`. first: the first message, without the examples."""

    first: training_service_pb2.ComputeGradientsRequest
    examples: TrainingExamples

    @classmethod
    def checked(
        cls,
        model: str,
        examples: TrainingExamples,
        wrt: WithRespectTo | Iterable[WithRespectTo],
        parameter_form: ParameterForm,
        parameter_dtype: Literal["bfloat16"] | None,
        weights_version: int | None,
    ) -> "GradientCall":
        """Checks the arguments. Raises InvalidArgument."""
        wanted: list[WithRespectTo] = [wrt] if isinstance(wrt, str) else list(wrt)
        for name in wanted:
            if name not in _TARGETS:
                raise InvalidArgument(f"wrt: has {name!r}: expected any of {', '.join(_TARGETS)}")
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

    def messages(self) -> Iterator[training_service_pb2.ComputeGradientsRequest]:
        """Yields the request's messages."""
        first = training_service_pb2.ComputeGradientsRequest()
        first.CopyFrom(self.first)
        return self.examples.requests(first)

    async def read_response(self, parts: AsyncIterable[training_service_pb2.ComputeGradientsResponse]) -> Gradients:
        """Reads the response. Raises the call's errors; Internal if the response is incomplete or malformed."""
        reader: _ResponseReader | None = None
        async for each in parts:
            part = checked_reply(each)
            if reader is None:
                reader = _ResponseReader(part.summary)
            reader.take(part.data)
        if reader is None or reader.missing:
            raise Internal("the response ended early", reason="MALFORMED_REPLY")
        return _result(reader.summary, reader.arrays(), self.examples.lengths)


class _ResponseReader:
    """Fills the tensors of a response as its bytes arrive. missing: bytes that have not arrived."""

    def __init__(self, summary: training_service_pb2.GradientSummary) -> None:
        self.summary = summary
        try:
            sizes = [tensors.stored_bytes(tensor.data_type, tensor.shape) for tensor in summary.tensors]
        except tensors.MalformedTensor as error:
            raise Internal(
                f"the server sent a message that cannot be decoded: {error}", reason="MALFORMED_REPLY"
            ) from None
        self._buffers = [np.empty(size, np.uint8) for size in sizes]
        self._at, self._filled = 0, 0  # where the next byte goes: the tensor, and the position in it
        self.missing = sum(sizes)

    def take(self, data: bytes) -> None:
        """Adds the next bytes."""
        if len(data) > self.missing:
            raise Internal("the server sent more bytes than it announced", reason="MALFORMED_REPLY")
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
        """Returns the tensors, in the order of the summary."""
        return [
            tensors.from_bytes(tensor.data_type, tensor.shape, buffer)
            for tensor, buffer in zip(self.summary.tensors, self._buffers, strict=True)
        ]


def _result(summary: training_service_pb2.GradientSummary, arrays: list[Array], lengths: list[int]) -> Gradients:
    by_role: dict[int, dict[str, Array]] = {}
    for tensor, array in zip(summary.tensors, arrays, strict=True):
        by_role.setdefault(tensor.role, {})[tensor.name] = array
    factored_gradients = {
        factored.parameter: FactoredGradient(
            arrays[factored.left], None if factored.sum_of_rows else arrays[factored.right], tuple(factored.shape)
        )
        for factored in summary.products
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
        parameters=ParameterGradients(dense, factored_gradients) if dense or factored_gradients else None,
        factors={name: (factored.left, factored.right) for name, factored in factored_gradients.items()},
        norms=dict(summary.norms) or None,
        inputs=per_sequence(training_service_pb2.GRADIENT_ROLE_INPUTS),
        outputs=per_sequence(training_service_pb2.GRADIENT_ROLE_OUTPUTS),
        hidden=per_sequence(training_service_pb2.GRADIENT_ROLE_HIDDEN),
        initial_state=state(training_service_pb2.GRADIENT_ROLE_INITIAL_STATE),
        final_state=state(training_service_pb2.GRADIENT_ROLE_FINAL_STATE),
        weights_version=summary.weights_version,
        timing=Timing(summary.timing.queue_seconds, summary.timing.compute_seconds),
    )
