"""Those who wait: each expires at its own deadline, under one timer."""

import asyncio
import math
import time

import pytest
from seqloom._streaming.deadline_timer import DeadlineTimer, Waiter


class Timers:
    """Counts the timers that an event loop is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def counted(*arguments: object) -> asyncio.TimerHandle:
            self.count += 1
            return call_later(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_later", counted)


def waiter(seconds: float) -> Waiter:
    return Waiter(lambda: False, time.monotonic() + seconds)


async def expired(one: Waiter) -> bool:
    """Whether it expires, before half a minute has passed."""
    await asyncio.wait([one.woken], timeout=30)
    return isinstance(one.woken.exception(), TimeoutError)


async def test_each_expires_at_its_deadline_and_none_before() -> None:
    clock = DeadlineTimer()
    waiters = [waiter(seconds) for seconds in (0.3, 0.05, 0.15, 0.05)]
    late = waiter(60)
    for each in [*waiters, late]:
        clock.watch(each)
    for each in waiters:
        assert await expired(each)
        assert time.monotonic() >= each.deadline
        clock.forget(each)
    assert not late.woken.done()
    clock.stop()


async def test_who_is_forgotten_or_woken_does_not_expire() -> None:
    clock = DeadlineTimer()
    forgotten, woken, last = waiter(0.02), waiter(0.02), waiter(0.1)
    for each in (forgotten, woken, last):
        clock.watch(each)
    clock.forget(forgotten)
    woken.wake()
    assert await expired(last)
    assert not forgotten.woken.done()
    assert woken.woken.result() is None


async def test_a_deadline_may_move_while_somebody_waits() -> None:
    clock, begun = DeadlineTimer(), time.monotonic()
    ends = [begun + 0.05]
    moving = Waiter(lambda: False, lambda: ends[0])
    clock.watch(moving)
    ends[0] = begun + 0.3
    assert await expired(moving)
    assert time.monotonic() >= begun + 0.3


async def test_many_waits_take_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    timers, clock = Timers(monkeypatch), DeadlineTimer()
    for _ in range(1000):
        each = waiter(60)
        clock.watch(each)
        clock.forget(each)
    assert timers.count == 1
    clock.stop()


async def test_deadlines_that_crowd_share_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    timers, clock = Timers(monkeypatch), DeadlineTimer()
    waiters = [waiter(0.05 + 0.0001 * number) for number in range(500)]
    for each in waiters:
        clock.watch(each)
    await asyncio.wait([each.woken for each in waiters], timeout=30)
    assert all([await expired(each) for each in waiters[:1] + waiters[-1:]])
    assert timers.count < 50


async def test_nobody_expires_by_a_clock_that_stopped_until_it_watches_again() -> None:
    clock = DeadlineTimer()
    before, after = waiter(0.02), waiter(0.05)
    clock.watch(before)
    clock.stop()
    clock.watch(after)
    assert await expired(after)
    assert not before.woken.done()


async def test_without_a_deadline_there_is_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    timers = Timers(monkeypatch)
    DeadlineTimer().watch(waiter(math.inf))
    assert timers.count == 0
