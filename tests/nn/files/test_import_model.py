"""The command import-model: what it refuses is one line that names the user's own file, and the tensor at fault."""

import logging

import pytest
import safetensors.torch
import torch
from helpers.ragged_batches import make_network, torch_twin
from helpers.specs import make_spec
from seqloom_server.__main__ import main
from seqloom_server.nn.files import model_folder


@pytest.fixture
def take(tmp_path, capsys):
    """Gives a file to import-model, and returns its exit status and what it says."""
    handlers = logging.root.handlers[:]

    def run(file, *flags):
        models = tmp_path / "models"
        status = main(["import-model", "taken", "--state-dict", str(file), "--models", str(models), *flags])
        said = capsys.readouterr().err
        assert said.count("\n") == (1 if status else 0)
        assert status == 0 or not models.exists()
        return status, said

    yield run
    logging.root.handlers[:] = handlers


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_that_is_not_finite_is_told_of_the_users_file(take, tmp_path, value):
    parameters = make_network(make_spec("gru")).parameters()
    parameters["rnn.bias_hh_l0"][2] = float(value)
    safetensors.torch.save_file(parameters, tmp_path / "m.safetensors")
    said = f"{tmp_path / 'm.safetensors'}: rnn.bias_hh_l0: holds {value} at [2]: expected finite numbers"
    assert take(tmp_path / "m.safetensors") == (1, f"seqloom-server: {said}\n")


def test_a_file_of_torch_is_told_with_the_way_to_one_of_safetensors(take, tmp_path):
    torch.save(make_network(make_spec("gru")).parameters(), tmp_path / "m.pt")
    status, said = take(tmp_path / "m.pt")
    assert status == 1
    assert said.startswith(f"seqloom-server: {tmp_path / 'm.pt'}: is an archive of torch.save: expected a safetensors")
    assert f"torch.load('{tmp_path / 'm.pt'}', weights_only=True)" in said


def test_a_file_that_is_not_there_is_named_once(take, tmp_path):
    said = f"{tmp_path / 'none'}: cannot be read: No such file or directory"
    assert take(tmp_path / "none") == (1, f"seqloom-server: {said}\n")


@pytest.mark.parametrize("width", [1, 3])
def test_a_convolution_is_taken_where_it_is_said_to_be_causal_or_can_be_nothing_else(take, tmp_path, width):
    network = make_network(make_spec("gru", conv_channels=4, conv_width=width))
    safetensors.torch.save_file(network.parameters(), tmp_path / "m.safetensors")
    flags = ["--causal-convolution"]
    if width > 1:
        status, said = take(tmp_path / "m.safetensors")
        assert status == 1
        assert "conv.weight: has width 3" in said
        assert "--causal-convolution" in said
    else:
        flags = []
    assert take(tmp_path / "m.safetensors", *flags) == (0, "")
    assert model_folder.load(tmp_path / "models" / "taken")[0].spec == network.spec


def test_tied_tensors_are_imported_as_the_module_has_them(take, tmp_path):
    twin = torch_twin(make_network(make_spec("lstm", layers=2, sizes=(5, 5, 7))))
    twin["rnn"].bias_ih_l0 = twin["rnn"].bias_hh_l0
    twin["rnn"].weight_ih_l1 = twin["rnn"].weight_ih_l0
    safetensors.torch.save_model(twin, str(tmp_path / "m.safetensors"))
    assert take(tmp_path / "m.safetensors") == (0, "")
    network, _ = model_folder.load(tmp_path / "models" / "taken")
    for name, tensor in network.parameters().items():
        assert torch.equal(tensor, twin.state_dict()[name])
