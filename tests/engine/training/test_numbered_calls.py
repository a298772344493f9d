"""The numbered calls on a run, without a server: what a refusal uses up, and how clients give way to others."""

import asyncio
import gc
import weakref

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from seqloom_server.engine.training import numbered_calls
from seqloom_server.engine.training.call_order import CallOrder
from seqloom_server.engine.training.numbered_calls import CallId, KeptReply, NumberedCalls
from seqloom_server.engine.training.replies import Done
from seqloom_server.engine.training.step_journal import StepRecord
from seqloom_server.errors import Reason, ServerError

FULL = ServerError(Reason.OVERLOADED, "no room", retry_after=1.0)


def make_calls(forgotten=lambda client: None, order=None, deduplicated=lambda: None):
    return NumberedCalls(order or CallOrder({}), 8, deduplicated=deduplicated, forgotten=forgotten)


async def done():
    return Done()


async def refused(calls, begin, number=1):
    with pytest.raises(ServerError) as caught:
        await calls.call(CallId("ann", number), "x", begin)
    return caught.value


async def test_a_call_that_is_refused_at_the_door_may_be_tried_again_under_its_number():
    calls = make_calls()

    def begin():
        raise FULL

    assert (await refused(calls, begin)).reason is Reason.OVERLOADED
    assert await calls.call(CallId("ann", 1), "x", done) == Done()


async def test_a_call_that_had_begun_is_never_told_to_be_repeated_as_its_number_is_used_up():
    calls = make_calls()

    async def fails():
        raise FULL

    first = await refused(calls, fails)
    assert first.reason is Reason.NOT_DONE
    assert "no room" in first.message
    assert first.retry_after is None
    assert (await refused(calls, done)).reason is Reason.NOT_DONE  # the same reply again
    assert await calls.call(CallId("ann", 2), "x", done) == Done()


async def test_beyond_the_bound_the_client_that_was_here_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(numbered_calls, "MAX_CLIENTS", 3)
    gone = []
    calls = make_calls(gone.append)
    for client in ("ann", "bob", "cyd"):
        await calls.call(CallId(client, 1), "x", done)
    waits = asyncio.Event()

    async def slow():
        await waits.wait()
        return Done()

    ann = asyncio.ensure_future(calls.call(CallId("ann", 2), "x", slow))
    await asyncio.sleep(0)
    await calls.call(CallId("dan", 1), "x", done)
    assert gone == ["bob"]  # ann waits for something, and was here later
    waits.set()
    await ann
    assert [kept.client for kept in calls.kept({"ann": 2, "cyd": 1, "dan": 1})] == ["cyd", "ann", "ann", "dan"]
    assert calls.order.last_begun("bob") == 0


names = st.text(st.sampled_from("aZ09_- é٣"), max_size=3) | st.sampled_from(["a" * 64, "a" * 65])


@given(st.dictionaries(names, st.integers(0, 3), max_size=6))
@example({"a": 1, "": 1})
@example({"b" * 64: 1, "c" * 65: 1})
def test_names_that_are_checked_together_are_those_that_are_right_one_by_one(calls):
    def failure(check):
        try:
            check()
        except ServerError as error:
            return error.reason, error.field, error.message
        return None

    def one_by_one():
        for client, number in calls.items():
            CallId(client, number)

    assert failure(lambda: numbered_calls.check_names(calls)) == failure(one_by_one)


