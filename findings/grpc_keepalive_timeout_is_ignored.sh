#!/usr/bin/env bash
# grpcio 1.85.3, clients and servers: grpc.keepalive_timeout_ms closes no connection. With a ping after 1 s of silence and a
# timeout of 1 s, a peer behind a proxy that still takes every byte but passes none on is noticed after 61 s.
# Expected by its documentation (grpc/impl/channel_arg_names.h): the transport closes that long after a ping without answer.
# The timer is only started anew where one is running (chttp2/transport/writing.cc), so never; what ends the connection is
# grpc.http2.ping_timeout_ms, a minute by default. https://github.com/grpc/grpc/pull/39239, not merged, describes the same.
# Seqloom sets both to the same time, in the client and in the server.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'grpcio==1.85.3'
cat >"$place/keepalive.py" <<'PYTHON'
import asyncio
import threading
import time
from concurrent import futures

import grpc

METHOD = "/test.Silence/Wait"
SECONDS = 1  # without traffic until a ping, and as many for its answer


class Link:
    """A TCP proxy; it takes what comes, and hands it on until `silent` is set."""

    def __init__(self, port):
        self._behind, self.silent = port, False
        loop, ready = asyncio.new_event_loop(), threading.Event()

        async def serve():
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        loop.create_task(serve())
        threading.Thread(target=loop.run_forever, daemon=True).start()
        ready.wait()

    async def _connected(self, reader, writer):
        behind = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(self._carry(reader, behind[1]), self._carry(behind[0], writer))

    async def _carry(self, reader, writer):
        try:
            while data := await reader.read(65536):
                if not self.silent:
                    writer.write(data)
        except ConnectionError:
            pass
        writer.close()


def noticed(port, **more):
    """Returns the seconds until a call whose server has fallen silent fails, and how."""
    link = Link(port)
    options = {"grpc.keepalive_time_ms": SECONDS * 1000, "grpc.keepalive_timeout_ms": SECONDS * 1000}
    options |= {"grpc.use_local_subchannel_pool": 1, "grpc.enable_retries": 0, **more}
    with grpc.insecure_channel(f"127.0.0.1:{link.port}", options=list(options.items())) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        call = channel.unary_unary(METHOD).future(b"", timeout=100)
        time.sleep(0.5)
        link.silent = True
        begun = time.monotonic()
        error = call.exception()
        return time.monotonic() - begun, error.details()


ended = threading.Event()
method = grpc.unary_unary_rpc_method_handler(lambda _, context: b"" if ended.wait(200) else b"")
server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.http2.min_ping_interval_without_data_ms", 100)])
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Silence", {"Wait": method})])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("grpcio", grpc.__version__)
late, why = noticed(port)
print(f"keepalive_time {SECONDS} s, keepalive_timeout {SECONDS} s: noticed after {late:.1f} s: {why}")
soon, why_soon = noticed(port, **{"grpc.http2.ping_timeout_ms": SECONDS * 1000})
print(f"and ping_timeout {SECONDS} s: noticed after {soon:.1f} s: {why_soon}")
assert late > 50 and "ping timeout" in why, "this has changed"
assert soon < 10, "this has changed"
ended.set()
server.stop(None)
PYTHON
"$place/venv/bin/python" "$place/keepalive.py"
