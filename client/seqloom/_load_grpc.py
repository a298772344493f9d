"""Imports gRPC with its fork support off, unless the environment variable GRPC_ENABLE_FORK_SUPPORT is set.

Fork support starts threads in forked processes that use the parent's connections, which sometimes ends these processes
even if they never use gRPC. gRPC reads the variable during its import, so this module must be imported first.
"""

import importlib
import os

_FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"

if _FORK_SUPPORT in os.environ:
    importlib.import_module("grpc")
else:
    os.environ[_FORK_SUPPORT] = "0"
    try:
        importlib.import_module("grpc")
    finally:
        del os.environ[_FORK_SUPPORT]  # it must not reach the processes that this one starts
