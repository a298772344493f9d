"""Runs under test: examples, the model they train, and its weights by name."""

import pathlib

import numpy as np
import seqloom
from safetensors.numpy import load_file
from seqloom_server.nn.spec import ModelSpec

SPEC = ModelSpec(cell="gru", input_size=5, hidden_size=6, output_size=4, dtype="float64")


def call_of(seed: int, count: int = 2):
    """xs and labels of one call."""
    draw = np.random.default_rng(seed)
    xs = [draw.standard_normal((steps, 5)) for steps in draw.integers(2, 8, count)]
    return xs, [draw.integers(0, 4, len(x)) for x in xs]


async def weights_of(client: seqloom.AsyncClient, run: seqloom.AsyncRun, folder: pathlib.Path):
    """The run's weights by name, which are published for that."""
    await run.publish()
    await client.export_model(run.model, folder)
    return load_file(folder / "model.safetensors")


def assert_weights(found, expected, **tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, parameter in expected.items():
        wanted = parameter.detach().numpy() if hasattr(parameter, "detach") else parameter
        np.testing.assert_allclose(found[name], wanted, err_msg=name, **tolerance)
