"""What the blocking client costs over a bare blocking gRPC call of the same frames to the same server.

In a process of its own, since a thread that blocks must share it with no other load: asked [address, model, frames,
blocks, calls in a block], it answers with the medians and the median of the blocks' ratios.
"""

import statistics
import time

import grpc
import numpy as np
import seqloom
from seqloom import tensors
from seqloom.v1 import inference_service_pb2, inference_service_pb2_grpc, tensor_pb2

from benchmarks.harness.child_process import questions, say
from benchmarks.loads.workload import FRAME, synthetic


def compare(address: str, model: str, length: int, blocks: int, calls: int) -> dict[str, float]:
    """Each block runs both, in an order that alternates, so that neither always comes first."""
    frames = np.resize(synthetic(1)[0], (length, FRAME))
    with seqloom.Client(address) as client, grpc.insecure_channel(address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)

        def ours() -> np.ndarray:
            return client.infer(model, [frames], outputs="labels").outputs[0]

        def bare() -> np.ndarray:
            request = inference_service_pb2.InferRequest(model=model)
            tensors.encode_into(frames, request.sequences.rows)
            request.sequences.lengths.append(len(frames))
            request.output.kind = tensor_pb2.OUTPUT_KIND_LABELS
            return tensors.decode(stub.Infer(request, timeout=60).outputs.labels)

        np.testing.assert_array_equal(bare(), ours())
        seconds: dict[object, list[float]] = {ours: [], bare: []}
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
    say("ready")
    for question in questions():
        say(compare(*question))
