"""The SDK's public surface: a change of any of it is a change of this test."""

import asyncio
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import seqloom
import seqloom.v1
from helpers.pages import ROOT

PUBLIC_MODULES = {"tensors", "torch", "v1"}  # beside seqloom itself
LAYOUT_MODULES = {"client", "errors", "types", "wire"}  # importable, but the names to use are those of seqloom
PRIVATE_MODULES = {
    *(
        "_blocking",
        "_config",
        "_connection",
        "_forks",
        "_groups",
        "_load_grpc",
        "_messages",
        "_resume",
        "_retries",
        "_retry_budget",
    ),
    *("_streaming", "_training", "_version"),
}
MODULE_NAMES = {
    "seqloom.tensors": {
        *("MAX_RANK", "Array", "MalformedTensor", "data_type_of", "decode", "encode", "encode_into", "from_bfloat16"),
        *("from_bytes", "stored", "stored_bytes", "to_bfloat16"),
    },
    "seqloom.torch": {"RemoteNetwork"},
}
STUBS = {
    *("inference_service_pb2", "inference_service_pb2_grpc", "model_service_pb2", "model_service_pb2_grpc"),
    *("tensor_pb2", "tensor_pb2_grpc", "training_service_pb2", "training_service_pb2_grpc"),
}
NAMES = {
    *("TLS", "AlreadyExists", "AsyncClient", "AsyncStream", "Cancelled", "Chunk", "Client", "DeadlineExceeded"),
    *("InferenceResult", "Internal", "InvalidArgument", "Limits", "ModelInfo", "ModelSpec", "NotFound", "Overloaded"),
    *("PermissionDenied", "SeqloomError", "ServerInfo", "Snapshot", "State", "Stream", "StreamLost", "Timing", "TopK"),
    *("TopKOutput", "Unauthenticated", "Unavailable", "VersionMismatch", "__version__"),
    *("SGD", "Adam", "AdamW", "AsyncRun", "ForwardBackwardResult", "Gradients", "Run", "RunInfo", "StepResult"),
    *("AsyncStreamGroup", "GroupChunk", "GroupSnapshot", "StreamGroup"),
}
ERRORS = {
    *("InvalidArgument", "NotFound", "AlreadyExists", "Overloaded", "DeadlineExceeded", "Cancelled", "Internal"),
    *("Unauthenticated", "PermissionDenied", "VersionMismatch", "StreamLost", "Unavailable"),
}
CLIENT = {
    "__init__": "self, address, *, token=None, tls=None, timeout=60.0, retries=None, keepalive=30.0",
    "infer": "self, model, xs, outputs='logits', *, initial_state=None, weights_version=None, timeout=None",
    "stream": "self, model, outputs='logits', *, initial_state=None, weights_version=None, snapshot_interval=0, "
    "rate=None, resume=True, timeout=None",
    "stream_group": "self, model, n, outputs='logits', *, initial_state=None, weights_version=None, "
    "snapshot_interval=0, rate=None, resume=True, timeout=None",
    "gradients": "self, model, xs, targets=None, *, loss='cross_entropy', reduction='sum', wrt=('parameters',), "
    "output_gradients=None, initial_state=None, final_state_gradient=None, parameter_form='smallest', "
    "parameter_dtype=None, weights_version=None, timeout=None",
    "create_run": "self, model, *, optimizer, clip_norm=None, checkpoint_interval=100, weights_version=None, "
    "replay_bytes=268435456, timeout=None",
    "attach_run": "self, id, *, replay_bytes=268435456, timeout=None",
    "runs": "self, *, timeout=None",
    "delete_run": "self, id, *, timeout=None",
    "models": "self, *, timeout=None",
    "model": "self, name, *, timeout=None",
    "server_info": "self, *, timeout=None",
    "create_model": "self, name, spec, *, seed=0, timeout=None",
    "load_model": "self, name, *, timeout=None",
    "unload_model": "self, name, *, timeout=None",
    "export_model": "self, name, folder, *, timeout=None",
    "import_model": "self, name, folder, *, timeout=None",
    "close": "self",
}
STREAM = {
    "send": "self, frames, timeout=None",
    "receive": "self, timeout=None",
    "reset": "self",
    "finish": "self, timeout=None",
    "run": "self, chunks",
    "weights_version": None,
    "window": None,
    "snapshot": None,
}
GROUP = {
    "step": "self, frames, streams=None, timeout=None",
    "send": "self, frames, streams=None, timeout=None",
    "receive": "self, timeout=None",
    "run": "self, chunks",
    "reset": "self, streams=None",
    "state": "self, streams=None, timeout=None",
    "set_state": "self, state, streams=None, timeout=None",
    "finish": "self, timeout=None",
    "count": None,
    "weights_version": None,
    "window": None,
    "snapshot": None,
}
KINDS = (
    *(seqloom.Client, seqloom.AsyncClient, seqloom.Stream, seqloom.AsyncStream, seqloom.Run, seqloom.AsyncRun),
    *(seqloom.StreamGroup, seqloom.AsyncStreamGroup),
)
RUN = {
    "forward_backward": "self, xs, targets=None, *, loss='cross_entropy', reduction='sum', output_gradients=None, "
    "initial_state=None, final_state_gradient=None, timeout=None",
    "step": "self, learning_rate=None, *, expected_step=None, timeout=None",
    "save": "self, name='', *, timeout=None",
    "load": "self, name, *, timeout=None",
    "publish": "self, *, timeout=None",
    "info": "self, *, timeout=None",
    "checkpoints": "self, *, timeout=None",
    "delete": "self, *, timeout=None",
    "close": "self, *, timeout=None",
    "id": None,
    "model": None,
    "spec": None,
}


