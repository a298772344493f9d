"""Loads gRPC with its handlers of forks off, which it has on where the environment does not say otherwise.

They give a fork threads on the connections of its parent, which end it now and then, even if it never uses gRPC. gRPC
reads the variable while it is imported, so this is imported before anything that imports gRPC.
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
        del os.environ[_FORK_SUPPORT]  # it is not for processes that this one starts
