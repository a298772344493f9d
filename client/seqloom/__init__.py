"""The Seqloom SDK, a client that runs and trains recurrent networks on a server, on whole sequences and live streams.

    client = seqloom.Client("localhost:50051")
    result = client.infer("digits", [x1, x2], outputs="labels")
    with client.stream("digits", outputs="probs") as stream:
        for chunk in stream.run(chunks):
            print(chunk.first_step, chunk.outputs)
    with client.create_run("digits", optimizer=seqloom.Adam(lr=1e-3)) as run:
        run.forward_backward([x1, x2], [labels1, labels2])
        run.step()

AsyncClient has the same methods, to be awaited.
"""

from seqloom import _load_grpc  # noqa: F401 - before all that imports gRPC
from seqloom._blocking.blocking_client import Client, Run, Stream, StreamGroup
from seqloom._groups.stream_group import AsyncStreamGroup
from seqloom._streaming.stream import AsyncStream
from seqloom._training.optimizers import SGD, Adam, AdamW
from seqloom._training.results import ForwardBackwardResult, Gradients, RunInfo, StepResult
from seqloom._training.run import AsyncRun
from seqloom._version import __version__
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
from seqloom.types import (
    TLS,
    Chunk,
    GroupChunk,
    GroupSnapshot,
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
    "SGD",
    "TLS",
    "Adam",
    "AdamW",
    "AlreadyExists",
    "AsyncClient",
    "AsyncRun",
    "AsyncStream",
    "AsyncStreamGroup",
    "Cancelled",
    "Chunk",
    "Client",
    "DeadlineExceeded",
    "ForwardBackwardResult",
    "Gradients",
    "GroupChunk",
    "GroupSnapshot",
    "InferenceResult",
    "Internal",
    "InvalidArgument",
    "Limits",
    "ModelInfo",
    "ModelSpec",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Run",
    "RunInfo",
    "SeqloomError",
    "ServerInfo",
    "Snapshot",
    "State",
    "StepResult",
    "Stream",
    "StreamGroup",
    "StreamLost",
    "Timing",
    "TopK",
    "TopKOutput",
    "Unauthenticated",
    "Unavailable",
    "VersionMismatch",
    "__version__",
]

for _public in (SeqloomError, *SeqloomError.__subclasses__()):
    _public.__module__ = __name__  # so that tracebacks show the name that callers catch
del _public
