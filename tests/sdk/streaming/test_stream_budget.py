"""What the live sessions of a client hold together: never more than the budget and a chunk each, and none waits for
another that stalls."""

import asyncio
import collections
import contextlib
import gc
import math
import time

import numpy as np
import pytest
import seqloom
from helpers.echo import Echo
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from seqloom._streaming.live_session import LiveSession
from seqloom._streaming.stream_budget import CHUNK_BYTES, BudgetShare, StreamBudget

WINDOW = 16
SIZE = 20 * CHUNK_BYTES
LENGTHS = st.integers(0, 4) | st.integers(0, 3 * WINDOW)
GONE = seqloom.Cancelled("gone")


class Stream(Echo):
    """A session with a server of its own, on a connection that writes when it is told to."""

    def __init__(self, budget, width):
        super().__init__(WINDOW, width)
        self.unwritten = collections.deque()
        self.session = LiveSession(self, 1, WINDOW, budget=budget)
        self.session.step_bytes = 4 * width
        self.largest = 0
        self.sends = []

    def put(self, outgoing):
        self.unwritten.append(outgoing)

    def write(self):
        outgoing = self.unwritten.popleft()
        outgoing.release_budget()
        if self.session.failure is None and not outgoing.cancel:
            super().put(outgoing)

    def begin_to_send(self, steps):
        frames = np.zeros((steps, self.width), "f4")
        self.largest = max(self.largest, CHUNK_BYTES + 2 * frames.nbytes)
        send = asyncio.get_running_loop().create_task(self.session.send(frames, math.inf))
        self.sends.append(send)

    @property
    def answerable(self):
        return bool(self.rows) and not self.session.ended

    @property
    def waits(self):
        """Whether something that it sends is not sent yet; raises what is no error of the SDK."""
        for send in [send for send in self.sends if send.done()]:
            self.sends.remove(send)
            with contextlib.suppress(seqloom.SeqloomError, asyncio.CancelledError):
                send.result()
        return bool(self.sends)

    @property
    def bytes_there(self):
        """Of frames that are not written and outputs that are not received, in memory."""
        chunks = self.session._chunks
        there = [entry.frames for entry in self.unwritten if entry.frames is not None]
        there += [chunk.outputs for chunk, _, _ in chunks._ready]
        there += [values for due in chunks._pending for values, _ in due.parts]
        return sum((array if array.base is None else np.frombuffer(array.base, "u1")).nbytes for array in there)


async def settle():
    """Lets everything that can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


class Streams(RuleBasedStateMachine):
    """Streams of one client in any order of what may happen to them."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.budget = StreamBudget(SIZE)
        self.streams = []
        for width in (1, 16, 60, 60):
            self.open(width)

    def act(self, action):
        async def acted():
            action()
            await settle()

        self.loop.run_until_complete(acted())

    def drawn(self, data, fit=lambda stream: True):
        fitting = [i for i, stream in enumerate(self.streams) if fit(stream)]
        return self.streams[data.draw(st.sampled_from(fitting))] if fitting else None

    @precondition(lambda self: len(self.streams) < 8)
    @rule(width=st.sampled_from([1, 16, 60]))
    def open(self, width):
        self.act(lambda: self.streams.append(Stream(self.budget, width)))

    @rule(data=st.data(), lengths=st.lists(LENGTHS, min_size=1, max_size=6))
    def send(self, data, lengths):
        stream = self.drawn(data)
        for steps in lengths if stream is not None else ():
            self.act(lambda steps=steps: stream.begin_to_send(steps))

    @rule(data=st.data(), entries=st.integers(1, 5))
    def write(self, data, entries):
        stream = self.drawn(data, lambda stream: stream.unwritten)
        while stream is not None and stream.unwritten and entries:
            self.act(stream.write)
            entries -= 1

    @rule(data=st.data(), most=st.integers(1, 2 * WINDOW))
    def reply(self, data, most):
        stream = self.drawn(data, lambda stream: stream.answerable)
        if stream is not None:
            self.act(lambda: stream.session.take(stream.reply(most)))

    @rule(data=st.data(), most=st.integers(1, 4))
    def receive(self, data, most):
        stream = self.drawn(data, lambda stream: stream.session.ready)
        while stream is not None and stream.session.ready and most:
            self.act(stream.session.receive)
            most -= 1

    @rule(data=st.data())
    def give_up_a_send(self, data):
        stream = self.drawn(data, lambda stream: stream.waits)
        if stream is not None:
            self.act(lambda: stream.sends[0].cancel())

    @rule(data=st.data())
    def fail(self, data):
        stream = self.drawn(data)
        if stream is not None:
            self.act(lambda: stream.session.fail(GONE))

    @rule(data=st.data())
    def close(self, data):
        stream = self.drawn(data)
        if stream is not None:
            self.act(lambda: stream.session.cancel(GONE))
            self.streams.remove(stream)
            while stream.unwritten:
                self.act(stream.write)
            assert not stream.waits
            assert stream.session.share.held == 0

    @invariant()
    def what_is_held_is_counted_and_bounded(self):
        held = sum(stream.session.share.held for stream in self.streams)
        assert held == SIZE - self.budget.free
        assert held <= SIZE + sum(stream.largest for stream in self.streams)
        for stream in self.streams:
            assert stream.bytes_there <= stream.session.share.held

    @invariant()
    def nobody_waits_who_could_go_on(self):
        for share, want in self.budget.waiting.items():
            assert share.held
            assert share.held + want.size > self.budget.free
        for stream in self.streams:
            assert stream.session.share.held or not stream.waits

    def teardown(self):
        for stream in self.streams:  # one after the other: those that stall hold none of them up
            while stream.unwritten or stream.answerable or stream.session.ready or stream.waits:
                assert stream.unwritten or stream.answerable or stream.session.ready, "a send waits for ever"
                while stream.unwritten:
                    self.act(stream.write)
                while stream.answerable:
                    self.act(lambda stream=stream: stream.session.take(stream.reply(WINDOW)))
                while stream.session.ready:
                    self.act(stream.session.receive)
        for stream in self.streams:
            self.act(lambda stream=stream: stream.session.cancel(GONE))
        assert self.budget.free == SIZE
        assert not self.budget.waiting
        self.loop.close()


