"""Runs over a real server: what is accumulated and applied, in which order, and what a refusal leaves behind."""

import asyncio
import gc
import weakref

import numpy as np
import pytest
import seqloom
import torch
from helpers.autograd_reference import Reference
from helpers.breaking_proxy import proxy_of
from helpers.real_server import until
from helpers.run_helpers import SPEC, assert_weights, call_of, weights_of
from helpers.threads import in_threads
from seqloom_server.engine.training import checkpoint_files
from seqloom_server.nn.spec import ModelSpec

EXACT = {"rtol": 1e-9, "atol": 1e-12}
OPTIMIZERS = {
    "sgd": (seqloom.SGD(0.05, momentum=0.9), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
    "adam": (
        seqloom.Adam(0.02, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ),
    "adamw": (seqloom.AdamW(0.02), lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.01)),
}


@pytest.fixture
async def training(serve, tmp_path):
    """A server with one model "m", and a client."""
    async with (
        serve({"m": SPEC}, runs=str(tmp_path / "runs")) as served,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        yield served, client


@pytest.mark.parametrize("kind", OPTIMIZERS)
async def test_training_is_what_torch_makes_of_the_same_data(training, tmp_path, kind):
    served, client = training
    optimizer, torchs = OPTIMIZERS[kind]
    reference = Reference(served.networks["m"])
    steps = [[call_of(10 * k + n) for n in range(2)] for k in range(5)]
    run = await client.create_run("m", optimizer=optimizer, clip_norm=1.0)
    for number, calls in enumerate(steps, 1):
        for xs, labels in calls:
            result = await run.forward_backward(xs, labels)
            assert result.step == number
            assert result.loss == pytest.approx(sum(result.losses))
        stepped = await run.step()
        assert stepped.step_number == number
    reference.train(torchs(list(reference.parameters.values())), steps, clip_norm=1.0)
    assert_weights(await weights_of(client, run, tmp_path / "m"), reference.parameters, **EXACT)


async def test_calls_that_nobody_awaits_are_done_in_the_order_in_which_they_were_made(training, tmp_path):
    served, client = training
    reference = Reference(served.networks["m"])
    steps = [[call_of(100 * k + n, count=1 + n % 3) for n in range(k % 7 + 1)] for k in range(20)]
    run = await client.create_run("m", optimizer=seqloom.SGD(0.01))
    gradients, applied = [], []
    for calls in steps:
        gradients.append([run.forward_backward(xs, labels) for xs, labels in calls])
        applied.append(asyncio.ensure_future(run.step()))
        await asyncio.sleep(0)  # a coroutine that is awaited by a task begins with it
    results = [await asyncio.gather(*futures) for futures in gradients]
    assert [step.step_number for step in await asyncio.gather(*applied)] == list(range(1, 21))
    assert [[result.step for result in of_step] for of_step in results] == [
        [k + 1] * len(c) for k, c in enumerate(steps)
    ]
    reference.train(torch.optim.SGD(reference.parameters.values(), 0.01), steps)
    assert_weights(await weights_of(client, run, tmp_path / "m"), reference.parameters, **EXACT)


async def test_every_loss_goes_into_a_step_and_norms_are_told(training):
    _, client = training
    xs, labels = call_of(1)
    expected = await client.gradients("m", xs, labels, reduction="mean")
    run = await client.create_run("m", optimizer=seqloom.SGD(1.0))
    result = await run.forward_backward(xs, labels, reduction="mean")
    assert result.loss == pytest.approx(expected.loss)
    norm = np.sqrt(sum((g**2).sum() for g in expected.parameters.values()))
    assert (await run.step(1e-3)).gradient_norm == pytest.approx(norm)
    by_gradients = await run.forward_backward(xs, output_gradients=[np.ones((len(x), 4)) for x in xs])
    assert by_gradients.loss == 0
    assert (await run.step()).gradient_norm > 0


async def test_a_learning_rate_for_one_step_is_that_steps_alone(training, tmp_path):
    served, client = training
    reference = Reference(served.networks["m"])
    run = await client.create_run("m", optimizer=seqloom.SGD(0.5))
    optimizer = torch.optim.SGD(reference.parameters.values(), 0.125)
    for rate in (0.125, None):
        run.forward_backward(*call_of(3))
        await run.step(rate)
        optimizer.param_groups[0]["lr"] = rate or 0.5
        reference.train(optimizer, [[call_of(3)]])
    assert_weights(await weights_of(client, run, tmp_path / "m"), reference.parameters, **EXACT)


async def test_what_is_refused_changes_nothing_and_later_calls_go_on(training):
    _, client = training
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
    with pytest.raises(seqloom.InvalidArgument) as nothing:
        await run.step()
    assert nothing.value.reason == "NOTHING_ACCUMULATED"
    xs, labels = call_of(1)
    bad = run.forward_backward([np.full((3, 5), np.nan)], [[0, 1, 2]])
    good = run.forward_backward(xs, labels)
    huge = run.forward_backward([xs[0]], [np.full((len(xs[0]), 4), 1e200)], loss="mse")
    with pytest.raises(seqloom.InvalidArgument, match="xs: is nan"):
        await bad
    with pytest.raises(seqloom.InvalidArgument) as overflow:
        await huge
    assert overflow.value.reason == "OVERFLOW"
    assert (await good).step == 1
    with pytest.raises(seqloom.InvalidArgument) as mismatch:
        await run.step(expected_step=2)
    assert mismatch.value.reason == "STEP_MISMATCH"
    for name in ("../x", "a/b", "", "X", "no-such-name"):
        with pytest.raises((seqloom.InvalidArgument, seqloom.NotFound)):
            await run.load(name)
    with pytest.raises(seqloom.InvalidArgument):
        await run.save("../x")
    expected = await client.gradients("m", xs, labels)
    norm = np.sqrt(sum((g**2).sum() for g in expected.parameters.values()))
    assert (await run.step(expected_step=1)).gradient_norm == pytest.approx(norm)


@pytest.mark.parametrize("rate", [0, -1.0, np.nan, np.inf, "fast", True])
def test_an_optimizers_learning_rate_is_a_finite_number_above_0(rate):
    for make in (seqloom.SGD, seqloom.Adam, seqloom.AdamW):
        with pytest.raises(seqloom.InvalidArgument, match="lr: is"):
            make(rate)


@pytest.mark.parametrize("rate", [-1.0, np.nan, np.inf, "fast", True])
async def test_a_steps_learning_rate_is_a_finite_number_of_at_least_0(training, rate):
    _, client = training
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
    with pytest.raises(seqloom.InvalidArgument, match="learning_rate: is"):
        await run.step(rate)
    run.forward_backward(*call_of(1))
    assert (await run.step()).step_number == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"momentum": -0.1}, "momentum: is -0.1"),
        ({"momentum": 1.0}, "momentum: is 1.0: expected a number of at least 0 and below 1"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]: is 1.0"),
        ({"betas": 0.9}, "betas: is 0.9"),
        ({"epsilon": 0}, "epsilon: is 0"),
        ({"weight_decay": -1}, "weight_decay: is -1"),
    ],
)
def test_an_optimizers_settings_are_checked(options, words):
    with pytest.raises(seqloom.InvalidArgument, match=words):
        (seqloom.SGD if "momentum" in options else seqloom.Adam)(0.1, **options)


