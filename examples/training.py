"""Trains a network on the server, which accumulates and applies the gradients, and publishes it."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence

import seqloom
from variation import Example

_CALLS = 4  # in flight together, whose gradients one step applies
_WARM_UP = 0.2  # of the steps
_LEAST = 1e-3  # of the learning rate, at either end


async def train(
    client: seqloom.AsyncClient,
    model: str,
    batches: Iterator[Sequence[Example]],
    *,
    steps: int,
    learning_rate: float,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> int:
    """Trains a model with cross-entropy at every step of its sequences; returns the published version.

    batches: each a list of (inputs [T_i, D], labels [T_i]), read in a thread while the server computes. learning_rate:
    the highest of Adam. report: called with each step's number, from 1, and its loss per frame.
    """
    optimizer = seqloom.Adam(lr=learning_rate)
    async with await client.create_run(model, optimizer=optimizer, clip_norm=1.0, checkpoint_interval=0) as run:
        batch = await asyncio.to_thread(next, batches)
        for step in range(steps):
            parts = [part for i in range(_CALLS) if (part := batch[i::_CALLS])]
            calls = [
                run.forward_backward([x for x, _ in part], [y for _, y in part], reduction="mean") for part in parts
            ]
            applied = asyncio.create_task(run.step(learning_rate * _share(step / steps)))
            batch = await asyncio.to_thread(next, batches)  # which lets the step be sent first
            await applied
            losses = [(await call).loss for call in calls]
            report(step + 1, sum(losses) / len(losses))
        version = await run.publish()
    await client.delete_run(run.id)
    return version


def _share(progress: float) -> float:
    """Returns the factor of the learning rate: it rises linearly, then falls as a cosine."""
    if progress < _WARM_UP:
        return max(_LEAST, progress / _WARM_UP)
    return max(_LEAST, 0.5 + 0.5 * math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))