@pytest.mark.parametrize("under_way", [False, True])
async def test_tries_of_one_call_that_wait_are_bounded_and_those_of_one_that_is_done_are_not(under_way):
    repeats, go_on = [], asyncio.Event()
    calls = make_calls(deduplicated=lambda: repeats.append(1))
    most = numbered_calls._MAX_WAITERS

    async def slow():
        await go_on.wait()
        return Done()

    number = 1 if under_way else 2  # the second waits for the first
    tries = [asyncio.ensure_future(calls.call(CallId("ann", number), "x", slow)) for _ in range(most)]
    await asyncio.sleep(0)
    for _ in range(3):
        failure = await refused(calls, slow, number)
        assert (failure.reason, failure.retry_after) == (Reason.OVERLOADED, 0.5)
    assert len(repeats) == most - 1  # what is refused is none
    tries.pop().cancel()
    await asyncio.sleep(0)
    tries.append(asyncio.ensure_future(calls.call(CallId("ann", number), "x", slow)))  # there is room again
    await asyncio.sleep(0)
    if not under_way:
        await calls.call(CallId("ann", 1), "x", done)
    go_on.set()
    assert await asyncio.gather(*tries) == [Done()] * most
    again = [calls.call(CallId("ann", number), "x", slow) for _ in range(2 * most)]
    assert await asyncio.gather(*again) == [Done()] * (2 * most)


class Arrays:
    """Variables of the frames that an error comes by."""

    def __init__(self):
        self.alive = []

    def new(self):
        array = np.zeros(1000)
        self.alive.append(weakref.ref(array))
        return array

    def any_left(self):
        gc.collect()
        return any(array() is not None for array in self.alive)


async def test_an_error_that_is_kept_keeps_nothing_of_where_it_was_raised():
    calls, arrays = make_calls(), Arrays()

    async def fails():
        array = arrays.new()
        try:
            raise ValueError(f"{array.sum()}")
        except ValueError as error:
            raise ServerError(Reason.OVERFLOW, "too large") from error

    assert (await refused(calls, fails)).reason is Reason.OVERFLOW
    assert arrays.alive
    assert not arrays.any_left()
    assert (await refused(calls, done)).message == "too large"


def waits_for_bob():
    """After a restart: step 2, which was bob's second call, is lost, and ann's first call is done."""
    return CallOrder({"ann": 1, "bob": 1}, 1, [StepRecord(2, "bob", 2, {"ann": 1, "bob": 2})])


async def test_lost_steps_are_given_up_in_the_turn_of_the_call_that_does_so_and_not_before():
    order = waits_for_bob()
    calls, begun = make_calls(order=order), []

    def start(number, **more):
        def begin():
            begun.append(number)
            return done()

        return asyncio.ensure_future(calls.call(CallId("ann", number), f"{number}", begin, **more))

    for _ in range(2):  # the second call has not come, and may never
        load = start(3, gives_up_lost=True)
        await asyncio.sleep(0)
        assert (begun, order.waiting_for() != "") == ([], True)
        load.cancel()
        await asyncio.wait({load})
    assert order.waiting_for()
    both = [start(3, gives_up_lost=True), start(2)]  # which would wait for bob for ever
    assert await asyncio.gather(*both) == [Done()] * 2
    assert begun == [2, 3]
    assert order.waiting_for() == ""


async def test_a_repeat_of_a_call_that_gives_lost_steps_up_gives_none_up():
    order = waits_for_bob()
    calls = make_calls(order=order)
    calls.keep(KeptReply("ann", 1, "load", Done()))
    assert await calls.call(CallId("ann", 1), "load", done, gives_up_lost=True) == Done()
    with pytest.raises(ServerError) as caught:
        await calls.call(CallId("bob", 1), "load", done, gives_up_lost=True)
    assert caught.value.reason is Reason.CALL_FORGOTTEN
    assert order.waiting_for()


async def test_a_call_that_gives_lost_steps_up_comes_in_where_all_room_is_taken_by_calls_that_wait_for_them():
    order = waits_for_bob()
    calls = make_calls(order=order)
    waiting = [asyncio.ensure_future(calls.call(CallId(f"c{n}", 1), "x", done)) for n in range(8)]
    await asyncio.sleep(0)
    assert (await refused(calls, done, 3)).reason is Reason.OVERLOADED
    assert await calls.call(CallId("dan", 1), "load", done, gives_up_lost=True) == Done()
    assert await asyncio.gather(*waiting) == [Done()] * 8
