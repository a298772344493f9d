"""Files given for a state dict: what is no safetensors file is told by what it is, and the way to one is a true one."""

import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from helpers.ragged_batches import make_network
from helpers.specs import make_spec
from seqloom_server.nn.files import model_folder, state_dict_file
from seqloom_server.nn.files.state_dict_file import NoStateDict


class Trap:
    """Unpickling one ends the test run."""

    def __reduce__(self):
        return (os._exit, (99,))


def parameters():
    return make_network(make_spec("gru")).parameters()


def refused(path):
    with pytest.raises(NoStateDict) as caught:
        state_dict_file.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CONVERTED = {
    "torch.save": (lambda path: torch.save(parameters(), path), "is an archive of torch.save: "),
    "torch.save with tied tensors": (
        lambda path: torch.save((lambda own: {**own, "rnn.bias_ih_l0": own["rnn.bias_hh_l0"]})(parameters()), path),
        "is an archive of torch.save: ",
    ),
    "torch.save of old": (
        lambda path: torch.save(parameters(), path, _use_new_zipfile_serialization=False),
        "is a file of torch.save, of the old kind: ",
    ),
    "numpy.savez": (
        lambda path: np.savez(open(path, "wb"), **{name: each.numpy() for name, each in parameters().items()}),  # noqa: SIM115
        "is an archive of numpy.savez: ",
    ),
}


@pytest.mark.parametrize("case", CONVERTED)
def test_what_another_library_wrote_becomes_a_safetensors_file_as_is_said(case, tmp_path, monkeypatch):
    write, said = CONVERTED[case]
    write(tmp_path / "m'.pt")
    words = refused(tmp_path / "m'.pt")
    assert words.startswith(said + "expected a safetensors file; ")
    monkeypatch.chdir(tmp_path)
    command = re.search(r"safetensors\.\w+\.save_file\(.*\)(?= makes one)", words)[0]
    eval(command, {"numpy": np, "safetensors": safetensors, "torch": torch})
    read = state_dict_file.read("m.safetensors")
    assert sorted(read) == sorted(parameters())
    for name, tensor in read.items():
        assert torch.equal(tensor, parameters()["rnn.bias_hh_l0" if "tied" in case and "bias_ih" in name else name])


def zipped(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return file.getvalue()


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


FOREIGN = {
    "nothing": (b"", "is empty: expected a safetensors file"),
    "a pickle": (pickle.dumps(Trap()), "is a pickle: "),
    "an archive of torch.save with a trap": (saved(Trap()), "is an archive of torch.save: "),
    "an archive cut short": (saved({"a": torch.zeros(9)})[:-30], "is a zip archive, cut short or damaged: "),
    "TorchScript": (zipped(["m/data.pkl", "m/code/m.py", "m/constants.pkl"]), "is a TorchScript archive: "),
    "another zip": (zipped(["a.txt"]), "is a zip archive: "),
    "a zip of nothing": (zipped([]), "is a zip archive: "),
    "an array": (b"\x93NUMPY\x01\x00", "is one array of numpy.save: "),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 80, "is an HDF5 file, as Keras writes: "),
    "GGUF": (b"GGUF\x03\0\0\0" + b"\0" * 80, "is a GGUF file: "),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 80, "is compressed by gzip: "),
    # the first bytes of onnx 1.23.2's own, without and with the name of a maker
    "ONNX": (b'\x08\x0e:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01g', "is an ONNX model by its first bytes: "),
    "ONNX of torch": (b"\x08\x0e\x12\x07pytorch:3\n\x0c\n\x01x\x12\x01y", "is an ONNX model by its first bytes: "),
    "a web page": (b"\n<!DOCTYPE html><html>", "is an HTML page: "),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a",
        "is a pointer of Git LFS to the file: ",
    ),
    "JSON": (b'{"metadata": {}, "weight_map": {}}', "is JSON: "),
    "anything": (b"\xffabc" * 9, "is not a complete safetensors file: "),
    "cut short": (safetensors.torch.save(parameters())[:-8], "is not a complete safetensors file: "),
    # the size of the header is b"{" and seven zeros, or begins as gzip does
    "cut short where its size reads like JSON": (b"{" + b"\0" * 7 + b'{"a":', "is not a complete safetensors file: "),
    "cut short where its size reads like gzip": (
        b"\x1f\x8b" + b"\0" * 6 + b'{"a":',
        "is not a complete safetensors file: ",
    ),
    "cut short in its header": (safetensors.torch.save(parameters())[:50], "is not a complete safetensors file: "),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_files_are_told_by_what_they_are(case, tmp_path):
    content, said = FOREIGN[case]
    (tmp_path / "m.safetensors").write_bytes(content)
    words = refused(tmp_path / "m.safetensors")
    assert words.startswith(said)
    assert "PATH" not in words
    assert "expected a safetensors file" in words or "not a complete" in words


@pytest.mark.parametrize("case", ["an archive of torch.save with a trap", "a pickle", "nothing", "ONNX"])
def test_in_the_place_of_a_models_weights_they_are_told_too(case, tmp_path):
    content, said = FOREIGN[case]
    config, _ = model_folder.to_bytes(make_network(make_spec("gru")))
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(content)
    for reading in (lambda: model_folder.load(tmp_path), lambda: model_folder.load_bytes(config, content)):
        with pytest.raises(model_folder.BrokenModel, match=rf"model\.safetensors: .*; it {said.partition(':')[0]}$"):
            reading()


def test_a_type_that_torch_has_no_tensors_of_is_told_as_such(tmp_path):
    header = b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}'
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0")
    assert refused(tmp_path / "m.safetensors") == "cannot be read: Dtype not understood: F6_E2M3"


def test_what_is_no_file_at_all_is_told(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path) == "is a folder: expected the safetensors file of a state dict"
    assert refused(tmp_path / "pipe") == "is not a regular file: expected the safetensors file of a state dict"
    assert refused(tmp_path / "none") == "cannot be read: No such file or directory"
