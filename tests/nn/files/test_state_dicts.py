"""State dicts: the network that each is, tensors that are missing or foreign told by name, and what to do about it."""

import numpy as np
import pytest
import torch
from helpers.ragged_batches import logits_of, make_network, make_sequences, make_state, run, run_twin, torch_twin
from helpers.specs import make_spec, shapes
from helpers.tolerances import near
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.files.state_dict import from_state_dict
from seqloom_server.nn.spec import InvalidSpec


def taken(parameters, spec):
    return from_state_dict(parameters, spec.activation, causal_convolution=bool(spec.conv_channels))


def refused(parameters, *more, **options):
    with pytest.raises(InvalidSpec) as caught:
        from_state_dict(parameters, *more, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return caught.value


def some(cell="gru", **more):
    return make_network(make_spec(cell, **more)).parameters()


def renamed(parameters, **prefixes):
    """Other prefixes for "rnn." and the like."""
    return {prefixes[name.partition(".")[0]] + name.partition(".")[2]: tensor for name, tensor in parameters.items()}


@given(shapes(), st.data())
@settings(deadline=None)
def test_every_tensor_that_is_missing_is_told_by_name(spec, data):
    parameters = make_network(spec).parameters()
    network = taken(parameters, spec)
    assert network.spec == spec
    for name, tensor in network.parameters().items():
        assert torch.equal(tensor, parameters[name])
    name = data.draw(st.sampled_from(sorted(parameters)))
    del parameters[name]
    with pytest.raises(InvalidSpec, match="is missing") as caught:
        taken(parameters, spec)
    assert caught.value.field == name


@given(shapes(), st.data())
@settings(deadline=None)
def test_biases_are_zeros_where_there_are_none_at_all_and_then_too_every_weight_is_asked_for(spec, data):
    parameters = {name: each for name, each in make_network(spec).parameters().items() if ".bias" not in name}
    network = taken(parameters, spec)
    assert network.spec == spec
    for name, tensor in network.parameters().items():
        assert torch.equal(tensor, parameters[name] if name in parameters else torch.zeros_like(tensor))
    name = data.draw(st.sampled_from(sorted(parameters)))
    del parameters[name]
    with pytest.raises(InvalidSpec, match="is missing") as caught:
        taken(parameters, spec)
    assert caught.value.field == name


def test_where_only_one_part_has_no_bias_zeros_are_to_be_said():
    parameters = some()
    expected = parameters.pop("output.bias").zero_()
    error = refused(parameters)
    assert "output.bias: is missing, while rnn.bias_ih_l0 is there" in str(error)
    assert "add zeros of shape [7]" in str(error)
    parameters["output.bias"] = expected
    assert torch.equal(from_state_dict(parameters).parameters()["output.bias"], expected)


@pytest.mark.parametrize(
    ("name", "tensor", "field"),
    [
        ("rnn.weight_hh_l0", torch.zeros(10, 5), "rnn.weight_hh_l0"),
        ("rnn.weight_hh_l0", torch.zeros(0), "rnn.weight_hh_l0"),
        ("rnn.weight_hh_l0", torch.zeros(0, 0), "rnn.weight_hh_l0"),
        ("rnn.bias_hh_l1", torch.zeros(4), "rnn.bias_hh_l1"),
        ("conv.weight", torch.zeros(4), "conv.weight"),
        ("rnn.weight_ih_l0_reverse", torch.zeros(15, 3), "rnn.weight_hh_l0_reverse"),  # that and others are missing
        ("rnn.weight_ih_l3", torch.zeros(15, 5), "rnn.weight_ih_l2"),
        ("rnn.weight_ih_l9999", torch.zeros(15, 5), "num_layers"),
        ("rnn.weight_ih_l" + "9" * 5000, torch.zeros(15, 5), ("rnn.weight_ih_l" + "9" * 80)[:80]),
        ("rnn.weight_ih_l01", torch.zeros(15, 5), "rnn.weight_ih_l01"),
        ("conv.bias", torch.zeros(4), "conv.weight"),
        ("step", torch.zeros(1), "step"),
        ("two\nlines", torch.zeros(1), "two\\nlines"),
        ("output.weight", torch.zeros(7, 5).double(), "output.weight"),
        ("output.weight", torch.zeros(7, 5).half(), "output.weight"),
        ("output.weight", torch.zeros(7, 5).to_sparse(), "output.weight"),
        ("output.weight", torch.zeros(7, 5, device="meta"), "output.weight"),
        ("output.weight", torch.nn.parameter.UninitializedParameter(), "output.weight"),
        ("output.weight", [[0.0] * 5] * 7, "output.weight"),
        ("epoch", 3, "epoch"),
        (3, torch.zeros(1), "3"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name, tensor, field):
    parameters = some(layers=2, dtype="float32")
    assert refused({**parameters, name: tensor}).field == field


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_of_other_types_it_is_said_which_are_taken(dtype):
    error = refused({name: tensor.to(dtype) for name, tensor in some().items()})
    assert error.field == "dtype"
    assert f"is {dtype} in rnn.weight_ih_l0: expected float32 or float64" in str(error)
    assert "module.float()" in str(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["rnn.weight_hh_l0", "rnn.bias_ih_l0", "output.weight"])
def test_a_number_that_is_not_finite_is_told_with_its_place(name, value):
    parameters = some()
    parameters[name].view(-1)[-1] = value
    place = [size - 1 for size in parameters[name].shape]
    assert str(refused(parameters)) == f"{name}: holds {value} at {place}: expected finite numbers"


def test_what_is_no_mapping_is_told_by_its_type():
    assert "is a GRU: expected a state dict" in str(refused(torch.nn.GRU(3, 5)))
    assert "no tensors at all" in str(refused({}))


@pytest.mark.parametrize(
    ("prefixes", "advice"),
    [
        ({"rnn": "module.rnn.", "output": "module.output."}, "remove the prefix 'module.' from the names"),
        ({"rnn": "lstm.", "output": "fc."}, "replace the prefix 'lstm.' by \"rnn.\", and that of the linear layer"),
        ({"rnn": "net.lstm.", "output": "net.fc."}, "replace the prefix 'net.lstm.' by \"rnn.\""),
        ({"rnn": "", "output": "output."}, 'add the prefix "rnn." to the names of the recurrent layers'),
        (
            {"rnn": "rnn.", "output": "output.0."},
            'add the prefix "output." to the names of the linear layer after them',
        ),
    ],
)
def test_foreign_names_are_told_with_those_expected_and_how_to_come_to_them(prefixes, advice):
    parameters = renamed(some("lstm"), **prefixes)
    error = refused(parameters)
    for name in list(parameters)[:6]:
        assert repr(name) in str(error)
    assert "expected rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0" in str(error)
    assert advice in str(error)


def test_of_many_foreign_names_a_few_are_shown():
    error = refused({f"encoder.{number}": torch.zeros(1) for number in range(900)})
    assert "'encoder.5' and 894 more" in str(error)


def test_without_an_output_layer_it_is_said_how_to_come_to_hidden_states():
    parameters = {name: tensor for name, tensor in some().items() if name.startswith("rnn.")}
    error = refused(parameters)
    assert error.field == "output.weight"
    assert "for hidden states alone, add" in str(error)


def test_cells_are_told_from_layers():
    cell = torch.nn.LSTMCell(3, 5)
    parameters = {f"rnn.{name}": tensor for name, tensor in cell.state_dict().items()}
    parameters |= {f"output.{name}": tensor for name, tensor in torch.nn.Linear(5, 7).state_dict().items()}
    error = refused(parameters)
    assert error.field == "rnn.weight_ih"
    assert "LSTMCell" in str(error)
    network = from_state_dict({name if "output" in name else name + "_l0": each for name, each in parameters.items()})
    assert network.spec.cell == "lstm"


@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        torch.nn.utils.spectral_norm,
    ],
)
def test_weights_that_are_computed_are_told_with_how_to_make_them_plain(norm):
    twin = torch_twin(make_network(make_spec("gru")))
    norm(twin["output"])
    assert "remove_parametrizations" in str(refused(twin.state_dict()))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True])
