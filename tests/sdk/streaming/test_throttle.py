"""What a client refuses by itself while the server refuses many calls: not more than that, and never all."""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
import seqloom
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom._streaming import throttle
from seqloom._streaming.throttle import Throttle

K, LEAST = 1.5, 20  # as throttle.py says
USUAL = 1.0, 43  # the timeout, in seconds, and the steps of a call
BUSY = seqloom.Overloaded("busy", retry_after=0.5, reason="OVERLOADED")


class Service:
    """A client's throttle before a server that takes `rate` calls a second and refuses the others, in virtual time.

    sent, refused, kept: calls that came to the server, those that it refused, and those that the client kept.
    """

    def __init__(self, monkeypatch, seed=0):
        self.now, self.rate = 1000.0, 0.0
        self._room = 0.0
        monkeypatch.setattr(throttle, "time", SimpleNamespace(monotonic=lambda: self.now))
        self._draw = random.Random(seed).random
        monkeypatch.setattr(throttle, "random", SimpleNamespace(random=lambda: self._draw()))
        self.throttle = Throttle()
        self.forget()

    def forget(self):
        self.sent = self.refused = self.kept = 0

    def draw(self, number):
        """Has every draw from now on give this number."""
        self._draw = lambda: number

    def call(self, seconds, demand=USUAL):
        """One call, after some time."""
        self.now += seconds
        self._room = min(self._room + seconds * self.rate, max(1.0, self.rate / 2))  # half a second waits in its queue
        try:
            self.throttle.check(*demand)
        except seqloom.Overloaded:
            self.kept += 1
            return
        self.sent += 1
        if self._room >= 1:
            self._room -= 1
            self.throttle.accepted(*demand)
        else:
            self.refused += 1
            self.throttle.refused(BUSY, *demand)

    def calls(self, offered, seconds, demands=None):
        """Calls at `offered` a second, that demand this."""
        for demand in itertools.islice(demands or itertools.repeat(USUAL), round(offered * seconds)):
            self.call(1 / offered, demand)


@pytest.fixture
def service(monkeypatch):
    return Service(monkeypatch)


@given(st.integers(100, 400), st.floats(0.1, 0.5), st.integers(0, 99))
@settings(max_examples=25)
def test_a_server_gets_k_times_what_it_accepts_and_one_a_second_more(offered, share, seed):
    with pytest.MonkeyPatch.context() as patch:
        service = Service(patch, seed)
        service.rate = share * offered
        service.calls(offered, 10)
        service.forget()
        service.calls(offered, 30)
        expected = (1 + K * service.rate) * offered / (offered + 1)
        # and a few where so few are refused that there is a second without: then all are sent for a moment
        assert service.sent / 30 == pytest.approx(expected, rel=0.1, abs=12)


@given(st.integers(1, 400), st.floats(0.7, 2.0), st.integers(0, 99))
@settings(max_examples=25)
def test_a_server_that_accepts_most_gets_all(offered, share, seed):
    with pytest.MonkeyPatch.context() as patch:
        service = Service(patch, seed)
        service.rate = share * offered
        service.calls(offered, 10)
        service.forget()
        service.calls(offered, 10)
        assert service.kept <= 0.01 * service.sent


@given(st.integers(LEAST, 5000), st.integers(0, 99))
@settings(max_examples=25)
def test_there_is_always_a_draw_for_which_a_call_is_sent(offered, seed):
    with pytest.MonkeyPatch.context() as patch:
        service = Service(patch, seed)
        service.calls(offered, 2)  # all refused
        service.draw(1 - 2**-53)  # the largest that there is
        service.throttle.check(*USUAL)


def test_probes_come_through_at_a_rate_that_does_not_depend_on_what_is_offered(service):
    for offered in (30, 300, 3000):
        service.calls(offered, 5)
        service.forget()
        service.calls(offered, 40)
        assert 40 < service.sent < 80


def test_a_call_is_sent_if_none_was_for_a_second(service):
    service.draw(0.0)  # for which every call is kept that may be
    service.calls(1000, 1)
    for _ in range(10):
        service.forget()
        service.calls(1000, 1.002)
        assert service.sent == 1
    service.now += 1.0
    service.throttle.check(*USUAL)


@pytest.mark.parametrize("offered", [25, 100, 1000])
@pytest.mark.parametrize("share", [0, 0.02, 0.3])
def test_all_are_sent_again_about_two_seconds_after_everything_is_accepted(monkeypatch, offered, share):
    waited = []
    for seed in range(20):
        service = Service(monkeypatch, seed)
        service.rate = share * offered
        service.calls(offered, 10)
        since, service.rate = service.now, 2 * offered
        last = since
        for _ in range(10):
            service.forget()
            service.calls(offered, 0.5)
            if service.kept:
                last = service.now
        waited.append(last - since)
    assert sum(waited) / 20 <= 2.5
    assert max(waited) < 5  # or it had not recovered at all


@given(st.lists(st.booleans(), max_size=200), st.integers(0, 99))
def test_none_is_kept_while_there_were_fewer_than_the_least(accepts, seed):
    """Of all calls that were ever made, in any order of answers, these are the first."""
    with pytest.MonkeyPatch.context() as patch:
        service = Service(patch, seed)
        for number, accept in enumerate(accepts, 1):
            if number > LEAST:
                break
            service.throttle.check(*USUAL)
            if accept:
                service.throttle.accepted(*USUAL)
            else:
                service.throttle.refused(BUSY, *USUAL)


def test_one_that_calls_once_a_second_is_never_kept(service):
    service.calls(1, 2000)
    assert (service.sent, service.refused, service.kept) == (2000, 2000, 0)


