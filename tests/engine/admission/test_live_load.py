"""The load of live sessions with a rate: promised up to a bound, by the device's time or by the event loop's."""

import pytest
from helpers.simulated_device import KnownWeights, make_sequence
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.admission.live_load import LOOP_PART, LiveLoad
from seqloom_server.engine.core.sequence import Op
from seqloom_server.engine.core.stream_group import StreamGroup
from seqloom_server.errors import Overload, Reason, ServerError

STEP = 1e-4  # seconds of the device for a step in a full batch


class Loop:
    """An event loop in simulated time, and how long it has been idle."""

    def __init__(self):
        self.now = self.idle = 0.0

    def pass_time(self, seconds, busy):
        self.now += seconds
        self.idle += (1 - busy) * seconds


def make_weights(step=STEP):
    return KnownWeights(per_step=0.0, per_cell=step)


def make_session(weights, rate):
    return make_sequence(weights, Op.STREAM, rate=rate)


def admit_all(load, weights, rate):
    """Admits sessions until one is refused; returns them and the refusal."""
    sessions = []
    while len(sessions) < 100_000:
        session = make_session(weights, rate)
        try:
            load.admit(session)
        except ServerError as error:
            return sessions, error
        sessions.append(session)
    raise AssertionError("no end of them")


def with_loop(loop, most=0.5):
    return LiveLoad(most, lambda: loop.idle, lambda: loop.now)


def test_sessions_are_admitted_up_to_the_load_that_is_promised():
    load, weights = LiveLoad(0.5), make_weights()
    sessions, error = admit_all(load, weights, 100.0)
    assert len(sessions) in (49, 50)  # of 1% each
    assert (error.reason, error.cause) == (Reason.OVERLOADED, Overload.LIVE_LOAD)
    assert error.retry_after > 0
    with pytest.raises(ServerError):
        load.admit(make_session(make_weights(), 200.0))  # of another model on the same device
    load.end(sessions.pop())
    load.admit(make_session(weights, 100.0))


@pytest.mark.parametrize(("pace", "count"), [(0.5, 50), (1.0, 50), (2.0, 25)])
def test_fewer_are_promised_while_slices_take_longer_than_expected(pace, count):
    load, weights = LiveLoad(0.5, pace=lambda _: pace), make_weights()
    sessions, _ = admit_all(load, weights, 100.0)
    assert len(sessions) in (count - 1, count)


def test_a_refusal_counts_nothing():
    load, weights = LiveLoad(0.5), make_weights()
    with pytest.raises(ServerError):
        load.admit(make_session(weights, 1e6))
    assert load.load() == 0
    load.admit(make_session(weights, 4000.0))


RATES = st.sampled_from([1e-300, 1e-10, 1 / 3, 0.1, 7.0, 100.0, 999.9])


@given(st.lists(st.tuples(st.integers(0, 2), RATES, st.randoms(use_true_random=False)), max_size=40))
def test_what_ends_gives_back_exactly_what_it_took_in_any_order(work):
    load, weights, sessions = LiveLoad(1.0), [make_weights(1e-6) for _ in range(3)], []
    for number, rate, draw in work:
        session = make_session(weights[number], rate)
        load.admit(session)
        sessions.append(session)
        if draw.random() < 0.4:
            load.end(sessions.pop(draw.randrange(len(sessions))))
        assert load.load() == pytest.approx(1e-6 * sum(each.rate for each in sessions), abs=1e-12)
    for session in sessions:
        load.end(session)
    assert load.load() == 0
    load.admit(make_session(weights[0], 999_999.0))


def test_the_event_loops_share_is_learned_and_refuses_where_the_device_is_nearly_idle():
    loop, weights = Loop(), make_weights(1e-9)
    load = with_loop(loop)
    sessions = [make_session(weights, 4000.0) for _ in range(10)]
    for session in sessions:
        load.admit(session)
    for _ in range(40):  # each step keeps the loop busy for ten microseconds
        load.sent(10_000)
        loop.pass_time(0.25, busy=0.4)
        load.load()
    assert load.load() == pytest.approx(LOOP_PART * 0.4, rel=0.01)
    assert load.load(make_session(weights, 4000.0)) == pytest.approx(LOOP_PART * (0.4 + 0.7 * 0.04), rel=0.01), (
        "as messages become fuller"
    )
    more, _ = admit_all(load, weights, 4000.0)
    assert len(more) == int((0.5 / LOOP_PART - 0.4) / 0.028), "they count before they have sent anything"
    loop.pass_time(10.0, busy=0.0)
    assert load.load() == pytest.approx(LOOP_PART * 0.7 * len(sessions + more) * 4000 * 1e-5, rel=0.05), (
        "and while they are silent"
    )


def test_sessions_that_are_silent_count_also_while_others_without_a_rate_send():
    loop, weights = Loop(), make_weights(1e-9)
    load = with_loop(loop, most=0.75)
    for _ in range(40):  # ten microseconds a step
        load.sent(10_000, rated=False)
        loop.pass_time(0.25, busy=0.4)
        load.load()
    sessions, _ = admit_all(load, weights, 100.0)
    assert len(sessions) == int((0.75 / LOOP_PART - 0.4) / (0.7 * 1e-3)), "as many as if those were no sessions at all"


