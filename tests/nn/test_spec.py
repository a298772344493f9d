"""What a model may be made of: bounds by field, JSON both ways, parameter counts."""

import subprocess
import sys

import pytest
from helpers.ragged_batches import make_network as create
from helpers.ragged_batches import torch_twin
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.spec import InvalidSpec, ModelSpec

GOOD = {"cell": "gru", "input_size": 3, "hidden_size": 4, "output_size": 5}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("cell", "rnn", "expected one of elman, gru, lstm"),
        ("cell", None, "is None"),
        ("cell", ["gru"], "expected one of"),
        ("activation", "sigmoid", "expected one of tanh, relu"),
        ("activation", "relu", "gru has only 'tanh'"),
        ("dtype", "float16", "expected one of float32, float64"),
        ("input_size", 0, "is 0: expected an integer from 1 to 16384"),
        ("input_size", 16385, "from 1 to 16384"),
        ("hidden_size", -4, "is -4"),
        ("hidden_size", 4.0, "is 4.0"),
        ("hidden_size", True, "is True"),
        ("output_size", 1_000_001, "from 1 to 1000000"),
        ("output_size", "9" * 500, "..."),
        ("num_layers", 17, "from 1 to 16"),
        ("num_layers", 0, "is 0"),
        ("depth", 3, "unknown field of a model"),
    ],
)
def test_a_field_that_is_wrong_is_named(field, value, said):
    with pytest.raises(InvalidSpec) as caught:
        ModelSpec.from_json({**GOOD, field: value})
    assert field in caught.value.field
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("field", list(GOOD))
def test_a_field_that_is_missing_is_named(field):
    with pytest.raises(InvalidSpec, match="is missing") as caught:
        ModelSpec.from_json({name: value for name, value in GOOD.items() if name != field})
    assert caught.value.field == field


def test_sizes_that_are_fine_alone_may_be_too_many_parameters_together():
    with pytest.raises(InvalidSpec, match="parameters: expected at most") as caught:
        ModelSpec(cell="elman", input_size=1, hidden_size=16384, output_size=1_000_000)
    assert caught.value.field == "output_size"
    with pytest.raises(InvalidSpec, match="parameters: expected at most") as caught:
        ModelSpec(cell="lstm", input_size=1, hidden_size=16384, output_size=1, num_layers=2)
    assert caught.value.field == "hidden_size"


def test_json_goes_both_ways():
    spec = make_spec("elman", "relu", layers=3, dtype="float64")
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(GOOD) == ModelSpec(cell="gru", input_size=3, hidden_size=4, output_size=5, num_layers=1)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_names_shapes_and_counts_are_torch_nns(cell, activation, layers):
    spec = make_spec(cell, activation, layers=layers)
    module = torch_twin(create(spec))
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == spec.parameter_shapes()
    assert list(module.state_dict()) == list(spec.parameter_shapes())
    assert spec.parameter_count == sum(parameter.numel() for parameter in module.parameters())
    assert spec.state_parts == (("hidden", "cell") if cell == "lstm" else ("hidden",))


def test_the_standing_example_has_the_parameters_that_it_should():
    spec = ModelSpec(cell="elman", input_size=160, hidden_size=1000, output_size=6000)
    assert spec.parameter_count == 160_000 + 1_000_000 + 2_000 + 6_000_000 + 6_000


def test_a_spec_needs_no_torch():
    code = "import sys, seqloom_server.nn.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
