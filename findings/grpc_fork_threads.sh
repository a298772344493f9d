#!/usr/bin/env bash
# grpcio 1.85.3, Python, Linux: a process that has used grpc.aio is forked, and the fork, which never touches gRPC, has
# threads of gRPC all the same, which work on the connections that it shares with its parent.
# doc/fork_support.md of gRPC says that an application enables fork support by GRPC_ENABLE_FORK_SUPPORT=true;
# the core has it on where the variable is not set, while the Python layer over it has it off, so that nothing ends
# those threads. The variable is read while grpc is imported: to set it later changes nothing.
# Expected: a fork has the thread that forked and no other (POSIX, fork()).
# Seqloom's SDK therefore imports gRPC with fork support off, unless the environment says otherwise.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q 'grpcio==1.85.3'
cat >"$place/fork.py" <<'PYTHON'
import asyncio
import os
import sys

when = sys.argv[1]
if when == "set before the import":
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
import grpc

if when == "set after the import":
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


async def threads_of_a_fork():
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        try:
            await channel.unary_unary("/test.Echo/Say")(b"", timeout=5)
        except grpc.aio.AioRpcError:
            pass  # nobody listens there
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, str(len(os.listdir("/proc/self/task"))).encode())
            os._exit(0)
        os.wait()
        return int(os.read(read, 10))


print(asyncio.run(threads_of_a_fork()))
PYTHON
unset GRPC_ENABLE_FORK_SUPPORT
"$place/venv/bin/python" -c 'import grpc; print("grpcio", grpc.__version__)'
for when in "not set" "set after the import" "set before the import"; do
    threads=$("$place/venv/bin/python" "$place/fork.py" "$when" 2>/dev/null)
    echo "GRPC_ENABLE_FORK_SUPPORT=0 $when: a fork has $threads thread(s)"
    if [[ $when == "set before the import" ]]; then [[ $threads == 1 ]]; else [[ $threads -gt 1 ]]; fi
done