def test_a_call_that_is_kept_tells_what_the_server_told_last(service):
    for n in range(200):
        service.throttle.refused(seqloom.Overloaded("busy", retry_after=n / 10, reason=f"R{n}"), *USUAL)
    service.throttle.check(*USUAL)  # for the second to come
    service.draw(0.0)
    with pytest.raises(seqloom.Overloaded, match="not sent") as caught:
        service.throttle.check(*USUAL)
    assert (caught.value.retry_after, caught.value.reason) == (19.9, "R199")


def test_a_refusal_says_something_for_a_second_or_as_long_as_told(service):
    assert not service.throttle.overloaded
    for told, seconds in ((0.1, 1.0), (3.0, 3.0)):
        service.throttle.refused(seqloom.Overloaded("busy", retry_after=told), *USUAL)
        service.now += 0.99
        service.throttle.accepted(*USUAL)
        assert service.throttle.overloaded
        service.now += seconds - 1
        assert service.throttle.overloaded
        service.now += 0.02
        assert not service.throttle.overloaded


@pytest.mark.parametrize(("demand", "seconds"), [(USUAL, 1.1), ((30.0, 43), 3.1), ((1.0, 2), 3.1)])
def test_what_was_told_is_forgotten_once_calls_are_accepted_again(service, demand, seconds):
    service.throttle.refused(seqloom.Overloaded("busy", retry_after=300), *USUAL)
    service.now += seconds
    assert service.throttle.overloaded
    service.throttle.accepted(*demand)
    assert not service.throttle.overloaded
    assert service.throttle.quiet


@given(st.floats(0.1, 0.5), st.integers(0, 99))
@settings(max_examples=25)
def test_equal_timeouts_and_lengths_that_differ_are_one_load(share, seed):
    """As a server has it whose callers all wait for a second, and send what people say."""
    with pytest.MonkeyPatch.context() as patch:
        service, draw = Service(patch, seed), random.Random(seed)
        mix = iter(lambda: (draw.uniform(0.99, 1.0), draw.randint(20, 65)), None)
        service.rate = share * 200
        service.calls(200, 10, mix)
        service.forget()
        service.calls(200, 30, mix)
        assert service.sent / 30 == pytest.approx((1 + K * service.rate) * 200 / 201, rel=0.1, abs=12)


HASTY, PATIENT = (0.5, 43), (0.6, 43)


@pytest.mark.parametrize("other", [PATIENT, (30.0, 43), (0.5, 20), (30.0, 20), (math.inf, 1)])
def test_a_call_that_has_more_time_or_is_shorter_is_sent_and_makes_no_difference(service, other):
    service.calls(100, 10, itertools.repeat(HASTY))
    service.forget()
    for _ in range(100):
        service.calls(100, 0.1, itertools.repeat(HASTY))
        service.throttle.check(*other)  # raises nothing
        service.throttle.accepted(*other)
    assert service.sent == pytest.approx(17, abs=8)  # in ten seconds


@pytest.mark.parametrize("other", [HASTY, (0.4, 43), (0.5, 1000), (0.1, 64), (0.505, 33)])
def test_a_call_that_demands_as_much_is_kept(service, other):
    service.calls(100, 5, itertools.repeat(HASTY))
    service.draw(0.0)
    with pytest.raises(seqloom.Overloaded, match="not sent"):
        service.throttle.check(*other)


@pytest.mark.parametrize("patient", [(5.0, 43), (0.5, 4)])
def test_one_refusal_now_and_then_does_not_count_for_as_much_as_a_flood_that_demands_more(service, patient):
    for number in range(100):
        service.calls(100, 0.1, itertools.repeat(HASTY))  # all refused
        if number % 10 == 0:
            service.throttle.refused(BUSY, *patient)
        else:
            service.throttle.check(*patient)  # raises nothing
            service.throttle.accepted(*patient)
    service.draw(0.0)
    with pytest.raises(seqloom.Overloaded):
        service.throttle.check(*HASTY)


def test_who_was_refused_is_forgotten_soon_though_those_that_demand_more_still_are(service):
    service.calls(100, 2, itertools.repeat(PATIENT))
    service.draw(0.0)
    with pytest.raises(seqloom.Overloaded):
        service.throttle.check(*PATIENT)
    service.calls(100, 3.1, itertools.repeat(HASTY))
    service.throttle.check(*PATIENT)
    with pytest.raises(seqloom.Overloaded):
        service.throttle.check(*HASTY)


@pytest.mark.parametrize("again", [False, True])
def test_a_few_refusals_of_a_server_that_has_just_accepted_hundreds_keep_nothing(service, again):
    if again:
        service.throttle.refused(BUSY, *USUAL)
    service.rate = 1000.0
    service.calls(400, 2.0)
    assert service.throttle.quiet
    for _ in range(30):
        service.throttle.refused(BUSY, *USUAL)
    service.draw(0.0)
    service.forget()
    service.rate = 0.0
    service.calls(400, 0.05)
    assert service.kept == 0


def test_the_time_is_not_asked_for_before_the_first_refusal_nor_once_all_is_well_again(service, monkeypatch):
    def looked_up():
        raise AssertionError("it asked for the time")

    throttle_ = service.throttle
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(throttle, "time", SimpleNamespace(monotonic=looked_up))
            for _ in range(throttle._AT_A_TIME - 1):  # and once for as many as that
                throttle_.check(*USUAL)
                throttle_.accepted(*USUAL)
            assert not throttle_.overloaded
        throttle_.refused(BUSY, *USUAL)
        service.now += 1.1
        throttle_.accepted(*USUAL)
