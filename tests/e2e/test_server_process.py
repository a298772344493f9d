"""The command seqloom-server as a process: its ready line, its exit, one clear line for what keeps it from serving."""

import asyncio
import json
import pathlib
import resource
import signal
import subprocess
import sys
import urllib.request

import grpc
import numpy as np
import pytest
import safetensors.torch
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from helpers.forked_process import ForkedProcess
from helpers.real_server import COMMAND, SMALL, write_models
from seqloom import tensors
from seqloom.v1 import inference_service_pb2 as pb
from seqloom.v1 import inference_service_pb2_grpc, model_service_pb2, model_service_pb2_grpc
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network


@pytest.fixture
def models(tmp_path):
    write_models(tmp_path / "models", {"small": SMALL})
    return tmp_path / "models"


def command(*arguments):
    process = ForkedProcess(COMMAND, *arguments)
    printed, complaint = process.communicate(120)
    return subprocess.CompletedProcess(arguments, process.returncode, printed, complaint)


def health(address):
    with grpc.insecure_channel(address) as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status


def test_it_prints_one_line_when_it_serves_and_exits_0_on_a_signal(server_process, models):
    for number in (signal.SIGTERM, signal.SIGINT):
        started = server_process("--models", models, fresh=True)
        assert not started.address.endswith(":0")
        assert health(started.address) == health_pb2.HealthCheckResponse.SERVING
        for path, words in (("healthz", "ok"), ("metrics", 'seqloom_weights_version{model="small"} 1.0')):
            with urllib.request.urlopen(f"http://{started.http_address}/{path}") as reply:
                assert words in reply.read().decode()
        with grpc.insecure_channel(started.address) as channel:
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            reply = next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])))
            assert "seqloom.v1.InferenceService" in {each.name for each in reply.list_services_response.service}
        status, stderr = started.end(number)
        assert status == 0
        assert "Traceback" not in stderr
        assert started.process.stdout.read() == "", "one line is all that it prints"


async def test_a_signal_lets_live_work_end_within_the_grace_period(server_process, models):
    started = server_process("--models", models)
    x = np.ones((3, 5), "f4")
    async with grpc.aio.insecure_channel(started.address) as channel:
        call = inference_service_pb2_grpc.InferenceServiceStub(channel).StreamInfer(timeout=60)
        opening = pb.SessionRequest(session=1, open=pb.OpenSession(model="small"), frames=tensors.encode(x))
        await call.write(pb.StreamInferRequest(entries=[opening]))
        while not (await call.read()).entries[-1].HasField("outputs"):
            pass
        ending = asyncio.create_task(asyncio.to_thread(started.end, signal.SIGTERM))
        async with asyncio.timeout(30):
            stub = health_pb2_grpc.HealthStub(channel)
            while (
                await stub.Check(health_pb2.HealthCheckRequest())
            ).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                pass
        assert not ending.done()
        last = pb.SessionRequest(session=1, frames=tensors.encode(x), end=True)
        await call.write(pb.StreamInferRequest(entries=[last]))
        entries = []
        while not (entries and entries[-1].HasField("ended")):
            entries.extend((await call.read()).entries)
        assert entries[-1].ended.steps == 6
        assert (await ending)[0] == 0


async def test_live_work_that_does_not_end_is_ended_after_the_grace_period(server_process, models):
    started = server_process("--models", models, "--grace-seconds", "0.2")
    async with grpc.aio.insecure_channel(started.address) as channel:
        call = inference_service_pb2_grpc.InferenceServiceStub(channel).StreamInfer(timeout=60)
        opening = pb.SessionRequest(session=1, open=pb.OpenSession(model="small"))
        await call.write(pb.StreamInferRequest(entries=[opening]))
        assert (await call.read()).entries[0].HasField("opened")
        assert (await asyncio.to_thread(started.end, signal.SIGTERM))[0] == 0
        entries = list((await call.read()).entries)
        assert entries[0].going_away, "it hears of that at once, with its state"
        entries += () if len(entries) > 1 else (await call.read()).entries
        assert "shutting down" in entries[1].error.message


