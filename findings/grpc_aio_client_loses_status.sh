#!/usr/bin/env bash
# grpcio 1.85.3, grpc.aio client: where a call ends while its request stream is still being written, what the caller is
# raised is not the status that the call ended with. A server that answers RESOURCE_EXHAUSTED before it has read
# everything is often reported as INTERNAL "Internal error from Core", and so is a deadline that passes meanwhile, or a
# bare asyncio.CancelledError comes that nobody asked for. The failed write puts its own status in the place of the one
# that the transport is about to deliver (grpc issue 36066 is about the same place).
# Expected from the status codes' page (https://grpc.io/docs/guides/status-codes/): the server's code, and
# DEADLINE_EXCEEDED.
# Seqloom's server therefore reads a request to its end before it answers, and its SDK tells a deadline by the clock.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'grpcio==1.85.3'
cat >"$place/status.py" <<'PYTHON'
import asyncio
import collections

import grpc

METHOD = "/test.Upload/Send"
PART, PARTS, CALLS = bytes(1 << 20), 24, 60


async def outcomes(behaviour, timeouts):
    """How often each outcome came of calls that upload 24 MiB."""
    server = grpc.aio.server()
    handler = grpc.stream_unary_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Upload", {"Send": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = collections.Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        send = channel.stream_unary(METHOD)
        for timeout in timeouts:
            try:
                await send((PART for _ in range(PARTS)), timeout=timeout)
                found["OK"] += 1
            except grpc.aio.AioRpcError as error:
                found[f"{error.code().name}: {error.details()}"] += 1
            except asyncio.CancelledError:
                found["a bare asyncio.CancelledError"] += 1
    await server.stop(0)
    return found


async def refuse(requests, context):
    await anext(requests)
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "come later")


async def take(requests, context):
    async for _ in requests:
        pass
    return b""


print("grpcio", grpc.__version__)
refused = asyncio.run(outcomes(refuse, [30.0] * CALLS))
print("a server that answers RESOURCE_EXHAUSTED after the first of 24 parts:", dict(refused))
late = asyncio.run(outcomes(take, [0.001 + 0.0001 * k for k in range(10 * CALLS)]))
print("a deadline of 1 to 60 ms:", dict(late))
wrong = sum(count for what, count in refused.items() if not what.startswith("RESOURCE_EXHAUSTED"))
assert wrong, "a status that comes early is told now"
assert any(not what.startswith(("DEADLINE_EXCEEDED", "OK")) for what in late), "a deadline during an upload is told now"
PYTHON
"$place/venv/bin/python" "$place/status.py"
