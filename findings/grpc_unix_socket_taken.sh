#!/usr/bin/env bash
# grpcio 1.85.3, Python: a second server at a unix socket that another listens on starts without a word. It removes the
# first one's socket and puts its own in its place: the first serves on, and no client can reach it. grpc issue 17122
# tells of it and was closed as stale. A server that is stopped before it was started leaves its socket behind.
# Expected: "Address already in use", as bind(2) says, as gRPC says of a file in that place, and as it says of a TCP port
# with grpc.so_reuseport=0.
# Seqloom's server therefore looks itself whether anybody listens there, and removes what gRPC leaves.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'grpcio==1.85.3'
cat >"$place/taken.py" <<'PYTHON'
import concurrent.futures
import os
import sys

import grpc


def serve(address, name):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: name)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Say": handler})])
    server.add_insecure_port(address)
    server.start()
    return server


def ask(address):
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return channel.unary_unary("/test.Echo/Say")(b"", timeout=10).decode()


print("grpcio", grpc.__version__)
path = os.path.join(sys.argv[1], "a.sock")
servers = [serve(f"unix:{path}", b"the first")]
print("before:", ask(f"unix:{path}"), "answers")
servers.append(serve(f"unix:{path}", b"the second"))
answers = ask(f"unix:{path}")
print("after a second server was started there, without an error:", answers, "answers")
assert answers == "the second", "the second server is refused now"

never_started = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
never_started.add_insecure_port(f"unix:{path}2")
never_started.stop(None).wait()
del never_started
print("a server that was stopped before it was started left its socket:", os.path.exists(f"{path}2"))
assert os.path.exists(f"{path}2"), "the socket is removed now"
for server in servers:
    server.stop(0).wait()
PYTHON
"$place/venv/bin/python" "$place/taken.py" "$place"
