"""Models that several processes serve and change at once: each folder is always one whole version, whoever dies."""

import asyncio
import random
import signal
import threading
import time

import pytest
import seqloom
import torch
from helpers.forked_process import ForkedProcess
from helpers.real_server import SMALL, until, write_models
from helpers.run_helpers import SPEC, call_of
from seqloom_server.engine.core.folder_lock import FolderLock
from seqloom_server.engine.models import model_folders
from seqloom_server.engine.models.model_folders import ModelFolders
from seqloom_server.engine.models.registry import Registry
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.files import atomic_folder, model_folder
from seqloom_server.nn.forward.network import Network

# Changes models in every way, again and again, as a server does; prints what it made new, and ends at an error that no
# server may see. All the weights of a version are the same number.
WRITER = """
import asyncio, pathlib, random, sys, torch
from seqloom_server.engine.models.registry import Registry
from seqloom_server.errors import Reason, ServerError
from seqloom_server.nn.files import model_folder
from seqloom_server.nn.forward.network import Network
from seqloom_server.nn.spec import ModelSpec

root, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(seed)
SPEC = ModelSpec("elman", 5, 40, 3)

def network():
    number = float(draw.randrange(1 << 20))
    return Network(SPEC, {name: torch.full(shape, number) for name, shape in SPEC.parameter_shapes().items()}, "cpu")

async def change(registry, round):
    name = draw.choice(["a", "b"])
    kind = draw.choice(["import", "publish", "load", "create"])
    if kind == "create":
        await registry.create(f"new-{round}", SPEC, 0)
        print(f"new-{round}", flush=True)
    elif kind == "import":
        await registry.import_(name, *model_folder.to_bytes(network(), 1))
    elif kind == "publish":
        await registry.publish(name, network())
    else:
        await registry.load(name)

async def main():
    registry = Registry(root, "cpu", 4)
    await registry.load_all(strict=True)
    print("ready", flush=True)
    for round in range(int(sys.argv[3]), 10_000):
        try:
            await change(registry, round)
        except ServerError as error:
            if error.reason is not Reason.MODEL_EXISTS:
                raise

asyncio.run(main())
"""


class Writer:
    """A process that changes models. made: the names that it says it made, the first line being that it is ready."""

    def __init__(self, root, seed, begin=0):
        self.process = ForkedProcess(WRITER, root, seed, begin)
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()

    def kill(self):
        assert self.process.poll() is None, self.process.stderr.read()
        self.process.kill()
        printed, _ = self.process.communicate()
        return printed.split("\n")[:-1]


def write(root):
    for name in ("a", "b"):
        model_folder.save(root / name, Network.create(model_spec(), 0))


def model_spec():
    return model_folder.ModelSpec("elman", 5, 40, 3)


def assert_whole(name, network):
    numbers = torch.cat([tensor.reshape(-1) for tensor in network.parameters().values()])
    drawn = Network.create(model_spec(), 0).parameters()
    if not all(torch.equal(drawn[each], tensor) for each, tensor in network.parameters().items()):
        assert (numbers == numbers[0]).all(), f"{name} is a mixture"


def test_readers_see_whole_models_while_two_processes_change_them_and_die(tmp_path):
    write(tmp_path)
    moments, made, reads = random.Random(0), [], 0
    reader = ModelFolders(tmp_path)
    for turn in range(2):
        writers = [Writer(tmp_path, 2 * turn + each, 1000 * turn) for each in range(2)]
        for _ in range(60):
            names = reader.find()
            assert {"a", "b"} <= set(names)
            for name in names[:4]:
                assert_whole(name, reader.read(name, "cpu", lambda _: None)[0])
                reads += 1
            time.sleep(moments.random() * 2e-3)
        for writer in writers:
            made += writer.kill()
    assert reads >= 240
    assert len(made) == len(set(made)), "the same name was made twice"
    asyncio.run(Registry(tmp_path, "cpu", 4).load_all(strict=True))
    assert atomic_folder.unfinished(tmp_path) == []
    assert {"a", "b", *made} <= {path.name for path in tmp_path.iterdir()}


async def test_a_server_starts_again_and_again_beside_two_that_import_publish_and_create(server_process, tmp_path):
    models = tmp_path / "models"
    write_models(models, {"m": SPEC, "small": SMALL})
    servers = [server_process("--models", models, "--runs", tmp_path / f"runs-{n}") for n in range(2)]
    clients = [seqloom.AsyncClient(server.address, timeout=60) for server in servers]
    done, stop = [0, 0], asyncio.Event()
    made = [[], []]

    async def change(number, client):
        draw = random.Random(number)
        await client.export_model("small", tmp_path / f"small-{number}")
        run = await client.create_run("m", optimizer=seqloom.SGD(0.01), checkpoint_interval=0)
        while not stop.is_set():
            kind = draw.choice(["import", "publish", "create", "load"])
            if kind == "import":
                await client.import_model("small", tmp_path / f"small-{number}")
            elif kind == "publish":
                await run.forward_backward(*call_of(1))
                await run.step()
                await run.publish()
            elif kind == "load":
                await client.load_model(draw.choice(["m", "small"]))
            else:
                name = f"new-{done[number] // 8}"
                try:
                    await client.create_model(name, seqloom.ModelSpec("gru", 3, 4, 5))
                    made[number].append(name)
                except seqloom.AlreadyExists:
                    pass
            done[number] += 1

    changing = [asyncio.ensure_future(change(*each)) for each in enumerate(clients)]
    try:
        starts = 0
        while starts < 4 or min(done) <= 20:
            starts += 1
            third = await asyncio.to_thread(
                server_process, "--models", models, "--runs", tmp_path / "runs-3", "--strict-models"
            )
            async with seqloom.AsyncClient(third.address, timeout=60) as client:
                infos = {info.name: info.broken for info in await client.models()}
                assert {"m", "small"} <= infos.keys()
                assert set(infos.values()) == {""}
            await asyncio.to_thread(third.end, random.choice([signal.SIGTERM, signal.SIGKILL]))
            assert not any(task.done() for task in changing), [task for task in changing if task.done()]
    finally:
        stop.set()
        await asyncio.gather(*changing)
        for client in clients:
            await client.close()
    assert not set(made[0]) & set(made[1])


