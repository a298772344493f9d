"""The Tritons of a benchmark, as far as they can be started, and whether they say what Seqloom says."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator

import numpy as np
from seqloom_server.engine.models.served_weights import threads_for
from seqloom_server.nn.spec import ModelSpec

from benchmarks.loads.workload import MODELS, SIZES
from benchmarks.peers.environment import PeerMissing
from benchmarks.peers.launcher import PeerFailed, Triton, tritons
from benchmarks.setup.server_bench import ServerBench

_SAMPLES = 16  # recordings
_ALIKE = 0.999  # of all labels: where two classes are equal but for rounding, either may be the larger


@functools.cache
def running(bench: ServerBench) -> dict[str, Triton]:
    """A Triton for each size of network, which ends with the benchmark; none where that cannot be."""
    return bench.stack.enter_context(_started(bench))


@contextlib.contextmanager
def _started(bench: ServerBench) -> Iterator[dict[str, Triton]]:
    """Yields Tritons with the weights that the server serves, in as many of torch's threads as the server takes for the
    network, which is what Triton is fastest with, too. Raises ValueError where labels are others than the server's.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, Triton] = {}
        spec = {size: ModelSpec.from_json(dataclasses.asdict(MODELS[size])) for size in SIZES}
        threads = {size: bench.threads or threads_for(spec[size]) for size in SIZES}
        try:
            models = {size: bench.models / size for size in SIZES}
            found = stack.enter_context(tritons(models, bench.recordings, threads))
            shares = {size: _alike(bench, size, triton) for size, triton in found.items()}
        except (PeerMissing, PeerFailed) as error:
            print(error, file=sys.stderr)
            stack.close()
            found = {}
            bench.conditions["Triton"] = "was not there"
        else:
            bench.conditions["Triton"] = f"gives {min(shares.values()):.2%} of the same labels"
            if min(shares.values()) < _ALIKE:
                raise ValueError(f"Triton says something else than the server: {shares}")
        yield dict(found)
        if found:
            crashes = [f"{size}: {triton.crashed()}" for size, triton in found.items() if triton.crashed()]
            bench.conditions["Triton's crashes"] = "; ".join(crashes) or "none"


def _alike(bench: ServerBench, model: str, triton: Triton) -> float:
    """The share of labels that are the same, of recordings sent whole and as live streams."""
    recordings = bench.recordings[:_SAMPLES]

    async def ours() -> list[np.ndarray]:
        return (await bench.client.infer(model, recordings, outputs="labels")).outputs

    expected = np.concatenate(bench.loop.run(ours()))
    answers = triton.ask("labels", len(recordings), 0)
    return min(float(np.mean(np.concatenate(labels) == expected)) for labels in answers.values())
