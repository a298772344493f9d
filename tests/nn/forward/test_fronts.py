"""A convolution in front and bidirectional layers: against torch.nn and the plain twin, in company, in chunks."""

import numpy as np
import pytest
import torch
from helpers.ragged_batches import make_network, make_sequences, make_state, run, run_twin, torch_twin
from helpers.specs import CELLS, make_spec
from helpers.tolerances import near
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.files.state_dict import from_state_dict
from seqloom_server.nn.files.torch_import import from_torch
from seqloom_server.nn.forward import causal_conv
from seqloom_server.nn.forward import outputs as nn_outputs
from seqloom_server.nn.reference import reference_forward
from seqloom_server.nn.spec import InvalidSpec

LENGTHS = [7, 1, 60, 13, 13, 2]
SHAPES = {
    "a convolution": {"conv_channels": 4, "conv_width": 3},
    "a convolution of one step": {"conv_channels": 4, "conv_width": 1},
    "a convolution longer than some sequences": {"conv_channels": 2, "conv_width": 9},
    "both directions": {"bidirectional": True},
    "both directions and a convolution": {"bidirectional": True, "conv_channels": 4, "conv_width": 3},
}


def part_of(state, index):
    return tuple(part[:, index : index + 1] for part in state)


def assert_all_close(got, wanted, tolerance=1e-10):
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_float64_is_torch_nn_and_the_plain_twin(cell, activation, layers, shape):
    network = make_network(make_spec(cell, activation, layers=layers, **SHAPES[shape]))
    parameters = {name: tensor.numpy() for name, tensor in network.parameters().items()}
    module = torch_twin(network)
    sequences, state = make_sequences(network.spec, LENGTHS), make_state(network.spec, len(LENGTHS))
    hidden, after = run(network, sequences, state)
    for i, sequence in enumerate(sequences):
        expected, logits, final = run_twin(module, sequence, part_of(state, i))
        plain, plain_final = reference_forward.forward(network.spec, parameters, sequence, part_of(state, i))
        values, _ = network.outputs(torch.tensor(hidden[i]), "logits")
        assert_all_close([hidden[i], values.numpy(), *part_of(after, i)], [expected, logits, *final])
        assert_all_close([plain, *plain_final], [expected, *final])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_float32_is_float64_to_as_many_digits_as_its_precision_has(cell, activation, shape):
    single = make_network(make_spec(cell, activation, dtype="float32", sizes=(16, 32, 10), **SHAPES[shape]))
    module = torch_twin(single).double()
    sequences, state = make_sequences(single.spec, LENGTHS), make_state(single.spec, len(LENGTHS))
    hidden, after = run(single, sequences, state)
    for i, sequence in enumerate(sequences):
        expected, _, final = run_twin(module, sequence.astype("f8"), [part.astype("f8") for part in part_of(state, i)])
        for got, wanted in zip([hidden[i], *part_of(after, i)], [expected, *final], strict=True):
            assert np.abs(got - wanted).max() <= near(rtol=1e-4)["rtol"] * np.abs(wanted).max()


@st.composite
def ragged_cases(draw):
    """A spec with a convolution, lengths, and for each where it is cut into chunks."""
    cell, activation = draw(st.sampled_from(CELLS))
    spec = make_spec(
        cell,
        activation,
        layers=draw(st.integers(1, 2)),
        sizes=(draw(st.integers(1, 4)), draw(st.integers(1, 6)), 2),
        conv_channels=draw(st.integers(1, 5)),
        conv_width=draw(st.integers(1, 8)),
    )
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    cuts = [sorted(draw(st.sets(st.integers(1, length), max_size=6)) | {length}) for length in lengths]
    return spec, lengths, cuts


@settings(max_examples=60, deadline=None)
@given(ragged_cases())
def test_in_any_batch_and_in_chunks_a_convolution_gives_what_it_gives_alone(case):
    spec, lengths, cuts = case
    network = make_network(spec)
    sequences, state = make_sequences(spec, lengths), make_state(spec, len(lengths))
    alone = [run(network, [sequence], part_of(state, i)) for i, sequence in enumerate(sequences)]
    hidden, after = run(network, sequences, state)
    at, pieces, carried = [0] * len(lengths), [[] for _ in lengths], [part_of(state, i) for i in range(len(lengths))]
    for round_ in range(max(map(len, cuts))):
        members = [i for i in range(len(lengths)) if round_ < len(cuts[i])]
        before = tuple(np.concatenate(parts, 1) for parts in zip(*(carried[i] for i in members), strict=True))
        some, left = run(network, [sequences[i][at[i] : cuts[i][round_]] for i in members], before)
        for place, i in enumerate(members):
            pieces[i].append(some[place])
            carried[i], at[i] = part_of(left, place), cuts[i][round_]
    for i, ((expected,), final) in enumerate(alone):
        assert_all_close([hidden[i], *part_of(after, i)], [expected, *final])
        assert_all_close([np.concatenate(pieces[i]), *carried[i]], [expected, *final])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 7), st.integers(0, 40))
