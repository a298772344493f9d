"""What gRPC counts of a server below its handlers, as metrics: open connections, and calls from their first byte.

A call that its client resets before the event loop has taken it comes to no handler, and so into no other metric.
"""

import json
from collections.abc import Iterator
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]  # what grpcio-channelz calls
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class TransportCounts(Collector):
    """The counts of the server that was made by the last call of grpc.aio.server(); to be registered."""

    def __init__(self) -> None:
        self._server = max((int(server["ref"]["serverId"]) for server in _servers()), default=0)

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics; none once the server is gone."""
        try:
            data = json.loads(cygrpc.channelz_get_server(self._server))["server"]["data"]
            sockets = json.loads(cygrpc.channelz_get_server_sockets(self._server, 0, 1 << 20))
        except ValueError:
            return
        yield GaugeMetricFamily("seqloom_connections", "Open gRPC connections", len(sockets.get("socketRef", ())))
        yield CounterMetricFamily(
            "seqloom_calls_started",
            "Calls that arrived, also those that were given up before a handler took them",
            int(data.get("callsStarted", 0)),
        )


def _servers() -> Iterator[Any]:
    start = 0
    while True:
        page = json.loads(cygrpc.channelz_get_servers(start))
        yield from page.get("server", ())
        if page.get("end", False) or not page.get("server"):
            return
        start = 1 + max(int(server["ref"]["serverId"]) for server in page["server"])
