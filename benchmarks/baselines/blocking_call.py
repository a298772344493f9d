"""What the blocking client costs over a bare blocking gRPC call of the same frames to the same server.

A program of bench_server.py, since a thread that blocks must share its process with no other load: asked
[address, model, frames, blocks, calls in a block], it answers with the medians and the median of the blocks' ratios.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import seqloom
from seqloom import tensors
from seqloom.v1 import inference_service_pb2, inference_service_pb2_grpc, tensor_pb2

from benchmarks.harness.child_process import questions, say
from benchmarks.loads.workload import FRAME, synthetic


def main() -> None:
    say("ready")
    for address, model, length, blocks, calls in questions():
        frames = np.resize(synthetic(1)[0], (length, FRAME))
        with seqloom.Client(address) as client, grpc.insecure_channel(address) as channel:
            ours = functools.partial(_ours, client, model, frames)
            bare = functools.partial(_bare, inference_service_pb2_grpc.InferenceServiceStub(channel), model, frames)
            np.testing.assert_array_equal(bare(), ours())
            say(_compared(ours, bare, blocks, calls))


def _ours(client: seqloom.Client, model: str, frames: np.ndarray) -> np.ndarray:
    return client.infer(model, [frames], outputs="labels").outputs[0]


def _bare(stub: Any, model: str, frames: np.ndarray) -> np.ndarray:
    request = inference_service_pb2.InferRequest(model=model)
    tensors.encode_into(frames, request.sequences.rows)
    request.sequences.lengths.append(len(frames))
    request.output.kind = tensor_pb2.OUTPUT_KIND_LABELS
    return tensors.decode(stub.Infer(request, timeout=60).outputs.labels)


def _compared(ours: Callable[[], object], bare: Callable[[], object], blocks: int, calls: int) -> dict[str, float]:
    """Each block runs both, in an order that alternates, so that neither always comes first."""
    seconds: dict[Callable[[], object], list[float]] = {ours: [], bare: []}
    for block in range(blocks):
        for call in (ours, bare) if block % 2 else (bare, ours):
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds[call].append((time.perf_counter() - start) / calls)
    ratios = [one / other for one, other in zip(seconds[ours], seconds[bare], strict=True)]
    return {
        "client_us": 1e6 * statistics.median(seconds[ours]),
        "bare_us": 1e6 * statistics.median(seconds[bare]),
        "ratio": statistics.median(ratios),
    }


if __name__ == "__main__":
    main()
