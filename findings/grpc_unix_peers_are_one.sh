#!/usr/bin/env bash
# grpcio 1.85.3, servers (grpc and grpc.aio) on a unix socket: ServicerContext.peer() is "unix:" for every connection, so a
# server cannot tell its clients apart by it; over TCP each connection has its own name ("ipv4:127.0.0.1:54321"). Whoever
# limits, bans or shares by peer() counts all local clients as one.
# Expected from the documentation (https://grpc.github.io/grpc/python/grpc.html#grpc.ServicerContext.peer): "a string
# identifying the peer that invoked the RPC being serviced".
# Seqloom's server counts callers by connection; those of a unix socket share one part of every bound, as its docs say.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'grpcio==1.85.3'
cat >"$place/peers.py" <<'PYTHON'
import asyncio
import sys
from concurrent import futures

import grpc
import grpc.aio

METHOD = "/test.Peers/Ask"


def handlers(behaviour):
    method = grpc.unary_unary_rpc_method_handler(behaviour)
    return [grpc.method_handlers_generic_handler("test.Peers", {"Ask": method})]


def ask(target):
    """Asks over three connections that are open at the same time; returns what the server calls each of them."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(target, options=options) for _ in range(3)]
    names = [channel.unary_unary(METHOD)(b"", timeout=10).decode() for channel in channels]
    for channel in channels:
        channel.close()
    return names


def with_threads(address):
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=handlers(lambda _, context: context.peer().encode()))
    port = server.add_insecure_port(address)
    server.start()
    names = ask(address if address.startswith("unix:") else f"127.0.0.1:{port}")
    server.stop(None)
    return names


async def with_asyncio(address):
    async def behaviour(_, context):
        return context.peer().encode()

    server = grpc.aio.server(handlers=handlers(behaviour))
    port = server.add_insecure_port(address)
    await server.start()
    names = await asyncio.to_thread(ask, address if address.startswith("unix:") else f"127.0.0.1:{port}")
    await server.stop(None)
    return names


socket = f"unix:{sys.argv[1]}/socket"
seen = {
    "grpc, TCP": with_threads("127.0.0.1:0"),
    "grpc, unix socket": with_threads(socket + "1"),
    "grpc.aio, TCP": asyncio.run(with_asyncio("127.0.0.1:0")),
    "grpc.aio, unix socket": asyncio.run(with_asyncio(socket + "2")),
}
print("grpcio", grpc.__version__)
for what, names in seen.items():
    print(f"{what}: three connections, {len(set(names))} different names, such as {names[0]!r}")
    assert len(set(names)) == (1 if "unix" in what else 3), "this has changed"
PYTHON
"$place/venv/bin/python" "$place/peers.py" "$place"
