"""Networks from torch.nn modules, and what of those cannot be served."""

import numpy as np
import pytest
import torch
from helpers.ragged_batches import logits_of, make_network, make_sequences, make_state, run, run_twin, torch_twin
from helpers.specs import CELLS, make_spec
from helpers.tolerances import near
from seqloom_server.nn.files.state_dict import from_state_dict
from seqloom_server.nn.files.torch_import import from_torch
from seqloom_server.nn.spec import InvalidSpec
from torch.nn.utils.parametrizations import weight_norm


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
        (torch.nn.LSTM(3, 5, proj_size=2), torch.nn.Linear(2, 7), "rnn.weight_hr_l0"),
        (torch.nn.GRU(3, 5).half(), torch.nn.Linear(5, 7).half(), "dtype"),
        (torch.nn.GRU(3, 5).bfloat16(), torch.nn.Linear(5, 7), "dtype"),
        (torch.nn.GRU(3, 5), torch.nn.Linear(6, 7), "output.weight"),
        (torch.nn.GRU(3, 5), torch.nn.Linear(5, 7, device="meta"), "output.weight"),
        (torch.nn.GRU(3, 5), torch.nn.LazyLinear(7), "output.weight"),
        (torch.nn.GRU(3, 5), torch.nn.LazyLinear(7, bias=False), "output.weight"),
        (torch.nn.GRU(3, 5), weight_norm(torch.nn.Linear(5, 7)), "output.parametrizations.weight.original0"),
        (torch.nn.GRU(3, 5), torch.nn.Linear(5, 7).double(), "output.weight"),
    ],
)
def test_modules_that_cannot_be_served_are_refused_by_name(rnn, output, field):
    with pytest.raises(InvalidSpec) as caught:
        from_torch(rnn, output)
    assert caught.value.field == field


def test_modules_of_which_some_have_no_biases_get_zeros_for_those():
    rnn, output, convolution = (
        torch.nn.GRU(4, 5),
        torch.nn.Linear(5, 7, bias=False),
        torch.nn.Conv1d(3, 4, 2, bias=False),
    )
    parameters = from_torch(rnn, output, convolution).parameters()
    assert torch.equal(parameters["rnn.bias_hh_l0"], rnn.bias_hh_l0)
    assert not parameters["output.bias"].any()
    assert not parameters["conv.bias"].any()


def test_a_number_that_is_not_finite_is_refused():
    output = torch.nn.Linear(5, 7)
    with torch.no_grad():
        output.bias[3] = float("nan")
    with pytest.raises(InvalidSpec, match=r"^output\.bias: holds nan at \[3\]: expected finite numbers$"):
        from_torch(torch.nn.GRU(3, 5), output)


def test_a_base_class_of_relu_is_one_of_relu():
    assert from_torch(torch.nn.RNNBase("RNN_RELU", 3, 5), torch.nn.Linear(5, 7)).spec.activation == "relu"


GRU, LINEAR = torch.nn.GRU(3, 5), torch.nn.Linear(5, 7)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ((None, LINEAR), "rnn: is None: expected a torch.nn.RNN, GRU or LSTM"),
        ((torch.nn.GRU, LINEAR), "rnn: is the class GRU: expected a torch.nn.RNN, GRU or LSTM"),
        ((GRU.state_dict(), LINEAR), "rnn: is a OrderedDict: expected .*; a state dict is for from_state_dict"),
        ((torch.nn.LSTMCell(3, 5), LINEAR), 'rnn: is a LSTMCell: .*; a torch.nn.LSTM of one layer has .* "_l0"'),
        ((torch.nn.GRUCell(3, 5), LINEAR), "rnn: is a GRUCell: .*; a torch.nn.GRU of one layer has"),
        ((torch.nn.RNNCell(3, 5), LINEAR), "rnn: is a RNNCell: .*; a torch.nn.RNN of one layer has"),
        ((torch.nn.Sequential(GRU), LINEAR), "rnn: is a Sequential: .*; it has one as '0': pass that"),
        ((torch.nn.DataParallel(GRU), LINEAR), "rnn: is a DataParallel: .*; it has one as 'module'"),
        ((torch.nn.Sequential(GRU, torch.nn.GRU(5, 5)), LINEAR), "rnn: is a Sequential: .* GRU or LSTM$"),
        ((torch.nn.TransformerEncoderLayer(4, 2), LINEAR), "rnn: is a TransformerEncoderLayer: .* GRU or LSTM$"),
        ((LINEAR, GRU), "rnn: is a Linear: expected"),
        ((GRU, GRU), "output: is a GRU: expected a torch.nn.Linear"),
        ((GRU, None), "output: is None: expected .*; for hidden states alone pass a torch.nn.Linear"),
        ((GRU, torch.nn.Identity()), "output: is a Identity: expected .*; for hidden states alone"),
        ((GRU, torch.nn.Sequential(LINEAR)), "output: is a Sequential: expected .*; it has one as '0'"),
        ((GRU, torch.nn.Bilinear(5, 5, 7)), "output: is a Bilinear: expected"),
        ((GRU, LINEAR.weight), "output: is a Parameter: expected"),
        ((GRU, LINEAR, torch.nn.Conv2d(1, 3, 3)), "convolution: is a Conv2d: expected a torch.nn.Conv1d or None"),
        ((GRU, LINEAR, torch.nn.ConvTranspose1d(3, 3, 3)), "convolution: is a ConvTranspose1d: expected"),
        ((GRU, LINEAR, torch.nn.Sequential(torch.nn.Conv1d(3, 3, 3), torch.nn.ReLU())), "convolution: .* one as '0'"),
        ((GRU, LINEAR, False), "convolution: is a bool: expected"),
    ],
)
def test_other_types_are_told_with_what_is_expected_and_what_to_do(modules, words):
    with pytest.raises(InvalidSpec, match=f"^{words}"):
        from_torch(*modules)
