"""The Tritons of a sitting, as far as they can be started, and whether they say what Seqloom says."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
from seqloom_server.engine.models.served_weights import threads_for
from seqloom_server.nn.spec import ModelSpec

from benchmarks.loads.workload import MODELS, SIZES
from benchmarks.peers.environment import PeerMissing
from benchmarks.peers.launcher import PeerFailed, Triton, tritons
from benchmarks.setup.server_setup import Sitting

_SAMPLES = 16  # recordings
_ALIKE = 0.999  # of all labels: where two classes are equal but for rounding, either may be the larger


@contextlib.contextmanager
def started(held: Sitting, recordings: list[np.ndarray], threads: int = 0) -> Iterator[dict[str, Triton]]:
    """Yields a Triton for each size of network, with the weights that the server serves; none where that cannot be.

    threads: torch's in each; where 0, as many as the server takes for the network, which is what Triton is fastest
    with, too. Raises ValueError where its labels are others than the server's.
    """
    with contextlib.ExitStack() as stack:
        running: dict[str, Triton] = {}
        each = {size: threads or threads_for(ModelSpec.from_json(dataclasses.asdict(MODELS[size]))) for size in SIZES}
        try:
            models = {size: held.models / size for size in SIZES}
            running = stack.enter_context(tritons(models, recordings, each))
            shares = {size: _alike(held, size, triton, recordings[:_SAMPLES]) for size, triton in running.items()}
        except (PeerMissing, PeerFailed) as error:
            print(error, file=sys.stderr)
            stack.close()
            running = {}
            held.conditions["Triton"] = "was not there"
        else:
            held.conditions["Triton"] = f"gives {min(shares.values()):.2%} of the same labels"
            if min(shares.values()) < _ALIKE:
                raise ValueError(f"Triton says something else than the server: {shares}")
        yield dict(running)
        if running:
            crashes = [f"{size}: {triton.crashed()}" for size, triton in running.items() if triton.crashed()]
            held.conditions["Triton's crashes"] = "; ".join(crashes) or "none"


def _alike(held: Sitting, model: str, triton: Triton, recordings: list[np.ndarray]) -> float:
    """The share of labels that are the same, of recordings sent whole and as live streams."""

    async def ours() -> list[np.ndarray]:
        return (await held.client.infer(model, recordings, outputs="labels")).outputs

    expected = np.concatenate(held.loop.run(ours()))
    answers = triton.ask("labels", len(recordings), 0)
    return min(float(np.mean(np.concatenate(labels) == expected)) for labels in answers.values())
