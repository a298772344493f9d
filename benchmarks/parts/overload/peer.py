"""Triton under overload, with the best policy for its queue that was found: so many may wait, for so long."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

from seqloom_server.engine.models.served_weights import threads_for
from seqloom_server.nn.spec import ModelSpec

from benchmarks.harness.rounds import Result
from benchmarks.harness.table_rows import Row
from benchmarks.loads.open_loop import Calls
from benchmarks.loads.overload_workload import CALLS, recordings_of
from benchmarks.loads.workload import MODELS
from benchmarks.parts.overload.points import PEAK_SECONDS, point, summary
from benchmarks.peers.environment import PeerMissing
from benchmarks.peers.launcher import PeerFailed, Triton, tritons
from benchmarks.setup.server_bench import ServerBench

_POLICY = "max_queue_size: 128 timeout_action: REJECT default_timeout_microseconds: 700000"


class Peer:
    """A Triton that serves one network, and its own peak, which what is offered to it is a multiple of."""

    def __init__(self, bench: ServerBench, model: str, triton: Triton) -> None:
        self._bench, self._triton, self._network = bench, triton, CALLS[model]
        seconds = max(bench.seconds, PEAK_SECONDS)
        triton.ask("patient", bench.callers, seconds)  # warms up
        self._peak: Result = triton.ask("patient", bench.callers, seconds)

    def peak(self) -> Row:
        work = f"Triton: whole sequences, {self._bench.callers} callers, closed loop: the peak"
        return Row.of(work, self._network, [self._peak])

    def offered(self, factor: float) -> Row:
        """Its row where that multiple of its peak is offered; without numbers where it failed."""
        work, at = f"Triton: whole sequences at {factor:g} x", {"offered": factor}
        try:
            rounds = [self._offer(factor) for _ in range(self._bench.rounds)]
        except PeerFailed as error:
            print(error, file=sys.stderr)
            return Row(work, self._network, {}, [], note="Triton failed")
        return point(work, self._network, rounds, sweep="overload", who="Triton", at=at)

    def _offer(self, factor: float) -> Result:
        rate, seconds = self._peak["answers_per_second"], self._bench.seconds
        gone = Calls(**self._triton.ask("offered", factor * rate, seconds))
        return summary(gone, seconds, rate, factor * rate)


@contextlib.contextmanager
def peer(bench: ServerBench, model: str) -> Iterator[Peer | None]:
    """Yields a Triton with the weights that the server serves; None where there is none, or it fails."""
    threads = bench.threads or threads_for(ModelSpec.from_json(dataclasses.asdict(MODELS[model])))
    with contextlib.ExitStack() as stack:
        found, told = None, f"with {{{_POLICY}}}"
        try:
            started = tritons(
                {model: bench.models / model}, recordings_of(model), {model: threads}, queue_policy=_POLICY
            )
            found = Peer(bench, model, stack.enter_context(started)[model])
        except (PeerMissing, PeerFailed) as error:
            print(error, file=sys.stderr)
            told = "was not there"
        bench.conditions["Triton"] = told
        yield found
