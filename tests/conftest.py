"""Real servers for every test, in this process or in one of their own; and the precision in which models are served."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING

import grpc
import pytest
from helpers import tolerances
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")

if TYPE_CHECKING:  # it makes a model as it is imported, which is to be of the precision asked for
    from helpers.real_server import Models, Served, ServerProcess


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: a test more on each core that this process may use, up to four."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 4)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--precision",
        choices=tolerances.PRECISIONS,
        default="full",
        help="serve float32 models whose test names no precision in this one",
    )
    parser.addoption("--inputs", type=int, default=2000, help="calls that tests/fuzz sends")


def pytest_configure(config: pytest.Config) -> None:
    tolerances.serve_in(config.getoption("--precision"))


def pytest_report_header(config: pytest.Config) -> str:
    return f"models are served in: {tolerances.served()}"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread for torch: these networks are small, and other tests share the machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory):
    """A factory of servers in this process, on free ports of the loopback, on the CPU with one thread:

        async with serve({"digits": spec, "other": (spec, 3)}, window_steps=64) as served:
            served.address, served.http_address, served.engine, served.models
            served.value("steps_total", model="digits"); served.expected("digits", x)

    models: by name a ModelSpec, or a ModelSpec and a seed; by default one "small" of 5 inputs, 7 units, 3 outputs.
    The rest are options of ServerConfig. In the end the server is stopped without grace. See real_server.Served.
    """

    from helpers.real_server import serving

    def factory(models: "Models | None" = None, **options: object):
        return serving(tmp_path_factory.mktemp("models"), models, **options)

    return factory


@pytest.fixture
async def served(serve) -> "AsyncIterator[Served]":
    """One server in this process with the model "small" and the options by default."""
    async with serve() as one:
        yield one


@pytest.fixture
async def channel(served: "Served") -> AsyncIterator[grpc.aio.Channel]:
    """A channel to `served` that takes and sends messages of any size."""
    from helpers.real_server import open_channel

    async with open_channel(served.address) as one:
        yield one


@pytest.fixture
def server_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A factory of servers in processes of their own, on free ports of the loopback, on the CPU with one thread:

        started = server_process("--models", folder)          # returns when it serves
        started.address, started.http_address; status, stderr = started.end(signal.SIGTERM)
        status, stderr = server_process("--models", file, ready=False).end()

    environment: more variables, over those. fresh: with an interpreter of its own, for what happens as it starts or
    ends; else forked off one that has imported everything. program: runs in place of the command seqloom-server, to do
    something to the server first. What still runs after the test is killed. See real_server.ServerProcess.
    """
    from helpers.real_server import COMMAND, ServerProcess

    running: list[ServerProcess] = []
    runs = tmp_path_factory.mktemp("runs")

    def factory(
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        ready: bool = True,
        fresh: bool = False,
        program: str = COMMAND,
    ) -> "ServerProcess":
        settings = {"SEQLOOM_LISTEN": "127.0.0.1:0", "SEQLOOM_HTTP": "127.0.0.1:0"}
        settings |= {"SEQLOOM_DEVICE": "cpu", "SEQLOOM_THREADS": "1", "SEQLOOM_RUNS": str(runs), **(environment or {})}
        started = ServerProcess.start(*arguments, environment=settings, fresh=fresh, program=program)
        running.append(started)
        if ready:
            started.until_ready()
        return started

    yield factory
    for started in running:
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait()
        started.process.stdout.close()