@pytest.mark.parametrize("option", ["listen", "http"])
def test_a_port_in_use_is_one_clear_line_and_exit_1(server_process, models, option):
    first = server_process("--models", models)
    taken = first.address if option == "listen" else first.http_address
    status, stderr = server_process("--models", models, f"--{option}", taken, ready=False).end()
    assert status == 1
    assert stderr.count("\n") == 1
    assert stderr.startswith(f"seqloom-server: cannot listen on {taken}")
    assert "Address already in use" in stderr
    assert health(first.address) == health_pb2.HealthCheckResponse.SERVING


def rewrite_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def rewrite_weights(folder, change):
    tensors_by_name = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors_by_name)
    safetensors.torch.save_file(tensors_by_name, folder / "model.safetensors")


BROKEN = {
    "no JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
    "an empty configuration": (lambda f: (f / "config.json").write_text("{}"), ["config.json", "cell", "missing"]),
    "an unknown cell": (lambda f: rewrite_config(f, cell="rnn"), ["config.json", "cell", "'rnn'", "elman"]),
    "a size that is none": (lambda f: rewrite_config(f, hidden_size=-7), ["config.json", "hidden_size", "-7"]),
    "an unknown field": (lambda f: rewrite_config(f, hiden_size=7), ["config.json", "hiden_size"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "missing"]),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        ["model.safetensors"],
    ),
    "a missing tensor": (
        lambda f: rewrite_weights(f, lambda named: named.pop("output.bias")),
        ["output.bias", "missing"],
    ),
    "a misshapen tensor": (
        lambda f: rewrite_weights(f, lambda named: named.update({"rnn.weight_hh_l0": torch.zeros(7, 6)})),
        ["rnn.weight_hh_l0", "[7, 6]", "[7, 7]"],
    ),
    "a tensor with NaN": (
        lambda f: rewrite_weights(f, lambda named: named["output.weight"].fill_(torch.nan)),
        ["output.weight", "finite"],
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_folder_is_told_by_name_and_ends_a_strict_start_in_one_line(server_process, models, what):
    write_models(models, {"other": SMALL})
    break_it, words = BROKEN[what]
    break_it(models / "small")
    started = server_process("--models", models)
    assert health(started.address) == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(f"http://{started.http_address}/healthz") as reply:
        assert reply.status == 200
    with grpc.insecure_channel(started.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        other, broken = stub.ListModels(model_service_pb2.ListModelsRequest()).models
        assert (broken.name, other.name, other.broken) == ("small", "other", "")
        assert stub.GetModel(model_service_pb2.GetModelRequest(name="small")).model == broken
    logged = [line for line in started.end(signal.SIGTERM)[1].splitlines() if "ERROR" in line]
    assert len(logged) == 1
    status, stderr = server_process("--models", models, "--strict-models", ready=False).end()
    assert (status, stderr.count("\n")) == (1, 1)
    assert f"models: {models}" in stderr
    for told in (broken.broken, logged[0], stderr):
        assert all(word in told for word in words), told
    for told in (logged[0], stderr):
        assert "small" in told


def test_a_folder_of_models_that_is_none_is_told_and_one_that_is_absent_is_made(server_process, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    status, stderr = server_process("--models", file, ready=False).end()
    assert status == 1
    assert stderr.count("\n") == 1
    assert f"models: {file}: the folder cannot be created" in stderr
    assert server_process("--models", tmp_path / "new" / "models").end(signal.SIGTERM)[0] == 0
    assert (tmp_path / "new" / "models").is_dir()


def create(stub, name, hidden_size=7):
    spec = model_service_pb2.ModelSpec(
        cell=model_service_pb2.CELL_TYPE_ELMAN, input_size=5, hidden_size=hidden_size, output_size=3, num_layers=1
    )
    return stub.CreateModel(model_service_pb2.CreateModelRequest(name=name, spec=spec), timeout=60)


def test_a_full_disk_is_told_as_such_and_the_old_model_stays_whole(server_process, models):
    started = server_process("--models", models)
    with grpc.insecure_channel(started.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        parts = list(stub.ExportModel(model_service_pb2.ExportModelRequest(name="small")))
        first = model_service_pb2.ImportModelRequest(name="small", config=parts[0].config)
        rest = [model_service_pb2.ImportModelRequest(weights=part.weights) for part in parts[1:]]
        rest[-1].parts = len(parts)
        load = model_service_pb2.LoadModelRequest(name="small")
        for most in (50, 400):  # config.json does not go in; model.safetensors does not
            resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            for call in (
                lambda: create(stub, "made"),
                lambda: stub.ImportModel(iter([first, *rest]), timeout=60),
                lambda: stub.LoadModel(load, timeout=60),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code() is grpc.StatusCode.INTERNAL
                assert caught.value.details().endswith(": File too large")
        assert sorted(path.name for path in models.iterdir()) == [".lock", "small"]
        assert model_folder.load(models / "small")[1] == 1
        assert stub.GetModel(model_service_pb2.GetModelRequest(name="small")).model.weights_version == 1
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(started.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert create(stub, "made").model.name == "made"
    _, stderr = started.end(signal.SIGTERM)
    assert "Traceback" not in stderr
    assert stderr.count("File too large") == 6


def test_a_model_for_which_there_is_no_memory_is_refused_as_load(server_process, models):
    started = server_process("--models", models)
    with grpc.insecure_channel(started.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        in_use = int(pathlib.Path(f"/proc/{started.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        limit = (in_use + (400 << 20), resource.RLIM_INFINITY)
        resource.prlimit(started.process.pid, resource.RLIMIT_AS, limit)
        with pytest.raises(grpc.RpcError) as caught:
            create(stub, "made", 16_384)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "the server is out of memory for the model"
        assert create(stub, "made").model.name == "made"
    assert "Traceback" not in started.end(signal.SIGTERM)[1]


def test_a_signal_while_it_starts_ends_it_quietly(server_process, models):
    started = server_process("--models", models, ready=False, fresh=True)
    maps = pathlib.Path(f"/proc/{started.process.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert started.process.poll() is None
    assert started.end(signal.SIGTERM) == (0, "")


def test_options_come_from_flags_before_the_environment_before_the_file(server_process, models, tmp_path):
    file = tmp_path / "seqloom.toml"
    file.write_text(f'models = "{models}"\nwindow_steps = 70\nmax_sessions = 7\nmax_batch_steps = 700\n')
    environment = {"SEQLOOM_CONFIG": str(file), "SEQLOOM_WINDOW_STEPS": "80", "SEQLOOM_MAX_SESSIONS": "8"}
    started = server_process("--window-steps", "90", environment={**environment, "SEQLOOM_PORT": "5"})
    with grpc.insecure_channel(started.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        limits = stub.GetServerInfo(model_service_pb2.GetServerInfoRequest()).limits
    assert (limits.window_steps, limits.max_sessions, limits.max_batch_steps) == (90, 8, 700)


def test_a_device_that_is_not_there_is_one_line_and_exit_1(server_process, models):
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    started = server_process("--models", models, "--device", "cuda", environment=environment, ready=False)
    status, stderr = started.end()
    assert (status, stderr) == (1, "seqloom-server: device: is cuda: torch finds no CUDA device\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--threads", "-1"], {}, "--threads: is -1"),
        ([], {"SEQLOOM_THREDS": "1"}, "SEQLOOM_THREDS: unknown option"),
        (["--config", "/none.toml"], {}, "/none.toml: cannot be read"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_1(server_process, arguments, environment, words):
    status, stderr = server_process(*arguments, environment=environment, ready=False).end()
    assert (status, stderr.count("\n")) == (1, 1)
    assert stderr.startswith(f"seqloom-server: {words}")


@pytest.mark.parametrize("more", [[], ["--conv-channels", 3, "--conv-width", 5, "--bidirectional"]])
def test_a_created_model_is_what_the_seed_says(tmp_path, more):
    arguments = ["--cell", "gru", "--input-size", 4, "--hidden-size", 6, "--output-size", 2, "--num-layers", 2, *more]
    made = command("create-model", "made", *arguments, "--dtype", "float64", "--seed", 9, "--models", tmp_path)
    assert made.returncode == 0, made.stderr
    network, version = model_folder.load(tmp_path / "made")
    assert version == 1
    spec = network.spec
    assert (spec.conv_channels, spec.conv_width, spec.bidirectional) == ((3, 5, True) if more else (0, 0, False))
    expected = Network.create(spec, 9)
    for name, tensor in network.parameters().items():
        torch.testing.assert_close(tensor, expected.parameters()[name], rtol=0, atol=0)
    again = command("create-model", "made", *arguments, "--models", tmp_path)
    assert again.returncode == 1
    assert again.stderr == "seqloom-server: a model 'made' exists already\n"


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("made", {"--hidden-size": 0}, "--hidden-size: is 0: expected an integer from 1"),
        ("made", {"--activation": "relu"}, "--activation: is 'relu': gru has only 'tanh'"),
        ("made", {"--conv-channels": 3}, "--conv-width: is 0: expected conv_channels and conv_width, or neither"),
        ("Made", {}, "name: is 'Made'"),
    ],
)
def test_a_model_that_cannot_be_is_one_line_and_exit_1(tmp_path, name, changes, words):
    options = {"--cell": "gru", "--input-size": 4, "--hidden-size": 6, "--output-size": 2, **changes}
    flags = [each for pair in options.items() for each in pair]
    refused = command("create-model", name, *flags, "--models", tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"seqloom-server: {words}")
    assert refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_state_dict_of_torch_is_imported_as_it_is(tmp_path):
    rnn, output = torch.nn.RNN(3, 5, nonlinearity="relu"), torch.nn.Linear(5, 2)
    state = {f"rnn.{name}": tensor for name, tensor in rnn.state_dict().items()}
    state |= {f"output.{name}": tensor for name, tensor in output.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "state.safetensors")
    flags = ["--state-dict", tmp_path / "state.safetensors", "--models", tmp_path / "models"]
    taken = command("import-model", "taken", *flags, "--activation", "relu")
    assert taken.returncode == 0, taken.stderr
    network, _ = model_folder.load(tmp_path / "models" / "taken")
    assert network.spec.activation == "relu"
    for name, tensor in state.items():
        torch.testing.assert_close(network.parameters()[name], tensor, rtol=0, atol=0)
    again = command("import-model", "taken", *flags)
    assert (again.returncode, again.stderr) == (1, "seqloom-server: a model 'taken' exists already\n")
    del state["rnn.weight_hh_l0"]
    safetensors.torch.save_file(state, tmp_path / "state.safetensors")
    broken = command("import-model", "broken", *flags)
    assert broken.returncode == 1
    assert "rnn.weight_hh_l0" in broken.stderr
    assert broken.stderr.count("\n") == 1


def test_the_health_check_of_the_container_says_by_its_exit_whether_the_server_serves(server_process, models):
    started = server_process("--models", models)
    healthy = command("healthcheck", "--address", started.address)
    assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n")
    started.end(signal.SIGTERM)
    gone = command("healthcheck", "--address", started.address)
    assert gone.returncode == 1
    assert gone.stderr.count("\n") == 1


def test_the_health_check_finds_the_server_by_its_own_environment_and_loads_no_torch(server_process, models):
    started = server_process("--models", models)
    port = started.address.rsplit(":", 1)[1]
    code = (
        "import sys; from seqloom_server.__main__ import main; status = main(['healthcheck']);"
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    environment = {"SEQLOOM_LISTEN": f"0.0.0.0:{port}", "SEQLOOM_MODELS": "/models"}
    checked = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert checked.returncode == 0


def test_the_command_is_installed():
    installed = pathlib.Path(sys.executable).with_name("seqloom-server")
    shown = subprocess.run([installed, "--help"], capture_output=True, text=True, timeout=60, check=True)
    for words in ("--models DIR", "create-model", "import-model", "healthcheck", "[SEQLOOM_LISTEN]"):
        assert words in shown.stdout