async def test_a_run_is_found_listed_saved_loaded_and_deleted(training, tmp_path):
    _, client = training
    run = await client.create_run("m", optimizer=seqloom.AdamW(0.1), clip_norm=2.0, checkpoint_interval=7)
    assert (run.model, run.spec.hidden_size) == ("m", 6)
    for _ in range(2):
        run.forward_backward(*call_of(1))
        await run.step()
    assert await run.save("two") == 2
    saved = await weights_of(client, run, tmp_path / "saved")
    run.forward_backward(*call_of(2))
    await run.step()
    other = await client.attach_run(run.id)
    other.forward_backward(*call_of(3))
    info = await other.info()
    assert (info.id, info.step, info.optimizer, info.clip_norm) == (run.id, 3, seqloom.AdamW(0.1), 2.0)
    assert (info.checkpoint_interval, info.checkpoints, info.weights_version) == (7, ("two",), 1)
    assert await other.checkpoints() == ["two"]
    assert [each.id for each in await client.runs()] == [run.id]
    assert await other.load("two") == 2
    assert_weights(await weights_of(client, other, tmp_path / "loaded"), saved, rtol=0)
    await run.delete()
    with pytest.raises(seqloom.NotFound) as gone:
        await other.forward_backward(*call_of(1))
    assert gone.value.reason == "RUN_NOT_FOUND"
    with pytest.raises(seqloom.Cancelled):
        run.forward_backward(*call_of(1))
    with pytest.raises(seqloom.NotFound):
        await client.attach_run(run.id)
    with pytest.raises(seqloom.NotFound):
        await client.delete_run(run.id)
    assert await client.runs() == []