def test_what_else_keeps_the_loop_busy_leaves_less_room_but_is_not_taken_for_the_cost_of_steps():
    loop, weights = Loop(), make_weights(1e-9)
    load = with_loop(loop)
    load.admit(make_session(weights, 10.0))
    for _ in range(40):
        load.sent(2)
        load.other_work()
        loop.pass_time(0.25, busy=0.45)
        load.load()
    assert load.load() == pytest.approx(LOOP_PART * 0.45, rel=0.01)
    assert load.load(make_session(weights, 100.0)) < 0.46
    for _ in range(40):
        load.sent(2)
        loop.pass_time(0.25, busy=0.0)
        load.load()
    assert load.load() < 0.01, "it is forgotten when it is over"


@pytest.mark.parametrize("cost", [5e-5, 2e-4, 1e-3])
def test_a_second_in_which_many_sessions_are_opened_is_no_load_that_stays(cost):
    loop = Loop()
    load = with_loop(loop)
    for _ in range(3):
        for _ in range(round(0.25 / cost)):
            load.opening()
        loop.pass_time(0.25, busy=1.0)
        load.load()
    assert load.load() < 0.1
    for _ in range(20):
        loop.pass_time(0.25, busy=0.5)
        load.load()
    assert load.load() == pytest.approx(LOOP_PART * 0.5, rel=0.05)


def test_those_who_are_refused_again_and_again_do_not_keep_the_loop_full():
    loop, weights = Loop(), make_weights(1e-9)
    load = with_loop(loop)
    for _ in range(20):  # other work fills it
        load.other_work()
        loop.pass_time(0.25, busy=0.95)
        load.load()
    session = make_session(weights, 100.0)
    with pytest.raises(ServerError):
        load.admit(session)
    for _ in range(12):
        for _ in range(400):
            load.opening()
        loop.pass_time(0.25, busy=0.3)
        load.load()
    load.admit(session)


@pytest.mark.parametrize("openings", [0, 1, 3, 100, 300])
def test_steps_that_cost_much_are_seen_to_while_others_open_all_the_time(openings):
    loop, weights = Loop(), make_weights(1e-9)
    load = with_loop(loop, most=0.75)
    count = 0
    for _ in range(200):  # at 90 microseconds a step, ten times what is assumed at first, 111 sessions fill the loop
        for _ in range(2):
            try:
                load.admit(make_session(weights, 100.0))
                count += 1
            except ServerError:
                break
        busy = 25 * count * 9e-5 + openings * 1e-4
        done = min(1.0, 0.25 / busy)  # what does not fit waits
        for _ in range(round(done * openings)):
            load.opening()
        load.sent(round(done * 25 * count))
        loop.pass_time(0.25, done * busy / 0.25)
        load.load()
    assert 65 <= count <= 125, "111 fill it; while much is opened, what a step costs is seen late"


def test_a_loop_that_was_busy_for_a_moment_is_no_reason_to_refuse():
    loop, weights = Loop(), make_weights(1e-9)
    load = with_loop(loop)
    loop.pass_time(0.01, busy=1.0)
    load.admit(make_session(weights, 100.0))
    loop.pass_time(0.24, busy=0.0)
    load.admit(make_session(weights, 100.0))


@pytest.mark.parametrize(("seconds", "busy"), [(0.0, 1.0), (-5.0, 1.0), (1.0, 1.5), (1.0, -0.5)])
def test_clocks_that_stand_or_jump_do_no_harm(seconds, busy):
    loop, weights = Loop(), make_weights()
    load = with_loop(loop)
    load.admit(make_session(weights, 100.0))
    load.sent(100)
    loop.pass_time(seconds, busy)
    assert 0 <= load.load() <= 1


def test_sessions_that_are_opened_all_at_once_after_a_quiet_while_are_judged_by_what_was_seen_before():
    loop, weights = Loop(), make_weights(1e-9)
    load = with_loop(loop, most=0.75)
    load.admit(make_session(weights, 100.0))
    for _ in range(40):
        load.sent(2500)
        loop.pass_time(0.25, busy=0.2)  # 20 microseconds a step
        load.load()
    loop.pass_time(10.0, busy=0.0)
    count = 0
    for _ in range(8):  # what opening really costs fills the loop, and hardly any steps are sent
        for _ in range(1000):
            load.opening()
            try:
                load.admit(make_session(weights, 100.0))
                count += 1
            except ServerError:
                pass
        load.sent(100)
        loop.pass_time(0.25, busy=1.0)
        load.load()
    assert 300 <= count <= 700, "500 fill the loop"


def test_a_group_counts_for_its_rows_and_for_the_steps_that_its_streams_share():
    weights = KnownWeights(per_step=1e-3, per_cell=1e-6)
    load = LiveLoad(0.75)
    group = make_session(weights, 100.0)
    group.group = StreamGroup(500, None)
    load.admit(group)
    assert load.load() == pytest.approx(500 * 100 * 1e-6 + 100 * 1e-3), "a step of all its streams is one of the device"
    singles = [make_session(weights, 100.0) for _ in range(32)]
    for each in singles:
        load.admit(each)
    assert load.load() == pytest.approx(0.05 + 0.1 + 3200 * 1e-6 + 0.1)
    for each in (group, *singles):
        load.end(each)
    assert load.load() == 0


@pytest.mark.parametrize("loop", [None, Loop()])
def test_what_could_be_admitted_is_what_an_idle_server_admits(loop):
    for rate in (1.0, 100.0, 4000.0, 6000.0, 1e5, 1e9):
        for step in (1e-7, STEP, 1e-2):
            session = make_session(make_weights(step), rate)
            load = LiveLoad(0.5) if loop is None else with_loop(loop)
            could = load.could_admit(session)
            try:
                load.admit(session)
            except ServerError:
                assert not could
            else:
                assert could
    assert LiveLoad(0.5).could_admit(make_session(make_weights(1e9), 0.0)), "it takes what is left"
