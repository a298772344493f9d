"""Live streams that keep the rate that they were promised go first; what comes faster, or has no rate, takes what is
left."""

import numpy as np
import pytest
from helpers.simulated_device import Device, KnownWeights, sequences_of
from seqloom_server.engine.core.sequence import Chunk, Op
from seqloom_server.engine.core.stream_group import GroupWork, StreamGroup

SLICE = 0.02  # seconds, of SchedulerLimits


def other_work(device, weights, kind, count=20):
    """Queues far more work of a kind than a slice takes."""
    crowd = device.open(weights, Op.STREAM if kind == "elastic" else Op.INFER, count)
    for sequence in crowd:
        device.push(sequence, 200)
    return crowd


@pytest.mark.parametrize("kind", ["elastic", "whole"])
@pytest.mark.parametrize("model", ["the same", "another"])
def test_a_stream_within_its_rate_is_in_the_very_next_slice_whatever_else_waits(kind, model):
    device, weights = Device(), KnownWeights()
    others = weights if model == "the same" else KnownWeights("other")
    (rated,) = device.open(weights, Op.STREAM, rate=100.0)
    crowd = other_work(device, others, kind)
    for _ in range(50):  # the others are owed their shares of time by then
        piece = device.start()
        assert piece.weights.cost.seconds(piece.steps, piece.cells) <= SLICE * 1.001
        came = device.now
        device.push(rated, 5)
        device.finish(piece)
        piece = device.start()
        assert sequences_of(piece)[0] is rated
        assert piece.members[0].steps == 5
        device.finish(piece)
        assert device.now - came <= 2 * SLICE * 1.001, "what ran, and its own"
        device.now = max(device.now, came + 0.05)
        for sequence in crowd:
            if sequence.waiting_steps < 100:
                device.push(sequence, 200)


def test_all_that_keep_their_rates_run_before_any_of_the_others():
    device, weights = Device(max_batch_sequences=8), KnownWeights()
    crowd = other_work(device, weights, "elastic")
    rated = device.open(weights, Op.STREAM, 20, rate=100.0)
    for stream in rated:
        device.push(stream, 2)
    first = [each for _ in range(3) for each in sequences_of(device.run())]
    assert set(first[:20]) == set(rated)
    assert set(first[20:]) <= set(crowd)


def test_one_that_sends_faster_than_its_rate_falls_behind_and_delays_no_other():
    device, weights = Device(), KnownWeights()
    greedy, modest = (device.open(KnownWeights(name), Op.STREAM, rate=50.0)[0] for name in ("greedy", "modest"))
    elastic = other_work(device, weights, "elastic", 1)[0]
    taken = dict.fromkeys((greedy, modest, elastic), 0)
    due = 0.0
    while device.now < 20.0:
        for stream in (greedy, elastic):
            while stream.waiting_steps < 1000:
                device.push(stream, 500)
        if device.now >= due:
            device.push(modest, 5)
            due, came = due + 0.1, device.now
        piece = device.run()
        for member in piece.members:
            taken[member.sequence] += member.steps
        if modest in sequences_of(piece):
            assert device.now - came <= 3 * SLICE * 1.001, "what ran, one of the other's, and its own"
    assert taken[modest] == pytest.approx(50 * 20, rel=0.02)
    # within its rate it goes first, and beyond that it is one of two that take turns at what is left
    assert taken[greedy] == pytest.approx(taken[elastic] + 50 * 20, rel=0.25)
    assert taken[elastic] > 0.8 * 0.45 * 20.0 / weights.cost.seconds(1, 1)


def test_a_burst_of_a_second_is_within_the_rate_and_no_more():
    device, weights = Device(), KnownWeights()
    (rated,) = device.open(weights, Op.STREAM, rate=10.0)
    ran = 0
    while True:
        device.push(rated, 5)
        if not rated.on_rate:
            break
        ran += sum(member.steps for member in device.run().members)
    assert ran == pytest.approx(10 + 5, abs=5)
    device.run()
    device.now += 2.0
    device.push(rated, 5)
    assert rated.on_rate, "it is again when it has waited"


def test_a_group_that_steps_its_halves_in_turn_keeps_the_rate_of_its_streams():
    device, weights = Device(), KnownWeights()
    (rated,) = device.open(weights, Op.STREAM, rate=100.0, group=StreamGroup(10, None))
    for number in range(300):
        for half in (np.arange(5), np.arange(5, 10)):
            frames = Chunk(np.zeros((1, 5, 1), "f4"), device.now, work=GroupWork(half))
            device.scheduler.push(rated, [frames], device.now)
            assert rated.on_rate
            device.run()
        device.now = max(device.now, 0.01 * (number + 1))
    assert device.now == pytest.approx(3.0)


def test_what_a_stream_did_not_send_is_not_saved_up():
    device, weights = Device(), KnownWeights()
    (rated,) = device.open(weights, Op.STREAM, rate=10.0)
    device.now = 1000.0
    ran = 0
    while ran < 1000:
        device.push(rated, 5)
        if not rated.on_rate:
            break
        ran += sum(member.steps for member in device.run().members)
    assert ran <= 20


def test_what_was_promised_is_taken_from_nobodys_share():
    """Whole sequences get the fraction that they are due of what is left, beside elastic streams."""
    device, busy = Device(), KnownWeights("rated")
    rated = device.open(busy, Op.STREAM, 4, rate=400.0)
    elastic = other_work(device, KnownWeights("elastic"), "elastic", 40)
    whole = other_work(device, KnownWeights("whole"), "whole", 1)[0]
    used, due = {"rated": 0.0, "elastic": 0.0, "whole": 0.0}, 0.0
    while device.now < 20.0:
        for sequence in (*elastic, whole):
            if sequence.waiting_steps < 100:
                device.push(sequence, 200)
        if device.now >= due:
            due += 0.1
            for stream in rated:
                device.push(stream, 40)
        before = device.now
        piece = device.run()
        used[piece.weights.model] += device.now - before
    left = 20.0 - used["rated"]
    assert used["rated"] > 0.5 * 20.0
    assert used["whole"] == pytest.approx(0.2 * left, rel=0.1)
    assert used["elastic"] == pytest.approx(0.8 * left, rel=0.1)
