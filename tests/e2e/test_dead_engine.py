"""A server whose device thread dies: callers hear of it, the process ends, and who waits is served by the next one."""

import asyncio
import time

import numpy as np
import pytest
import seqloom
from helpers.expected_outputs import CLOSE
from helpers.frames import noise
from helpers.real_server import COMMAND, SMALL, write_models
from seqloom_server.__main__ import DEAD

# No input brings a device down, so its thread is: by what is raised once a file is there.
MORTAL = f"""
import os
from seqloom_server.engine.device import slice_runner
launch = slice_runner.launch

def mortal(*arguments, **options):
    if os.path.exists(os.environ["END_OF_THE_DEVICE"]):
        raise {{kind}}("the device is gone")
    return launch(*arguments, **options)

slice_runner.launch = mortal
{COMMAND}
"""
X = noise(6)


@pytest.mark.parametrize("kind", ["SystemExit", "OSError"])
async def test_its_process_ends_and_the_next_one_takes_over_with_nothing_lost(server_process, tmp_path, kind):
    write_models(tmp_path / "models", {"small": SMALL})
    end = tmp_path / "end"

    def start(**environment):
        environment["END_OF_THE_DEVICE"] = str(end)
        arguments = "--models", tmp_path / "models", "--grace-seconds", "60"
        return server_process(*arguments, program=MORTAL.format(kind=kind), environment=environment)

    started = await asyncio.to_thread(start)
    async with (
        seqloom.AsyncClient(started.address, timeout=60) as client,  # as many retries as there are by default
        seqloom.AsyncClient(started.address, timeout=60, retries=0) as once,
    ):
        before = (await client.infer("small", [X])).outputs[0]
        run, twin = [await client.create_run("small", optimizer=seqloom.SGD(0.1)) for _ in range(2)]
        labels = np.arange(6) % 3
        for each in (run, twin):
            await each.forward_backward([X], [labels])
            await each.step()
        first = (await twin.forward_backward([X], [labels])).loss
        async with client.stream("small", resume=False) as idle, client.stream("small", resume=False) as stream:
            await stream.send(X)
            await stream.receive()
            end.touch()
            for _ in range(6):  # one is enough for what is no Exception, others must come in a row
                with pytest.raises((seqloom.Internal, seqloom.Unavailable)):
                    await once.infer("small", [X])
            for lost in (idle, stream):
                with pytest.raises(seqloom.StreamLost) as caught:
                    await lost.receive()
                assert caught.value.reason == "ENGINE_DEAD"
        status, stderr = await asyncio.to_thread(started.end)
        assert status == DEAD != 0
        assert "the device thread has died" in stderr
        waiting = [asyncio.create_task(client.infer("small", [X])), asyncio.create_task(client.models())]
        accumulated = run.forward_backward([X], [labels])
        await asyncio.sleep(4)  # as long as a server may take to start again
        assert not any(call.done() for call in waiting)
        end.unlink()
        await asyncio.to_thread(lambda: start(SEQLOOM_LISTEN=started.address))
        np.testing.assert_allclose((await waiting[0]).outputs[0], before, **CLOSE)
        assert [model.name for model in await waiting[1]] == ["small"]
        assert (await accumulated).loss == first, "the step before was not lost"
        assert (await run.step()).step == 2


async def test_a_caller_who_sets_retries_is_told_soon(server_process, tmp_path):
    write_models(tmp_path, {"small": SMALL})
    started = await asyncio.to_thread(server_process, "--models", tmp_path)
    async with (
        seqloom.AsyncClient(started.address, timeout=600, retries=1) as client,
        seqloom.AsyncClient(started.address, timeout=2) as waits,
    ):
        await client.models()
        started.process.kill()
        begun = time.monotonic()
        with pytest.raises(seqloom.Unavailable):
            await client.infer("small", [X])
        assert time.monotonic() - begun < 60, "it has not waited for its timeout"
        begun = time.monotonic()
        with pytest.raises((seqloom.Unavailable, seqloom.DeadlineExceeded)):
            await waits.infer("small", [X])
        assert time.monotonic() - begun < 60