async def test_published_weights_are_served_and_open_streams_keep_theirs(training):
    _, client = training
    (x, *_), labels = call_of(1, count=1)
    run = await client.create_run("m", optimizer=seqloom.SGD(0.5))
    async with client.stream("m") as stream:
        before = await client.infer("m", [x])
        run.forward_backward([x], labels)
        await run.step()
        version = await run.publish()
        after = await client.infer("m", [x])
        await stream.send(x)
        live = await stream.receive()
    assert (before.weights_version, version, after.weights_version) == (1, 2, 2)
    np.testing.assert_allclose(live.outputs, before.outputs[0], rtol=1e-9, atol=1e-12)
    assert np.abs(after.outputs[0] - before.outputs[0]).max() > 1e-3


async def test_the_callers_arrays_may_change_as_soon_as_the_call_is_made(training):
    _, client = training
    xs, labels = call_of(1)
    expected = (await client.gradients("m", xs, labels)).loss
    run = await client.create_run("m", optimizer=seqloom.SGD(0.5))
    future = run.forward_backward(xs, labels)
    for array in (*xs, *labels):
        array[:] = 0
    assert (await future).loss == pytest.approx(expected, rel=1e-12)


async def test_a_caller_that_runs_out_of_time_loses_neither_the_call_nor_the_order(training):
    served, _ = training
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
        proxy.open.clear()
        late = run.forward_backward(*call_of(1), timeout=0.2)
        with pytest.raises(seqloom.DeadlineExceeded):
            await late
        step = asyncio.create_task(run.step())
        proxy.open.set()
        assert (await step).step_number == 1
        assert (await run.info()).accumulated_calls == 0


async def test_more_than_may_be_in_flight_waits_in_line_and_what_never_left_it_is_withdrawn(training):
    served, _ = training
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
        proxy.open.clear()
        futures = [run.forward_backward(*call_of(n)) for n in range(100)]
        waits = run.forward_backward(*call_of(100), timeout=0.1)
        with pytest.raises(seqloom.DeadlineExceeded):
            await waits
        futures[99].cancel()
        proxy.open.set()
        await asyncio.gather(*futures[:99])
        assert (await run.info()).accumulated_calls == 99


async def test_what_is_kept_to_be_sent_again_is_bounded_by_having_it_saved(training):
    _, client = training
    bound = 20_000
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1), checkpoint_interval=0, replay_bytes=bound)
    futures, kept = [], []
    for n in range(60):
        futures.append(run.forward_backward(*call_of(n, count=4)))
        futures[-1].add_done_callback(lambda _: kept.append(run._delivery._log.size))
        if n % 10 == 9:
            await run.step()
    await asyncio.gather(*futures)
    assert max(kept) <= bound
    assert (await run.info()).durable_step > 0


async def test_a_run_that_is_closed_waits_for_its_calls_and_has_them_saved(training):
    _, client = training
    async with await client.create_run("m", optimizer=seqloom.SGD(0.1), checkpoint_interval=0) as run:
        futures = [run.forward_backward(*call_of(n)) for n in range(5)]
        step = asyncio.ensure_future(run.step())
        await asyncio.sleep(0)
    assert all(future.done() for future in futures)
    assert (await step).step_number == 1
    with pytest.raises(seqloom.Cancelled):
        run.forward_backward(*call_of(1))
    again = await client.attach_run(run.id)
    assert (await again.info()).durable_step == 1


async def test_who_waits_is_told_when_the_client_is_closed(training):
    served, _ = training
    async with proxy_of(served.address) as proxy:
        client = seqloom.AsyncClient(proxy.address, timeout=30)
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
        proxy.open.clear()
        futures = [run.forward_backward(*call_of(n)) for n in range(70)]
        await client.close()
        for future in futures:
            with pytest.raises(seqloom.Cancelled):
                await future


