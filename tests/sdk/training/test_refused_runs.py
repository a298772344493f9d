"""Calls on a run before a server that refuses them: no sooner than told, seldom, and in the end all are done.

Both by the call that all runs of a client share, and before a server that does not know it.
"""

import asyncio
import contextlib
import functools
import itertools
import time

import pytest
import seqloom
from helpers.breaking_proxy import proxy_of
from helpers.real_server import until
from helpers.scripted_server import refusal, scripted_server
from seqloom._retries import MAX_BACKOFF
from seqloom.v1 import model_service_pb2
from seqloom.v1 import training_service_pb2 as pb

SPEC = model_service_pb2.ModelSpec(
    cell=1, activation=1, data_type=1, input_size=5, hidden_size=7, output_size=3, num_layers=1
)
TOLD = 0.6  # seconds, longer than the first pauses


@pytest.fixture(params=[True, False], ids=["shared", "a call each"])
def scripted(request):
    """Starts a server with a script."""
    return functools.partial(scripted_server, shares_runs=request.param)


class Script:
    """Answers the calls on a run. refuses: how often each of the steps is refused first. told: when to come again."""

    def __init__(self, refuses, told, steps=1):
        self.refuses, self.told, self.steps = refuses, told, steps
        self._refused = {}
        self._done = 0

    def __call__(self, request):
        if isinstance(request, pb.CreateRunRequest):
            return pb.CreateRunResponse(run=pb.Run(id="run", model="small", spec=SPEC))
        if isinstance(request, pb.GetRunRequest):
            return pb.GetRunResponse(run=pb.Run(id="run", model="small", calls_done=self._done))
        number = request.call.number
        self._refused[number] = self._refused.get(number, 0) + 1
        if number <= self.steps and self._refused[number] <= self.refuses:
            return refusal(self.told)
        self._done = max(self._done, number)
        return pb.OptimStepResponse(step=number)


def pauses(server):
    """The seconds between the attempts of the same call, of all calls."""
    times = {}
    for request, at in server.of(pb.OptimStepRequest):
        times.setdefault(request.call.number, []).append(at)
    return [after - before for each in times.values() for before, after in itertools.pairwise(each)]


async def give_up(run, seconds):
    """A step whose caller does not wait for its end."""
    with contextlib.suppress(seqloom.Overloaded, seqloom.DeadlineExceeded):
        await run.step(timeout=seconds)


@contextlib.asynccontextmanager
async def run_of(address):
    async with seqloom.AsyncClient(address, timeout=60) as client:
        yield client, await client.create_run("small", optimizer=seqloom.SGD(0.1))


async def test_calls_on_a_run_are_all_done_and_seldom_repeated_when_the_budget_is_spent(scripted):
    async with scripted(Script(2, 0.001, 20)) as server, run_of(server.address) as (_, run):
        steps = await asyncio.gather(*(run.step() for _ in range(20)))
        assert sorted(step.step for step in steps) == list(range(1, 21))
        assert len(pauses(server)) == 40
        assert sum(pause < MAX_BACKOFF / 2 for pause in pauses(server)) <= 10


async def test_calls_whose_callers_gave_up_come_no_sooner_than_told_with_the_next_call(scripted):
    async with scripted(Script(1000, TOLD)) as server, run_of(server.address) as (_, run):
        for _ in range(4):
            await give_up(run, TOLD / 2)
            await asyncio.sleep(TOLD * 0.8)
        assert len(pauses(server)) > 1
        assert min(pauses(server)) >= TOLD


async def test_the_time_since_the_refusal_counts(scripted):
    async with scripted(Script(2, TOLD)) as server, run_of(server.address) as (_, run):
        await give_up(run, TOLD / 2)
        await asyncio.sleep(TOLD * 1.25 + 0.3)  # by then it was refused again, and nobody waits
        assert len(pauses(server)) == 1
        await asyncio.sleep(TOLD * 1.25)
        begun = time.monotonic()
        assert (await run.step()).step == 2
        assert time.monotonic() - begun < TOLD


async def test_the_next_call_after_all_had_given_up_takes_of_the_budget(scripted):
    async with scripted(Script(2, 0.001)) as server, run_of(server.address) as (client, run):
        await give_up(run, 0.03)
        await until(
            lambda: len(pauses(server)) == 1 and run._delivery._recovery.stalled
        )  # it has heard the second refusal
        while client._connection.retry_budget.take():
            pass
        assert (await run.step()).step == 2
        assert max(pauses(server)) >= MAX_BACKOFF / 2


async def test_a_connection_that_is_lost_does_not_bring_a_refused_call_back_sooner(scripted):
    async with (
        scripted(Script(1, TOLD)) as server,
        proxy_of(server.address) as proxy,
        run_of(proxy.address) as (_, run),
    ):
        step = asyncio.ensure_future(run.step())
        await until(lambda: server.of(pb.OptimStepRequest))
        await asyncio.sleep(0.1)
        proxy.cut()
        assert (await step).step == 1
        assert min(pauses(server)) >= TOLD


@pytest.mark.parametrize("told", [0.001, TOLD])
async def test_a_call_that_was_never_refused_waits_for_nothing_after_a_lost_connection(scripted, told):
    async with (
        scripted(Script(0, told)) as server,
        proxy_of(server.address) as proxy,
        run_of(proxy.address) as (_, run),
    ):
        for number in (1, 2):
            assert (await run.step()).step == number
            proxy.cut()
