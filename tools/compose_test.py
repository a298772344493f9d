"""Runs docker-compose.yml for real: builds it, sends load through its ports, and holds Prometheus' answers against it.

With docker, else with podman; where neither runs, it says so and exits 0. `--base-images` only prints the images that
the stack is made from.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import seqloom
from compose_stack import ROOT, STOP_SECONDS, Stack, base_images, find_engine
from grpc_health.v1 import health_pb2, health_pb2_grpc

WAIT_SECONDS = 120  # for a condition that a working stack reaches sooner
CREATED = "created-by-compose-test"


class Checks:
    """Each of `each()` is one check; the first that fails ends the run."""

    def __init__(self) -> None:
        self.passed = 0

    @contextmanager
    def each(self, claim: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        except BaseException:
            print(f"FAILED  {claim}", flush=True)
            raise
        self.passed += 1
        print(f"ok      {claim} ({time.monotonic() - start:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base-images", action="store_true", help="print the images that the stack is made from, and exit"
    )
    if parser.parse_args().base_images:
        print(*base_images(), sep="\n")
        return
    found = find_engine()
    if found is None:
        print("compose-test: skipped: neither docker with compose nor podman with podman-compose runs here")
        return
    stack, checks = Stack(*found), Checks()
    print(f"compose-test: {stack.engine}, project {stack.project}", flush=True)
    failed = 0
    try:
        check_stack(stack, checks)
    except Exception as error:
        failed = 1
        report(stack, error)
    finally:
        stack.tear_down()
    if left := stack.leftovers():
        failed += 1
        print(f"FAILED  nothing is left of the stack: {', '.join(left)}")
    print(f"{checks.passed} passed, {failed} failed")
    sys.exit(min(failed, 1))


def check_stack(stack: Stack, checks: Checks) -> None:
    """Every claim that the deployment makes, in the order in which a user meets them."""
    services = ["server", "prometheus"]
    if stack.has_image("grafana"):
        services.append("grafana")
    else:
        print("SKIPPED Grafana: its image is not here and cannot be pulled")
    with checks.each("the image builds and the stack starts"):
        stack.compose("up", "--build", "--detach", *services)
    with checks.each("the server serves, by gRPC health from outside and by the image's own health check"):
        wait_until_serving(stack)
    print(f"        the image has {stack.image_bytes('server') / 1e6:.0f} MB")
    with checks.each("the server runs as a user without rights"):
        check_rights(stack)
    with checks.each("the CPU image holds no CUDA package"):
        check_torch = (ROOT / "deploy" / "check_torch.py").read_text()
        stack.exec("server", "python", "-", "cpu", stdin=check_torch)
    with checks.each("without its token nobody is served, and nobody without TLS"):
        check_refusals(stack)
    claim = "callers outside get what one alone gets, of a model that the image brings and of a new one"
    with checks.each(claim), connect(stack) as client:
        sent = send_load(client)
    with checks.each("Prometheus has counted exactly the steps that were sent"):
        for model, steps in sent.items():
            wait_for_count(stack, model, steps)
    with checks.each("Prometheus records and alerts by our rules, and no alert fires"):
        check_rules(stack)
    if "grafana" in services:
        with checks.each("Grafana has the dashboard, and Prometheus answers it"):
            wait_for(lambda: ask_grafana(stack), "Grafana's dashboard")
    with checks.each("a stop ends the server with exit code 0"):
        with connect(stack) as client:
            before = client.infer(CREATED, [probe(client)]).outputs[0]
        container = stack.container("server")
        stack.compose("stop", "--timeout", str(STOP_SECONDS), "server")
        state = stack.state("server")
        assert not state["Running"], state
        assert state["ExitCode"] == 0, state
    with checks.each("model, certificate and token are those of before in a new container on the volumes"):
        secret, certificate = stack.secret, stack.certificate
        stack.compose("up", "--detach", "--force-recreate", "server")
        assert stack.container("server") != container
        wait_until_serving(stack)
        assert (stack.secret, stack.certificate) == (secret, certificate)
        with connect(stack) as client:
            np.testing.assert_array_equal(client.infer(CREATED, [probe(client)]).outputs[0], before)
            steps = len(probe(client))
    with checks.each("Prometheus finds the server again, its counters anew"):
        wait_for_count(stack, CREATED, steps)


def wait_until_serving(stack: Stack) -> None:
    wait_for(stack.read_secrets, "the token and the certificate are made")
    credentials = grpc.ssl_channel_credentials(stack.certificate.encode())
    with grpc.secure_channel(f"127.0.0.1:{stack.grpc_port}", credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        metadata = [("authorization", f"Bearer {stack.secret}")]

        def serving() -> bool:
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5, metadata=metadata)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        wait_for(serving, "the server is SERVING")
    wait_for(lambda: stack.healthy("server"), "the container is healthy")


def connect(stack: Stack, token: str | None = "", tls: seqloom.TLS | None = None) -> seqloom.Client:
    """Returns a client with the stack's token and certificate, unless others are given."""
    address = f"localhost:{stack.grpc_port}"
    tls = tls or seqloom.TLS(ca=stack.certificate.encode())
    return seqloom.Client(address, token=stack.secret if token == "" else token, tls=tls)


