"""The queue of one class beside plain sums: callers by rounds, what was begun first, then what is due first."""

import pytest
from helpers.simulated_device import KnownWeights, make_chunk, make_sequence
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from seqloom_server.engine.scheduling.fair_queue import FairQueue

QUANTUM = 0.01
STEP = 1e-4  # seconds of a step, as KnownWeights have it by default
CALLERS = st.sampled_from("abcd")


def make(weights, caller, steps=10, *, long=False):
    sequence = make_sequence(weights, caller=caller)
    sequence.lane = (caller, long)
    sequence.chunks.append(make_chunk(steps))
    sequence.waiting_steps = steps
    return sequence


def add(queue, *sequences, due=0.0, begun=False):
    for sequence in sequences:
        queue.add(sequence, due, begun=begun)


def serve(queue, sequences, steps=10):
    """Takes so many steps of each sequence; those that have more queue again."""
    queue.take(sequences, [min(steps, each.waiting_steps) for each in sequences])
    for sequence in sequences:
        sequence.waiting_steps = max(0, sequence.waiting_steps - steps)


class Queue(RuleBasedStateMachine):
    """Adds, removes and serves, beside a plain list of what is queued: (not begun, due, id) of each."""

    def __init__(self):
        super().__init__()
        self.queue, self.weights = FairQueue(QUANTUM), [KnownWeights("x"), KnownWeights("y")]
        self.queued = {}

    @rule(caller=CALLERS, n=st.integers(0, 1), due=st.integers(0, 3), begun=st.booleans(), steps=st.integers(1, 300))
    def add(self, caller, n, due, begun, steps):
        sequence = make(self.weights[n], caller, steps)
        self.queue.add(sequence, due, begun=begun)
        self.queued[sequence] = (not begun, due, sequence.id)

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def remove(self, data):
        sequence = data.draw(st.sampled_from(list(self.queued)))
        assert self.queue.remove(sequence)
        assert not self.queue.remove(sequence)
        del self.queued[sequence]

    @rule(most=st.integers(0, 12), take=st.integers(1, 12))
    def serve(self, most, take):
        weights = self.queue.next_weights()
        assert (weights is None) == (not self.queued)
        if weights is None:
            return
        under = [each for each in self.queued if each.weights is weights]
        candidates = self.queue.candidates(weights, most)
        assert len(set(candidates)) == len(candidates) == min(most, len(under))
        for caller in "abcd":
            mine = sorted((each for each in under if each.caller == caller), key=self.queued.get)
            chosen = [each for each in candidates if each.caller == caller]
            assert chosen == mine[: len(chosen)], "begun first, then what is due first"
        if candidates:
            served = candidates[:take]
            serve(self.queue, served, 300)
            for sequence in served:
                del self.queued[sequence]

    @invariant()
    def nothing_is_lost(self):
        assert len(self.queue) == len(self.queued)
        for weights in self.weights:
            under = {each for each in self.queued if each.weights is weights}
            assert set(self.queue.candidates(weights, 1000)) == under

    @invariant()
    def the_begun_are_counted(self):
        for weights in {each.weights for each in self.queued}:
            under = {each: place for each, place in self.queued.items() if each.weights is weights}
            begun = {each for each, place in under.items() if not place[0]}
            waiting = [each for each in under if each not in begun]
            assert set(self.queue.begun(weights)) == begun
            assert len(self.queue.beginnable(waiting, 0)) == 0
            assert len(self.queue.beginnable(waiting, len(under))) == len(waiting)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("crowd", [1, 100, 4000])
def test_a_caller_with_one_sequence_is_among_the_first_however_many_another_has(crowd):
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    add(queue, *(make(weights, "flood") for _ in range(crowd)), begun=True)
    modest = make(weights, "modest")
    add(queue, modest, due=1e9)
    in_a_round = int(QUANTUM / (10 * STEP))
    assert modest in queue.candidates(weights, in_a_round + 1)


def test_a_caller_with_one_sequence_comes_first_once_the_other_was_served_more():
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    add(queue, *(make(weights, "flood", 300) for _ in range(50)))
    add(queue, make(weights, "modest"))
    serve(queue, [each for each in queue.candidates(weights, 20) if each.caller == "flood"], 300)
    assert queue.candidates(weights, 1)[0].caller == "modest"


@pytest.mark.parametrize("known", [True, False])
def test_a_caller_that_comes_later_is_owed_nothing_for_when_it_was_away(known):
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    if known:
        once = make(weights, "later")
        add(queue, once)
        serve(queue, [once])
    add(queue, *(make(weights, "first") for _ in range(2000)))
    for _ in range(50):
        serve(queue, queue.candidates(weights, 20))
    add(queue, *(make(weights, "later") for _ in range(2000)))
    served = {"first": 0, "later": 0}
    for _ in range(20):
        for each in (chosen := queue.candidates(weights, 20)):
            served[each.caller] += 1
        serve(queue, chosen)
    assert abs(served["first"] - served["later"]) <= 2 * QUANTUM / (10 * STEP)


