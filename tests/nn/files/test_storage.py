"""Model folders: written and read back, broken ones refused by name, and a crash that leaves the old or the new one."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.forked_process import ForkedProcess
from helpers.ragged_batches import make_network, make_sequences, make_state, run, run_twin, torch_twin
from helpers.specs import CELLS, make_spec
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.files.model_folder import BrokenModel


def same(left, right):
    weights, others = left.parameters(), right.parameters()
    return left.spec == right.spec and all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_what_is_saved_is_loaded(cell, activation, dtype, tmp_path):
    network = make_network(make_spec(cell, activation, layers=2, dtype=dtype))
    model_folder.save(tmp_path / "m", network, 7)
    loaded, version = model_folder.load(tmp_path / "m", "cpu")
    assert version == 7
    assert same(loaded, network)
    again, version = model_folder.load_bytes(*model_folder.to_bytes(network, 8), "cpu")
    assert version == 8
    assert same(again, network)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "m", "model.safetensors"]


def test_a_folder_is_replaced_whole_even_by_another_model(tmp_path):
    model_folder.save(tmp_path / "m", make_network(make_spec("gru")), 1)
    (tmp_path / "m" / "notes.txt").write_text("of the old one")
    model_folder.save(tmp_path / "m", make_network(make_spec("lstm", layers=2)), 2)
    network, version = model_folder.load(tmp_path / "m")
    assert (network.spec.cell, version) == ("lstm", 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "m", "model.safetensors"]


@pytest.mark.parametrize(("cell", "activation"), CELLS)
def test_torch_nn_loads_an_exported_folder(cell, activation, tmp_path):
    network = make_network(make_spec(cell, activation, layers=2))
    model_folder.save(tmp_path / "m", network)
    fields = json.loads((tmp_path / "m" / "config.json").read_text())
    module = torch_twin(make_network(make_spec(cell, activation, layers=2), seed=1))
    module.load_state_dict(safetensors.torch.load_file(tmp_path / "m" / "model.safetensors"), strict=True)
    (sequence,), state = make_sequences(network.spec, [30]), make_state(network.spec, 1)
    expected, _, _ = run_twin(module, sequence, state)
    (hidden,), _ = run(network, [sequence], state)
    np.testing.assert_allclose(hidden, expected, rtol=1e-10, atol=1e-10)
    assert fields == {**network.spec.to_json(), "weights_version": 1}


def changed(**fields):
    def change(config, weights):
        return json.dumps({**json.loads(config), **fields}).encode(), weights

    return change


def without(key):
    def change(config, weights):
        return json.dumps({name: value for name, value in json.loads(config).items() if name != key}).encode(), weights

    return change


def config(text):
    return lambda _, weights: (text, weights)


def tensors(edit):
    def change(config, weights):
        parameters = safetensors.torch.load(weights)
        edit(parameters)
        return config, safetensors.torch.save(parameters)

    return change


def put(name, function):
    return tensors(lambda parameters: parameters.update({name: function(parameters.get(name))}))


def spoiled(value):
    def spoil(tensor):
        tensor.view(-1)[-1] = value
        return tensor

    return spoil


def of_type(name):
    """The weights with a type in their header that no model has, of as many bytes."""

    def change(config, weights):
        size = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + size])
        tensor = header["output.bias"]
        tensor["dtype"] = name
        tensor["shape"] = [2 * (tensor["data_offsets"][1] - tensor["data_offsets"][0])]
        text = json.dumps(header).encode()
        return config, len(text).to_bytes(8, "little") + text + weights[8 + size :]

    return change


class Trap:
    """Unpickling one ends the test run."""

    def __reduce__(self):
        return (sys.exit, (99,))


BROKEN = {
    "no json": (config(b"{cell: gru}"), "config.json is not valid JSON"),
    "not utf-8": (config(b'{"cell": "\xff\xfe"}'), "config.json is not valid JSON"),
    "nested without end": (config(b"[" * 60_000), "config.json is not valid JSON"),
    "a list": (config(b"[]"), "config.json holds a list"),
    "a repeated key": (
        config(b'{"cell": "gru", "cell": "lstm"}'),
        "config.json is not valid JSON: duplicate key 'cell'",
    ),
    "too long": (config(b" " * 70_000), "config.json has more than 65536 bytes"),
    "an unknown key": (changed(dropout=0.1), "config.json: 'dropout': unknown field"),
    "a missing key": (without("hidden_size"), "config.json: hidden_size: is missing"),
    "an unknown cell": (changed(cell="qrnn"), "config.json: cell: is 'qrnn'"),
    "a size of text": (changed(input_size="3"), "config.json: input_size: is '3'"),
    "a size of 0": (changed(output_size=0), "config.json: output_size: is 0"),
    "a size beyond all": (changed(hidden_size=10**9), "config.json: hidden_size: is 1000000000"),
    "version 0": (changed(weights_version=0), "config.json: weights_version: is 0"),
    "a version of text": (changed(weights_version="1"), "config.json: weights_version: is '1'"),
    "another size": (changed(hidden_size=6), "model.safetensors: tensor rnn.weight_ih_l0 has shape [15, 3]"),
    "another cell": (changed(cell="lstm"), "expected [20, 3]"),
    "more layers": (changed(num_layers=3), "model.safetensors: tensor rnn.weight_ih_l2 is missing"),
    "fewer layers": (changed(num_layers=1), "tensor 'rnn.bias_hh_l1' is not part of a 1-layer gru"),
    "another dtype": (changed(dtype="float32"), "tensor rnn.weight_ih_l0 is float64: config.json says float32"),
    "a missing tensor": (tensors(lambda parameters: parameters.pop("output.bias")), "tensor output.bias is missing"),
    "an extra tensor": (
        put("head.weight", lambda _: torch.zeros(2)),
        "tensor 'head.weight' is not part of a 2-layer gru",
    ),
    "a misshapen tensor": (
        put("output.weight", lambda tensor: tensor.t().contiguous()),
        "tensor output.weight has shape [5, 7]: expected [7, 5]",
    ),
    "a version that no reader of JSON keeps": (
        changed(weights_version=2**53 + 1),
        "weights_version: is 9007199254740993",
    ),
    "a type that torch has no tensors of": (of_type("F4"), "model.safetensors: "),
    "a type that nobody has": (of_type("X9"), "model.safetensors: "),
    "half precision": (put("output.bias", lambda tensor: tensor.half()), "tensor output.bias is float16"),
    "nan": (put("output.bias", spoiled(float("nan"))), "tensor output.bias holds a number that is not finite"),
    "infinity": (put("rnn.bias_hh_l1", spoiled(float("-inf"))), "tensor rnn.bias_hh_l1 holds a number that is not"),
    "weights cut short": (lambda config, weights: (config, weights[:-8]), "model.safetensors: "),
    "a header cut short": (lambda config, weights: (config, weights[:20]), "model.safetensors: "),
    "no weights at all": (lambda config, _: (config, b""), "model.safetensors: "),
    "a pickle": (lambda config, _: (config, pickle.dumps(Trap())), "model.safetensors: "),
    "a header of 2**60 bytes": (lambda config, weights: (config, b"\0" * 7 + b"\x10" + weights), "model.safetensors: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_by_name(case, tmp_path):
    change, said = BROKEN[case]
    text, weights = change(*model_folder.to_bytes(make_network(make_spec("gru", layers=2))))
    with pytest.raises(BrokenModel) as caught:
        model_folder.load_bytes(text, weights)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "config.json").write_bytes(text)
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(BrokenModel) as caught:
        model_folder.load(folder)
    assert str(caught.value).startswith("digits: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name, tmp_path):
    model_folder.save(tmp_path / "digits", make_network(make_spec("gru")))
    (tmp_path / "digits" / name).unlink()
    with pytest.raises(BrokenModel, match=f"^digits: {name} is missing"):
        model_folder.load(tmp_path / "digits")
    (tmp_path / "digits" / name).mkdir()
    with pytest.raises(BrokenModel, match=f"^digits: {name} is not a regular file$"):
        model_folder.load(tmp_path / "digits")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_holds_up_nobody(name, tmp_path):
    model_folder.save(tmp_path / "digits", make_network(make_spec("gru")))
    (tmp_path / "digits" / name).unlink()
    os.mkfifo(tmp_path / "digits" / name)
    with pytest.raises(BrokenModel, match=f"^digits: {name} is not a regular file$"):
        model_folder.load(tmp_path / "digits")


def test_a_type_of_tensor_that_torch_does_not_know_is_told_in_words():
    _, weights = of_type("F4")(b"", model_folder.to_bytes(make_network(make_spec("gru", layers=2)))[1])
    config, _ = model_folder.to_bytes(make_network(make_spec("gru", layers=2)))
    with pytest.raises(BrokenModel, match=r"a tensor has the type 'F4': config.json says float64"):
        model_folder.load_bytes(config, weights)


def test_a_folder_that_is_not_there_is_missing_its_config(tmp_path):
    with pytest.raises(BrokenModel, match=r"^digits: config\.json is missing"):
        model_folder.load(tmp_path / "digits")


WRITER = """
import sys, torch
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec
spec = ModelSpec(cell="elman", input_size=3, hidden_size=50, output_size=7)
for version in range(1, 1000):
    weights = {name: torch.full(shape, float(version)) for name, shape in spec.parameter_shapes().items()}
    model_folder.save(sys.argv[1], Network(spec, weights, "cpu"), version)
    print(version, flush=True)