def test_the_way_back_from_columns_is_the_way_there_transposed(lengths, width, cut):
    lengths = sorted(lengths, reverse=True)
    batch_sizes = np.array([sum(length > t for length in lengths) for t in range(lengths[0])])
    unfolding = causal_conv.Unfolding(batch_sizes, width, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(sum(lengths), 2, dtype=torch.float64, generator=draw, requires_grad=True)
    inputs = torch.randn(width - 1, len(lengths), 2, dtype=torch.float64, generator=draw, requires_grad=True)
    source = unfolding.source(rows, inputs)
    results = [unfolding.columns(source), *([unfolding.final_inputs(source)] if width > 1 else [])]
    back = [torch.randn(result.shape, dtype=torch.float64, generator=draw) for result in results]
    wanted = torch.autograd.grad(results, [rows, inputs][: len(results)], back)
    d_source, cut = torch.zeros_like(source), min(cut, sum(lengths))
    unfolding.fold_(d_source, back[0][:cut])
    unfolding.fold_(d_source, back[0][cut:], cut)
    if width > 1:
        unfolding.fold_final_(d_source, back[1])
    for got, expected in zip(unfolding.split(d_source), wanted, strict=False):
        torch.testing.assert_close(got, expected)


def test_columns_beyond_the_bound_are_made_some_rows_at_a_time(monkeypatch):
    network = make_network(make_spec("gru", conv_channels=4, conv_width=5))
    sequences = make_sequences(network.spec, LENGTHS)
    expected, final = run(network, sequences)
    monkeypatch.setattr(nn_outputs, "MAX_BUFFER_BYTES", 7 * 8 * 3 * 5)  # seven rows of columns
    sizes = []
    columns = causal_conv.Unfolding.columns

    def told(self, source, start=0, stop=None):
        made = columns(self, source, start, stop)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(causal_conv.Unfolding, "columns", told)
    hidden, after = run(network, sequences)
    assert max(sizes) == 7
    assert sum(sizes) == sum(LENGTHS)
    assert_all_close([*hidden, *after], [*expected, *final])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_modules_give_the_network_they_are(cell, activation, shape):
    spec = make_spec(cell, activation, layers=2, **SHAPES[shape])
    module = torch_twin(make_network(spec, seed=5))
    convolution = dict(module.items()).get("conv")
    networks = (
        from_torch(module["rnn"], module["output"], convolution),
        from_state_dict(module.state_dict(), activation, causal_convolution=convolution is not None),
    )
    for network in networks:
        assert network.spec == spec
        for name, tensor in network.parameters().items():
            assert torch.equal(tensor, module.state_dict()[name])


@pytest.mark.parametrize("shape", SHAPES)
def test_created_weights_are_those_of_torch_nn_with_that_seed(shape):
    spec = make_spec("lstm", layers=2, **SHAPES[shape])
    twin = torch_twin(make_network(spec))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        for part in ("conv", "rnn", "output"):
            if part in twin:
                twin[part].reset_parameters()
    for name, tensor in make_network(spec, seed=11).parameters().items():
        torch.testing.assert_close(tensor, twin.state_dict()[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 3},
        {"padding": 1},
        {"padding": "same"},
        {"padding": 2, "padding_mode": "reflect"},
    ],
)
def test_a_convolution_that_is_not_causal_and_plain_is_refused(options):
    convolution = torch.nn.Conv1d(3, 6, 3, **options)
    with pytest.raises(InvalidSpec, match="convolution") as caught:
        from_torch(torch.nn.GRU(6, 5), torch.nn.Linear(5, 7), convolution)
    assert caught.value.field == "conv.weight"


@pytest.mark.parametrize(("width", "padding"), [(3, "valid"), (1, "valid"), (1, "same")])
def test_a_convolution_whose_padding_is_a_word_for_none_is_taken(width, padding):
    network = from_torch(torch.nn.GRU(6, 5), torch.nn.Linear(5, 7), torch.nn.Conv1d(3, 6, width, padding=padding))
    assert (network.spec.conv_channels, network.spec.conv_width) == (6, width)
