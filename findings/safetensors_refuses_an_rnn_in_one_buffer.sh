#!/usr/bin/env bash
# safetensors 0.8.0: save_model refuses a torch.nn.GRU of which no two names share a weight.
#
# On a GPU torch.nn.RNNBase.flatten_parameters() lays all weights of a recurrent module into one buffer for cuDNN, each
# a part of its own. safetensors.torch.save_model, which is meant for modules whose tensors share memory, takes that for
# tensors of which none is whole, and fails, though nothing overlaps; save_file saves the same state dict. The weights
# are packed here as flatten_parameters() packs them, so that no GPU is needed.
# Source: https://github.com/safetensors/safetensors/issues/657 (open), bindings/python/py_src/safetensors/torch.py,
# _remove_duplicate_names, which asks of groups of one name too that the tensor fill its storage.
# So a state dict for `seqloom-server import-model` is best saved by save_file, from clones where tensors are tied.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'safetensors==0.8.0' 'torch==2.13.0' 'numpy==2.4.6'
cd "$folder"
venv/bin/python - <<'PYTHON'
import safetensors
import safetensors.torch
import torch

print("safetensors", safetensors.__version__, "torch", torch.__version__)
gru = torch.nn.GRU(3, 5)
parameters = list(gru.parameters())
buffer = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
for parameter, part in zip(parameters, buffer.split([parameter.numel() for parameter in parameters])):
    parameter.data = part.view_as(parameter)
gru(torch.zeros(4, 1, 3))  # works as before
safetensors.torch.save_file(gru.state_dict(), "by_save_file.safetensors")
read = safetensors.torch.load_file("by_save_file.safetensors")
assert all(torch.equal(read[name], tensor) for name, tensor in gru.state_dict().items())
print("save_file: saved, and read back the same")
try:
    safetensors.torch.save_model(gru, "by_save_model.safetensors")
except RuntimeError as error:
    assert "found no suitable name to keep" in str(error), error
    print(f"save_model: RuntimeError: {error}")
else:
    raise SystemExit("save_model: saved: it behaves otherwise now")
PYTHON
