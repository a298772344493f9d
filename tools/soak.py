"""Soaks a server: minutes of mixed traffic with cancels, timeouts, lost connections and killed clients.

Before and after it the server is measured at rest: memory, states, descriptors, threads and series of metrics must be
as at the start; the mean batch and the callers' p99 in the last minute as in the first; nothing may be lost. The report
goes into docs/reliability.md. It ends with 1 where something is not so.
"""

import argparse
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import seqloom
import soak_page
from soak_server import Measured, Server, write_models

TRAFFIC = pathlib.Path(__file__).with_name("soak_traffic.py")
CLIENTS = 3
WARM_UP = 30.0  # seconds of the same traffic, until everything that is kept has been made once
KILL_EVERY = 7.0  # seconds, on average


@dataclass
class Window:
    """A while of the traffic. batch: mean sequences of a slice. p99: seconds, of calls with whole sequences.

    pace: seconds that a fixed piece of work took here meanwhile, nine times of ten: how busy the machine was.
    """

    batch: float
    p99: float
    pace: float


@dataclass
class Totals:
    """What all clients have told, and until when. seconds: when each whole call ended, and how long it took."""

    done: Counter[str] = field(default_factory=Counter)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    runs: dict[int, set[str]] = field(default_factory=dict)


class Client:
    """A process of traffic. Its lines are read in a thread into `totals`."""

    def __init__(self, server: "Server", oracle: pathlib.Path, seed: int, totals: Totals) -> None:
        command = [sys.executable, str(TRAFFIC), server.address, str(oracle), str(seed)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.runs = totals.runs.setdefault(self.process.pid, set())
        self._totals = totals
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                told = json.loads(line)
            except ValueError:  # cut by a kill
                continue
            if "run" in told:
                self.runs.add(told["run"])
            elif "deleted" in told:
                self.runs.discard(told["deleted"])
            else:
                self._totals.done.update(told["done"])
                self._totals.seconds.extend((time.monotonic(), seconds) for seconds in told["seconds"])
                self._totals.lost.extend(told["lost"])

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(60)
        self._reader.join(10)


class Soak:
    """Clients on a server, some of whom are killed now and then and replaced."""

    def __init__(self, server: Server, oracle: pathlib.Path) -> None:
        self.server = server
        self.totals = Totals()
        self.kills = 0
        self._oracle = oracle
        self._random = random.Random(0)
        self._seeds = iter(range(1 << 30))

    @contextmanager
    def traffic(self) -> Iterator[list[Client]]:
        clients = [self._client() for _ in range(CLIENTS)]
        try:
            yield clients
        finally:
            for client in clients:
                client.end(signal.SIGTERM)
            with seqloom.Client(self.server.address) as client:
                for run in client.runs():
                    client.delete_run(run.id)

    def during(self, clients: list[Client], seconds: float) -> None:
        """Lets it go on, and kills clients."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self._random.expovariate(1 / KILL_EVERY)))
            if end - time.monotonic() > 2:
                place = self._random.randrange(len(clients))
                clients[place].end(signal.SIGKILL)
                self.kills += 1
                with seqloom.Client(self.server.address) as client:
                    there = {run.id for run in client.runs()}
                    for run in clients[place].runs & there:
                        client.delete_run(run)
                clients[place] = self._client()

    def window(self, clients: list[Client], seconds: float) -> Window:
        """Lets it go on, and measures the while."""
        before, begun, paces, ended = self._batches(), time.monotonic(), list[float](), threading.Event()
        watch = threading.Thread(target=_watch_pace, args=(paces, ended))
        watch.start()
        self.during(clients, seconds)
        ended.set()
        watch.join()
        after = self._batches()
        taken = [took for at, took in self.totals.seconds if at >= begun]
        slices = after[1] - before[1]
        p99, pace = float(np.percentile(taken, 99)), float(np.percentile(paces, 90))
        return Window((after[0] - before[0]) / max(slices, 1), p99, pace)

    def _batches(self) -> tuple[float, float]:
        return self.server.value("batch_sequences_sum"), self.server.value("batch_sequences_count")

    def _client(self) -> Client:
        return Client(self.server, self._oracle, next(self._seeds), self.totals)


def _watch_pace(paces: list[float], ended: threading.Event) -> None:
    while not ended.wait(0.25):
        begun = time.perf_counter()
        sum(range(300_000))
        paces.append(time.perf_counter() - begun)


def problems(before: Measured, after: Measured, first: Window, last: Window, lost: list[str]) -> list[str]:
    """What is not as it was; noise of the machine is allowed for, what grows with the minutes is not."""
    found = list(dict.fromkeys(lost))
    if after.memory > before.memory * 1.15 + (48 << 20):
        found.append(f"memory grew from {before.memory >> 20} to {after.memory >> 20} MiB")
    if after.states > 1.5 * before.states:
        found.append(f"the states grew from {before.states} to {after.states} bytes")
    for name in ("descriptors", "threads", "series"):
        old, new = getattr(before, name), getattr(after, name)
        if new > old + max(3, old // 50):
            found.append(f"{name} grew from {old} to {new}")
    if not 1 / 1.5 < last.batch / first.batch < 1.5:
        found.append(f"the mean batch went from {first.batch:.2f} to {last.batch:.2f} sequences")
    slower = max(1.0, last.pace / first.pace)  # the machine, for which the server is not to blame
    if last.p99 > 2 * slower * first.p99 + 0.02:
        found.append(f"p99 went from {1e3 * first.p99:.0f} to {1e3 * last.p99:.0f} ms")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of traffic, after half a minute to warm up")
    parser.add_argument("--no-page", action="store_true", help="leave docs/reliability.md as it is")
    options = parser.parse_args()
    window = min(60.0, options.minutes * 20)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        oracle = write_models(folder)
        server = Server(folder)
        try:
            soak = Soak(server, oracle)
            with soak.traffic() as clients:
                soak.during(clients, WARM_UP)
            before = server.at_rest()
            soak.totals, soak.kills = Totals(), 0
            with soak.traffic() as clients:
                time.sleep(3)  # the processes start
                first = soak.window(clients, window)
                soak.during(clients, options.minutes * 60 - 2 * window)
                last = soak.window(clients, window)
            after = server.at_rest()
            server.process.send_signal(signal.SIGTERM)
            status = server.process.wait(60)
        finally:
            server.process.kill()
        lost = list(soak.totals.lost)
        if status:
            lost.append(f"the server ended with {status}")
        lost += re.findall(r"^.* ERROR .*$", server.log.read_text(), re.MULTILINE)
    found = problems(before, after, first, last, lost)
    report = soak_page.report(options.minutes, soak.totals.done, soak.kills, len(lost), before, after, first, last)
    print(report, *found, sep="\n")
    if not options.no_page:
        soak_page.write(report)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
