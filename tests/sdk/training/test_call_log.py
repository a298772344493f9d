"""The log of a client's calls against a plain model of a server that dies anywhere and forgets what was not durable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqloom._training.call_log import CallLog


class Forgetful:
    """A server that does calls in order, each once; saves when it is told; and dies."""

    def __init__(self) -> None:
        self.done: list[str] = []  # what each number did, in order
        self.saved: list[str] = []

    def call(self, number: int, request: str) -> str:
        """Returns what the call did; "refused" for one that does nothing."""
        assert number <= len(self.done) + 1, "a call came before an earlier one"
        if number == len(self.done) + 1:
            self.done.append(request)
        return self.done[number - 1]

    def die(self) -> None:
        self.done = list(self.saved)


ACTIONS = st.lists(
    st.sampled_from(["call", "call", "call", "refused call", "reply lost", "save", "die", "cut"]),
    min_size=1,
    max_size=60,
)


@given(ACTIONS)
def test_whatever_dies_every_call_is_done_once_in_order_and_nothing_durable_is_kept(actions):
    server, log, made = Forgetful(), CallLog(), []

    def send(kept) -> None:
        request = "refused" if kept.call is None else kept.call
        did = server.call(kept.number, request)
        if did.startswith("refused"):
            log.refuse(kept)
        else:
            log.answer(kept, 1, {}, len(server.saved))

    for i, action in enumerate(actions):
        if action == "save":
            server.saved = list(server.done)
        elif action in ("die", "cut"):
            if action == "die":
                server.die()
            for kept in log.lost(len(server.done)):
                send(kept)
        else:
            request = f"{'refused ' if action == 'refused call' else ''}{i}"
            made.append(request)
            kept = log.add(request, size=len(request))
            if action == "reply lost":
                server.call(kept.number, request)
                for unanswered in log.lost(len(server.done)):
                    send(unanswered)
            else:
                send(kept)
        assert log.acknowledged == len(made)
        assert [kept.number for kept in log] == sorted(kept.number for kept in log)
        assert log.size == sum(kept.size for kept in log)
    assert [did if not did.startswith("refused") else "refused" for did in server.done] == [
        request if not request.startswith("refused") else "refused" for request in made
    ]
    log.settle(len(server.saved))
    assert all(kept.number > len(server.saved) for kept in log)


def test_a_call_is_kept_until_it_is_answered_and_durable():
    log = CallLog()
    first, second = log.add("a", 10), log.add("b", 20)
    log.answer(second, 1, {}, durable=2)  # the reply to the first is still under way
    assert (len(log), log.size, log.acknowledged, log.settled) == (2, 30, 0, False)
    assert log.lost(2) == [first]
    log.answer(first, 1, {}, durable=0)
    assert (len(log), log.size, log.acknowledged, log.settled) == (0, 0, 2, True)


def test_what_a_reply_named_first_is_what_is_sent_again():
    log = CallLog()
    kept = log.add("step", 0)
    log.answer(kept, 7, {"me": 1, "another": 3}, durable=0)
    log.answer(kept, 9, {"me": 1}, durable=0)
    (again,) = log.lost(0)
    assert (again.step, again.calls) == (7, {"me": 1, "another": 3})


def test_a_refused_call_leaves_only_its_number():
    log = CallLog()
    kept = log.add("a large call", 1 << 20)
    log.refuse(kept)
    assert (log.size, kept.call, log.lost(0)) == (0, None, [kept])


def test_a_server_that_lost_what_it_had_called_durable_is_found_out():
    log = CallLog()
    for _ in range(3):
        log.answer(log.add("call", 1), 1, {}, durable=2)
    assert len(log.lost(2)) == 1
    with pytest.raises(LookupError, match="calls 2 to 2"):
        log.lost(1)
