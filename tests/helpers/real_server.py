"""Servers as tests see them: in this process or in one of their own, with what they must answer."""

import asyncio
import contextlib
import os
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field

import grpc
import numpy.typing as npt
from prometheus_client.metrics_core import Metric
from seqloom_server.config import ServerConfig
from seqloom_server.engine.engine import Engine
from seqloom_server.metrics import Metrics
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec
from seqloom_server.rpc.server import Server

from helpers.forked_process import ForkedProcess
from helpers.plain_twin import plain_outputs

Models = Mapping[str, ModelSpec | tuple[ModelSpec, int]]
Arrays = tuple[npt.NDArray, ...]

COMMAND = "import sys; from seqloom_server.__main__ import main; sys.exit(main())"  # seqloom-server
SMALL = ModelSpec(cell="elman", input_size=5, hidden_size=7, output_size=3)


@dataclass
class Served:
    """A server in this process. address, http_address: HOST:PORT. models: its folder of model folders.

    networks: by model, the network on the CPU whose outputs the server's must equal.
    """

    server: Server
    models: pathlib.Path
    networks: dict[str, Network]

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def http_address(self) -> str:
        return self.server.http_address

    @property
    def engine(self) -> Engine:
        return self.server.engine

    @property
    def metrics(self) -> Metrics:
        return self.server.metrics

    def value(self, name: str, **labels: str) -> float:
        """The metric seqloom_NAME as a scrape would have it; see metric()."""
        return metric(self.metrics, name, **labels)

    def expected(self, model: str, xs: npt.NDArray, state: Arrays | None = None) -> tuple[npt.NDArray, Arrays]:
        """Returns the logits [T, O] and the final state ([L, 1, H] per part) of one sequence [T, D], in float64."""
        _, logits, final = plain_outputs(self.networks[model], xs, state)
        return logits, final


def metric(source: Engine | Metrics, name: str, **labels: str) -> float:
    """What a scrape would show of seqloom_NAME; see total()."""
    metrics = source if isinstance(source, Metrics) else source._metrics._metrics
    return total(metrics.registry.collect(), name, **labels)


def total(families: Iterable[Metric], name: str, **labels: str) -> float:
    """The samples of seqloom_NAME, summed over the labels that are not given; 0 where there is none."""
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == f"seqloom_{name}" and labels.items() <= s.labels.items())


def write_models(folder: pathlib.Path, models: Models) -> dict[str, Network]:
    """Writes model folders; a model is a spec, or a spec and the seed of its weights (0)."""
    networks = {}
    for name, model in models.items():
        spec, seed = model if isinstance(model, tuple) else (model, 0)
        networks[name] = Network.create(spec, seed, "cpu")
        model_folder.save(folder / name, networks[name])
    return networks


@contextlib.asynccontextmanager
async def serving(folder: pathlib.Path, models: Models | None = None, **options: object) -> AsyncIterator[Served]:
    """Starts a server in this process; the fixture `serve` tells more."""
    networks = write_models(folder, {"small": SMALL} if models is None else models)
    runs = folder.with_name(f"{folder.name}-runs")
    fixed = {
        "models": str(folder),
        "runs": str(runs),
        "listen": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        "threads": 1,
        "device": "cpu",
    }
    server = Server(ServerConfig(**{**fixed, **options}))  # type: ignore[arg-type]
    await server.start()
    try:
        yield Served(server, folder, networks)
    finally:
        await server.stop(0)


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel that takes and sends messages of any size, over a connection of its own."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.insecure_channel(address, options=options)


@dataclass
class ServerProcess:
    """A `seqloom-server` in a process of its own. stderr: its lines so far."""

    process: "subprocess.Popen[str] | ForkedProcess"
    stderr: list[str] = field(default_factory=list)
    address: str = ""
    http_address: str = ""

    @classmethod
    def start(
        cls, *arguments: object, environment: Mapping[str, str], fresh: bool, program: str = COMMAND
    ) -> "ServerProcess":
        words, environment = list(map(str, arguments)), {**os.environ, **environment}
        if fresh:
            process = subprocess.Popen(
                [sys.executable, "-m", "seqloom_server", *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        else:
            process = ForkedProcess(program, *words, environment=environment)
        started = cls(process)
        started._reader = threading.Thread(target=lambda: started.stderr.extend(process.stderr), daemon=True)
        started._reader.start()
        return started

    def until_ready(self) -> None:
        """Returns when it serves; fails where it ends instead."""
        line = self.process.stdout.readline()
        found = re.fullmatch(r"seqloom-server: serving on (\S+)\n", line)
        if found is None:
            raise AssertionError(f"the server did not start: {line!r} {self.end()[1]}")
        self.address = found[1]
        while not self.http_address:  # it was logged before the line was printed, and is being read
            for line in list(self.stderr):
                if found := re.search(r"metrics on http://(\S+)/metrics", line):
                    self.http_address = found[1]

    def end(self, number: int | None = None, timeout: float = 60) -> tuple[int, str]:
        """Sends a signal if one is given; returns the exit status and all of stderr."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status, "".join(self.stderr)


async def until(condition: Callable[[], object]) -> None:
    """Returns when condition() holds, looked at again and again; raises TimeoutError rather than wait for ever."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)
