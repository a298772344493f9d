"""The Seqloom SDK: recurrent networks on a server, for whole sequences and live streams.

    client = seqloom.Client("localhost:50051")
    result = client.infer("digits", [x1, x2], outputs="labels")
    with client.stream("digits", outputs="probs") as stream:
        for chunk in stream.run(chunks):
            print(chunk.first_step, chunk.outputs)

AsyncClient has the same names, awaited.
"""

from seqloom._version import __version__
from seqloom.blocking import Client, Stream
from seqloom.client import AsyncClient
from seqloom.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    SeqloomError,
    StreamLost,
    Unauthenticated,
    Unavailable,
    VersionMismatch,
)
from seqloom.stream import AsyncStream
from seqloom.types import (
    TLS,
    Chunk,
    InferenceResult,
    Limits,
    ModelInfo,
    ModelSpec,
    ServerInfo,
    Snapshot,
    State,
    Timing,
    TopK,
    TopKOutput,
)

__all__ = [
    "TLS",
    "AlreadyExists",
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Chunk",
    "Client",
    "DeadlineExceeded",
    "InferenceResult",
    "Internal",
    "InvalidArgument",
    "Limits",
    "ModelInfo",
    "ModelSpec",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "SeqloomError",
    "ServerInfo",
    "Snapshot",
    "State",
    "Stream",
    "StreamLost",
    "Timing",
    "TopK",
    "TopKOutput",
    "Unauthenticated",
    "Unavailable",
    "VersionMismatch",
    "__version__",
]
