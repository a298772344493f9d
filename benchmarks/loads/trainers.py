"""Trainers that saturate a server: each has a run of its own, calls in flight, and a step after every few of them.

A process of its own, so that its encoding delays nobody's clock: started with an address, a model and a number of
trainers, asked a number of seconds, it answers with the round's numbers.
"""

import argparse
import asyncio
import math
import pathlib
import time

import seqloom

from benchmarks.harness.child_process import questions, say
from benchmarks.harness.rounds import Loop, Result, Tally
from benchmarks.loads.training_workload import TRAINED, Labelled, labelled
from benchmarks.loads.workload import batches, from_folder, synthetic

IN_FLIGHT = 4
RECORDINGS = 8  # of a call


async def saturate(runs: list[seqloom.AsyncRun], examples: list[Labelled], seconds: float) -> Result:
    """One round."""
    tally = Tally(seconds)

    async def train(run: seqloom.AsyncRun, first: int) -> None:
        following = batches(examples[first:] + examples[:first], RECORDINGS)
        while tally.running:
            sent = time.perf_counter()
            calls = [next(following) for _ in range(IN_FLIGHT)]
            for call in calls:
                run.forward_backward([each.frames for each in call], [each.labels for each in call], reduction="mean")
            await run.step()
            for call in calls:
                tally.add(sum(map(len, call)), sent)

    await asyncio.gather(*(train(run, 16 * number % len(examples)) for number, run in enumerate(runs)))
    return tally.result()


async def _begin(address: str, model: str, count: int) -> tuple[seqloom.AsyncClient, list[seqloom.AsyncRun]]:
    client = seqloom.AsyncClient(address, timeout=math.inf)
    return client, [await client.create_run(model, optimizer=seqloom.SGD(lr=1e-6)) for _ in range(count)]


async def _end(client: seqloom.AsyncClient, runs: list[seqloom.AsyncRun]) -> None:
    for run in runs:
        await run.delete()
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("trainers", type=int)
    parser.add_argument("--data", type=pathlib.Path)
    options = parser.parse_args()
    recordings = from_folder(options.data) if options.data else synthetic()
    examples = labelled(recordings, TRAINED[options.model])
    with Loop() as loop:
        client, runs = loop.run(_begin(options.address, options.model, options.trainers))
        say("ready")
        for seconds in questions():
            say(loop.run(saturate(runs, examples, seconds)))
        loop.run(_end(client, runs))


if __name__ == "__main__":
    main()
