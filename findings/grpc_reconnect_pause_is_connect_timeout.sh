#!/usr/bin/env bash
# grpcio 1.85.3: the channel option grpc.min_reconnect_backoff_ms is also the time that a connection attempt is given. With
# 100 ms, set so that a server that comes back is found soon, a client over a link with a round trip of 800 ms gives up
# attempt after attempt and never connects, if its largest pause is as short; without the option the first attempt succeeds.
# Expected from the documentation (grpc/impl/channel_arg_names.h): "The minimum time between subsequent connection attempts".
# gRPC's doc/connection-backoff.md has it as MIN_CONNECT_TIMEOUT, "minimum time we're willing to give a connection to
# complete": one option for both.
# Seqloom's client sets it to its connect timeout; how soon it tries again is in initial_ and max_reconnect_backoff_ms.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'grpcio==1.85.3'
cat >"$place/connect.py" <<'PYTHON'
import asyncio
import threading
import time
from concurrent import futures

import grpc

ONE_WAY = 0.4  # seconds that bytes take, each way
LONGEST = 6.0  # seconds that a connection is waited for


class SlowLink:
    """A TCP proxy that hands bytes on later. connections: how many were made."""

    def __init__(self, port):
        self._behind, self.connections = port, 0
        self._loop, ready = asyncio.new_event_loop(), threading.Event()

        async def serve():
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        self._loop.create_task(serve())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        ready.wait()

    async def _connected(self, reader, writer):
        self.connections += 1
        behind = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(self._carry(reader, behind[1]), self._carry(behind[0], writer))

    async def _carry(self, reader, writer):
        def write(data):
            if not writer.is_closing():
                writer.write(data)

        try:
            while data := await reader.read(65536):
                self._loop.call_later(ONE_WAY, write, data)
        except ConnectionError:
            pass
        self._loop.call_later(ONE_WAY, writer.close)


def connected(port, **options):
    """Returns (seconds until a channel was connected, or None, and the attempts)."""
    link = SlowLink(port)
    settings = [("grpc.use_local_subchannel_pool", 1)]
    settings += [(f"grpc.{name}_reconnect_backoff_ms", value) for name, value in options.items()]
    begun = time.monotonic()
    with grpc.insecure_channel(f"127.0.0.1:{link.port}", options=settings) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=LONGEST)
        except grpc.FutureTimeoutError:
            return None, link.connections
        return time.monotonic() - begun, link.connections


server = grpc.server(futures.ThreadPoolExecutor(1))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("grpcio", grpc.__version__, f"- a link with a round trip of {2 * ONE_WAY:g} s")
fast, attempts = connected(port, initial=100, max=200, min=100)
print(f"initial 100, max 200, min 100 ms: connected {fast}, after {attempts} attempts in {LONGEST:g} s")
usual, once = connected(port, initial=100, max=200)
print(f"initial 100, max 200 ms: connected after {usual:.1f} s, {once} attempt")
assert fast is None and attempts > 5, "this has changed"
assert usual is not None and once == 1, "this has changed"
server.stop(None)
PYTHON
"$place/venv/bin/python" "$place/connect.py"
