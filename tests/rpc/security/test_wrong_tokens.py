"""What a wrong token costs: a pause of its address that grows and is forgotten, and nothing for other addresses."""

import asyncio
import itertools
import socket
import types

import pytest
import seqloom
from helpers.frames import noise
from helpers.real_server import metric, until
from hypothesis import given
from hypothesis import strategies as st
from seqloom_server.errors import Reason, ServerError
from seqloom_server.metrics import Metrics
from seqloom_server.rpc.security import gate as gates
from seqloom_server.rpc.security import wrong_tokens
from seqloom_server.rpc.security.gate import Gate
from seqloom_server.rpc.security.tokens import Token, Tokens, digest_of
from seqloom_server.rpc.security.wrong_tokens import WrongTokens, address_of


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:40000", "10.1.2.3"),
        ("ipv6:%5B::1%5D:40000", "::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:40000", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:ffff::1%5D:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:40000", "10.1.2.3"),
        ("ipv6:%5Bfe80::1%25eth0%5D:40000", "fe80::/64"),
        ("unix:/run/seqloom.sock", "unix"),
        ("unix:", "unix"),
        ("", ""),
    ],
)
def test_the_address_of_a_peer_has_no_port_and_no_part_that_a_site_chooses(peer, address):
    assert address_of(peer) == address


def test_each_pause_is_twice_as_long_as_the_one_before_up_to_the_longest():
    wrong, now, pauses = WrongTokens(), 100.0, []
    for _ in range(12):
        wrong.add("a", now)
        pauses.append(wrong.wait("a", now))
        now += pauses[-1]
        assert wrong.wait("a", now) == 0
    assert pauses[0] == pytest.approx(wrong_tokens.FIRST_SECONDS)
    for before, after in itertools.pairwise(pauses):
        assert after == pytest.approx(min(2 * before, wrong_tokens.LONGEST_SECONDS))
    assert wrong.wait("b", now) == 0


def test_wrong_tokens_are_forgotten():
    wrong = WrongTokens()
    for _ in range(8):
        wrong.add("a", 0.0)
    later = wrong_tokens.FORGOTTEN_SECONDS + 1.0
    wrong.add("a", later)
    assert wrong.wait("a", later) == pytest.approx(wrong_tokens.FIRST_SECONDS)


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1000)), max_size=60), st.integers(1, 8))
def test_the_table_is_bounded_and_no_pause_is_longer_than_the_longest(drawn, most):
    wrong, now = WrongTokens(), 0.0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wrong_tokens, "_MAX_ADDRESSES", most)
        for number, seconds in drawn:
            now += seconds
            wrong.add(str(number), now)
            assert len(wrong) <= most
            assert 0 < wrong.wait(str(number), now) <= wrong_tokens.LONGEST_SECONDS


GOOD = [("authorization", "Bearer good")]
OTHER = [("authorization", "bearer other")]
BAD = [("authorization", "Bearer bad")]
HERE, THERE = "ipv4:10.0.0.1:1", "ipv4:10.0.0.2:1"


@pytest.fixture
def gate():
    tokens = [Token(name, digest_of(name), frozenset({"infer"})) for name in ("good", "other")]
    return Gate(Tokens(tokens), Metrics())


async def reason(call):
    with pytest.raises(ServerError) as caught:
        await call
    return caught.value.reason


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "good")],
        [("authorization", "Basic good")],
        [("x", "Bearer good")],
        [("authorization", b"x")],
    ],
)
async def test_without_a_token_a_call_is_refused_and_nobody_waits(gate, metadata):
    for _ in range(100):
        assert await reason(gate.admit(metadata, HERE)) is Reason.NO_TOKEN
    assert (await gate.admit(GOOD, HERE)).token.name == "good"


async def test_wrong_tokens_hold_up_wrong_ones_of_their_address_only(gate, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    # a clock that only the gate's pauses move
    monkeypatch.setattr(gates, "time", types.SimpleNamespace(monotonic=lambda: 1000.0 + sum(waits)))
    monkeypatch.setattr(gates, "asyncio", types.SimpleNamespace(sleep=sleep))
    assert await reason(gate.admit(BAD, HERE)) is Reason.WRONG_TOKEN
    for good, name in ((GOOD, "good"), (OTHER, "other")):
        assert (await gate.admit(good, HERE)).token.name == name, "it waits for nothing, though it is new here"
    assert waits == []
    assert await reason(gate.admit(BAD, THERE)) is Reason.WRONG_TOKEN
    assert waits == []
    assert await reason(gate.admit(BAD, HERE)) is Reason.WRONG_TOKEN
    assert await reason(gate.admit(BAD, HERE)) is Reason.WRONG_TOKEN
    assert waits == pytest.approx([wrong_tokens.FIRST_SECONDS, 2 * wrong_tokens.FIRST_SECONDS])
    assert metric(gate._metrics, "unauthorized_total", reason="wrong") == 4


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")
async def test_a_real_server_holds_up_wrong_tokens_of_one_address_and_nothing_else(serve, secured, monkeypatch):
    monkeypatch.setattr(wrong_tokens, "FIRST_SECONDS", 1000.0)
    monkeypatch.setattr(wrong_tokens, "LONGEST_SECONDS", 1000.0)
    secured.token("good", "infer")
    async with serve(tokens=str(secured.tokens), listen="[::]:0", allow_insecure=True) as served:
        port = served.address.rpartition(":")[2]

        def client(host, token):
            return seqloom.AsyncClient(f"{host}:{port}", token=token, retries=0, timeout=60)

        async with (
            client("[::1]", secured.secrets["good"]) as here,
            client("[::1]", "wrong") as wrong,
            client("127.0.0.1", "wrong") as wrong_there,
        ):
            with pytest.raises(seqloom.Unauthenticated):
                await wrong.models()
            waiting = served.server._security.gate._waiting
            held_up = [asyncio.create_task(wrong.models()) for _ in range(gates._MAX_WAITING)]
            await until(lambda: waiting.total() == len(held_up))
            await here.models()  # its first call of this server
            await here.infer("small", [noise(3, 5, 0, "f4")])
            with pytest.raises(seqloom.Unauthenticated):
                await wrong_there.models()
            with pytest.raises(seqloom.Overloaded):
                await wrong.models()
            assert not any(call.done() for call in held_up)
            for call in held_up:
                call.cancel()
            await until(lambda: not waiting)


async def test_of_many_guesses_at_once_one_is_answered_in_a_pause_and_few_wait(gate, monkeypatch):
    monkeypatch.setattr(wrong_tokens, "LONGEST_SECONDS", 0.1)
    looked = []
    add = WrongTokens.add
    monkeypatch.setattr(
        WrongTokens, "add", lambda self, *given: looked.append(asyncio.get_running_loop().time()) or add(self, *given)
    )
    assert await reason(gate.admit(BAD, HERE)) is Reason.WRONG_TOKEN
    looked.clear()
    guesses = [asyncio.create_task(reason(gate.admit(BAD, HERE))) for _ in range(50)]
    reasons = await asyncio.gather(*guesses)
    assert reasons.count(Reason.WRONG_TOKEN) == gates._MAX_WAITING
    assert reasons.count(Reason.OVERLOADED) == 50 - gates._MAX_WAITING
    assert len(looked) == gates._MAX_WAITING
    assert all(later - before >= 0.09 for before, later in itertools.pairwise(looked))
    assert not gate._waiting
