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
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.inference.inference_servicer import InferenceServicer
from seqloom_server.rpc.models.model_servicer import ModelServicer
from seqloom_server.rpc.training.training_servicer import TrainingServicer
from seqloom_server.rpc.unix_sockets import claim, release
from seqloom_server.web.http import HttpServer

log = logging.getLogger(__name__)

SERVICES = (
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name,
)

_MAX_PENDING = 1_000_000
_SECONDS_TO_END_CALLS = 1.0  # for calls to end by themselves once none of their work is left


class Server:
    """One server in this process; call start() and stop() on one event loop.

    address, http_address: HOST:PORT with the actual ports, once started; address may be unix:PATH.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self.metrics = Metrics(config.max_batch_sequences, config.max_batch_steps)
        self._serving = False
        self.address = self.http_address = ""

    async def start(self) -> None:
        """Listens on both ports, loads models and runs, and serves. Raises CannotStart."""
        config = self._config
        _make_folder("models", config.models)
        _make_folder("runs", config.runs)
        _check_apart(config.models, config.runs)
        self.engine = Engine(config, self.metrics)
        request_metrics = RequestMetrics(self.metrics)
        self.engine.registry.watchers.append(request_metrics)
        self._grpc = grpc.aio.server(interceptors=[CallInterceptor(request_metrics)], options=_options(config))
        outputs = ByteBudget(config.max_output_bytes, rejected=request_metrics.rejected)
        self._inference = InferenceServicer(self.engine, config, request_metrics, outputs)
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(self._inference, self._grpc)  # type: ignore[no-untyped-call]
        models = ModelServicer(self.engine, config)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, self._grpc)  # type: ignore[no-untyped-call]
        self._training = TrainingServicer(self.engine, config, request_metrics, outputs)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(self._training, self._grpc)  # type: ignore[no-untyped-call]
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
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
        self._serving = True

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
        await asyncio.to_thread(self.engine.close)
        await asyncio.to_thread(self._http.close)

    def _listen(self) -> str:
        address = self._config.listen
        try:
            if (socket_name := unix_socket(address)) is not None:
                claim(socket_name)
                self._grpc.add_insecure_port(address)
                return address
            host, port = split_address(address)
            _try_to_bind(host.strip("[]"), port)  # for the error's text, which gRPC does not give
            return f"{host}:{self._grpc.add_insecure_port(address)}"
        except OSError as error:
            raise CannotStart(f"cannot listen on {address} for gRPC: {error.strerror}") from None
        except RuntimeError:
            raise CannotStart(f"cannot listen on {address} for gRPC") from None

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


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server would share the port and take half of the calls
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # the request's limits bound the response
        # the engine refuses a burst with a reason and RetryInfo; gRPC would cancel calls without either
        ("grpc.server.max_pending_requests", _MAX_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
        # clients may ping every few seconds, also while no call is open
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # detects clients that vanished, so that their sessions end
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
