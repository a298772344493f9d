"""Every method of every service is sent drawn, changed and broken messages, on a real channel to a real server.

Each call gets a status of the table of errors; a neighbour's stream has the outputs that it has alone; the server logs
no failure, and in the end holds no more memory and sessions than before. `make fuzz` sends ten times as many.
"""

import json
import re
import statistics

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from helpers.drawn_messages import changed, messages, one_in, serialized
from helpers.fuzzed_calls import FuzzedCall, errors_in, send, wrong
from helpers.fuzzed_world import NEIGHBOUR, World, good_of
from helpers.good_requests import MADE, MODEL
from helpers.prometheus import wait_for
from helpers.real_server import SMALL, write_models
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from seqloom.v1 import inference_service_pb2, model_service_pb2, training_service_pb2

AT_ONCE = 20  # calls that run beside each other
METHODS = {
    f"{service.full_name}/{method.name}": method
    for file in (inference_service_pb2, model_service_pb2, training_service_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.name != "Watch"  # which does not end, and has the message of Check
}
_MIB = 1 << 20


# A call on a run may wait for an earlier one that never comes.
WAIT = {"ForwardBackward", "RunCalls", "OptimStep", "SaveCheckpoint", "LoadCheckpoint", "PublishRun"}


def timeout(call):
    return 0.3 if call.method.name in WAIT else 30


@pytest.fixture
def world(server_process, tmp_path):
    networks = write_models(tmp_path / "models", {MODEL: SMALL, MADE: SMALL, NEIGHBOUR: (SMALL, 1)})
    options = ("--max-model-bytes", 1_000_000, "--max-runs", 8)
    started = server_process("--models", tmp_path / "models", *options)
    one = World(started, networks)
    yield one
    one.close()


@st.composite
def calls(draw, world):
    """A call of any method: a good one's messages changed, or drawn ones."""
    good, names = world.good()
    method = METHODS[draw(st.sampled_from(sorted(METHODS)))]
    if one_in(draw, 4):
        many = draw(st.integers(1, 3)) if method.client_streaming else 1
        request = [draw(messages(method.input_type, names)) for _ in range(many)]
    else:
        request = draw(
            changed(draw(st.sampled_from(good[f"{method.containing_service.full_name}/{method.name}"])), names)
        )
    raw = tuple(draw(serialized(message)) for message in request)
    return FuzzedCall(method, raw, cancelled=one_in(draw, 30))


def test_good_calls_are_done(world):
    """Else nothing but refusals would be tried."""
    assert {name for name, _ in good_of(world.good()[0])} == set(METHODS)
    for place in range(len(good_of(world.good()[0]))):
        world.mend()
        name, request = good_of(world.good()[0])[place]  # of a client that has called nothing yet
        call = FuzzedCall(METHODS[name], tuple(message.SerializeToString() for message in request))
        [answer] = send(world.channel, [call], lambda _: 30)
        assert answer.code.name == "OK", f"{answer}\n{call}"
        assert not list(errors_in(answer)), f"{answer}\n{call}"


def test_whatever_is_sent_gets_a_proper_status_and_harms_nobody(world, request):
    inputs = request.config.getoption("--inputs")
    waiting = []

    @settings(
        max_examples=inputs,
        phases=[Phase.generate],  # the server has a state: what is smaller may do something else
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def draw_and_send(data):
        waiting.append(data.draw(calls(world)))
        if len(waiting) == AT_ONCE:
            look(world, waiting)
            waiting.clear()

    draw_and_send()
    look(world, waiting)
    print(json.dumps(world.outcomes))
    assert sum(sum(outcomes.values()) for outcomes in world.outcomes.values()) >= inputs
    for name in METHODS:
        assert "OK" in world.outcomes[name], f"{name} was only {world.outcomes[name]}: nothing of it was tried"
    wait_for(lambda: world.metric("active_streams") == 1, "only the neighbour's stream is open")
    wait_for(lambda: world.metric("queue_items") == 0, "nothing waits")
    quarter = max(1, len(world.memory) // 4)
    before, after = (statistics.median(part) for part in (world.memory[quarter : 2 * quarter], world.memory[-quarter:]))
    print(f"memory of the server: {before / _MIB:.0f} MiB, then {after / _MIB:.0f} MiB")
    assert after < before + 32 * _MIB
    log = "".join(world.started.stderr)
    assert not re.findall(r"^.* ERROR .*$|^Traceback.*$", log, re.MULTILINE), log[-4000:]


def look(world, sent):
    """Sends calls at once, looks at their answers and at the neighbour's, and mends what they have taken away."""
    for call, answer in zip(sent, send(world.channel, sent, timeout), strict=True):
        world.count(call, answer)
        assert not (problem := wrong(call, answer)), f"{problem}\n{call}"
        hung = answer.code is grpc.StatusCode.DEADLINE_EXCEEDED and call.method.name not in WAIT
        assert not hung or answer.status, f"it hung\n{call}"
    world.neighbour_goes_on()
    world.mend()
    world.measure()
