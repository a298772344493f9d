"""Resolves tied tensors of safetensors files: safetensors.torch.save_model keeps one copy, and names the others only in
the metadata, which safetensors.torch.load_file does not read.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping

import torch

from seqloom_server.nn.spec import InvalidSpec

# the names in ModelSpec.parameter_shapes()
PARAMETER = re.compile(
    r"(?:conv|output)\.(?:weight|bias)|rnn\.(?:weight|bias)_(?:ih|hh)_l(?P<layer>0|[1-9][0-9]{0,3})(?P<back>_reverse)?"
)


def kept_names(
    metadata: Mapping[str, str] | None, kept: Collection[str], read: Callable[[str], torch.Tensor]
) -> dict[str, str]:
    """Returns every tensor name of a file, aliases included, with the name under which the tensor is kept.

    metadata: of the header, {"rnn.bias_ih_l0": "rnn.bias_hh_l0"} for tied biases, and possibly other entries. kept: the
    names of the tensors in the file. read: returns a tensor by name. Raises InvalidSpec for an alias of a missing
    tensor, and for one that is also kept as a tensor with other numbers.
    """
    names = {name: name for name in kept}
    for alias, name in sorted((metadata or {}).items()):  # safetensors returns them in any order
        if alias in kept:
            if name in kept and not _same(read(alias), read(name)):
                raise InvalidSpec(
                    alias,
                    f"differs from {name[:80]!r}, to which the file's metadata ties it: expected equal tensors, or no "
                    "such metadata",
                )
        elif name in kept:
            names[alias] = name
        elif PARAMETER.fullmatch(alias):
            raise InvalidSpec(
                alias,
                f"is tied by the file's metadata to {name[:80]!r}, which is missing: expected the name of a tensor in "
                "the file",
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
    # other data types are refused elsewhere, and torch cannot compare all of them
    return left.dtype not in (torch.float32, torch.float64) or torch.equal(left, right)
