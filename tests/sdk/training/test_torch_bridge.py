"""The autograd bridge over a real server: gradients through it are those of a local network."""

import numpy as np
import pytest
import seqloom
import torch
from helpers.autograd_reference import Reference
from helpers.threads import in_threads
from seqloom.torch import RemoteNetwork
from seqloom_server.nn.spec import ModelSpec

SPECS = {
    cell: ModelSpec(cell=cell, input_size=3, hidden_size=4, output_size=3, num_layers=2, dtype="float64")
    for cell in ("elman", "gru", "lstm")
}
CONV = ModelSpec(
    cell="lstm", input_size=3, hidden_size=4, output_size=3, dtype="float64", conv_channels=2, conv_width=3
)
BOTH_WAYS = ModelSpec(cell="gru", input_size=3, hidden_size=4, output_size=3, dtype="float64", bidirectional=True)
LENGTHS = [4, 2, 3]


@pytest.fixture
async def bridge(serve):
    """bridge(function): runs function(client, served) on a thread, as blocking callers do."""
    async with serve({**SPECS, "conv": CONV, "both-ways": BOTH_WAYS}) as served:

        async def run(function):
            def called(_):
                with seqloom.Client(served.address, timeout=30) as client:
                    function(client, served)

            await in_threads(called, [None])

        yield run


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).requires_grad_()


@pytest.mark.parametrize("cell", SPECS)
async def test_gradcheck_passes_with_lengths_and_initial_state(bridge, cell):
    def check(client, served):
        remote = RemoteNetwork(client, cell)
        parts = [draw(2, 3, 4, seed=n + 1) for n in range(2 if cell == "lstm" else 1)]
        assert torch.autograd.gradcheck(lambda x, *state: remote(x, LENGTHS, state), (draw(3, 4, 3), *parts))

    await bridge(check)


async def test_gradcheck_passes_through_a_convolutions_state_and_both_ways(bridge):
    def check(client, served):
        conv, both = RemoteNetwork(client, "conv"), RemoteNetwork(client, "both-ways")
        state = (draw(1, 3, 4, seed=1), draw(1, 3, 4, seed=2), draw(2, 3, 3, seed=3))
        assert torch.autograd.gradcheck(lambda x, *parts: conv(x, LENGTHS, parts), (draw(3, 4, 3), *state))
        assert torch.autograd.gradcheck(
            lambda x, hidden: both(x, LENGTHS, hidden), (draw(3, 4, 3), draw(2, 3, 4, seed=1))
        )

    await bridge(check)


async def test_lists_and_padded_tensors_give_the_same_in_their_layouts(bridge):
    def check(client, served):
        remote, reference = RemoteNetwork(client, "gru"), Reference(served.networks["gru"])
        padded = draw(3, 4, 3)
        listed = [padded[n, :steps] for n, steps in enumerate(LENGTHS)]
        of_list, of_padded = remote(listed), remote(padded, torch.tensor(LENGTHS))
        assert of_padded.shape == (3, 4, 3)
        for n, steps in enumerate(LENGTHS):
            expected = reference.logits(reference.hidden(listed[n])[0])
            torch.testing.assert_close(of_list[n], expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(of_padded[n, :steps], expected, rtol=1e-10, atol=1e-10)
            assert not of_padded[n, steps:].any()
        assert remote(padded)[1, 3].any()  # all steps where no lengths are given

    await bridge(check)


async def test_layers_before_and_behind_it_train_as_with_a_local_network(bridge):
    def check(client, served):
        remote = RemoteNetwork(client, "elman", parameter_gradients=True)
        local = Reference(served.networks["elman"])
        torch.manual_seed(0)
        cnn = torch.nn.Conv1d(2, 3, 3, padding="same").double()
        twin = torch.nn.Conv1d(2, 3, 3, padding="same").double()
        twin.load_state_dict(cnn.state_dict())
        xs = [torch.randn(2, steps).double() for steps in (9, 6)]
        labels = [torch.randint(0, 3, (x.shape[1],)) for x in xs]
        ours, theirs = torch.optim.SGD(cnn.parameters(), 0.1), torch.optim.SGD(twin.parameters(), 0.1)
        losses = []
        for _ in range(15):
            ours.zero_grad()
            remote.zero_grad()
            logits = remote([cnn(x).T for x in xs])
            loss = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(labels))
            loss.backward()
            ours.step()
            losses.append(loss.item())
            theirs.zero_grad()
            for parameter in local.parameters.values():
                parameter.grad = None
            expected = torch.cat([local.logits(local.hidden(twin(x).T)[0]) for x in xs])
            torch.nn.functional.cross_entropy(expected, torch.cat(labels)).backward()
            theirs.step()
        for mine, other in zip(cnn.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
        assert losses[-1] < losses[0]
        assert set(remote.parameter_gradients) == set(local.parameters)
        for name, parameter in local.parameters.items():
            torch.testing.assert_close(remote.parameter_gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)

    await bridge(check)


async def test_parameter_gradients_come_though_no_input_needs_one_and_add_up(bridge):
    def check(client, served):
        remote = RemoteNetwork(client, "gru", parameter_gradients=True)
        x = draw(1, 4, 3).detach()
        remote(x).sum().backward()
        once = {name: gradient.clone() for name, gradient in remote.parameter_gradients.items()}
        remote(x).sum().backward()
        for name, gradient in once.items():
            torch.testing.assert_close(remote.parameter_gradients[name], 2 * gradient)
        remote.zero_grad()
        assert remote.parameter_gradients == {}
        assert RemoteNetwork(client, "gru").parameter_gradients is None

    await bridge(check)


async def test_backward_takes_the_weights_that_forward_took_or_says_that_they_are_gone(bridge, tmp_path):
    def check(client, served):
        remote, x = RemoteNetwork(client, "gru"), draw(1, 4, 3)
        stale = remote(x)
        client.export_model("gru", tmp_path / "gru")
        client.import_model("gru", tmp_path / "gru")
        with pytest.raises(seqloom.VersionMismatch):
            stale.sum().backward()
        remote(x).sum().backward()
        assert x.grad is not None
        with pytest.raises(seqloom.VersionMismatch):
            RemoteNetwork(client, "gru", weights_version=1)(x)

    await bridge(check)


async def test_a_float32_caller_of_a_float64_network_gets_its_gradient_in_float32(bridge):
    def check(client, served):
        x = torch.randn(2, 4, 3, requires_grad=True)
        logits = RemoteNetwork(client, "lstm")(x)
        logits.sum().backward()
        assert (logits.dtype, x.grad.dtype) == (torch.float64, torch.float32)
        with torch.no_grad():
            assert not RemoteNetwork(client, "lstm")(x).requires_grad

    await bridge(check)


async def test_what_has_no_layout_is_refused_in_words(bridge):
    def check(client, served):
        remote = RemoteNetwork(client, "lstm")
        for arguments, words in (
            ((torch.zeros(4, 3),), r"xs: has shape \[4, 3\]"),
            ((torch.zeros(2, 4, 3), [4]), "lengths: are"),
            ((torch.zeros(2, 4, 3), [4, 5]), "from 1 to 4"),
            (([torch.zeros(4, 3)], [4]), "lengths: expected None with a list of tensors"),
            (([],), "xs: is empty"),
            ((torch.zeros(1, 4, 3), None, torch.zeros(2, 1, 4)), "initial_state: has 1 tensors"),
            ((torch.zeros(1, 4, 2),), "xs"),
        ):
            with pytest.raises(seqloom.InvalidArgument, match=words):
                remote(*arguments)

    await bridge(check)
