"""The forward pass against torch.nn and against the plain numpy twin: every cell, 1 to 3 layers, ragged batches."""

import numpy as np
import pytest
import torch
from helpers.ragged_batches import logits_of, make_network, make_sequences, make_state, run, run_twin, torch_twin
from helpers.specs import CELLS, make_spec, specs
from helpers.tolerances import alike, near
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.reference import reference_forward
from seqloom_server.nn.spec import ModelSpec

LENGTHS = [7, 1, 300, 43, 43, 2]


def part_of(state, index):
    return tuple(part[:, index : index + 1] for part in state)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_float64_is_torch_nn(cell, activation, layers):
    network = make_network(make_spec(cell, activation, layers=layers))
    module = torch_twin(network)
    sequences, state = make_sequences(network.spec, LENGTHS), make_state(network.spec, len(LENGTHS))
    hidden, after = run(network, sequences, state)
    for i, sequence in enumerate(sequences):
        expected, logits, final = run_twin(module, sequence, part_of(state, i))
        np.testing.assert_allclose(hidden[i], expected, rtol=1e-10, atol=1e-10)
        for got, wanted in zip(part_of(after, i), final, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)
        values, _ = network.outputs(torch.tensor(hidden[i]), "logits")
        np.testing.assert_allclose(values.numpy(), logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_float64_is_the_plain_twin(cell, activation, layers):
    network = make_network(make_spec(cell, activation, layers=layers))
    parameters = {name: tensor.numpy() for name, tensor in network.parameters().items()}
    sequences, state = make_sequences(network.spec, LENGTHS), make_state(network.spec, len(LENGTHS))
    hidden, after = run(network, sequences, state)
    for i, sequence in enumerate(sequences):
        expected, final = reference_forward.forward(network.spec, parameters, sequence, part_of(state, i))
        np.testing.assert_allclose(hidden[i], expected, rtol=1e-10, atol=1e-10)
        for got, wanted in zip(part_of(after, i), final, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_float32_is_float64_to_as_many_digits_as_its_precision_has(cell, activation, layers):
    single = make_network(make_spec(cell, activation, layers=layers, dtype="float32", sizes=(16, 32, 10)))
    module = torch_twin(single).double()
    sequences, state = make_sequences(single.spec, LENGTHS), make_state(single.spec, len(LENGTHS))
    hidden, after = run(single, sequences, state)
    for i, sequence in enumerate(sequences):
        before = tuple(part.astype("f8") for part in part_of(state, i))
        expected, logits, final = run_twin(module, sequence.astype("f8"), before)
        values = logits_of(single, hidden[i])
        assert values.dtype == torch.float32
        pairs = [(hidden[i], expected), (values.numpy(), logits), *zip(part_of(after, i), final, strict=True)]
        for got, wanted in pairs:
            assert np.abs(got - wanted).max() <= near(rtol=1e-4)["rtol"] * np.abs(wanted).max()


@st.composite
def ragged_cases(draw):
    """A spec, lengths of the batch, the order in which they come, and for each where it is cut into chunks."""
    spec = draw(specs())
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=6))
    order = draw(st.permutations(range(len(lengths))))
    cuts = [sorted(draw(st.sets(st.integers(1, length), max_size=4)) | {length}) for length in lengths]
    return spec, lengths, order, cuts


