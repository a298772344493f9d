"""Whose turn it is among the calls on a run, and into which step each goes again after a restart."""

import threading

from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.engine.training.call_order import CallOrder
from seqloom_server.engine.training.step_journal import StepJournal, StepRecord

CLIENTS = ("ann", "bob", "cyd")


def test_a_clients_calls_go_by_number_and_each_goes_once():
    order = CallOrder({})
    assert not order.may_begin("ann", 2)
    assert order.may_begin("ann", 1)
    order.begin("ann", 1)
    assert not order.may_begin("ann", 1)
    assert order.may_begin("ann", 2)
    assert order.may_begin("bob", 1)  # whatever others do


def test_what_was_done_before_a_restart_does_not_go_again():
    order = CallOrder({"ann": 7})
    assert not order.may_begin("ann", 7)
    assert order.may_begin("ann", 8)


@st.composite
def histories(draw):
    """Calls in the order in which they went, (client, is_step) each; how many were durable; an order to resend them."""
    calls = draw(st.lists(st.tuples(st.sampled_from(CLIENTS), st.booleans()), max_size=30))
    durable = draw(st.integers(0, len(calls)))
    resend = draw(st.permutations(range(durable, len(calls))))
    return calls, durable, resend


def replay(order, waiting, numbers):
    """Lets go what may go, again and again; returns (client, number) -> the step that was planned when it went."""
    steps = {}
    moved = True
    while moved:
        moved = False
        for index, client, is_step in list(waiting):
            if order.may_begin(client, numbers[index]):
                steps[client, numbers[index]] = order.planned
                order.begin(client, numbers[index], is_step=is_step)
                waiting.remove((index, client, is_step))
                moved = True
    return steps


@given(histories(), st.integers(0, 3))
def test_after_a_restart_every_call_goes_into_the_step_that_it_was_in(history, fresh):
    calls, durable, resend = history
    last, numbers, original, records, planned = {}, {}, {}, [], 0
    done, durable_step = {}, 0
    for index, (client, is_step) in enumerate(calls):
        if index == durable:
            done, durable_step = dict(last), planned
        last[client] = numbers[index] = last.get(client, 0) + 1
        original[client, numbers[index]] = planned
        if is_step:
            planned += 1
            records.append(StepRecord(planned, client, numbers[index], dict(last)))
    if durable == len(calls):
        done, durable_step = dict(last), planned
    order = CallOrder(done, durable_step, [record for record in records if record.step > durable_step])
    # calls that are new come at any time, too, and must wait until what was lost is done again
    new = [(len(calls) + n, CLIENTS[n % len(CLIENTS)], False) for n in range(fresh)]
    for index, client, _ in new:
        last[client] = numbers[index] = last.get(client, 0) + 1
    again, waiting = {}, []
    for item in [*new, *((index, *calls[index]) for index in resend)]:
        waiting.append(item)
        again |= replay(order, waiting, numbers)
    assert not waiting
    assert order.waiting_for() == ""
    assert again == {key: original.get(key, planned) for key in again}
    assert len(again) == len(resend) + fresh


def test_a_step_waits_for_calls_of_a_client_that_does_not_return_and_says_so():
    order = CallOrder({}, 0, [StepRecord(1, "ann", 2, {"ann": 2, "bob": 3})])
    order.begin("ann", 1)
    assert not order.may_begin("ann", 2)
    assert not order.may_begin("ann", 3)
    assert "step 1" in order.waiting_for()
    assert "1 to 3 of client bob" in order.waiting_for()
    for number in (1, 2, 3):
        assert order.may_begin("bob", number)
        order.begin("bob", number)
    assert not order.may_begin("bob", 4)  # came after the step
    assert order.may_begin("ann", 2)
    order.begin("ann", 2, is_step=True)
    assert order.may_begin("bob", 4)


def test_without_a_journal_what_the_clients_tell_does():
    order = CallOrder({}, 0)
    assert not order.may_begin("bob", 1, named_step=2)  # its gradient was in step 2: step 1 comes first
    order.learn(StepRecord(1, "ann", 2, {"ann": 2}))
    assert order.may_begin("ann", 1, named_step=1)
    order.begin("ann", 1)
    assert order.may_begin("ann", 2)
    order.begin("ann", 2, is_step=True)
    assert order.may_begin("bob", 1, named_step=2)


def test_a_failed_step_is_not_counted():
    order = CallOrder({})
    order.begin("ann", 1, is_step=True)
    order.step_failed()
    assert order.planned == 0


def test_lost_steps_that_are_given_up_hold_nothing():
    order = CallOrder({}, 0, [StepRecord(1, "ann", 2, {"ann": 2, "bob": 3})])
    assert not order.may_begin("cyd", 1)
    order.forget_lost()
    assert order.may_begin("cyd", 1)


def record(step):
    return StepRecord(step, "ann", step, {"ann": step})


def test_the_journal_gives_back_the_steps_after_a_checkpoint(tmp_path):
    journal = StepJournal(tmp_path / "steps.jsonl")
    assert journal.read(0) == []
    for step in range(1, 6):
        journal.append(record(step))
    assert StepJournal(tmp_path / "steps.jsonl").read(2) == [record(3), record(4), record(5)]
    journal.forget(3)
    assert journal.read(3) == [record(4), record(5)]
    assert journal.read(0) == []  # step 1 is not there any more, and none may be left out
    journal.clear()
    assert journal.read(3) == []


def test_a_line_that_was_half_written_ends_the_journal(tmp_path):
    path = tmp_path / "steps.jsonl"
    journal = StepJournal(path)
    journal.append(record(1))
    journal.append(record(2))
    path.write_bytes(path.read_bytes()[:-9])
    assert journal.read(0) == [record(1)]


def test_a_step_that_is_claimed_for_a_call_that_went_is_not_waited_for():
    order = CallOrder({"ann": 3})
    order.learn(StepRecord(1, "ann", 3, {"ann": 3}))
    assert order.waiting_for() == ""
    assert order.may_begin("ann", 4)


def test_records_behind_one_that_was_cut_are_read(tmp_path):
    (tmp_path / "steps").write_text('\n{"step": 1, "cli')
    journal = StepJournal(tmp_path / "steps")
    records = [StepRecord(step, "ann", step, {"ann": step}) for step in (1, 2)]
    for record in records:
        journal.append(record)
    assert journal.read(0) == records


def test_no_record_is_lost_that_is_written_while_others_are_forgotten(tmp_path):
    record = StepRecord(1, "ann", 1, {"ann": 1})

    class Interrupted(StepJournal):
        def read(self, after):
            found = super().read(after)
            writer.start()
            writer.join(0.2)  # time for a record that nothing keeps out
            return found

    journal = Interrupted(tmp_path / "steps")
    writer = threading.Thread(target=journal.append, args=(record,))
    journal.forget(0)
    writer.join()
    assert StepJournal(tmp_path / "steps").read(0) == [record]
