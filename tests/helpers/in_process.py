"""What a network makes of a recording in the test's own process, without a service."""

import torch


def class_probabilities(network, sequence):
    """Of one whole sequence, [T, D]: [T, classes]."""
    state = torch.zeros(network.spec.num_layers, 1, network.spec.hidden_size)
    hidden, _ = network.advance(torch.from_numpy(sequence), torch.ones(len(sequence), dtype=torch.int64), (state,))
    probs, _ = network.outputs(hidden, "probs")
    return probs.numpy()
