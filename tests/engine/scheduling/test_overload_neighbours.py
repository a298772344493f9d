"""Overload, tried in virtual time: no caller, no class and no length of sequence pays for another."""

import random

import pytest
from helpers.arrivals import at_once, between, bursty, fixed, heavy_tailed, poisson, speech_like
from helpers.call_tally import tally
from helpers.overload_simulation import NETWORKS, assert_clean, capacity, make_device
from helpers.simulated_callers import Caller, ClosedLoop
from helpers.simulated_streams import delay, open_streams
from helpers.virtual_device import TimedWeights, VirtualDevice
from seqloom_server.engine.core.limits import SchedulerLimits

SECONDS = 5.0


def fixed_steps(network):
    return fixed(NETWORKS[network].steps)


def modest_calls(network, flood_timeout=None):
    """Returns (device, tally) of ten calls a second, beside a flood of 4,000 calls under way if that has a timeout."""
    device, weights = make_device(network)
    lengths = fixed_steps(network)
    modest = Caller(device, weights, lengths, between(poisson(10), 0.0, SECONDS), name="modest")
    if flood_timeout is not None:
        ClosedLoop(device, weights, lengths, timeout=flood_timeout, width=4000, until=SECONDS, name="flood")
    device.run(until=SECONDS + 2)
    return device, tally([modest], 1.0, SECONDS + 2)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("flood_timeout", [1.0, 30.0])
def test_a_modest_caller_beside_a_flood_waits_for_two_slices_more_at_most(network, flood_timeout):
    _, alone = modest_calls(network)
    device, beside = modest_calls(network, flood_timeout)
    assert (beside.refused, beside.dropped, beside.late) == (0, 0, 0), beside
    assert beside.delay(99) <= alone.delay(99) + 2 * device.longest_slice, f"alone {alone}\nbeside {beside}"


@pytest.mark.parametrize("network", NETWORKS)
def test_two_callers_who_offer_too_much_share_the_device(network):
    peak = capacity(network)
    device, weights = make_device(network)
    greedy, moderate = (
        Caller(device, weights, fixed_steps(network), between(poisson(factor * peak), 0.0, SECONDS), name=str(factor))
        for factor in (3.0, 0.45)
    )
    device.run()
    assert_clean(device, greedy, moderate)
    assert tally([moderate], 1.0, SECONDS).kept >= 0.95
    assert tally([greedy], 1.0, SECONDS).goodput >= 0.45 * peak


@pytest.mark.parametrize("network", NETWORKS)
def test_callers_who_give_up_cost_nothing_from_then_on(network):
    peak = capacity(network)
    device, weights = make_device(network)
    patient, impatient = (
        Caller(
            device, weights, fixed_steps(network), between(poisson(peak), 0.0, SECONDS), name=name, patience=patience
        )
        for name, patience in (("patient", None), ("impatient", lambda draw: draw.uniform(0.0, 0.3)))
    )
    device.run()
    assert_clean(device, patient, impatient)
    line = tally([patient], 1.0, SECONDS)
    assert line.goodput >= 0.45 * peak, line
    assert line.wasted <= 0.05, line


def test_a_crowd_that_gives_up_leaves_only_the_slice_in_flight():
    device, weights = make_device()
    crowd = Caller(device, weights, fixed(43), at_once(5000), timeout=None, patience=lambda draw: 0.25)
    device.run(until=0.25)
    begun = device.slices
    lone = Caller(device, weights, fixed(43), at_once(1, 0.3), name="lone")
    device.run()
    assert_clean(device, crowd, lone)
    assert device.slices <= begun + 1
    assert lone.calls[0].outcome == "good"


def long_and_short(names, longs, shorts, seconds=60.0):
    """Returns (device, long, short): those answered, of callers who always have so many sequences of 2000 and of 20
    steps under way."""
    device, weights = make_device()
    long = ClosedLoop(device, weights, fixed(2000), timeout=None, width=longs, until=seconds, name=names[0])
    short = ClosedLoop(device, weights, fixed(20), timeout=None, width=shorts, until=seconds, name=names[1])
    device.run()
    assert_clean(device, long, short)
    assert {call.outcome for caller in (long, short) for call in caller.calls} <= {"good", "refused", "dropped"}
    return device, *([call for call in caller.calls if call.outcome == "good"] for caller in (long, short))