TestStreams = Streams.TestCase
TestStreams.settings = settings(deadline=None, stateful_step_count=60)


def stalled(budget, width=60):
    """A stream that has sent as much as it may, and receives nothing; and the task that waits to send more."""

    async def send(stream):
        while True:
            await stream.session.send(np.zeros((4, width), "f4"), math.inf)

    stream = Stream(budget, width)
    return stream, asyncio.get_running_loop().create_task(send(stream))


async def test_windows_shrink_as_more_sessions_stall_and_one_that_reads_goes_on():
    budget = StreamBudget(SIZE)
    held, tasks = [], []
    for _ in range(10):
        stream, task = stalled(budget)
        await settle()
        held.append(stream.session.share.held)
        tasks.append(task)
    chunk = CHUNK_BYTES + 2 * 4 * 4 * 60
    assert held == sorted(held, reverse=True)
    assert held[0] > held[-1] == chunk
    assert held[0] + chunk > SIZE / 2 >= held[0] - chunk  # no more than it leaves free
    reader = Stream(budget, 60)
    for _ in range(20):
        await reader.session.send(np.zeros((4, 60), "f4"), time.monotonic() + 30)
        reader.write()
        reader.session.take(reader.reply(WINDOW))
        assert len(reader.session.receive()) == 4
    for task in tasks:
        task.cancel()


async def test_a_send_that_the_budget_holds_up_says_to_receive_and_goes_when_there_is_room():
    budget = StreamBudget(SIZE)
    first, second = Stream(budget, 60), Stream(budget, 60)
    for stream, count in ((first, 3), (second, 2)):
        for _ in range(count):
            await stream.session.send(np.zeros((2, 60), "f4"), math.inf)
    too_large = np.zeros((8, 60), "f4")
    with pytest.raises(
        seqloom.DeadlineExceeded, match=rf"hold {SIZE - budget.free} bytes of {SIZE}.*receive"
    ) as caught:
        await second.session.send(too_large, time.monotonic() + 0.01)
    assert caught.value.reason == "WINDOW_FULL"
    waiting = asyncio.create_task(second.session.send(too_large, time.monotonic() + 30))
    await settle()
    assert not waiting.done()
    while first.unwritten:
        first.write()
    first.session.take(first.reply(WINDOW))
    for _ in range(3):
        first.session.receive()
    await settle()
    assert waiting.done()


@pytest.mark.parametrize("closed", [False, True])
async def test_what_a_session_held_that_nobody_keeps_goes_back(closed):
    budget = StreamBudget(SIZE)
    stream, other = Stream(budget, 60), Stream(budget, 60)
    for _ in range(4):
        await stream.session.send(np.zeros((2, 60), "f4"), math.inf)
        stream.write()
    stream.session.take(stream.reply(WINDOW))
    if closed:  # what is ready can be received all the same
        stream.session.cancel(GONE)
        assert budget.free == SIZE
        assert [len(stream.session.receive()) for _ in range(4)] == [2] * 4
        assert budget.free == SIZE
    del stream
    gc.collect()
    await other.session.send(np.zeros((2, 60), "f4"), math.inf)
    waiting = asyncio.create_task(other.session.send(np.zeros((12, 60), "f4"), time.monotonic() + 30))
    await settle()
    assert waiting.done()


