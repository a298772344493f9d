"""The parts of the training benchmark, each a row or more: what is measured, and beside what."""

import functools
import statistics
from collections.abc import Iterator

from seqloom.v1 import training_service_pb2 as pb

from benchmarks.harness.rounds import Result, interleaved
from benchmarks.harness.table_rows import Row
from benchmarks.loads import sequence_load, training_load
from benchmarks.loads.training_workload import GRU, LSTM, NARROW, TRAINED_TITLES, Labelled
from benchmarks.loads.workload import LARGE
from benchmarks.setup.goals import AUTOGRAD, DENSE, GOALS, SUM
from benchmarks.setup.server_bench import ServerBench

SAMPLES = 64, 8  # recordings whose answers are weighed; of a quick run


def forward_backward(bench: ServerBench, *, ahead: bool = False) -> Iterator[Row]:
    """Callers of one run, beside plain autograd passes over as many recordings at once.

    ahead: whether callers that send the next recording ahead are measured, too.
    """
    for model in (LARGE, NARROW):
        yield from _beside_autograd(bench, model, ahead=ahead)


def cells(bench: ServerBench) -> Iterator[Row]:
    """The same for the other cells."""
    for model in (GRU, LSTM):
        yield from _beside_autograd(bench, model, ahead=True)


def gradients(bench: ServerBench) -> Iterator[Row]:
    """What each caller's own gradients cost, in device time and bytes, beside the sum of them."""
    for model in (LARGE, NARROW):
        own = training_load.callers_of_gradients(bench.client, model, bench.trainers)
        opened = training_load.callers_of_one_run(bench.client, model, bench.trainers)
        with bench.loop.entered(opened) as summed:

            def waves(calls: list[sequence_load.Call], seconds: float, model: str = model) -> Result:
                return bench.watched(training_load.waves(calls, bench.examples(model), seconds))

            kinds = {"own": own, "summed": summed}
            for calls in kinds.values():
                waves(calls, bench.seconds / 4)  # warm up
            rounds = interleaved(
                {name: functools.partial(waves, calls, bench.seconds) for name, calls in kinds.items()}, bench.rounds
            )
        title, goal = TRAINED_TITLES[model], GOALS.get(("gradients", model, SUM))
        who = f"{bench.trainers} callers at once"
        row = Row.of(f"gradients of {who}, each its own of all parameters", title, rounds["own"])
        yield row.against(rounds["summed"], "device_us_a_frame", SUM, goal)
        yield Row.of(f"forward_backward of {who}, summed in one run", title, rounds["summed"])
        yield _on_the_wire(bench, model)


def _beside_autograd(bench: ServerBench, model: str, *, ahead: bool) -> Iterator[Row]:
    examples, count = bench.examples(model), bench.trainers
    alone = functools.partial(bench.ask, "baselines.network_alone", "autograd", model, count)
    alone(0)  # warm up
    with bench.loop.entered(training_load.callers_of_one_run(bench.client, model, count)) as calls:

        def served(in_flight: int, seconds: float = bench.seconds) -> Result:
            """Each caller sends its next recording when one of its `in_flight` calls is answered."""
            return bench.watched(sequence_load.closed_loop(list(calls) * in_flight, examples, seconds))

        served(1, bench.seconds / 4)  # warm up
        works = {"": lambda: served(1)}
        if ahead:
            works[", the next sent ahead"] = lambda: served(2)
        rounds = interleaved(works | {"alone": functools.partial(alone, bench.seconds)}, bench.rounds)
    goal = GOALS.get(("forward_backward", model, AUTOGRAD))
    for more in works:
        title = f"forward_backward of {count} callers of one run, a recording each{more}"
        row = Row.of(title, TRAINED_TITLES[model], rounds[more])
        yield row.against(rounds["alone"], "frames_per_second", AUTOGRAD, goal)
    yield Row.of(f"one autograd pass over {count} recordings", TRAINED_TITLES[model], rounds["alone"])


def _on_the_wire(bench: ServerBench, model: str) -> Row:
    """The bytes of answers, over recordings as they come, beside those of a dense one."""

    def weighed(example: Labelled, form: pb.ParameterForm) -> int:
        return bench.loop.run(training_load.reply_bytes(bench.server.address, model, example, form))

    examples = bench.examples(model)[: SAMPLES[bench.quick]]
    mean = statistics.mean(weighed(example, pb.PARAMETER_FORM_SMALLEST) for example in examples)
    dense = weighed(examples[0], pb.PARAMETER_FORM_DENSE)
    values = {"reply_kb": mean / 1e3, "dense_kb": dense / 1e3}
    title, goal = "the answer to a call for gradients", GOALS.get(("gradients", model, DENSE))
    return Row.of(title, TRAINED_TITLES[model], [values], mean / dense, DENSE, goal, lower_is_better=True)
