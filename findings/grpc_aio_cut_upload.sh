#!/usr/bin/env bash
# grpcio 1.85.3, grpc.aio server: a request stream that its client cancelled, or whose deadline passed, ends for the
# handler just like one that was finished. The iterator of requests is exhausted without an error, `context.cancelled()`
# is False and `context.done()` too, so that the handler goes on and may act on half of an upload. That the call is over
# is told only later, by cancelling the handler's task while it awaits something else.
# Expected from the guide to cancellation (https://grpc.io/docs/guides/cancellation/): that the handler can tell.
# Seqloom's requests in parts therefore say in their last part that it is the last.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'grpcio==1.85.3'
cat >"$place/cut.py" <<'PYTHON'
import asyncio

import grpc

METHOD = "/test.Upload/Send"


def handlers(behaviour):
    return [grpc.method_handlers_generic_handler("test.Upload", {"Send": grpc.stream_unary_rpc_method_handler(behaviour)})]


async def asynchronous(how):
    """What the handler of an aio server sees of an upload of two messages that ends so."""
    seen = asyncio.get_running_loop().create_future()

    async def send(requests, context):
        count = 0
        try:
            async for _ in requests:
                count += 1
            seen.set_result(f"{count} messages, then the end; cancelled() {context.cancelled()}, done() {context.done()}")
        except BaseException as error:
            seen.set_result(f"{count} messages, then {type(error).__name__}")
            raise
        return b""

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers(send))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary(METHOD)(timeout=0.5 if how == "late" else 30)
        for _ in range(2):
            await call.write(b"part")
        if how == "finished":
            await call.done_writing()
        elif how == "cancelled":
            call.cancel()
        found = await asyncio.wait_for(seen, 30)
        await call.code()
    await server.stop(0)
    return found


print("grpcio", grpc.__version__)
found = {how: asyncio.run(asynchronous(how)) for how in ("finished", "cancelled", "late")}
for how, what in found.items():
    print(f"aio server, upload {how}: {what}")
assert found["finished"] == "2 messages, then the end; cancelled() False, done() False", "the finished upload changed"
assert found["cancelled"] == found["finished"], "a cancelled upload is told from a finished one now"
assert found["late"] == found["finished"], "a late upload is told from a finished one now"
PYTHON
"$place/venv/bin/python" "$place/cut.py"
