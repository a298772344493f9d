"""Tied tensors: safetensors.torch.save_model keeps one copy, and names the others only in the file's metadata.

What reads tensors alone, as safetensors.torch.load_file does, finds no trace of the others.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping

import torch

from seqloom_server.nn.spec import InvalidSpec

# the names that ModelSpec.parameter_shapes() can give
PARAMETER = re.compile(
    r"(?:conv|output)\.(?:weight|bias)|rnn\.(?:weight|bias)_(?:ih|hh)_l(?P<layer>0|[1-9][0-9]{0,3})(?P<back>_reverse)?"
)


def kept_names(
    metadata: Mapping[str, str] | None, kept: Collection[str], read: Callable[[str], torch.Tensor]
) -> dict[str, str]:
    """Returns every name that a file gives a tensor, with the name under which the tensor is kept.

    metadata: of its header, {"rnn.bias_ih_l0": "rnn.bias_hh_l0"} for tied biases, and whatever else people note there.
    kept: the names of the tensors in the file; read: gives one. Raises InvalidSpec for another name of a tensor that
    is not there, and for one that is also there as a tensor with other numbers.
    """
    names = {name: name for name in kept}
    for alias, name in sorted((metadata or {}).items()):  # which safetensors gives in any order
        if alias in kept:
            if name in kept and not _same(read(alias), read(name)):
                raise InvalidSpec(
                    alias,
                    f"is there with other numbers than {name[:80]!r}, which it is in the file's metadata: "
                    "expected the same, or no such metadata",
                )
        elif name in kept:
            names[alias] = name
        elif PARAMETER.fullmatch(alias):
            raise InvalidSpec(
                alias,
                f"is in the file's metadata another name of {name[:80]!r}, which is not there: "
                "expected the name of a tensor in the file",
            )
    return names


def metadata_of(archive: bytes) -> dict[str, str] | None:
    """Returns the metadata of a safetensors file that safetensors has read without an error."""
    size = int.from_bytes(archive[:8], "little")  # of the header, which is JSON
    metadata: dict[str, str] | None = json.loads(archive[8 : 8 + size]).get("__metadata__")
    return metadata


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    # types that no network has are refused as such, and torch compares only some of them
    return left.dtype not in (torch.float32, torch.float64) or torch.equal(left, right)