def test_a_caller_of_ten_models_gets_no_more_than_one_of_one():
    queue, many, one = FairQueue(QUANTUM), [KnownWeights(str(n)) for n in range(10)], KnownWeights("one")
    for weights in many:
        add(queue, *(make(weights, "ten models", 100) for _ in range(100)))
    add(queue, *(make(one, "one model", 100) for _ in range(1000)))
    served, models = {"ten models": 0, "one model": 0}, []
    for _ in range(200):
        weights = queue.next_weights()
        chosen = queue.candidates(weights, 2)
        models.append(weights.model)
        served[chosen[0].caller] += len(chosen)
        serve(queue, chosen, 100)
    assert abs(served["ten models"] - served["one model"]) <= 4
    counts = [models.count(weights.model) for weights in many]
    assert max(counts) - min(counts) <= 1, "and the models take turns"


@pytest.mark.parametrize("served", [True, False])
def test_accounts_stay_few_however_many_callers_come_and_go(served):
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    most = 0
    for number in range(100_000):
        sequence = make(weights, str(number))
        add(queue, sequence)
        if served:
            queue.take([sequence], [100])
        else:
            queue.remove(sequence)
        most = max(most, len(queue._rounds._accounts), len(queue._rounds._heap))
    assert most <= 100
    assert not queue._queues


def test_a_caller_that_was_given_much_is_not_forgotten_because_others_come_and_go():
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    greedy, rival, waiting = make(weights, "greedy", 5000), make(weights, "rival"), make(weights, "waiting")
    add(queue, greedy, waiting)
    serve(queue, [greedy], 5000)
    for number in range(1000):
        passing = make(weights, str(number), 1)
        add(queue, passing)
        serve(queue, [passing])
    queue.remove(waiting)
    again = make(weights, "greedy")
    add(queue, again, begun=True)
    add(queue, rival)
    assert queue.candidates(weights, 1) == [rival]


@pytest.mark.parametrize("away", [True, False])
def test_a_caller_that_was_given_much_is_served_although_others_come_anew_without_end(away):
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    old, first = make(weights, "old", 400), make(weights, "first")
    add(queue, old, first)
    serve(queue, [old], 300)  # three rounds of steps, while another one waited
    if away:
        serve(queue, [first])
    add(queue, old, begun=True)
    served = []
    for number in range(100):  # an equal part of eleven callers is a tenth of a round in each slice
        add(queue, *(make(weights, f"{number} {n}") for n in range(10)))
        chosen = queue.candidates(weights, 10)
        served += chosen
        serve(queue, chosen)
        if old in served:
            break
    assert old in served


def test_many_callers_of_one_sequence_each_are_all_served():
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    crowd = [make(weights, str(number)) for number in range(5000)]
    add(queue, *crowd)
    served = []
    while len(queue):
        chosen = queue.candidates(weights, 256)
        served += chosen
        serve(queue, chosen)
    assert sorted(each.id for each in served) == [each.id for each in crowd]


def test_each_caller_may_begin_a_part_of_its_own_whatever_others_have_begun():
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    add(queue, *(make(weights, "flood") for _ in range(30)), begun=True)
    waiting, modest = make(weights, "flood"), make(weights, "modest")
    add(queue, waiting, modest)
    assert queue.beginnable([waiting, modest], 10) == [modest]


def test_what_has_begun_goes_first_while_callers_wait_who_were_given_nothing():
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    add(queue, *(make(weights, str(number), 20) for number in range(100)))
    for _ in range(3):
        begun = queue.candidates(weights, 20)
        serve(queue, begun, 10)
        add(queue, *begun, begun=True)
        assert queue.candidates(weights, 20) == begun
        assert queue.begun(weights) == begun
        serve(queue, begun, 10)


def test_a_caller_with_long_sequences_as_well_gets_no_more_than_another():
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    for caller, long in (("both", False), ("both", True), ("short", False)):
        add(queue, *(make(weights, caller, 100, long=long) for _ in range(1000)))
    served = {"both": 0, "short": 0}
    for _ in range(500):
        for each in (chosen := queue.candidates(weights, 2)):
            served[each.caller] += 1
        serve(queue, chosen, 100)
    assert abs(served["both"] - served["short"]) <= 4


def test_what_has_begun_is_a_candidate_behind_however_many_callers():
    queue, weights = FairQueue(QUANTUM), KnownWeights()
    add(queue, *(make(weights, str(number)) for number in range(3000)))
    begun = make(weights, "begun")
    add(queue, begun, begun=True)
    assert queue.candidates(weights, 1) == [begun]
