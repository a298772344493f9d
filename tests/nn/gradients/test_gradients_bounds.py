"""How much is done at once and held at once: pieces by their flops, buffers by their bytes."""

import numpy as np
import pytest
import torch
from helpers.autograd_twin import LOSSES, Call, assert_equal, make_example, make_network, named, run
from helpers.largest_buffer import LargestBuffer
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.forward import outputs
from seqloom_server.nn.gradients.batch_gradients import gradients
from seqloom_server.nn.losses.training_example import GradientRequest
from torch.utils.flop_counter import FlopCounterMode


def flops_of_pieces(network, calls, piece_flops):
    """The flops of products in each piece."""
    steps = gradients(network, [Call(*call) for call in calls], total=True, piece_flops=piece_flops, max_cells=10**6)
    counted = []
    while True:
        with FlopCounterMode(display=False) as counter:
            try:
                next(steps)
            except StopIteration:
                return [*counted, counter.get_total_flops()]
        counted.append(counter.get_total_flops())


@pytest.mark.parametrize("loss", ["cross_entropy", "ctc"])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_no_piece_does_much_more_than_it_may(cell, activation, loss):
    spec = make_spec(
        cell,
        activation,
        layers=2,
        conv_channels=32,
        conv_width=3,
        bidirectional=True,
        sizes=(20, 48, 200),
        dtype="float32",
    )
    network, draw = make_network(spec), np.random.default_rng(0)
    calls = [([make_example(spec, 40, loss, draw) for _ in range(4)], GradientRequest(inputs=True)) for _ in range(3)]
    pieces = flops_of_pieces(network, calls, 4e6)
    assert max(pieces) <= 2.2 * 4e6  # what was left of one, and a block
    assert sum(pieces) > 10 * 4e6
    assert sum(flops_of_pieces(network, calls, 1e12)) == sum(pieces)


def test_where_it_stops_is_no_matter_of_chance():
    spec = make_spec("elman", sizes=(20, 48, 200))
    network, draw = make_network(spec), np.random.default_rng(0)
    calls = [([make_example(spec, 40, "mse", draw) for _ in range(4)], GradientRequest()) for _ in range(3)]
    assert flops_of_pieces(network, calls, 1e6) == flops_of_pieces(network, calls, 1e6)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_buffer_of_outputs_is_larger_than_its_bound(loss, monkeypatch):
    """Of two sequences: 1,000 rows of 500 classes, at most 10 rows at once; what was found is the same."""
    spec = make_spec("elman", sizes=(3, 5, 500))
    network, draw = make_network(spec), np.random.default_rng(0)
    examples = [make_example(spec, length, loss, draw, states=False) for length in (700, 300)]
    wants = GradientRequest(parameters="dense", inputs=True, initial_state=True, final_state=True)
    if loss == "ctc":  # few labels
        examples[0] = examples[1] = make_example(spec, 12, loss, draw, states=False)
        examples *= 40
    whole, _ = run(network, [(examples, wants)])
    monkeypatch.setattr(outputs, "MAX_BUFFER_BYTES", 10 * 500 * 8)
    own = {tensor.untyped_storage().data_ptr() for tensor in network.parameters().values()}
    with LargestBuffer() as seen:
        cut, _ = run(network, [(examples, wants)])
    buffers = [size for pointer, size in seen.sizes.items() if pointer not in own]
    rows = sum(len(example.xs) for example in examples)
    assert max(buffers) <= max(10 * 500 * 8, (rows + len(examples)) * 5 * 8)
    dense_names = spec.parameter_shapes()
    assert_equal({n: cut.calls[0].dense[n] for n in dense_names}, whole.calls[0].dense, 1e-12)


@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_what_is_held_grows_with_the_steps_and_not_with_steps_times_parameters(cell, activation):
    """400 steps, 10,000 parameters or more: all buffers that were ever made are smaller than a tenth of the product."""
    spec = make_spec(cell, activation, layers=2, sizes=(8, 64, 40), dtype="float32")
    network, draw = make_network(spec), np.random.default_rng(0)
    example = make_example(spec, 400, "cross_entropy", draw)
    with LargestBuffer() as seen:
        run(network, [([example], GradientRequest(parameters="dense"))], total=True)
    assert max(seen.sizes.values()) <= 401 * 4 * 64 * 4
    assert max(seen.sizes.values()) < 400 * spec.parameter_count * 4 / 10


def test_pieces_of_any_size_give_the_same_gradients():
    spec = make_spec("gru", layers=2, bidirectional=True, dtype="float32")
    network, draw = make_network(spec), np.random.default_rng(0)
    wants = GradientRequest(
        parameters="dense", inputs=True, initial_state=True, outputs=True, hidden=True, final_state=True
    )
    call = ([make_example(spec, length, "mse", draw) for length in (20, 7, 13)], wants)
    (small, many), (large, one) = (run(network, [call], piece_flops=flops) for flops in (1.0, 1e12))
    assert (many > 100, one) == (True, 1)
    found, expected = named(small.calls[0], spec), named(large.calls[0], spec)
    for name in ("final_state.hidden", "initial_state.hidden", "losses"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    assert torch.isfinite(torch.tensor(found["losses"])).all()
