"""Steps of training that were computed for callers who had gone are counted; those that were not computed are not."""

import asyncio

import numpy as np
from helpers.engine_helpers import make_frames, running_engine
from helpers.real_server import metric, until
from helpers.specs import make_spec
from helpers.training_gate import TrainingGate
from seqloom_server.engine.core.training_job import TrainingCall
from seqloom_server.nn.losses.training_example import Example, GradientRequest

SPEC = make_spec()


def make_call(engine, steps):
    (xs,) = make_frames(SPEC, steps)
    example = Example(xs, None, None, np.ones((steps, SPEC.output_size), SPEC.dtype), 1.0, None, None)
    outcome = asyncio.get_running_loop().create_future()
    weights = engine.registry.current("m0")
    return TrainingCall(weights, outcome, examples=[example], request=GradientRequest(), steps=steps)


async def test_the_steps_of_a_call_that_was_abandoned_on_the_device_are_wasted_and_no_others(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        gate = TrainingGate(engine)
        gone, kept, queued = make_call(engine, 7), make_call(engine, 5), make_call(engine, 3)
        for job in (gone, kept):
            engine.train(job)
        await gate.arrived()
        engine.train(queued)
        engine.jobs.abandon([gone, queued])
        gate.open()
        await kept.outcome
        await until(lambda: metric(engine, "wasted_steps_total", op="train", model="m0") == 7)
        assert metric(engine, "wasted_steps_total") == 7
        assert [len(jobs) for jobs in gate.batches] == [2]


async def test_a_result_that_crosses_its_callers_end_is_wasted_too(tmp_path):
    async with running_engine(tmp_path, SPEC) as engine:
        job = make_call(engine, 7)
        engine.train(job)
        job.outcome.cancel()
        await until(lambda: metric(engine, "wasted_steps_total", op="train") == 7)
        assert not len(engine.jobs)
