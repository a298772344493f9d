"""Triton's model of live streams: a chunk of each that the server has batched, and the states held here in between."""

import pathlib
import sys

import torch
import triton_python_backend_utils as triton

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))  # Triton leaves PYTHONPATH out
from network import Network


class TritonPythonModel:
    def initialize(self, _: dict[str, str]) -> None:
        self._network = Network()
        self._fresh = torch.zeros(self._network.hidden_size)
        self._states: dict[int, torch.Tensor] = {}

    def execute(self, requests: list) -> list:
        numbers = [_control(each, "CORRID") for each in requests]
        before = [
            self._fresh if _control(each, "START") else self._states[number]
            for number, each in zip(numbers, requests, strict=True)
        ]
        frames = [triton.get_input_tensor_by_name(each, "x").as_numpy()[0] for each in requests]
        labels, after = self._network.labels(frames, torch.stack(before))
        for number, each, state in zip(numbers, requests, after, strict=True):
            if _control(each, "END"):
                self._states.pop(number, None)
            else:
                self._states[number] = state
        return [triton.InferenceResponse([triton.Tensor("y", each[None])]) for each in labels]


def _control(request: object, name: str) -> int:
    """What the server's scheduler says of a request beside its input."""
    return int(triton.get_input_tensor_by_name(request, name).as_numpy().flat[0])
