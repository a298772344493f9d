"""Encodes the response of ComputeGradients: a summary that names the tensors, then their bytes in parts."""

from collections.abc import Iterator

import numpy as np
from seqloom import tensors
from seqloom.v1 import tensor_pb2
from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.engine.core.sequence import Array
from seqloom_server.nn.gradients.call_share import CallGradients
from seqloom_server.nn.gradients.gradient_factors import factor_width
from seqloom_server.nn.losses.training_example import GradientRequest
from seqloom_server.nn.spec import ModelSpec

GRADIENT_FIELDS = {
    pb.WITH_RESPECT_TO_INPUTS: "inputs",
    pb.WITH_RESPECT_TO_INITIAL_STATE: "initial_state",
    pb.WITH_RESPECT_TO_OUTPUTS: "outputs",
    pb.WITH_RESPECT_TO_HIDDEN: "hidden",
}
_ROLES = {
    "inputs": pb.GRADIENT_ROLE_INPUTS,
    "outputs": pb.GRADIENT_ROLE_OUTPUTS,
    "hidden": pb.GRADIENT_ROLE_HIDDEN,
}


def predicted_bytes(spec: ModelSpec, request: GradientRequest, sequences: int, steps: int) -> int:
    """Returns an upper bound of the bytes of a response's tensors."""
    item = 8 if spec.dtype == "float64" else 4
    state = sum(rows * width for rows, width in spec.state_shapes().values())
    numbers = sequences * state * (1 + request.initial_state)
    numbers += steps * spec.input_size * request.inputs
    numbers += steps * spec.output_size * request.outputs
    numbers += steps * spec.outputs_width * request.hidden
    if request.parameters == "dense":
        numbers += spec.parameter_count
    elif request.parameters == "smallest":
        numbers += min(spec.parameter_count, steps * factor_width(spec))
    return int(item * numbers) + 4096


class GradientResponse:
    """The parts of one response, built one after the other as they are sent."""

    def __init__(self, spec: ModelSpec, gradients: CallGradients, version: int, *, bfloat16: bool) -> None:
        self.summary = pb.GradientSummary(
            loss=float(gradients.losses.sum()), losses=gradients.losses.tolist(), weights_version=version
        )
        self._arrays: list[Array] = []
        self._bfloat16 = bfloat16
        self._add_parameters(spec, gradients)
        for name, role in _ROLES.items():
            array = getattr(gradients, name)
            if array is not None:
                self._add(role, "", array)
        for state, role in (
            (gradients.initial_state, pb.GRADIENT_ROLE_INITIAL_STATE),
            (gradients.final_state, pb.GRADIENT_ROLE_FINAL_STATE),
        ):
            if state is not None:
                for name, part in zip(spec.state_parts, state, strict=True):
                    self._add(role, name, part)

    def parts(self, max_bytes: int) -> Iterator[pb.ComputeGradientsResponse]:
        """Yields the messages, each with at most `max_bytes` of tensors; the first also has the summary."""
        message = pb.ComputeGradientsResponse(summary=self.summary)
        room, chunks = max_bytes - message.ByteSize(), []
        for array in self._arrays:
            view = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            while len(view):
                chunk = view[: max(room, 0)]
                chunks.append(chunk)
                view, room = view[len(chunk) :], room - len(chunk)
                if room <= 0:
                    message.data = b"".join(chunks)
                    yield message
                    message, chunks, room = pb.ComputeGradientsResponse(), [], max_bytes
        message.data = b"".join(chunks)
        if message.ByteSize():
            yield message

    def _add_parameters(self, spec: ModelSpec, gradients: CallGradients) -> None:
        for name, norm in (gradients.norms or {}).items():
            self.summary.norms[name] = norm
        for name, array in (gradients.dense or {}).items():
            self._add(pb.GRADIENT_ROLE_PARAMETER, name, array)
        shapes = spec.parameter_shapes()
        first = len(self._arrays)
        for factor in gradients.factors or ():
            self._add(pb.GRADIENT_ROLE_FACTOR, "", factor)
        for product in gradients.products if gradients.factors else ():
            self.summary.products.add(
                parameter=product.parameter,
                left=first + product.left,
                right=first + (product.right or 0),
                sum_of_rows=product.right is None,
                shape=shapes[product.parameter],
            )

    def _add(self, role: "pb.GradientRole", name: str, array: Array) -> None:
        parameter = role in (pb.GRADIENT_ROLE_PARAMETER, pb.GRADIENT_ROLE_FACTOR)
        if parameter and self._bfloat16:
            data_type: tensor_pb2.DataType = tensor_pb2.DATA_TYPE_BFLOAT16
            stored: Array = tensors.to_bfloat16(array)
        else:
            data_type, stored = tensors.data_type_of(array.dtype), array
        self.summary.tensors.add(role=role, name=name, data_type=data_type, shape=array.shape)
        self._arrays.append(stored)
