"""A digest of a network's specification and weights, by which a stream that is resumed finds the weights it began with.

It is the same for the same numbers on any server, whatever the model's name, the version, or how its file was written.
"""

import hashlib
import json

import torch

from seqloom_server.nn.forward.network import Network

_BYTES = 16


def fingerprint(network: Network) -> bytes:
    """Returns the digest. It reads all weights: to be called in a worker thread."""
    digest = hashlib.sha256(json.dumps(network.spec.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(network.parameters().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.digest()[:_BYTES]
