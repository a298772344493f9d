"""The mode of a run of the suite is that of the models it serves, and its tolerances tell right from wrong in each."""

import dataclasses

import numpy as np
import pytest
import seqloom
from helpers import tolerances
from helpers.real_server import SMALL
from helpers.tolerances import alike, assert_labels, near, served
from seqloom_server.nn.spec import ModelSpec

BOTH = (ModelSpec, seqloom.ModelSpec)


@pytest.fixture
def mode(request):
    return request.config.getoption("--precision")


@pytest.fixture(params=tolerances.PRECISIONS)
def other(request, mode):
    """Has the rest of a test run in this mode."""
    tolerances.serve_in(request.param)
    yield request.param
    tolerances.serve_in(mode)


async def test_models_are_served_in_the_mode(mode, serve):
    assert SMALL.precision == mode, "serving was imported before the mode was set"
    async with serve() as served, seqloom.AsyncClient(served.address) as client:
        assert (await client.model("small")).spec.precision == mode
        await client.create_model("other", seqloom.ModelSpec("lstm", 5, 7, 3))
        assert (await client.model("other")).spec.precision == mode


@pytest.mark.parametrize("spec", BOTH)
def test_a_model_that_names_no_precision_is_of_the_mode(other, spec):
    assert spec("elman", 5, 7, 3).precision == spec("gru", 5, 7, 3, 2, dtype="float32").precision == served() == other
    assert spec("gru", 5, 7, 3, dtype="float64").precision == served("float64") == "full"


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("spec", BOTH)
def test_one_that_names_its_own_keeps_it(spec):
    assert spec("gru", 5, 7, 3, precision="tf32").precision == "tf32"
    assert spec("elman", 5, 7, 3, 1, "tanh", "float32", 0, 0, False, "full").precision == "full"
    assert dataclasses.replace(spec("gru", 5, 7, 3), precision="full").precision == "full"


def test_only_fewer_bits_are_given_more_room_and_never_in_float64(other):
    full = {"rtol": 1e-4, "atol": 1e-5}
    assert near("float64", **full) == alike("float64", **full) == full
    wide, narrow = ({"rtol": steps / 256, "atol": steps / 256} for steps in (6, 2))
    assert (near(**full), alike(**full)) == ((wide, narrow) if other in ("bf16", "int8") else (full, full))


LOGITS = np.array([[0.0, 1.0, 0.98], [2.0, 0.0, 1.0]])


def test_labels_are_those_of_the_largest_logits(other):
    assert_labels(np.array([1, 0]), LOGITS)
    assert_labels(np.array([[1, 2], [0, 2]]), LOGITS)
    for wrong in ([1, 2], [0, 0], [[1, 2], [2, 0]], [[1, 1], [0, 2]]):
        with pytest.raises(AssertionError):
            assert_labels(np.array(wrong), LOGITS)
    for near_enough in ([2, 0], [[2, 1], [0, 2]]):
        if other in ("bf16", "int8"):
            assert_labels(np.array(near_enough), LOGITS)
        else:
            with pytest.raises(AssertionError):
                assert_labels(np.array(near_enough), LOGITS)
