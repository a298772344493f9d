#!/usr/bin/env bash
# grpcio 1.85.3, Python: a channel to a port above 65535 is made, and connects to the port that is left after division
# by 65536. A client of "localhost:70000" calls whoever listens on 4464.
# Expected (a TCP port has 16 bits, RFC 9293): an error, as gRPC gives for "ipv4:127.0.0.1:70000", "invalid ipv4 port".
# Seqloom's SDK therefore refuses such an address itself.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'grpcio==1.85.3'
cat >"$place/port.py" <<'PYTHON'
import concurrent.futures

import grpc

server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"from another port")
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Say": handler})])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("grpcio", grpc.__version__)
for address in (f"127.0.0.1:{port + 65536}", f"localhost:{port + 65536}", f"dns:///localhost:{port + 65536}"):
    with grpc.insecure_channel(address) as channel:
        try:
            reply = channel.unary_unary("/test.Echo/Say")(b"", timeout=10)
        except grpc.RpcError as error:
            raise SystemExit(f"{address} is refused now: {error.details()}")
    print(f"a server at port {port} answers a client of {address}: {reply!r}")
    assert reply == b"from another port"
server.stop(0)
PYTHON
"$place/venv/bin/python" "$place/port.py"
