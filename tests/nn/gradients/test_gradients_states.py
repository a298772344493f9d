"""State gradients: finite differences through both ends of a sequence, and sequences that go on chunk by chunk."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.autograd_twin import EVERYTHING, LOSSES, assert_equal, make_example, make_network, run
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.losses.training_example import GradientRequest


def objective(network, examples):
    """The scaled losses, and the final states times what comes back into them."""
    batch, _ = run(network, [(examples, GradientRequest(final_state=True))])
    (call,) = batch.calls
    value = call.losses.sum()
    for n, example in enumerate(examples):
        for part, d_part in zip(call.final_state, example.final_state_gradient, strict=True):
            value += (part[:, n] * d_part[:, 0]).sum()
    return value


@pytest.mark.parametrize(("conv", "bidirectional"), [((0, 0), True), ((3, 2), False)])
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_a_small_change_of_everything_changes_the_loss_by_the_gradients(cell, activation, loss, conv, bidirectional):
    """Central differences, in a direction that moves all parameters, inputs and initial states at once."""
    spec = make_spec(
        cell,
        activation,
        layers=2,
        conv_channels=conv[0],
        conv_width=conv[1],
        bidirectional=bidirectional,
        sizes=(2, 3, 4),
    )
    network, draw = make_network(spec), np.random.default_rng(0)
    examples = [make_example(spec, length, loss, draw, scale=0.5) for length in (5, 3)]
    batch, _ = run(network, [(examples, EVERYTHING)])
    (call,) = batch.calls
    d_parameters = {name: draw.standard_normal(shape) for name, shape in spec.parameter_shapes().items()}
    d_inputs = [draw.standard_normal(example.xs.shape) for example in examples]
    d_states = [tuple(draw.standard_normal(part.shape) for part in example.initial_state) for example in examples]

    def moved(by):
        parameters = {
            name: tensor + by * torch.tensor(d_parameters[name]) for name, tensor in network.parameters().items()
        }
        changed = [
            dataclasses.replace(
                example,
                xs=example.xs + by * d_xs,
                initial_state=tuple(s + by * d for s, d in zip(example.initial_state, d_state, strict=True)),
            )
            for example, d_xs, d_state in zip(examples, d_inputs, d_states, strict=True)
        ]
        return objective(Network(spec, parameters, "cpu"), changed)

    slope = sum((call.dense[name] * d).sum() for name, d in d_parameters.items())
    slope += (call.inputs * np.concatenate(d_inputs)).sum()
    for part, found in enumerate(call.initial_state):
        slope += (found * np.concatenate([d_state[part] for d_state in d_states], axis=1)).sum()
    assert (moved(1e-6) - moved(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("conv", [(0, 0), (4, 3), (4, 1)])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", None])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_chunks_that_pass_states_on_and_gradients_back_are_the_whole(cell, activation, loss, conv):
    """Truncated backpropagation that truncates nothing; chunks shorter than the convolution among them."""
    spec = make_spec(cell, activation, layers=2, conv_channels=conv[0], conv_width=conv[1])
    network, draw = make_network(spec), np.random.default_rng(0)
    example = make_example(spec, 14, loss, draw)
    expected, _ = run(network, [([example], EVERYTHING)])
    (whole,) = expected.calls
    cuts = [(0, 1), (1, 2), (2, 7), (7, 8), (8, 14)]
    chunks, state = [], example.initial_state
    for start, stop in cuts:
        chunk = dataclasses.replace(
            example,
            xs=example.xs[start:stop],
            targets=None if example.targets is None else example.targets[start:stop],
            output_gradients=None if example.output_gradients is None else example.output_gradients[start:stop],
            initial_state=state,
        )
        batch, _ = run(network, [([chunk], GradientRequest(final_state=True))])
        state = batch.calls[0].final_state
        chunks.append(chunk)
    found, losses, back = {}, 0.0, example.final_state_gradient
    for chunk in reversed(chunks):
        batch, _ = run(network, [([dataclasses.replace(chunk, final_state_gradient=back)], EVERYTHING)])
        (call,) = batch.calls
        back, losses = call.initial_state, losses + call.losses[0]
        for name, array in call.dense.items():
            found[name] = found.get(name, 0) + array
        found["inputs"] = np.concatenate([call.inputs, found["inputs"]]) if "inputs" in found else call.inputs
    found |= {f"initial {part}": array for part, array in enumerate(back)}
    found |= {f"final {part}": array for part, array in enumerate(state)}
    wanted = whole.dense | {"inputs": whole.inputs}
    wanted |= {f"initial {part}": array for part, array in enumerate(whole.initial_state)}
    wanted |= {f"final {part}": array for part, array in enumerate(whole.final_state)}
    assert_equal(found, wanted, 1e-12)
    assert losses == pytest.approx(whole.losses[0], rel=1e-12)