async def test_a_chunk_that_came_with_others_keeps_none_of_them_in_memory():
    stream = Stream(StreamBudget(), 60)
    for _ in range(4):
        await stream.session.send(np.zeros((4, 60), "f4"), math.inf)
        stream.write()
    stream.session.take(stream.reply(WINDOW))
    for left in (3, 2, 1, 0):
        stream.session.receive()
        assert stream.bytes_there == left * 4 * 60 * 4


async def test_one_that_gives_up_in_the_moment_at_which_it_could_go_lets_the_next_go():
    budget = StreamBudget(SIZE)
    reader, first, second = (Stream(budget, 60) for _ in range(3))
    await reader.session.send(np.zeros((12, 60), "f4"), math.inf)
    reader.write()
    reader.session.take(reader.reply(WINDOW))
    for stream in (first, second):
        await stream.session.send(np.zeros((1, 60), "f4"), math.inf)
        stream.begin_to_send(12)
        await settle()
        assert stream.waits
    reader.session.receive()
    first.sends[0].cancel()
    await settle()
    assert not second.waits


async def test_a_session_that_fails_in_the_moment_at_which_there_is_room_sends_nothing():
    for width, already, size in ((1, WINDOW, SIZE), (60, 8, SIZE // 2)):  # the window is full; the budget is spent
        stream = Stream(StreamBudget(size), width)
        await stream.session.send(np.zeros((already, width), "f4"), math.inf)
        stream.write()
        stream.session.take(stream.reply(WINDOW))
        waiting = asyncio.create_task(stream.session.send(np.zeros((8, width), "f4"), math.inf))
        await settle()
        assert not waiting.done()
        stream.session.receive()
        stream.session.fail(GONE)
        with pytest.raises(seqloom.Cancelled):
            await waiting
        assert not stream.unwritten
        assert stream.session.share.held == 0


async def test_a_session_that_fails_keeps_what_can_be_received_and_nothing_else_in_memory():
    stream = Stream(StreamBudget(SIZE), 60)
    for _ in range(2):
        await stream.session.send(np.zeros((4, 60), "f4"), math.inf)
        stream.write()
    stream.session.take(stream.reply(6))
    stream.session.fail(GONE)
    assert stream.bytes_there == 4 * 60 * 4
    assert len(stream.session.receive()) == 4
    assert stream.session.share.held == 0


async def test_a_send_that_the_budget_holds_up_goes_when_the_sessions_own_frames_are_written():
    budget = StreamBudget(SIZE)
    stream = Stream(budget, 60)
    await stream.session.send(np.zeros((9, 60), "f4"), math.inf)
    stream.begin_to_send(2)
    await settle()
    assert stream.waits
    stream.write()
    await settle()
    assert not stream.waits


async def test_one_that_is_told_and_finds_it_taken_is_told_again():
    budget = StreamBudget(SIZE)
    reader, waiting, third = (Stream(budget, 60) for _ in range(3))
    for stream, steps in ((reader, 12), (waiting, 1)):
        await stream.session.send(np.zeros((steps, 60), "f4"), math.inf)
        stream.write()
    reader.session.take(reader.reply(WINDOW))
    waiting.begin_to_send(12)
    await settle()
    reader.session.receive()
    await third.session.send(np.zeros((12, 60), "f4"), math.inf)  # at once
    await settle()
    assert waiting.waits
    third.write()
    third.session.take(third.reply(WINDOW))
    third.session.receive()
    await settle()
    assert not waiting.waits


def test_as_many_are_told_as_can_go_and_those_that_need_least_first():
    budget, told = StreamBudget(1000), []
    holder, *shares = (BudgetShare(budget) for _ in range(6))
    with contextlib.ExitStack() as stack:
        for held, share in zip((600, 10, 30, 20, 50, 40), (holder, *shares), strict=True):
            assert share.take(held)
        for share in shares:
            stack.enter_context(share.waiting_for(300, lambda share=share: told.append(share.held)))
            assert not share.has_room(300)
        assert budget.free == 250
        holder.give_back(400)
        assert told == [10, 20]
        assert shares[0].take(300)
        assert shares[2].take(300)
        holder.give_back(200)
        assert (budget.free, told) == (250, [10, 20])


def test_what_is_noted_of_those_that_wait_is_bounded_and_forgets_nobody():
    budget, told = StreamBudget(10_000), []
    holder, small, large = (BudgetShare(budget) for _ in range(3))
    for share, held in ((holder, 9_000), (small, 400), (large, 500)):
        assert share.take(held)
    with small.waiting_for(500, lambda: told.append("small")), large.waiting_for(5000, lambda: told.append("large")):
        assert not small.has_room(500)
        assert not large.has_room(5000)
        for _ in range(100):
            large.give_back(1)
            holder.take(1)
        assert len(budget._needs) < 30
        assert not told
        holder.give_back(1000)
        assert told == ["small"]
        holder.give_back(8000)
        assert told == ["small", "large"]