def public(kind):
    return {name: member for name, member in vars(kind).items() if not name.startswith("_") or name == "__init__"}


def parameters(function):
    """A signature without its types."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return text.removeprefix("(").removesuffix(")")


def test_the_names_are_these():
    assert sorted(seqloom.__all__) == sorted(NAMES)  # each once
    for name in NAMES:
        assert hasattr(seqloom, name)


def test_the_modules_are_these():
    found = {module.name for module in pkgutil.iter_modules(seqloom.__path__)}
    assert found == PUBLIC_MODULES | LAYOUT_MODULES | PRIVATE_MODULES
    assert {module.name for module in pkgutil.iter_modules(seqloom.v1.__path__)} == STUBS
    for name in PUBLIC_MODULES | LAYOUT_MODULES:
        importlib.import_module(f"seqloom.{name}")


@pytest.mark.parametrize("module", sorted(MODULE_NAMES))
def test_the_public_modules_have_these_names(module):
    imported = importlib.import_module(module)
    assert sorted(imported.__all__) == sorted(MODULE_NAMES[module])
    for name in MODULE_NAMES[module]:
        assert hasattr(imported, name)


def test_errors_show_the_name_that_callers_catch():
    for name in {*ERRORS, "SeqloomError"}:
        assert f"{getattr(seqloom, name).__module__}.{name}" == f"seqloom.{name}"


def test_modules_of_the_layout_have_the_same_classes_and_their_source_is_found():
    assert "class AsyncClient" in inspect.getsource(seqloom.AsyncClient)
    for module in ("seqloom.client", "seqloom.errors", "seqloom.types"):
        for name, member in vars(importlib.import_module(module)).items():
            if name in NAMES:
                assert member is getattr(seqloom, name)


def test_errors_results_and_settings_can_be_pickled():
    error = pickle.loads(pickle.dumps(seqloom.Overloaded("busy", reason="QUEUE", request_id="7", retry_after=0.5)))
    assert type(error) is seqloom.Overloaded
    assert (str(error), error.reason, error.request_id, error.retry_after) == ("busy", "QUEUE", "7", 0.5)
    spec = seqloom.ModelSpec("gru", 5, 7, 4)
    for value in (spec, seqloom.TopK(3), seqloom.Adam(1e-3), seqloom.ModelInfo("m", spec, 1, 9), seqloom.TLS(b"pem")):
        assert pickle.loads(pickle.dumps(value)) == value
    state = seqloom.State(np.ones((1, 2, 7), "f4"))
    result = seqloom.InferenceResult([np.zeros((3, 4))], state, 5, seqloom.Timing(0.1, 0.2))
    copy = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(copy.final_state.hidden, state.hidden)
    assert repr(copy) == repr(result)


@pytest.mark.parametrize("kind", [seqloom.Client, seqloom.AsyncClient])
def test_both_clients_have_these_methods_and_arguments(kind):
    assert {name: parameters(method) for name, method in public(kind).items()} == CLIENT


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((kind, STREAM) for kind in (seqloom.Stream, seqloom.AsyncStream)),
        *((kind, GROUP) for kind in (seqloom.StreamGroup, seqloom.AsyncStreamGroup)),
        *((kind, RUN) for kind in (seqloom.Run, seqloom.AsyncRun)),
    ],
)
def test_both_twins_of_streams_groups_and_runs_have_these_methods_and_arguments(kind, expected):
    members = public(kind)
    del members["__init__"]  # they are made by clients
    found = {name: None if isinstance(one, property) else parameters(one) for name, one in members.items()}
    assert found == expected


def test_every_public_name_tells_what_it_does():
    for kind in KINDS:
        assert kind.__doc__
        for name, member in public(kind).items():
            assert name == "__init__" or member.__doc__, f"{kind.__name__}.{name}"


def test_both_faces_are_context_managers_and_streams_are_iterable():
    for kind in (seqloom.Client, seqloom.Stream, seqloom.Run):
        assert hasattr(kind, "__enter__")
        assert hasattr(kind, "__exit__")
    for kind in (seqloom.AsyncClient, seqloom.AsyncStream, seqloom.AsyncRun):
        assert hasattr(kind, "__aenter__")
        assert hasattr(kind, "__aexit__")
    assert hasattr(seqloom.Stream, "__iter__")
    assert hasattr(seqloom.AsyncStream, "__aiter__")


def test_the_blocking_face_is_what_the_generator_makes():
    command = [sys.executable, ROOT / "tools" / "generate_blocking.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


async def test_the_sdk_works_where_there_is_no_torch(served):
    program = (
        "import sys\n"
        "sys.modules['torch'] = None  # from here on its import fails\n"
        "import seqloom\n"
        f"with seqloom.Client('{served.address}') as client:\n"
        "    result = client.infer('small', [[[0.0] * 5] * 4])\n"
        "    assert result.outputs[0].shape == (4, 3)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('seqloom_server', 'safetensors')]\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE)
    _, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()


def test_importing_the_sdk_imports_no_torch():
    program = "import sys, seqloom; sys.exit('torch' in sys.modules or 'seqloom_server' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_every_error_is_of_the_one_tree_with_a_reason_and_a_request_id(name):
    kind = getattr(seqloom, name)
    assert kind.__bases__ == (seqloom.SeqloomError,)
    error = kind("wrong", reason="WHY", request_id="7")
    assert (str(error), error.message, error.reason, error.request_id) == ("wrong", "wrong", "WHY", "7")
    usual = "INVALID_FIELD" if name == "InvalidArgument" else ""
    assert (kind("wrong").reason, kind("wrong").request_id) == (usual, "")


def test_no_error_is_outside_the_tree_and_overload_says_when_to_come_back():
    found = {n for n, e in vars(seqloom).items() if isinstance(e, type) and issubclass(e, Exception)}
    assert found == {*ERRORS, "SeqloomError"}
    assert seqloom.Overloaded("busy", retry_after=0.5).retry_after == 0.5
