"""A model whose outputs are computed in bfloat16, through the SDK: near the same in full, and trained in full."""

import dataclasses

import grpc
import numpy as np
import pytest
import seqloom
from helpers.frames import noise
from seqloom.v1 import model_service_pb2, model_service_pb2_grpc
from seqloom_server.nn.spec import ModelSpec

SPEC = ModelSpec("lstm", 5, 64, 12, 2, dtype="float32", precision="full")
HALVED = dataclasses.replace(SPEC, precision="bf16")
NEAR = {"rtol": 0.02, "atol": 0.02}


async def test_outputs_are_near_in_every_form_and_a_stream_goes_on_with_its_state(serve):
    xs = [noise(40, seed=1).astype("f4"), noise(9, seed=2).astype("f4")]
    async with (
        serve({"full": SPEC, "halved": HALVED}) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        assert (await client.model("halved")).spec.precision == "bf16"
        for kind in ("logits", "probs", "log_probs", "hidden"):
            full, halved = await client.infer("full", xs, outputs=kind), await client.infer("halved", xs, outputs=kind)
            for one, other in zip(halved.outputs, full.outputs, strict=True):
                assert one.dtype == np.float32
                np.testing.assert_allclose(one, other, **NEAR)
            np.testing.assert_allclose(halved.final_state.cell, full.final_state.cell, **NEAR)
        async with client.stream("halved") as stream:
            got = [chunk.outputs async for chunk in stream.run(np.split(xs[0], [3, 4, 30]))]
        whole = await client.infer("halved", xs)
        np.testing.assert_allclose(np.concatenate(got), whole.outputs[0], **NEAR)


async def test_gradients_and_runs_are_in_full_and_a_publish_keeps_the_precision(serve):
    xs, targets = [noise(12).astype("f4")], [np.arange(12) % 12]
    async with (
        serve({"full": SPEC, "halved": HALVED}) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        full, halved = [await client.gradients(name, xs, targets) for name in ("full", "halved")]
        assert halved.loss == full.loss
        for name, gradient in full.parameters.items():
            np.testing.assert_array_equal(halved.parameters[name], gradient)
        before = (await client.infer("halved", xs)).outputs[0]
        run = await client.create_run("halved", optimizer=seqloom.SGD(lr=0.5))
        await run.forward_backward(xs, targets)
        await run.step()
        await run.publish()
        assert (await client.model("halved")).spec.precision == "bf16"
        after = (await client.infer("halved", xs)).outputs[0]
        assert np.abs(after - before).max() > 0.1


async def test_a_folder_keeps_it_and_may_be_given_another(serve, tmp_path):
    xs = [noise(12).astype("f4")]
    async with serve({"halved": HALVED}) as served, seqloom.AsyncClient(served.address) as client:
        await client.export_model("halved", tmp_path / "m")
        config = tmp_path / "m" / "config.json"
        assert '"precision": "bf16"' in config.read_text()
        await client.import_model("again", tmp_path / "m")
        first, again = (await client.infer("halved", xs)).outputs[0], (await client.infer("again", xs)).outputs[0]
        np.testing.assert_array_equal(again, first)
        config.write_text(config.read_text().replace('"bf16"', '"full"'))
        await client.import_model("full", tmp_path / "m")
        full = (await client.infer("full", xs)).outputs[0]
        assert 0 < np.abs(full - first).max() < 0.05


async def test_what_is_no_precision_is_refused_by_name(serve):
    with pytest.raises(seqloom.InvalidArgument, match="precision: is 'fp8': expected one of full, tf32, bf16, int8"):
        seqloom.ModelSpec("gru", 1, 1, 1, precision="fp8")
    with pytest.raises(seqloom.InvalidArgument, match="precision: is 'bf16': expected 'full' for float64"):
        seqloom.ModelSpec("gru", 1, 1, 1, dtype="float64", precision="bf16")
    async with serve({}) as served, grpc.aio.insecure_channel(served.address) as channel:
        create = model_service_pb2_grpc.ModelServiceStub(channel).CreateModel
        spec = model_service_pb2.ModelSpec(
            cell=model_service_pb2.CELL_TYPE_GRU, input_size=1, hidden_size=1, output_size=1, num_layers=1, precision=9
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(model_service_pb2.CreateModelRequest(name="m", spec=spec))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "spec.precision: is 9" in refused.value.details()


WHOLE = dataclasses.replace(SPEC, precision="int8")


async def test_int8_has_the_same_bits_alone_in_a_batch_and_in_a_stream(serve):
    xs = [noise(length, seed=length).astype("f4") for length in (40, 9, 17, 33, 1, 28)]
    async with (
        serve({"full": SPEC, "whole": WHOLE}) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        assert (await client.model("whole")).spec.precision == "int8"
        for kind in ("logits", "probs", "log_probs", "hidden", "labels", seqloom.TopK(3)):
            together = await client.infer("whole", xs, outputs=kind)
            alone = [await client.infer("whole", [each], outputs=kind) for each in xs]
            for n, one in enumerate(alone):
                got, wanted = one.outputs[0], together.outputs[n]
                if isinstance(kind, seqloom.TopK):
                    np.testing.assert_array_equal(got.labels, wanted.labels)
                    got, wanted = got.scores, wanted.scores
                np.testing.assert_array_equal(got, wanted)
                np.testing.assert_array_equal(one.final_state.cell[:, 0], together.final_state.cell[:, n])
        async with client.stream("whole") as stream:
            got = [chunk.outputs async for chunk in stream.run(np.split(xs[0], [3, 4, 30]))]
        whole = (await client.infer("whole", xs)).outputs[0]
        np.testing.assert_array_equal(np.concatenate(got), whole)
        full = (await client.infer("full", xs)).outputs[0]
        assert 0 < np.abs(whole - full).max() < 0.03


async def test_a_convolution_that_int8_cannot_sum_is_refused_by_the_client_and_by_the_server(serve):
    refused = "conv_width: is 5: expected at most 4 for 16384 inputs in int8, whose sums have at most 66311 products"
    wide = {"cell": "elman", "input_size": 16_384, "hidden_size": 1, "output_size": 1, "conv_channels": 1}
    seqloom.ModelSpec(**wide, conv_width=4, precision="int8")
    spec = seqloom.ModelSpec(**wide, conv_width=5, precision="bf16")
    with pytest.raises(seqloom.InvalidArgument, match=refused):
        dataclasses.replace(spec, precision="int8")
    object.__setattr__(spec, "precision", "int8")  # as a client would send it that does not look
    async with serve() as served, seqloom.AsyncClient(served.address) as client:
        with pytest.raises(seqloom.InvalidArgument, match=refused) as caught:
            await client.create_model("wide", spec)
        assert "spec.conv_width" in str(caught.value)
        assert caught.value.request_id, "it is the server's"


async def _streamed(client, name, frames, state):
    async with client.stream(name, initial_state=state) as stream:
        await stream.send(frames)
        return await stream.receive()


async def test_int8_takes_no_relu_and_no_hidden_state_beyond_its_bounds_but_trains_in_full(serve):
    with pytest.raises(seqloom.InvalidArgument, match="precision: is 'int8': expected another for relu"):
        seqloom.ModelSpec("elman", 1, 1, 1, activation="relu", precision="int8")
    spec = dataclasses.replace(WHOLE, num_layers=1, conv_channels=4, conv_width=2)
    xs, targets = [noise(12).astype("f4")], [np.arange(12) % 12]
    async with (
        serve({"full": dataclasses.replace(spec, precision="full"), "whole": spec}) as served,
        seqloom.AsyncClient(served.address) as client,
    ):
        at_bounds = np.ones((1, 1, 64), "f4")
        state = seqloom.State(hidden=at_bounds, cell=9 * at_bounds, inputs=np.full((1, 1, 5), 7, "f4"))
        await client.infer("whole", xs, initial_state=state)
        beyond = dataclasses.replace(state, hidden=-1.5 * at_bounds)
        refused = r"initial_state\.hidden: has -1\.5: expected -1 to 1, as the model's precision is int8"
        with pytest.raises(seqloom.InvalidArgument, match=refused):
            await client.infer("whole", xs, initial_state=beyond)
        with pytest.raises(seqloom.InvalidArgument, match=refused):
            await _streamed(client, "whole", xs[0], beyond)
        await client.infer("full", xs, initial_state=beyond)
        full, whole = [await client.gradients(name, xs, targets, initial_state=beyond) for name in ("full", "whole")]
        assert whole.loss == full.loss
        for name, gradient in full.parameters.items():
            np.testing.assert_array_equal(whole.parameters[name], gradient)