"""


def writer(folder, prelude=""):
    return ForkedProcess(prelude + WRITER, folder)


@pytest.mark.parametrize("saves", [1, 5, 12])
def test_a_writer_that_is_killed_leaves_a_whole_model(saves, tmp_path):
    process = writer(tmp_path / "m")
    for _ in range(saves):
        process.stdout.readline()
    process.kill()
    process.communicate()
    model_folder.recover_all(tmp_path)
    network, version = model_folder.load(tmp_path / "m")
    assert version >= saves
    for tensor in network.parameters().values():
        assert torch.equal(tensor, torch.full_like(tensor, version))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "m", "model.safetensors"]


@pytest.mark.parametrize("stopped_at", ["written in part", "moved away", "both there"])
def test_every_place_at_which_a_save_can_stop_is_recovered_from(stopped_at, tmp_path):
    network = make_network(make_spec("gru"))
    model_folder.save(tmp_path / "m", network, 1)
    half, old = tmp_path / ".m.being-written", tmp_path / ".m.being-replaced"
    if stopped_at == "both there":  # the new one has its name, the old one was not yet removed
        model_folder.save(tmp_path / "copy", network, 1)
        (tmp_path / "copy").rename(old)
        (old / "config.json").unlink()
    else:
        half.mkdir()
        (half / "config.json").write_text("{")
        if stopped_at == "moved away":
            (tmp_path / "m").rename(old)
    model_folder.recover_all(tmp_path)
    assert same(model_folder.load(tmp_path / "m")[0], network)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_disk_that_is_full_leaves_the_old_model(tmp_path):
    model_folder.save(tmp_path / "m", make_network(make_spec("gru")), 3)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    process = writer(tmp_path / "m", limit)
    printed, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "\nOSError: " in complaint
    assert printed == ""
    assert model_folder.load(tmp_path / "m")[1] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_who_may_read_the_one_file_may_read_the_other(tmp_path):
    model_folder.save(tmp_path / "m", make_network(make_spec("gru")))
    modes = {(tmp_path / "m" / name).stat().st_mode for name in (model_folder.CONFIG, model_folder.WEIGHTS)}
    assert len(modes) == 1