@settings(max_examples=60, deadline=None)
@given(ragged_cases())
def test_alone_in_any_batch_and_in_chunks_are_the_same(case):
    spec, lengths, order, cuts = case
    tolerance = 1e-10 if spec.dtype == "float64" else alike(rtol=1e-5)["rtol"]
    network = make_network(spec)
    sequences, state = make_sequences(spec, lengths), make_state(spec, len(lengths))
    alone = [run(network, [sequence], part_of(state, i)) for i, sequence in enumerate(sequences)]

    mixed = tuple(part[:, order] for part in state)
    hidden, after = run(network, [sequences[i] for i in order], mixed)
    for place, i in enumerate(order):
        np.testing.assert_allclose(hidden[place], alone[i][0][0], rtol=tolerance, atol=tolerance)
        for got, wanted in zip(part_of(after, place), alone[i][1], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)

    # round r advances every sequence that has an r-th chunk, whatever its length, from where its last one ended
    at, pieces = [0] * len(lengths), [[] for _ in lengths]
    carried = [part_of(state, i) for i in range(len(lengths))]
    for round_ in range(max(len(cut) for cut in cuts)):
        members = [i for i in order if round_ < len(cuts[i])]
        chunks = [sequences[i][at[i] : cuts[i][round_]] for i in members]
        before = tuple(np.concatenate(parts, 1) for parts in zip(*(carried[i] for i in members), strict=True))
        hidden, after = run(network, chunks, before)
        for place, i in enumerate(members):
            pieces[i].append(hidden[place])
            carried[i], at[i] = part_of(after, place), cuts[i][round_]
    for i in range(len(lengths)):
        np.testing.assert_allclose(np.concatenate(pieces[i]), alone[i][0][0], rtol=tolerance, atol=tolerance)
        for got, wanted in zip(carried[i], alone[i][1], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("cell", "activation"), CELLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_created_weights_are_those_of_torch_nn_with_that_seed(cell, activation, dtype):
    spec = make_spec(cell, activation, layers=2, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        module = torch.nn.RNN if cell == "elman" else {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
        rnn = module(3, 5, 2, dtype=getattr(torch, dtype))
        output = torch.nn.Linear(5, 7, dtype=getattr(torch, dtype))
    expected = {f"rnn.{name}": tensor for name, tensor in rnn.named_parameters()}
    expected |= {f"output.{name}": tensor for name, tensor in output.named_parameters()}
    torch.rand(5)  # the state of the global generator is no part of it
    created = make_network(spec, seed=11).parameters()
    assert list(created) == list(expected)
    for name, tensor in created.items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=1e-6, atol=0)
    assert not torch.equal(make_network(spec, seed=12).parameters()["output.bias"], created["output.bias"])


def test_creating_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    make_network(make_spec("gru"), seed=-3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nothing_is_recorded_for_autograd():
    network = make_network(make_spec("elman"))
    rows = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    hidden, (after,) = network.advance(rows, torch.tensor([2, 2]), (torch.zeros(1, 2, 5, dtype=torch.float64),))
    values, _ = network.outputs(hidden, "probs")
    assert not any(tensor.requires_grad for tensor in (hidden, after, values))


def test_a_state_given_is_not_changed():
    network = make_network(make_spec("lstm", layers=2))
    state = make_state(network.spec, 3)
    kept = [part.copy() for part in state]
    tensors = tuple(torch.from_numpy(part) for part in state)
    network.advance(torch.zeros(5, 3, dtype=torch.float64), torch.tensor([3, 2]), tensors)
    for part, before in zip(state, kept, strict=True):
        np.testing.assert_array_equal(part, before)


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_parameters_that_are_not_the_specs_are_refused(change):
    spec = make_spec("gru")
    parameters = dict(make_network(spec).parameters())
    if change == "missing":
        del parameters["rnn.bias_hh_l0"]
    elif change == "extra":
        parameters["rnn.weight_ih_l1"] = torch.zeros(15, 5)
    else:
        parameters["output.weight"] = torch.zeros(5, 7)
    with pytest.raises(ValueError, match="expected"):
        Network(spec, parameters, "cpu")


def test_nbytes_counts_every_weight_once():
    spec = ModelSpec(cell="lstm", input_size=3, hidden_size=5, output_size=7, num_layers=2)
    assert make_network(spec).nbytes == 4 * spec.parameter_count


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_a_gpu_gives_what_the_cpu_gives(cell, activation, layers):
    for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-4)):
        here = make_network(make_spec(cell, activation, layers=layers, dtype=dtype, sizes=(16, 64, 10)))
        there = Network(here.spec, here.parameters(), "cuda")
        rows, batch_sizes = (
            torch.randn(70, 16, dtype=here.parameters()["output.bias"].dtype),
            torch.tensor([30, 30, 10]),
        )
        state = tuple(torch.from_numpy(part) for part in make_state(here.spec, 30))
        hidden, after = here.advance(rows, batch_sizes, state)
        on_gpu, after_gpu = there.advance(rows.cuda(), batch_sizes, tuple(part.cuda() for part in state))
        torch.testing.assert_close(on_gpu.cpu(), hidden, rtol=tolerance, atol=tolerance)
        for got, wanted in zip(after_gpu, after, strict=True):
            torch.testing.assert_close(got.cpu(), wanted, rtol=tolerance, atol=tolerance)
