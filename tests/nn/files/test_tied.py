"""Tied tensors: what safetensors.torch.save_model keeps once is read under each name; contradictions are refused."""

import json
import pathlib
import tempfile

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from helpers.ragged_batches import make_network, make_sequences, make_state, run, run_twin, torch_twin
from helpers.specs import make_spec, shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.nn.files import model_folder, state_dict_file, tied_tensors
from seqloom_server.nn.files.model_folder import BrokenModel
from seqloom_server.nn.files.state_dict import from_state_dict
from seqloom_server.nn.spec import InvalidSpec


def tie(twin, left, right):
    """The module's parameter `right` becomes `left`: one tensor of two names."""
    part, _, name = right.partition(".")
    setattr(twin[part], name, twin.get_parameter(left))


def written(folder, network, twin):
    """The folder, with a model that safetensors' own save_model has written."""
    (folder / "config.json").write_bytes(model_folder.to_bytes(network)[0])
    safetensors.torch.save_model(twin, str(folder / "model.safetensors"))
    return folder


@given(shapes(), st.data())
@settings(deadline=None)
def test_tied_tensors_are_read_as_the_module_has_them(spec, data):
    network = make_network(spec)
    twin = torch_twin(network)
    names = sorted(network.parameters())
    for _ in range(data.draw(st.integers(1, 4))):
        left = data.draw(st.sampled_from(names))
        alike = [name for name in names if twin.get_parameter(name).shape == twin.get_parameter(left).shape]
        tie(twin, left, data.draw(st.sampled_from(alike)))
    with tempfile.TemporaryDirectory() as path:
        folder = written(pathlib.Path(path), network, twin)
        both = (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()
        parameters = state_dict_file.read(folder / "model.safetensors")
        readings = (
            from_state_dict(parameters, spec.activation, causal_convolution=bool(spec.conv_channels)),
            model_folder.load(folder)[0],
            model_folder.load_bytes(*both)[0],
        )
    (sequence,), state = make_sequences(spec, [6]), make_state(spec, 1)
    expected, _, _ = run_twin(twin, sequence, state)
    for reading in readings:
        assert reading.spec == spec
        for name, tensor in reading.parameters().items():
            assert torch.equal(tensor, twin.state_dict()[name])
        assert len({tensor.data_ptr() for tensor in reading.parameters().values()}) == len(names)  # and trained apart
        (hidden,), _ = run(reading, [sequence], state)
        np.testing.assert_allclose(hidden, expected, rtol=1e-9, atol=1e-9)
        assert model_folder.to_bytes(reading)[1]  # safetensors saves no tensors that share memory


def test_a_gru_whose_layers_share_their_weights_has_two_of_them(tmp_path):
    network = make_network(make_spec("gru", layers=2, sizes=(5, 5, 7)))
    twin = torch_twin(network)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        tie(twin, f"rnn.{name}_l0", f"rnn.{name}_l1")
    written(tmp_path, network, twin)
    read = from_state_dict(state_dict_file.read(tmp_path / "model.safetensors"))
    assert read.spec.num_layers == 2
    assert torch.equal(read.parameters()["rnn.weight_hh_l1"], twin["rnn"].weight_hh_l0)


WRONG = {
    "another name of what is not there": (
        lambda kept, metadata: metadata.update({"rnn.bias_ih_l0": "rnn.bias"}),
        "rnn.bias_ih_l0: is tied by the file's metadata to 'rnn.bias', which is missing",
    ),
    "another name of another name": (
        lambda kept, metadata: [
            kept.pop("rnn.bias_hh_l0"),
            metadata.update({"rnn.bias_ih_l0": "rnn.bias_hh_l0", "rnn.bias_hh_l0": "rnn.bias_ih_l0"}),
        ],
        "rnn.bias_hh_l0: is tied by the file's metadata to 'rnn.bias_ih_l0', which is missing",
    ),
    "another name of itself": (
        lambda kept, metadata: metadata.update({"rnn.bias_ih_l0": "rnn.bias_ih_l0"}),
        "rnn.bias_ih_l0: is tied by the file's metadata to 'rnn.bias_ih_l0', which is missing",
    ),
    "another name of what it is not": (
        lambda kept, metadata: metadata.update({"rnn.bias_ih_l0": "rnn.bias_hh_l0", "output.weight": "rnn.bias_hh_l0"}),
        "output.weight: differs from 'rnn.bias_hh_l0'",
    ),
    "another name of what has other numbers": (
        lambda kept, metadata: [
            kept.update({"rnn.bias_ih_l0": kept["rnn.bias_hh_l0"] + 1}),
            metadata.update({"rnn.bias_ih_l0": "rnn.bias_hh_l0"}),
        ],
        "rnn.bias_ih_l0: differs from 'rnn.bias_hh_l0'",
    ),
    "another name of what has another shape": (
        lambda kept, metadata: metadata.update({"rnn.bias_ih_l0": "output.bias"}),
        "rnn.bias_ih_l0",
    ),
}


def tied_biases():
    """Tensors and metadata of a GRU with one tensor for both biases, as save_model keeps them."""
    kept = make_network(make_spec("gru")).parameters()
    del kept["rnn.bias_ih_l0"]
    return kept, {"format": "pt"}


@pytest.mark.parametrize("case", WRONG)
def test_names_that_contradict_the_tensors_are_refused(case, tmp_path):
    change, said = WRONG[case]
    kept, metadata = tied_biases()
    change(kept, metadata)
    config, _ = model_folder.to_bytes(make_network(make_spec("gru")))
    weights = safetensors.torch.save(kept, metadata)
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(InvalidSpec) as caught:
        from_state_dict(state_dict_file.read(tmp_path / "model.safetensors"))
    assert str(caught.value).startswith(said)
    for reading in (lambda: model_folder.load(tmp_path), lambda: model_folder.load_bytes(config, weights)):
        with pytest.raises(BrokenModel) as caught:
            reading()
        assert f"model.safetensors: tensor {said}" in str(caught.value)


def test_what_else_is_noted_in_a_file_is_no_name_of_a_tensor(tmp_path):
    kept, metadata = tied_biases()
    notes = {
        "rnn.bias_ih_l0": "rnn.bias_hh_l0",
        "author": "nobody",
        "output.classes": "a, b",
        "rnn.bias_hh_l0": "first",
    }
    weights = safetensors.torch.save(kept, metadata | notes)
    (tmp_path / "m.safetensors").write_bytes(weights)
    assert tied_tensors.metadata_of(weights) == metadata | notes
    parameters = state_dict_file.read(tmp_path / "m.safetensors")
    assert sorted(parameters) == sorted(make_network(make_spec("gru")).parameters())
    assert torch.equal(parameters["rnn.bias_ih_l0"], kept["rnn.bias_hh_l0"])


def test_a_name_that_is_there_too_with_the_same_numbers_is_no_doubt(tmp_path):
    kept, metadata = tied_biases()
    kept["rnn.bias_ih_l0"] = kept["rnn.bias_hh_l0"].clone()
    metadata["rnn.bias_ih_l0"] = "rnn.bias_hh_l0"
    safetensors.torch.save_file(kept, tmp_path / "m.safetensors", metadata)
    assert from_state_dict(state_dict_file.read(tmp_path / "m.safetensors")).spec == make_spec("gru")


def test_a_file_of_no_metadata_has_the_names_of_its_tensors(tmp_path):
    weights = safetensors.torch.save({"a": torch.zeros(2)})
    assert "__metadata__" not in json.loads(weights[8:-8])
    assert tied_tensors.metadata_of(weights) is None
    (tmp_path / "m.safetensors").write_bytes(weights)
    assert list(state_dict_file.read(tmp_path / "m.safetensors")) == ["a"]
