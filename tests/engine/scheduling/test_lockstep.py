"""Streams that all wait for one another's slice are run by halves, so that callers and the device work at once."""

import collections

import pytest
from helpers.simulated_device import Device, KnownWeights, sequences_of
from seqloom_server.engine.core.sequence import Op


def speak(device, streams):
    """Each sends a chunk of 10 frames."""
    for stream in streams:
        device.push(stream, 10)


class Talk:
    """Streams in a closed loop, whose one client takes so many seconds for each answer and sends as it goes on.

    widths: how many members each slice had. rate: answers a second, once it has settled.
    """

    def __init__(self, count, digest, weights, slices=60, op=Op.STREAM):
        device = Device(slice_seconds=1.0, bulk_slice_seconds=1.0)
        device.now = start = 1e5  # a machine is up for a while before its server is
        self.widths = []
        back = collections.deque([(start, device.open(weights, op, count))])  # when, and who
        free, answers, settled = 0.0, 0, 0.0
        while len(self.widths) < slices:
            while back and back[0][0] <= device.now:
                speak(device, back.popleft()[1])
            piece = device.start()
            if piece is None:
                device.now = back[0][0]
                continue
            device.finish(piece)
            free = max(free, device.now) + digest * len(piece.members)
            back.append((free, sequences_of(piece)))
            self.widths.append(len(piece.members))
            if len(self.widths) == slices // 2:
                settled = device.now
            elif len(self.widths) > slices // 2:
                answers += len(piece.members)
        self.rate = answers / (device.now - settled)


def weights(fixed=0.0005):
    return KnownWeights(per_slice=fixed, per_step=1e-6, per_cell=5e-6)


@pytest.mark.parametrize("count", [32, 64, 129, 256])
def test_streams_in_step_run_by_halves(count):
    talk = Talk(count, 5e-5, weights())
    assert talk.widths[0] == count
    assert set(talk.widths[2:]) == {count // 2, count - count // 2}
    # both sides need 0.1 ms for two streams; one after the other that is half the rate
    in_turn = 1 / (5e-5 + 5e-5 + 0.0005 / count)
    assert talk.rate > 1.4 * in_turn


def test_few_streams_stay_together():
    assert set(Talk(31, 5e-5, weights()).widths) == {31}


def test_they_stay_together_where_another_slice_costs_more_than_the_device_idles():
    assert set(Talk(64, 5e-5, weights(fixed=0.01)).widths) == {64}


def test_streams_that_come_at_moments_of_their_own_run_as_they_come():
    device, served = Device(slice_seconds=1.0), weights()
    streams = device.open(served, Op.STREAM, 80)
    for moment in range(100):
        some = streams[:40] if moment % 2 else streams[40:]
        speak(device, some)
        assert len(device.run().members) == 40
        device.now += 0.1


def test_one_who_was_not_in_the_last_slice_keeps_all_together():
    device, served = Device(slice_seconds=1.0), weights()
    streams = device.open(served, Op.STREAM, 64)
    speak(device, streams[1:])
    device.run()
    device.now += 0.1
    speak(device, streams)
    assert len(device.run().members) == 64


def test_training_in_between_is_no_idle_time():
    device, served = Device(slice_seconds=1.0), weights()
    streams = device.open(served, Op.STREAM, 64)
    for _ in range(2):
        speak(device, streams)
        assert len(device.run().members) == 64
        device.now += 0.02
        device.scheduler.advanced(0.02, device.now, finished=False)


def test_what_is_left_runs_at_once():
    device, served = Device(slice_seconds=1.0), weights()
    streams = device.open(served, Op.STREAM, 64)
    for _ in range(2):
        speak(device, streams)
        first = device.run()
        device.now += 0.1 if len(first.members) == 64 else 0.0
    rest = device.run()
    assert sequences_of(first) + sequences_of(rest) == streams
    assert device.start() is None