def test_a_start_leaves_alone_what_another_process_is_writing(tmp_path):
    """What the other has written by half is there, and whole in the end, whoever starts beside it meanwhile."""
    write(tmp_path)
    other = ModelFolders(tmp_path)
    network = Network.create(model_spec(), 7)
    with other._lock.held(1), atomic_folder.replaced(tmp_path / "a") as half:
        (half / "begun").write_text("")
        script = (
            "import asyncio, pathlib, sys; from seqloom_server.engine.models import model_folders, registry;"
            "model_folders._LOCK_SECONDS = 0.2;"
            "asyncio.run(registry.Registry(pathlib.Path(sys.argv[1]), 'cpu', 4).load_all(strict=True))"
        )
        started = ForkedProcess(script, tmp_path)
        assert started.wait(60) == 0, started.stderr.read()
        assert (half / "begun").exists()
        (half / "begun").unlink()
        (half / model_folder.CONFIG).write_bytes(model_folder.to_bytes(network)[0])
        model_folder.write_tensors(half / model_folder.WEIGHTS, network.parameters())
    loaded, _ = other.read("a", "cpu", lambda _: None)
    assert all(torch.equal(tensor, loaded.parameters()[name]) for name, tensor in network.parameters().items())


async def test_a_change_waits_for_that_of_another_process_and_reading_does_not(tmp_path, monkeypatch):
    write(tmp_path)
    registry, other = Registry(tmp_path, "cpu", 4), ModelFolders(tmp_path)
    files = model_folder.to_bytes(Network.create(model_spec(), 1))
    with other._lock.held(1):
        await registry.load_all(strict=True)
        model_folder.save(tmp_path / "a", Network.create(model_spec(), 1), 2)
        assert (await registry.load("a")).weights_version == 2
        saving = threading.Event()
        take = FolderLock.take
        monkeypatch.setattr(FolderLock, "take", lambda *arguments: (saving.set(), take(*arguments))[1])
        waiting = asyncio.ensure_future(registry.import_("a", *files))
        await until(saving.is_set)  # the loop is free meanwhile
        assert model_folder.load(tmp_path / "a")[1] == 2
    assert (await waiting).weights_version == 3
    assert model_folder.load(tmp_path / "a")[1] == 3


async def test_a_change_that_waits_for_too_long_is_refused_as_load(tmp_path, monkeypatch):
    write(tmp_path)
    registry, other = Registry(tmp_path, "cpu", 4), ModelFolders(tmp_path)
    await registry.load_all(strict=True)
    monkeypatch.setattr(model_folders, "_LOCK_SECONDS", 0.1)
    network = Network.create(model_spec(), 1)
    with other._lock.held(1):
        for change in (
            registry.create("c", model_spec(), 0),
            registry.import_("b", *model_folder.to_bytes(network)),
            registry.publish("a", network),
            registry.load("a"),  # which gets another version, as it is served
        ):
            with pytest.raises(ServerError) as refused:
                await change
            assert refused.value.reason is Reason.OVERLOADED
            assert refused.value.retry_after > 0
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "a", "b"]
    assert (await registry.publish("a", network)).weights_version == 2


@pytest.mark.parametrize("way", ["create", "import"])
async def test_of_two_servers_that_make_the_same_model_at_once_one_does(tmp_path, way):
    registries = [Registry(tmp_path, "cpu", 4) for _ in range(2)]
    files = [model_folder.to_bytes(Network.create(model_spec(), seed)) for seed in range(2)]
    changes = {
        "create": [registry.create("made", model_spec(), seed) for seed, registry in enumerate(registries)],
        "import": [registry.import_("made", *files[seed], new=True) for seed, registry in enumerate(registries)],
    }
    outcomes = await asyncio.gather(*changes.pop(way), return_exceptions=True)
    for never_awaited in changes.popitem()[1]:
        never_awaited.close()
    refused = [each for each in outcomes if isinstance(each, ServerError)]
    assert [each.reason for each in refused] == [Reason.MODEL_EXISTS]
    seed = next(seed for seed, each in enumerate(outcomes) if each is not refused[0])
    assert (model_folder.load(tmp_path / "made")[0].parameters()["output.bias"]).equal(
        Network.create(model_spec(), seed).parameters()["output.bias"]
    )
