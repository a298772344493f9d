"""Sequences of unequal lengths through masked layers: laid out in a rectangle, and taken out of it again."""

import numpy as np
import torch


def run_masked(masked, sequences, state, *, padding=0.0):
    """As ragged_batches.run does, but in a rectangle. padding: what stands in the rows that are no one's."""
    lengths = np.array([len(sequence) for sequence in sequences])
    order = np.argsort(-lengths, kind="stable")
    batch_sizes = (np.arange(lengths.max())[:, None] < lengths).sum(1)
    shape = masked.rectangle(batch_sizes)
    rows = np.full((shape.steps, shape.rows, sequences[0].shape[1]), padding, sequences[0].dtype)
    for rank, number in enumerate(order):
        rows[: lengths[number], rank] = sequences[number]
    hidden, after = masked.advance(
        torch.from_numpy(rows).flatten(0, 1),
        shape,
        torch.from_numpy(lengths[order]),
        tuple(torch.from_numpy(part[:, order]) for part in state),
    )
    hidden = hidden.view(shape.steps, shape.rows, -1)
    inverse = np.argsort(order)
    outputs = [
        hidden[: len(sequence), inverse[number]].to(after[0].dtype).numpy() for number, sequence in enumerate(sequences)
    ]
    return outputs, tuple(part[:, inverse].numpy() for part in after)