async def test_several_clients_train_one_run_as_one_would(training, tmp_path):
    served, client = training
    reference = Reference(served.networks["m"])
    run = await client.create_run("m", optimizer=seqloom.SGD(0.02))
    others = [await client.attach_run(run.id) for _ in range(4)]
    steps = [[call_of(10 * k + n) for n in range(8)] for k in range(6)]
    for number, calls in enumerate(steps, 1):
        results = await asyncio.gather(*(others[n % 4].forward_backward(*call) for n, call in enumerate(calls)))
        assert {result.step for result in results} == {number}
        await run.step(expected_step=number)
    reference.train(torch.optim.SGD(reference.parameters.values(), 0.02), steps)
    assert_weights(await weights_of(client, run, tmp_path / "m"), reference.parameters, **EXACT)


async def test_a_step_under_way_and_later_calls_of_others_do_not_mix(training):
    _, client = training
    run = await client.create_run("m", optimizer=seqloom.SGD(0.01))
    other = await client.attach_run(run.id)
    seen = []
    for n in range(10):
        futures = [run.forward_backward(*call_of(n)), other.forward_backward(*call_of(n + 50))]
        step, *results = await asyncio.gather(run.step(), *futures)
        seen.append((step.step_number, results[0].step, results[1].step))
    for step, mine, theirs in seen:
        assert mine == step
        assert theirs in (step, step + 1)


async def test_the_blocking_run_is_the_same_from_many_threads(training, tmp_path):
    served, _ = training
    reference = Reference(served.networks["m"])
    calls = [call_of(n) for n in range(16)]

    def train(_):
        with seqloom.Client(served.address, timeout=30) as client:
            with client.create_run("m", optimizer=seqloom.SGD(0.02)) as run:
                with pytest.raises(seqloom.InvalidArgument, match="targets"):
                    run.forward_backward(calls[0][0], [[0]])
                futures = [run.forward_backward(*call) for call in calls]
                assert run.step().step_number == 1
                assert {future.result().step for future in futures} == {1}
                assert run.info().step == 1
            with pytest.raises(seqloom.Cancelled):
                run.step()
            return run.id

    ids = await in_threads(train, range(4))
    assert len(set(ids)) == 4
    reference.train(torch.optim.SGD(reference.parameters.values(), 0.02), [calls])
    async with seqloom.AsyncClient(served.address) as client:
        for n, each in enumerate(ids):
            run = await client.attach_run(each)
            assert_weights(await weights_of(client, run, tmp_path / str(n)), reference.parameters, **EXACT)


async def test_one_run_is_used_by_many_threads_of_one_client(training):
    served, client = training
    run_id = (await client.create_run("m", optimizer=seqloom.SGD(0.02))).id
    with seqloom.Client(served.address, timeout=30) as blocking:
        (run,) = await in_threads(blocking.attach_run, [run_id])
        results = await in_threads(lambda n: run.forward_backward(*call_of(n)).result(), range(12))
        assert {result.step for result in results} == {1}
        (info,) = await in_threads(lambda run: run.info(), [run])
        assert info.accumulated_calls == 12


async def test_a_run_of_an_unknown_model_is_not_made_and_its_settings_are_checked(training):
    _, client = training
    with pytest.raises(seqloom.NotFound):
        await client.create_run("other", optimizer=seqloom.SGD(0.1))
    with pytest.raises(seqloom.VersionMismatch):
        await client.create_run("m", optimizer=seqloom.SGD(0.1), weights_version=9)
    for options, words in (
        ({"optimizer": "sgd"}, "optimizer: is a str"),
        ({"clip_norm": 0}, "clip_norm: is 0"),
        ({"checkpoint_interval": -1}, "checkpoint_interval"),
        ({"replay_bytes": 0}, "replay_bytes"),
    ):
        with pytest.raises(seqloom.InvalidArgument, match=words):
            await client.create_run("m", **{"optimizer": seqloom.SGD(0.1), **options})
    assert await client.runs() == []