def test_a_projection_is_named_and_folded_away_as_the_refusal_says(layers, both):
    rnn = torch.nn.LSTM(3, 5, layers, proj_size=2, bidirectional=both).double()
    directions = 2 if both else 1
    output = torch.nn.Linear(2 * directions, 7).double()
    parameters = {f"rnn.{name}": tensor for name, tensor in rnn.state_dict().items()}
    parameters |= {f"output.{name}": tensor for name, tensor in output.state_dict().items()}
    error = refused(parameters)
    assert error.field == "rnn.weight_hr_l0"
    assert "weight_hh_l0 @ P in place of weight_hh_l0" in str(error)
    for layer in range(layers):
        projections = [parameters.pop(f"rnn.weight_hr_l{layer}{end}") for end in ("", "_reverse")[:directions]]
        for projection, end in zip(projections, ("", "_reverse"), strict=False):
            parameters[f"rnn.weight_hh_l{layer}{end}"] @= projection
        above = [f"rnn.weight_ih_l{layer + 1}{end}" for end in ("", "_reverse")[:directions]]
        for name in above if layer + 1 < layers else ["output.weight"]:
            parts = parameters[name].split(2, dim=1)
            parameters[name] = torch.cat([part @ p for part, p in zip(parts, projections, strict=True)], dim=1)
    network = from_state_dict(parameters)
    (sequence,) = make_sequences(network.spec, [12])
    (hidden,), _ = run(network, [sequence])
    with torch.no_grad():
        expected = torch.nn.Linear.forward(output, rnn(torch.tensor(sequence))[0])
    np.testing.assert_allclose(logits_of(network, hidden), expected, **near("float64", rtol=1e-9, atol=1e-9))


def test_a_convolution_that_may_see_inputs_to_come_is_taken_only_where_it_is_said_to_be_causal():
    spec = make_spec("gru", conv_channels=4, conv_width=3)
    twin = torch_twin(make_network(spec))
    error = refused(twin.state_dict())
    assert error.field == "conv.weight"
    for words in ("has width 3", "output t sees the inputs t-2 to t", 'padding="same"', "--causal-convolution"):
        assert words in str(error)
    network = from_state_dict(twin.state_dict(), causal_convolution=True)
    (sequence,), state = make_sequences(spec, [9]), make_state(spec, 1)
    (hidden,), _ = run(network, [sequence], state)
    np.testing.assert_allclose(hidden, run_twin(twin, sequence, state)[0], **near("float64", rtol=1e-9, atol=1e-9))


def test_a_convolution_of_width_1_is_causal_as_it_is():
    spec = make_spec("gru", conv_channels=4, conv_width=1)
    assert from_state_dict(make_network(spec).parameters()).spec == spec


def test_a_causal_convolution_that_is_spoken_of_has_to_be_there():
    assert refused(some(), causal_convolution=True).field == "conv.weight"