def slowest(calls):
    return max(call.ended - call.arrived for call in calls)


@pytest.mark.parametrize("names", [("same", "same"), ("long", "short")])
def test_a_crowd_of_long_sequences_does_not_block_short_ones(names):
    device, long, short = long_and_short(names, 400, 2)
    assert long
    assert short
    assert slowest(short) <= slowest(long), "a short one waits no longer than those that were there before it"
    if names[0] != names[1]:
        assert slowest(short) <= 5 * device.longest_slice


@pytest.mark.parametrize("names", [("same", "same"), ("long", "short")])
def test_a_crowd_of_short_sequences_does_not_block_long_ones(names):
    device, long, short = long_and_short(names, 2, 400)
    # cut to the length of the short ones, a long one needs 100 slices
    assert slowest(long) <= 1.5 * 100 * device.longest_slice
    assert len(short) * 20 >= 10 * len(long) * 2000


def test_every_class_keeps_its_share_under_a_flood_of_everything():
    device, weights = make_device("small")
    other = TimedWeights(weights.true_cost, model="other")  # so that whole sequences cannot ride along with streams
    device.train()
    open_streams(device, weights, 400, chunk=200, interval=0.1, window=400)
    ClosedLoop(device, other, fixed(450), width=1000)
    device.run(until=10.0)
    for op, share in SchedulerLimits().shares.items():
        assert device.used[op] >= 0.95 * share * device.busy_seconds, (op, device.used)


def with_streams(network, rate=None):
    """Returns (streams, tally of whole sequences): 20 elastic streams of 100 frames a second, beside so many calls a
    second, or beside callers who wait for their answers."""
    device, weights = make_device(network)
    streams = open_streams(device, weights, 20, ends=SECONDS)
    if rate is None:
        caller = ClosedLoop(device, weights, fixed_steps(network), timeout=None, width=128, until=SECONDS)
    else:
        times = between(poisson(rate), 0.0, SECONDS) if rate else None
        caller = Caller(device, weights, fixed_steps(network), times)
    device.run()
    assert_clean(device, caller)
    return device, streams, tally([caller], 1.0, SECONDS)


@pytest.mark.parametrize("network", NETWORKS)
def test_whole_sequences_beside_live_streams_keep_their_goodput_and_the_streams_their_delay(network):
    _, _, closed = with_streams(network)
    _, alone, _ = with_streams(network, 0.0)
    for factor in (0.8, 2.0):
        device, streams, line = with_streams(network, factor * closed.goodput)
        assert line.goodput >= 0.9 * min(closed.goodput, line.offered / line.seconds), (factor, line)
        assert line.wasted <= 0.05, (factor, line)
        assert not any(stream.refused for stream in streams)
        assert delay(streams, 99) <= delay(alone, 99) + 2 * device.longest_slice


@pytest.mark.parametrize("seed", range(12))
def test_whatever_callers_do_everything_ends_once_and_nothing_is_left(seed):
    draw = random.Random(seed)
    slow = draw.uniform(1.0, 4.0)
    device = VirtualDevice(
        seed=seed, failing=0.05, noise=0.3, slowness=lambda now: slow if 1.0 < now < 2.0 else 1.0, max_queue_items=3000
    )
    networks = [TimedWeights(NETWORKS[name].cost, guess=draw.uniform(0.1, 10), model=name) for name in NETWORKS]
    callers = []
    for number in range(draw.randrange(2, 8)):
        network = draw.choice(list(NETWORKS))
        rate = draw.uniform(0.05, 2.0) * capacity(network)
        most = draw.choice([0.05, 1.0, 20.0])
        callers.append(
            Caller(
                device,
                networks[list(NETWORKS).index(network)],
                draw.choice([speech_like, heavy_tailed])(NETWORKS[network].steps),
                between(draw.choice([poisson, bursty])(rate), 0.0, 3.0),
                timeout=draw.choice([None, 0.02, 0.3, 1.0, 30.0]),
                patience=draw.choice([None, lambda random, most=most: random.uniform(0.0, most)]),
                repeats=draw.choice([0, 2]),
                name=f"caller {number % 4}",
            )
        )
    streams = open_streams(device, draw.choice(networks), draw.choice([0, 30]), ends=3.0)
    device.run()
    assert_clean(device, *callers)
    assert all(stream.over for stream in streams)
    assert device.scheduler.live_sessions == 0
