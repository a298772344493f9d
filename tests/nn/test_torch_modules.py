"""Networks from torch.nn modules and state dicts, and what of those cannot be served."""

import numpy as np
import pytest
import torch
from precisions import near
from ragged import CELLS, logits_of, make_network, make_sequences, make_spec, make_state, run, run_twin, torch_twin
from seqloom_server.nn.spec import InvalidSpec
from seqloom_server.nn.torch_modules import from_state_dict, from_torch


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_modules_give_the_network_they_are(cell, activation, dtype, layers):
    spec = make_spec(cell, activation, layers=layers, dtype=dtype)
    module = torch_twin(make_network(spec, seed=5))
    for network in (from_torch(module["rnn"], module["output"]), from_state_dict(module.state_dict(), activation)):
        assert network.spec == spec
        (sequence,), state = make_sequences(spec, [20]), make_state(spec, 1)
        expected, _, final = run_twin(module, sequence, state)
        (hidden,), after = run(network, [sequence], state)
        np.testing.assert_allclose(hidden, expected, **near(dtype, rtol=1e-5, atol=1e-6))
        np.testing.assert_allclose(after[-1], final[-1], **near(dtype, rtol=1e-5, atol=1e-6))


def test_training_the_module_on_leaves_the_network_as_it_was():
    module = torch_twin(make_network(make_spec("gru")))
    network = from_torch(module["rnn"], module["output"])
    before = {name: tensor.clone() for name, tensor in network.parameters().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    for name, tensor in network.parameters().items():
        assert torch.equal(tensor, before[name])


def test_modules_without_biases_get_zeros():
    rnn, output = torch.nn.LSTM(3, 5, 2, bias=False, batch_first=True), torch.nn.Linear(5, 7, bias=False)
    network = from_torch(rnn, output)
    x = torch.randn(1, 9, 3)
    with torch.no_grad():
        expected, _ = rnn(x)
        logits = output(expected)
    (hidden,), _ = run(network, [x[0].numpy()])
    np.testing.assert_allclose(hidden, expected[0].numpy(), **near(rtol=1e-7, atol=1e-6))
    values = logits_of(network, hidden)
    np.testing.assert_allclose(values.numpy(), logits[0].numpy(), **near(rtol=1e-7, atol=1e-6))


@pytest.mark.parametrize(
    ("rnn", "output", "field"),
    [
        (torch.nn.GRU(3, 5, bidirectional=True), torch.nn.Linear(5, 7), "output.weight"),
        (torch.nn.LSTM(3, 5, proj_size=2), torch.nn.Linear(2, 7), "cell"),
        (torch.nn.GRU(3, 5).half(), torch.nn.Linear(5, 7).half(), "dtype"),
        (torch.nn.GRU(3, 5), torch.nn.Linear(6, 7), "output.weight"),
        (torch.nn.GRU(3, 5), torch.nn.Linear(5, 7).double(), "output.weight"),
    ],
)
def test_modules_that_cannot_be_served_are_refused_by_name(rnn, output, field):
    with pytest.raises(InvalidSpec) as caught:
        from_torch(rnn, output)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("rnn.weight_ih_l0", None),
        ("output.weight", None),
        ("rnn.weight_ih_l1", None),
        ("rnn.weight_hh_l0", torch.zeros(10, 5)),
        ("rnn.weight_hh_l0", torch.zeros(0)),
        ("rnn.bias_hh_l1", torch.zeros(4)),
        ("conv.weight", torch.zeros(4)),
        ("rnn.weight_ih_l0_reverse", torch.zeros(15, 3)),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused_by_name(name, tensor):
    parameters = {key: value.float() for key, value in make_network(make_spec("gru", layers=2)).parameters().items()}
    if tensor is None:
        del parameters[name]
    else:
        parameters[name] = tensor
    with pytest.raises(InvalidSpec) as caught:
        from_state_dict(parameters)
    assert caught.value.field == name
