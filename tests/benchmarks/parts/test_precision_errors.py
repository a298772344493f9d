"""What is measured of networks in bfloat16: against numbers that are known beforehand."""

import numpy as np
import pytest
import torch
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

from benchmarks.parts import precision_errors
from benchmarks.pretrained.packages import Pretrained, Said, layer


def drawn(cell: str, units: int = 32) -> dict[str, torch.Tensor]:
    return Network.create(ModelSpec(cell=cell, input_size=8, hidden_size=units, output_size=5), seed=0).parameters()


def noise(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 8, generator=generator) for length in lengths]


def saying(*said: Said, long: list[torch.Tensor] | None = None) -> Pretrained:
    """A network that says the one thing in full and the other in bfloat16."""
    turns = iter(said)
    return Pretrained("test", drawn("gru"), long or [], lambda run: next(turns))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_sequences_of_any_lengths_are_run_from_their_own_states_and_come_back_in_their_order(cell):
    parameters, xs = drawn(cell), noise(3, 9, 5, 7)
    module = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell](8, 32)
    module.load_state_dict({k.removeprefix("rnn."): each for k, each in parameters.items() if k.startswith("rnn.")})
    run = precision_errors.runner(precision_errors.full)
    _, _, between = run(parameters, xs)
    hidden, logits, after = run(parameters, xs[::-1], tuple(part.flip(1) for part in between))
    for n, x in enumerate(xs):
        states, last = module(torch.cat([x, x])[:, None])
        place = len(xs) - 1 - n
        wanted = states[len(x) :, 0].detach().numpy()
        np.testing.assert_allclose(hidden[place], wanted, atol=1e-5)
        outputs = wanted @ parameters["output.weight"].T.numpy() + parameters["output.bias"].numpy()
        np.testing.assert_allclose(logits[place], outputs, atol=1e-5)
        for part, whole in zip(after, last if cell == "lstm" else (last,), strict=True):
            np.testing.assert_allclose(part[:, place], whole[:, 0].detach(), atol=1e-5)


def test_a_network_without_an_output_layer_is_run_for_its_states():
    xs = noise(4)
    parameters = {name: each for name, each in drawn("gru").items() if name.startswith("rnn.")}
    run = precision_errors.runner(precision_errors.full)
    np.testing.assert_array_equal(run(parameters, xs)[0][0], run(drawn("gru"), xs)[0][0])


def test_what_is_said_is_compared_each_in_its_own_measure():
    one = Said(
        [torch.zeros(2, 3), torch.zeros(2, 3)],
        logits=torch.tensor([[-8.0, 1], [0, 1], [2, 3], [4, 0]]),
        probs=torch.full((4, 2), 0.5),
        labels=torch.tensor([1, 1, 1, 0]),
        truth=torch.tensor([1, 1, 0, 1]),
    )
    other = Said(
        [torch.zeros(2, 3), torch.tensor([[0, 0, 0.25], [0, -0.5, 0]])],
        logits=torch.tensor([[-8.0, 1], [0, 1], [2, 3], [4, 2]]),
        probs=torch.tensor([[0.5, 0.5], [0.4375, 0.625], [0.5, 0.5], [0.5, 0.5]]),
        labels=torch.tensor([1, 1, 1, 1]),
        truth=one.truth,
    )
    found = precision_errors.errors(saying(one, other))
    assert (found.rows, found.hidden, found.logits, found.probs) == (4, 0.5, 0.25, 0.125)
    assert (found.changed, found.right, found.right_bf16) == (0.25, 0.5, 0.75)
    assert (found.within, found.amplification) == ({}, None)


def test_a_network_that_gives_states_alone_has_no_other_errors():
    found = precision_errors.errors(saying(Said([torch.zeros(2, 3)]), Said([torch.ones(2, 3)]), long=noise(30, 40)))
    assert (found.hidden, found.logits, found.probs, found.changed, found.right) == (1, None, None, None, None)
    assert 0 < found.within[10] <= found.within[100] == found.within[1000]
    assert found.weights_alone > 0
    assert 0 < found.float32 < 1e-5 < found.within[10]
    assert found.company[0] < 1e-5  # as the service promises


def test_the_first_steps_of_every_sequence_are_what_counts():
    apart = [torch.tensor([1.0, 3, 2, 5]), torch.tensor([2.0, 1])]
    assert [precision_errors.within(apart, steps) for steps in (1, 2, 3, 4, 5)] == [2, 3, 3, 5, 5]


@pytest.mark.parametrize("weight", [0.5, 1.5])
def test_amplification_is_how_often_the_weight_is_multiplied_in_about_zero(weight):
    parameters = layer(0, torch.ones(1, 1), torch.tensor([[weight]]), torch.zeros(1), torch.zeros(1))
    xs = [torch.zeros(10, 1), torch.zeros(4, 1)]  # half of which come after the change
    expected = max(weight**step for step in range(1, 6))  # tanh is the identity there
    assert precision_errors.amplification(parameters, xs) == pytest.approx(expected, rel=1e-6)


def test_recurrent_weights_alone_are_multiplied_and_inputs_apart_from_them():
    parameters, xs = drawn("elman"), noise(50, 60)
    plain = precision_errors.within(precision_errors.distances(parameters, xs, precision_errors.bf16), 1000)
    result = precision_errors.scaled("test", parameters, xs, (0.0, 1.0, 4.0))
    assert result.hidden[1.0] == plain
    assert result.amplification[0.0] == 0  # no state goes on
    assert result.amplification[4.0] > 100 * result.amplification[1.0]
    assert result.hidden[4.0] > 10 * result.hidden[1.0]
    for factor, hidden in result.larger.items():
        larger = precision_errors.distances(parameters, [factor * x for x in xs], precision_errors.bf16)
        assert hidden == precision_errors.within(larger, 1000) != plain