def check_refusals(stack: Stack) -> None:
    for token in (None, "wrong"):
        with connect(stack, token) as client:
            try:
                client.models()
            except seqloom.Unauthenticated:
                continue
            raise AssertionError(f"served with the token {token}")
    with seqloom.Client(f"localhost:{stack.grpc_port}", token=stack.secret, retries=0) as client:
        try:
            client.models()
        except seqloom.Unavailable:
            return
        raise AssertionError("served without TLS")


def check_rights(stack: Stack) -> None:
    lines = stack.exec("server", "cat", "/proc/1/status").splitlines()
    process = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert "0" not in process["Uid"] + process["Gid"], process
    assert int(process["CapEff"][0], 16) == 0, process
    assert process["NoNewPrivs"] == ["1"], process


def send_load(client: seqloom.Client) -> dict[str, int]:
    """Sends whole sequences and a live stream; returns the steps sent to each model."""
    spec = seqloom.ModelSpec(cell="gru", input_size=40, hidden_size=32, output_size=7)
    client.create_model(CREATED, spec, seed=0)
    random = np.random.default_rng(0)
    sent = {}
    for model in ("digits", CREATED):
        width = client.model(model).spec.input_size
        lengths = random.integers(1, 200, size=32)
        sequences = [random.standard_normal((length, width), dtype=np.float32) for length in lengths]
        together = client.infer(model, sequences).outputs
        with client.stream(model) as stream:
            streamed = np.concatenate([chunk.outputs for chunk in stream.run(np.array_split(sequences[0], 5))])
            stream.finish()
        alone = client.infer(model, sequences[:1]).outputs[0]
        for outputs in (together[0], streamed):
            np.testing.assert_allclose(outputs, alone, rtol=1e-4, atol=1e-5)
        sent[model] = int(lengths.sum() + 2 * lengths[0])
    return sent


def probe(client: seqloom.Client) -> np.ndarray:
    """Returns [9, D] frames that are the same each time."""
    width = client.model(CREATED).spec.input_size
    return np.random.default_rng(1).standard_normal((9, width), dtype=np.float32)


def answer(port: int, path: str) -> object:
    """Returns the JSON that a service answers, None while it is starting."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return json.load(reply)
    except (urllib.error.URLError, ConnectionError, json.JSONDecodeError):
        return None


def check_rules(stack: Stack) -> None:
    found: Any = answer(stack.prometheus_port, "/api/v1/rules")
    rules = [rule for group in found["data"]["groups"] for rule in group["rules"]]
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}, found
    assert all(rule["health"] in ("ok", "unknown") for rule in rules), found  # unknown: not evaluated yet
    assert not [rule for rule in rules if rule.get("state") == "firing"], found


def ask_grafana(stack: Stack) -> bool:
    board: Any = answer(stack.grafana_port, "/api/dashboards/uid/seqloom")
    source: Any = answer(stack.grafana_port, "/api/datasources/proxy/uid/prometheus/api/v1/query?query=seqloom_serving")
    return bool(board and board["dashboard"]["panels"] and source and source["data"]["result"])


def wait_for_count(stack: Stack, model: str, steps: int) -> None:
    """Waits until Prometheus says that `model` has made exactly `steps` steps since the server started."""
    query = urllib.parse.urlencode({"query": f'sum(seqloom_steps_total{{job="seqloom",model="{model}"}})'})

    def reached() -> bool:
        try:
            url = f"http://127.0.0.1:{stack.prometheus_port}/api/v1/query?{query}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                result = json.load(answer)["data"]["result"]
        except (urllib.error.URLError, ConnectionError):  # still starting
            return False
        found = float(result[0]["value"][1]) if result else 0.0
        return found == steps

    wait_for(reached, f"Prometheus has {steps} steps of {model}")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {WAIT_SECONDS} s: {what}")
        time.sleep(0.5)


def report(stack: Stack, error: Exception) -> None:
    """Prints what went wrong and what the services last said."""
    traceback.print_exception(error, file=sys.stdout)
    if isinstance(error, subprocess.CalledProcessError):
        print(error.output, error.stderr or "", sep="\n")
    for service in ("server", "prometheus"):
        try:
            print(f"--- the last of {service}'s log", stack.compose("logs", "--tail", "30", service), sep="\n")
        except subprocess.CalledProcessError as broken:
            print(broken.output)


if __name__ == "__main__":
    main()
