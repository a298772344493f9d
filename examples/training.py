"""A small recurrent network trained on labelled frames in plain PyTorch, in the form that is served."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from seqloom_server.nn.network import Network
from seqloom_server.nn.torch_modules import from_torch
from torch import nn

_NO_LABEL = -100


def train(
    sequences: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    classes: int,
    *,
    hidden_size: int,
    epochs: int,
    batch: int = 32,
    learning_rate: float = 3e-3,
    noise: float = 0.0,
    dropout: float = 0.0,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Network:
    """Returns a GRU trained by cross-entropy at every step.

    sequences: [T_i, D] each; labels: [T_i] each, from 0 to classes - 1. noise: the standard deviation of what is added
    to the inputs, in units of theirs. dropout: the share of the hidden units that the output layer does without. report
    gets each epoch's mean loss a step. The network takes the inputs as they are: that training sees them at mean 0 and
    deviation 1 is folded into the weights of the first layer.
    """
    torch.manual_seed(seed)
    steps = np.concatenate(sequences)
    mean, deviation = torch.from_numpy(steps.mean(axis=0)), torch.from_numpy(steps.std(axis=0)).clamp(min=1.0)
    rows = [(torch.from_numpy(sequence) - mean) / deviation for sequence in sequences]
    targets = [torch.from_numpy(target) for target in labels]
    rnn = nn.GRU(steps.shape[1], hidden_size, batch_first=True)
    output = nn.Linear(hidden_size, classes)
    parameters = [*rnn.parameters(), *output.parameters()]
    optimizer = torch.optim.Adam(parameters)
    batches = -(-len(rows) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
    for epoch in range(epochs):
        total = 0.0
        # what shares a batch is about equally long, so that little is padded
        nearly_sorted = torch.tensor([len(row) for row in rows]) * (1 + 0.2 * torch.rand(len(rows)))
        order = nearly_sorted.argsort().split(batch)
        for i in torch.randperm(len(order)).tolist():
            x = nn.utils.rnn.pad_sequence([rows[j] for j in order[i].tolist()], batch_first=True)
            y = nn.utils.rnn.pad_sequence([targets[j] for j in order[i].tolist()], True, _NO_LABEL)
            hidden, _ = rnn(x + noise * torch.randn_like(x))
            logits = output(nn.functional.dropout(hidden, dropout))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=_NO_LABEL)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() / batches
        report(epoch, total)
    with torch.no_grad():
        rnn.weight_ih_l0 /= deviation
        rnn.bias_ih_l0 -= rnn.weight_ih_l0 @ mean
    return from_torch(rnn, output)


def class_probabilities(network: Network, sequence: np.ndarray) -> np.ndarray:
    """Returns what the network makes of one whole sequence, [T, D], in this process: [T, classes]."""
    state = torch.zeros(network.spec.num_layers, 1, network.spec.hidden_size)
    hidden, _ = network.advance(torch.from_numpy(sequence), torch.ones(len(sequence), dtype=torch.int64), (state,))
    probs, _ = network.outputs(hidden, "probs")
    return probs.numpy()
