"""A stack of docker-compose.yml under a name and on ports of its own, run by docker or podman, and torn down whole."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
STOP_SECONDS = 30  # docker-compose.yml's stop_grace_period, which podman-compose does not read

_PORT_VARIABLES = ("SEQLOOM_PORT", "SEQLOOM_HTTP_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")


def base_images() -> list[str]:
    """Returns the images that the stack is made from, as docker names them: Python's, then Prometheus'."""
    python = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    prometheus = re.search(r"^ +image: (\S*prometheus:\S+)$", COMPOSE_FILE.read_text(), re.MULTILINE)
    if python is None or prometheus is None:
        raise LookupError(f"no base image found in {DOCKERFILE.name} or {COMPOSE_FILE.name}")
    return [python[1], prometheus[1]]


def find_engine() -> tuple[str, list[str]] | None:
    """Returns a container engine that runs here and its compose command: docker's, else podman's, else None."""
    for engine, compose in (("docker", ["docker", "compose"]), ("podman", ["podman-compose"])):
        probes = ([engine, "info"], [*compose, "version"])
        if all(
            shutil.which(probe[0]) and not subprocess.run(probe, capture_output=True).returncode for probe in probes
        ):
            return engine, compose
    return None


class Stack:
    """The services of docker-compose.yml, from build to teardown; commands that fail raise CalledProcessError."""

    def __init__(self, engine: str, compose: Sequence[str]) -> None:
        self.engine = engine
        self.secret = self.certificate = ""
        self.project = f"seqloom-test-{os.getpid()}-{time.time_ns() % 1_000_000}"
        self._compose = [*compose, "-p", self.project, "-f", str(COMPOSE_FILE)]
        ports = _free_ports(len(_PORT_VARIABLES))
        self.grpc_port, self.http_port, self.prometheus_port, self.grafana_port = ports
        # podman's own image format has no health check
        self._environment = {
            **os.environ,
            "BUILDAH_FORMAT": "docker",
            **{name: str(port) for name, port in zip(_PORT_VARIABLES, ports, strict=True)},
        }

    def has_image(self, service: str) -> bool:
        """Whether the image of a service that is not built here is there, or can be pulled."""
        image = re.search(rf"^ +image: (\S*/{service}:\S+)$", COMPOSE_FILE.read_text(), re.MULTILINE)
        if image is None:
            raise LookupError(f"no image of {service} found in {COMPOSE_FILE.name}")
        commands = ([self.engine, "image", "inspect", image[1]], [self.engine, "pull", "--quiet", image[1]])
        return any(not subprocess.run(command, capture_output=True).returncode for command in commands)

    def compose(self, *arguments: str) -> str:
        """Runs a compose command; returns what it printed."""
        done = subprocess.run(
            [*self._compose, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # podman-compose 1.0 exits with 0 whatever podman's own exit code was, which it prints
        failed = done.returncode or max(
            map(int, re.findall(r"^exit code: (\d+)$", done.stdout, re.MULTILINE)), default=0
        )
        if failed:
            raise subprocess.CalledProcessError(failed, done.args, done.stdout)
        return done.stdout

    def container(self, service: str) -> str:
        """Returns the id of a service's container, running or not."""
        labels = {"com.docker.compose.project": self.project, "com.docker.compose.service": service}
        filters = [word for name, value in labels.items() for word in ("--filter", f"label={name}={value}")]
        (container,) = self._run("ps", "--all", "--quiet", *filters).split()
        return container

    def exec(self, service: str, *command: str, stdin: str = "") -> str:
        """Runs a command inside a service's container; returns its output."""
        return self._run("exec", "--interactive", self.container(service), *command, stdin=stdin)

    def read_secrets(self) -> bool:
        """Reads what the first start made, into `secret` and `certificate`; returns whether both are there."""
        try:
            self.secret = self.exec("server", "cat", "/secrets/token").strip()
            self.certificate = self.exec("server", "cat", "/secrets/server.pem")
        except (subprocess.CalledProcessError, ValueError):  # the container is still starting
            return False
        return bool(self.secret and self.certificate)

    def state(self, service: str) -> dict[str, object]:
        """Returns what the engine says of a service's container: "Running", "ExitCode" and others."""
        state: dict[str, object] = json.loads(
            self._run("inspect", "--format", "{{json .State}}", self.container(service))
        )
        return state

    def healthy(self, service: str) -> bool:
        """Whether the health check that the image defines has succeeded."""
        if self.engine == "podman":  # whose timer needs systemd: the same check, run now
            command = ["podman", "healthcheck", "run", self.container(service)]
            return subprocess.run(command, capture_output=True).returncode == 0
        health = self.state(service)["Health"]
        return isinstance(health, dict) and health["Status"] == "healthy"

    def image_bytes(self, service: str) -> int:
        """Returns the size of a service's image."""
        image = self._run("inspect", "--format", "{{.Image}}", self.container(service)).strip()
        return int(self._run("image", "inspect", "--format", "{{.Size}}", image))

    def tear_down(self) -> None:
        """Removes the containers, volumes and the network, however far the stack came; the image stays as a cache."""
        subprocess.run([*self._compose, "down", "--volumes"], env=self._environment, capture_output=True)
        if self.engine == "podman":  # podman-compose 1.0 leaves the network
            subprocess.run(["podman", "network", "rm", "--force", f"{self.project}_default"], capture_output=True)

    def leftovers(self) -> list[str]:
        """Returns the names of what is still there of this project."""
        listings = (
            ("ps", "--all", "--format", "{{.Names}}"),
            ("volume", "ls", "--format", "{{.Name}}"),
            ("network", "ls", "--format", "{{.Name}}"),
        )
        return [name for listing in listings for name in self._run(*listing).split() if name.startswith(self.project)]

    def _run(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run([self.engine, *arguments], input=stdin, capture_output=True, text=True, check=True)
        return done.stdout


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
