"""Triton's model of whole sequences: one call of the network for all requests that the server has batched."""

import pathlib
import sys

import triton_python_backend_utils as triton

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))  # Triton leaves PYTHONPATH out
from network import Network


class TritonPythonModel:
    def initialize(self, _: dict[str, str]) -> None:
        self._network = Network()

    def execute(self, requests: list) -> list:
        labels, _ = self._network.labels(
            [triton.get_input_tensor_by_name(each, "x").as_numpy()[0] for each in requests]
        )
        return [triton.InferenceResponse([triton.Tensor("y", each[None])]) for each in labels]