async def test_a_run_is_made_once_though_its_making_was_asked_for_twice(training):
    served, _ = training
    async with proxy_of(served.address) as proxy, seqloom.AsyncClient(proxy.address, timeout=30) as client:
        await client.models()
        proxy.open.clear()
        making = asyncio.create_task(client.create_run("m", optimizer=seqloom.SGD(0.1)))
        await until(lambda: served.engine.runs.all())
        proxy.cut()
        proxy.open.set()
        run = await making
    assert [each.meta.id for each in served.engine.runs.all()] == [run.id]


async def test_a_call_larger_than_a_message_is_that_of_its_sequences_together(serve, tmp_path):
    spec = ModelSpec(cell="elman", input_size=64, hidden_size=8, output_size=5, dtype="float64")
    draw = np.random.default_rng(0)
    xs = [draw.standard_normal((steps, 64)) for steps in (6000, 2000, 3000)]
    labels = [draw.integers(0, 5, len(x)) for x in xs]
    async with serve({"m": spec}, runs=str(tmp_path / "runs")) as served, seqloom.AsyncClient(served.address) as client:
        run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
        whole = await run.forward_backward(xs, labels)
        together = await run.step()
        parts = [await client.gradients("m", [x], [y]) for x, y in zip(xs, labels, strict=True)]
    assert sum(x.nbytes for x in xs) > 4 << 20
    np.testing.assert_allclose(whole.losses, [part.loss for part in parts], rtol=1e-9)
    total = [sum(part.parameters[name] for part in parts) for name in parts[0].parameters]
    assert together.gradient_norm == pytest.approx(np.sqrt(sum((g**2).sum() for g in total)), rel=1e-9)


async def test_the_blocking_close_raises_what_the_asynchronous_one_does(training):
    served, _ = training
    async with proxy_of(served.address) as proxy:

        def train():
            with seqloom.Client(proxy.address, timeout=30) as client:
                run = client.create_run("m", optimizer=seqloom.SGD(0.1))
                run.forward_backward(*call_of(1)).result()
                for wrong in (-1, 0, "soon"):
                    with pytest.raises(seqloom.InvalidArgument, match="timeout: is"):
                        run.close(timeout=wrong)
                run.forward_backward(*call_of(2)).result()  # it is open still, and what was called is kept
                proxy.open.clear()
                pending = run.forward_backward(*call_of(3))
                with pytest.raises((seqloom.DeadlineExceeded, seqloom.Unavailable)):
                    run.close(timeout=0.5)
                with pytest.raises(seqloom.Cancelled):
                    pending.result(30)
                proxy.open.set()
            with pytest.raises(seqloom.Cancelled):  # of what was called something was never saved
                run.close()
            client.close()

        await in_threads(lambda _: train(), [0])


async def test_leaving_the_block_of_a_blocking_run_raises_what_keeps_it_from_being_saved(training):
    served, _ = training

    def train():
        with seqloom.Client(served.address, timeout=1) as client:
            run = client.create_run("m", optimizer=seqloom.SGD(0.1))
            with run:
                run.forward_backward(*call_of(1)).result()
                client.delete_run(run.id)

    with pytest.raises(seqloom.NotFound) as gone:
        await in_threads(lambda _: train(), [0])
    assert gone.value.reason == "RUN_NOT_FOUND"


async def test_a_client_of_a_run_that_nobody_holds_is_collected_with_all_its_tasks(training):
    served, _ = training
    before = asyncio.all_tasks()
    client = seqloom.AsyncClient(served.address)
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
    await run.forward_backward(*call_of(1))
    await run.save()
    connection = weakref.ref(client._connection)
    del client, run
    gc.collect()
    assert connection() is None
    own = asyncio.current_task()
    await until(
        lambda: not [task for task in asyncio.all_tasks() - before if task is not own and "_watch" in repr(task)]
    )


@pytest.mark.parametrize("call", ["publish", "load", "save"])
async def test_a_checkpoint_that_memory_does_not_suffice_for_is_no_call_that_was_not_done(training, monkeypatch, call):
    served, client = training
    run = await client.create_run("m", optimizer=seqloom.SGD(0.1))
    await run.save("a")

    def no_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_run", no_memory)
        with pytest.raises(seqloom.Internal) as refused:
            await getattr(run, call)(*(["a"] if call == "load" else []))
    assert refused.value.reason == "STORAGE_FAILED"
    assert served.value("run_save_failures_total") == 1
    await run.forward_backward(*call_of(1))
    assert (await run.step()).step == 1
