"""Runs over a real channel: what steps do, exactly once, order, barriers, checkpoints, publishing, restarts."""

import asyncio
import signal

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.raw_calls import frames, infer, infer_request, refused
from helpers.raw_training_calls import ADAM, Client, create_run, examples, gradients, in_parts, labels, stub
from helpers.real_server import SMALL, open_channel, until, write_models
from safetensors.numpy import load_file
from seqloom import tensors
from seqloom.v1 import tensor_pb2
from seqloom.v1 import training_service_pb2 as pb


def batch(n):
    """Two sequences of their own for each n."""
    xs = [frames(5 + n % 4, seed=2 * n), frames(3, seed=2 * n + 1)]
    return examples(xs, labels(sum(map(len, xs)), seed=n))


def weights_of(served, model="small"):
    return load_file(served.models / model / "model.safetensors")


async def published(served, client):
    await client.publish()
    return weights_of(served)


async def test_steps_apply_the_sum_of_what_was_accumulated(served, channel):
    before = weights_of(served)
    parts = [await gradients(channel, batch(n), parameter_form=pb.PARAMETER_FORM_DENSE) for n in range(3)]
    client = Client(channel, (await create_run(channel)).id)
    for n in range(3):
        reply = await client.forward_backward(batch(n))
        assert reply.step == 1
        assert reply.loss == pytest.approx(parts[n].summary.loss)
    stepped = await client.step()
    assert stepped.step == 1
    total = {name: sum(part.parameters()[name] for part in parts) for name in before}
    norm = np.sqrt(sum(np.square(gradient, dtype=float).sum() for gradient in total.values()))
    assert stepped.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert served.value("optimizer_steps_total", model="small") == 1
    after = await published(served, client)
    for name, weight in before.items():
        np.testing.assert_allclose(after[name], weight - 0.1 * total[name], rtol=1e-5, atol=1e-6)


async def test_a_step_clips_takes_its_own_rate_and_clears(served, channel):
    before = weights_of(served)
    client = Client(channel, (await create_run(channel, clip_norm=0.5)).id)
    await client.forward_backward()
    stepped = await client.step(learning_rate=0.25)
    assert stepped.gradient_norm > 0.5
    after = await published(served, client)
    moved = np.sqrt(sum(np.square(after[name] - before[name], dtype=float).sum() for name in before))
    assert moved == pytest.approx(0.25 * 0.5, rel=1e-4)
    assert (await refused(client.step())).reason == "NOTHING_ACCUMULATED"


async def test_the_same_call_again_gets_the_same_reply_and_adds_nothing(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    first = await client.forward_backward(batch(0), number=1)
    again = await client.forward_backward(batch(0), number=1)
    assert (again.loss, again.losses, again.step) == (first.loss, first.losses, first.step)
    assert (await client.get()).accumulated_calls == 1
    once = await client.step(number=2)
    assert (await client.step(number=2)).gradient_norm == once.gradient_norm
    assert (await client.get()).step == 1
    assert served.value("deduplicated_calls_total", model="small") == 2
    failure = await refused(client.forward_backward(batch(1), number=1))
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "CALL_CHANGED")
    assert (await refused(client.step(number=2, learning_rate=0.5))).reason == "CALL_CHANGED"


