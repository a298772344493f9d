"""What the SDK adds to a call: at most a quarter over a bare synchronous gRPC call of the same bytes."""

import statistics
import time

import grpc
import numpy as np
import pytest
import seqloom
from helpers.real_server import write_models
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import inference_service_pb2_grpc, tensor_pb2
from seqloom_server.nn.spec import ModelSpec


@pytest.mark.alone
def test_a_blocking_call_costs_at_most_a_quarter_more_than_a_bare_one(server_process, tmp_path):
    write_models(tmp_path, {"m": ModelSpec("elman", 40, 64, 40)})
    address = server_process("--models", tmp_path).address
    x = np.random.default_rng(0).standard_normal((43, 40)).astype("f4")

    def bare():
        sequences = tensor_pb2.SequenceBatch(rows=tensors.encode(x), lengths=[len(x)])
        return tensors.decode(stub.Infer(pb.InferRequest(model="m", sequences=sequences), timeout=60).outputs.values)

    def ours():
        return client.infer("m", [x]).outputs[0]

    def seconds_of(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    with grpc.insecure_channel(address) as channel, seqloom.Client(address) as client:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        np.testing.assert_array_equal(ours(), bare())
        # one after the other, so that whatever else the machine does falls on both alike
        pairs = [(seconds_of(ours), seconds_of(bare)) for _ in range(400)][50:]
    ratio = statistics.median(mine for mine, _ in pairs) / statistics.median(theirs for _, theirs in pairs)
    assert ratio <= 1.25
