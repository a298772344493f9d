"""All open RunCalls calls of one server: each is served by a task that reads and a task that writes."""

import asyncio
from collections.abc import AsyncIterator

from seqloom.v1 import training_service_pb2 as pb

from seqloom_server.config import ServerConfig
from seqloom_server.rpc.calls.byte_budget import ByteBudget
from seqloom_server.rpc.calls.callers import caller_of
from seqloom_server.rpc.calls.interceptors import Context
from seqloom_server.rpc.calls.request_metrics import RequestMetrics
from seqloom_server.rpc.training.run_methods import RunMethods
from seqloom_server.rpc.training.run_stream import RunStream


class RunStreams:
    """Serves RunCalls calls. incoming: the budget that entries are charged to."""

    def __init__(
        self, methods: RunMethods, config: ServerConfig, request_metrics: RequestMetrics, incoming: ByteBudget
    ) -> None:
        self._methods = methods
        self._config = config
        self._request_metrics = request_metrics
        self._incoming = incoming
        self._streams: dict[RunStream, asyncio.Task[object]] = {}
        self._draining = False

    async def serve(self, requests: AsyncIterator[pb.RunCallsRequest], context: Context) -> None:
        """Serves one call to its end."""
        stream = RunStream(
            self._methods,
            self._request_metrics,
            self._config.max_training_bytes,
            self._config.max_stream_message_bytes,
            self._incoming,
            caller_of(context),
        )
        task = asyncio.current_task()
        assert task is not None
        self._streams[stream] = task
        if self._draining:
            stream.drain()
        reading = asyncio.create_task(stream.read_from(requests))
        try:
            await stream.write_to(context)
        finally:
            del self._streams[stream]
            reading.cancel()
            stream.close()

    def drain(self) -> None:
        """Ends calls as soon as none of their entries is open: the server is shutting down."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    async def finish(self, seconds: float) -> None:
        """Waits until every call has ended, at most `seconds`."""
        if self._streams:
            await asyncio.wait(self._streams.values(), timeout=seconds)