async def test_a_repeat_while_the_first_try_is_under_way_waits_for_it(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    replies = await asyncio.gather(*(client.forward_backward(batch(0), number=1) for _ in range(5)))
    assert len({reply.loss for reply in replies}) == 1
    assert (await client.get()).accumulated_calls == 1


async def test_a_reply_that_was_acknowledged_is_forgotten(served, channel):
    run = (await create_run(channel)).id
    client = Client(channel, run)
    await client.forward_backward(number=1)
    request = pb.ForwardBackwardRequest(call=client.id(2, acknowledged=1), examples=batch(0))
    await stub(channel).ForwardBackward(in_parts(request), timeout=30)
    failure = await refused(client.forward_backward(number=1))
    assert (failure.code, failure.reason) == ("FAILED_PRECONDITION", "CALL_FORGOTTEN")


def waiting_calls(served):
    """How many calls wait for earlier ones."""
    return sum(len(run.calls._held) for run in served.engine.runs.all())


async def test_calls_that_arrive_out_of_order_are_done_in_order(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    step = asyncio.ensure_future(client.step(number=3))
    second = asyncio.ensure_future(client.forward_backward(batch(1), number=2))
    await until(lambda: waiting_calls(served) == 2)
    assert not step.done()
    await client.forward_backward(batch(0), number=1)
    assert (await second).step == 1
    assert (await step).step == 1
    wanted = Client(channel, (await create_run(channel)).id)
    for n in (0, 1):
        await wanted.forward_backward(batch(n))
    assert (await wanted.step()).gradient_norm == pytest.approx((await client.step(number=3)).gradient_norm, rel=1e-5)


async def test_several_clients_share_a_run_and_its_batches(served, channel):
    run = (await create_run(channel)).id
    clients = [Client(channel, run, f"client{n}") for n in range(8)]
    replies = await asyncio.gather(*(client.forward_backward(batch(n)) for n, client in enumerate(clients)))
    assert {reply.step for reply in replies} == {1}
    stepped = await clients[0].step()
    assert stepped.calls == {f"client{n}": 1 + (n == 0) for n in range(8)}
    alone = Client(channel, (await create_run(channel)).id)
    for n in range(8):
        await alone.forward_backward(batch(n))
    assert (await alone.step()).gradient_norm == pytest.approx(stepped.gradient_norm, rel=1e-5)


async def test_a_checkpoint_brings_everything_back(served, channel):
    client = Client(channel, (await create_run(channel, ADAM)).id)
    for n in range(3):
        await client.forward_backward(batch(n))
        await client.step()
    await client.forward_backward(batch(3))
    saved = await client.save("early")
    assert saved.progress.durable_step == 3
    first = []
    for n in range(4, 7):
        await client.forward_backward(batch(n))
        first.append((await client.step()).gradient_norm)
    wanted = await published(served, client)
    await client.load("early")
    assert (await client.get()).step == 3
    assert (await client.get()).accumulated_calls == 1
    second = []
    for n in range(4, 7):
        await client.forward_backward(batch(n))
        second.append((await client.step()).gradient_norm)
    assert first == second
    got = await published(served, client)
    for name, weight in wanted.items():
        np.testing.assert_array_equal(got[name], weight)
    assert (await client.get()).checkpoints == ["early"]


async def test_publishing_serves_new_weights_while_open_streams_keep_theirs(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    await client.forward_backward()
    await client.step()
    old = (await infer(channel, infer_request("small", frames(4)))).outputs.values
    reply = await client.publish()
    assert reply.weights_version == 2
    new = await infer(channel, infer_request("small", frames(4)))
    assert new.weights_version == 2
    assert not np.allclose(tensors.decode(new.outputs.values), tensors.decode(old))
    assert served.value("weights_version", model="small") == 2
    assert (await client.publish()).weights_version == 3


async def test_a_run_that_is_deleted_is_gone(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    await client.forward_backward()
    waiting = asyncio.ensure_future(client.forward_backward(number=9))
    await asyncio.sleep(0)
    await stub(channel).DeleteRun(pb.DeleteRunRequest(run=client.run), timeout=30)
    assert (await refused(waiting)).reason == "RUN_NOT_FOUND"
    assert (await refused(client.step())).reason == "RUN_NOT_FOUND"
    assert (await stub(channel).ListRuns(pb.ListRunsRequest(), timeout=30)).runs == []
    assert not list(served.models.parent.glob(f"*-runs/{client.run}"))


async def test_a_run_is_made_once_however_often_it_is_asked_for(served, channel):
    first = await create_run(channel, request_id="abc")
    assert (await create_run(channel, request_id="abc")).id == first.id
    assert (await create_run(channel, request_id="abd")).id != first.id


async def test_runs_are_bounded(serve):
    async with serve(max_runs=2, max_held_calls=3) as served, open_channel(served.address) as channel:
        run, _ = await create_run(channel), await create_run(channel)
        failure = await refused(create_run(channel))
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.retry_after
        client = Client(channel, run.id)
        held = [asyncio.ensure_future(client.forward_backward(number=n)) for n in (2, 3, 4)]
        await until(lambda: waiting_calls(served) == 3)
        assert (await refused(client.forward_backward(number=5))).reason == "OVERLOADED"
        assert served.value("rejected_total", reason="runs") == served.value("rejected_total") == 2
        await client.forward_backward(number=1)
        await asyncio.gather(*held)


async def _train(client, start, end):
    for n in range(start, end):
        await client.forward_backward(batch(n))
        await client.step()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_server_that_ends_loses_nothing_that_it_called_durable(server_process, tmp_path, how):
    write_models(tmp_path, {"small": SMALL})
    first = server_process("--models", tmp_path)
    async with open_channel(first.address) as channel:
        run = await create_run(channel, ADAM, checkpoint_interval=2)
        client = Client(channel, run.id)
        await _train(client, 0, 5)
        for _ in range(200):
            if (await client.get()).durable_step == 4:
                break
            await asyncio.sleep(0.02)
        before = await client.get()
    first.end(how)
    second = server_process("--models", tmp_path)
    async with open_channel(second.address) as channel:
        again = Client(channel, run.id)
        after = await again.get()
        assert after.step == after.durable_step == (5 if how == signal.SIGTERM else 4)
        assert after.calls_done == (10 if how == signal.SIGTERM else 8)
        assert before.step == 5
        reply = await again.forward_backward(batch(3), number=7)  # its reply was kept
        assert reply.step == 4
        if how == signal.SIGKILL:  # the step that was lost is done again, before anything new
            other = Client(channel, run.id, "bob")
            new = asyncio.ensure_future(other.forward_backward(batch(9)))
            await asyncio.sleep(0.1)
            assert not new.done()
            assert "step 5" in (await again.get()).waiting_for
            await again.forward_backward(batch(4), number=9, step=5)
            assert (await again.step(number=10, step=5)).step == 5
            assert (await new).step == 6
    second.end(signal.SIGTERM)


async def test_the_weights_after_a_kill_are_those_of_an_unbroken_run_bit_for_bit(server_process, tmp_path):
    finals = []
    for kill in (False, True):
        models = tmp_path / f"models{kill}"
        write_models(models, {"small": SMALL})
        server = server_process("--models", models)
        async with open_channel(server.address) as channel:
            run = await create_run(channel, ADAM, checkpoint_interval=3)
            client = Client(channel, run.id)
            await _train(client, 0, 8)
        if kill:
            server.end(signal.SIGKILL)
            server = server_process("--models", models)
        async with open_channel(server.address) as channel:
            done = (await Client(channel, run.id).get()).calls_done
            again = Client(channel, run.id)
            assert done <= 16
            for number in range(done + 1, 25):
                call = (
                    again.forward_backward(batch((number - 1) // 2), number=number)
                    if number % 2
                    else again.step(number=number)
                )
                await call
            await again.publish(number=25)
        finals.append(load_file(models / "small" / "model.safetensors"))
        server.end(signal.SIGTERM)
    for name, weight in finals[0].items():
        np.testing.assert_array_equal(finals[1][name], weight)


async def test_health_names_the_service(served, channel):
    reply = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service="seqloom.v1.TrainingService"), timeout=30
    )
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_save_is_durable_with_itself_and_all_before_it(server_process, tmp_path):
    write_models(tmp_path, {"small": SMALL})
    first = server_process("--models", tmp_path)
    async with open_channel(first.address) as channel:
        run = await create_run(channel, checkpoint_interval=0)
        saved = await Client(channel, run.id, "bob").save("empty")  # the first call of its client
        assert saved.progress.calls_durable == 1
        client = Client(channel, run.id)
        await client.forward_backward(batch(0))
        assert (await client.save()).progress.calls_durable == 2
    first.end(signal.SIGKILL)
    second = server_process("--models", tmp_path)
    async with open_channel(second.address) as channel:
        client = Client(channel, run.id)
        found = await client.get()
        assert (found.accumulated_calls, found.calls_done, found.checkpoints) == (1, 2, ["empty"])
        await client.save(number=2)  # the same again: nothing is refused
        assert (await client.step(number=3)).step == 1


async def test_the_same_call_cut_in_other_parts_is_the_same_call(served, channel):
    client = Client(channel, (await create_run(channel)).id)
    whole = batch(0)
    first = await client.forward_backward(whole, number=1)
    rows, ys = tensors.decode(whole.sequences.rows), tensors.decode(whole.targets)
    head = pb.Examples()
    head.CopyFrom(whole)
    head.sequences.rows.CopyFrom(tensors.encode(rows[:3]))
    head.targets.CopyFrom(tensors.encode(ys[:1]))
    rest = pb.Examples(
        sequences=tensor_pb2.SequenceBatch(rows=tensors.encode(rows[3:])), targets=tensors.encode(ys[1:])
    )
    parts = [
        pb.ForwardBackwardRequest(call=client.id(1), examples=head),
        pb.ForwardBackwardRequest(examples=rest),
    ]
    again = await stub(channel).ForwardBackward(in_parts(*parts), timeout=30)
    assert again.losses == first.losses
    assert (await client.get()).accumulated_calls == 1


async def test_a_step_that_tells_of_steps_that_nobody_lost_holds_nobody_up(served, channel):
    run = (await create_run(channel)).id
    client, liar = Client(channel, run), Client(channel, run, "liar")
    request = pb.OptimStepRequest(call=liar.id(5, step=1), calls={"ghost": 2**62})
    with pytest.raises(grpc.aio.AioRpcError):
        await stub(channel).OptimStep(request, timeout=0.2)
    assert (await client.get()).waiting_for == ""
    await client.forward_backward()
    assert (await client.step()).step == 1


async def test_a_publish_for_which_there_is_no_room_may_be_tried_again(serve):
    async with serve(max_live_versions=1, max_live_bytes=0) as served, open_channel(served.address) as channel:
        client = Client(channel, (await create_run(channel)).id)
        weights = served.engine.registry.current("small")
        served.engine.registry.hold(weights)  # as an open stream does
        failure = await refused(client.publish(number=1))
        assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert served.value("rejected_total", reason="models") == served.value("rejected_total") == 1
        served.engine.registry.release(weights)
        assert (await client.publish(number=1)).weights_version == 2
