"""Starts and stops the whole server in order: engine, gRPC services, health, reflection and HTTP."""

import asyncio
import logging
import pathlib
import socket
import time

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from seqloom.v1 import (
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    training_service_pb2,
    training_service_pb2_grpc,
)

from seqloom_server.config import ServerConfig, split_address, unix_socket
from seqloom_server.engine.engine import CannotStart, Engine
from seqloom_server.metrics import Metrics
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.interceptors import CallInterceptor
from seqloom_server.rpc.calls.open_calls import OpenCalls
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.connections import open_files
from seqloom_server.rpc.connections.address_bound import AddressBound
from seqloom_server.rpc.connections.channel_options import channel_options
from seqloom_server.rpc.connections.transport_counts import TransportCounts
from seqloom_server.rpc.inference.inference_servicer import InferenceServicer
from seqloom_server.rpc.models.model_servicer import ModelServicer
from seqloom_server.rpc.security.listening import Exposed, check_listening
from seqloom_server.rpc.security.security import Security
from seqloom_server.rpc.security.watched_files import BrokenFile
from seqloom_server.rpc.training.training_servicer import TrainingServicer
from seqloom_server.rpc.unix_sockets import claim, release
from seqloom_server.web.http import HttpServer

log = logging.getLogger(__name__)

SERVICES = (
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name,
)

_SECONDS_TO_END_CALLS = 1.0  # for calls to end by themselves once none of their work is left


class Server:
    """One server in this process; call start() and stop() on one event loop.

    address, http_address: HOST:PORT with the actual ports, once started; address may be unix:PATH.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.metrics = Metrics(config.max_batch_sequences, config.max_batch_steps)
        self._serving = False
        self.metrics.serving.set_function(lambda: float(self._serving))
        self.address = self.http_address = ""

    async def start(self) -> None:
        """Listens on both ports, loads models and runs, and serves. Raises CannotStart."""
        config = self._config
        self._security = self._secured()
        _make_folder("models", config.models)
        _make_folder("runs", config.runs)
        _check_apart(config.models, config.runs)
        self.engine = Engine(config, self.metrics)
        request_metrics = RequestMetrics(self.metrics)
        self.engine.registry.watchers.append(request_metrics)
        connections = open_files.that_fit(config.max_connections)
        if connections < config.max_connections:
            log.warning("max_connections: %d of %d fit the limit of open files", connections, config.max_connections)
        interceptor = CallInterceptor(
            request_metrics,
            OpenCalls(config.max_calls),
            self._security.gate,
            logs_calls=config.log_format == "json",
        )
        self._grpc = grpc.aio.server(interceptors=[interceptor], options=channel_options(config, connections))
        self.metrics.registry.register(TransportCounts())
        outputs = ByteBudget(config.max_output_bytes, rejected=request_metrics.rejected)
        self._inference = InferenceServicer(self.engine, config, request_metrics, outputs)
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(self._inference, self._grpc)  # type: ignore[no-untyped-call]
        models = ModelServicer(self.engine, config)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, self._grpc)  # type: ignore[no-untyped-call]
        self._training = TrainingServicer(self.engine, config, request_metrics, outputs)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(self._training, self._grpc)  # type: ignore[no-untyped-call]
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if config.reflection == "on":
            reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], self._grpc)
        self.address = self._listen()
        try:
            self._http = HttpServer(config.http, self.metrics.registry, lambda: self._serving)
        except OSError as error:
            await asyncio.to_thread(self.engine.close)
            await self._stop_listening()
            raise CannotStart(f"cannot listen on {config.http} for HTTP: {error.strerror}") from None
        self.http_address = self._http.address
        try:
            await self.engine.start(self.address)
        except CannotStart:
            await asyncio.to_thread(self.engine.close)
            await self.engine.runs.release()
            await asyncio.to_thread(self._http.close)
            await self._stop_listening()
            raise
        self.engine.on_death(self._device_died)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        await self._grpc.start()
        self._security.watch()
        self._addresses = self._bound_addresses(connections)
        self._serving = self.engine.alive

    async def stop(self, grace_seconds: float | None = None) -> None:
        """Refuses new work, waits up to the grace period for running work, then ends the rest and closes the ports."""
        self._serving = False
        await self._health.enter_graceful_shutdown()
        grace = self._config.grace_seconds if grace_seconds is None else grace_seconds
        until = time.monotonic() + grace
        self._inference.drain()
        self._training.drain()
        await self.engine.drain(grace)
        await self._training.finish(_SECONDS_TO_END_CALLS)  # every call on a run is answered by now
        # slow callers have not read all outputs yet
        await self._inference.finish(max(_SECONDS_TO_END_CALLS, until - time.monotonic()))
        await self._grpc.stop(_SECONDS_TO_END_CALLS)
        self._security.close()
        if self._addresses is not None:
            await asyncio.to_thread(self._addresses.close)
        await asyncio.to_thread(self.engine.close)
        await asyncio.to_thread(self._http.close)

    def _secured(self) -> Security:
        """Returns what its files say of security, after checking where it may listen. Raises CannotStart."""
        config = self._config
        try:
            check_listening(config)
            return Security(config, self.metrics)
        except (Exposed, BrokenFile) as error:
            raise CannotStart(str(error)) from None
        except OSError as error:
            raise CannotStart(f"cannot listen on {config.listen} and {config.http}: {error.strerror}") from None

    def _listen(self) -> str:
        address = self._config.listen
        try:
            if (socket_name := unix_socket(address)) is not None:
                claim(socket_name)
                self._security.open_port(self._grpc, address)
                return address
            host, port = split_address(address)
            _try_to_bind(host.strip("[]"), port)  # for the error's text, which gRPC does not give
            return f"{host}:{self._security.open_port(self._grpc, address)}"
        except OSError as error:
            raise CannotStart(f"cannot listen on {address} for gRPC: {error.strerror}") from None
        except RuntimeError:
            raise CannotStart(f"cannot listen on {address} for gRPC") from None

    def _bound_addresses(self, connections: int) -> AddressBound | None:
        if unix_socket(self.address) is not None:  # whose clients have none
            return None
        most = self._config.max_connections_per_address or max(1, connections * 3 // 4)
        _, port = split_address(self.address)
        return AddressBound(port, most, self.metrics.connections_closed_total.inc)

    async def _stop_listening(self) -> None:
        """Stops a server that never served; removes its unix socket, which gRPC would leave behind."""
        await self._grpc.stop(None)
        if (socket_name := unix_socket(self.address)) is not None:
            release(socket_name)

    def _device_died(self) -> None:
        self._serving = False
        self._health_update = asyncio.ensure_future(self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING))

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *SERVICES):
            await self._health.set(service, status)


def _make_folder(option: str, path: str) -> None:
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"{option}: {path}: the folder cannot be created: {error.strerror}") from None


def _check_apart(models: str, runs: str) -> None:
    first, second = (pathlib.Path(path).resolve() for path in (models, runs))
    if first == second or first in second.parents or second in first.parents:
        raise CannotStart(f"runs: {runs} and models: {models}: expected two folders, neither inside the other")


def _try_to_bind(host: str, port: int) -> None:
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
