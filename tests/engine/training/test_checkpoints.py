"""Checkpoints of runs: read back bit by bit, refused by name where in doubt, whole after a crash or on a full disk."""

import contextlib
import json
import math
import os
import pathlib
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from helpers import damage
from helpers.forked_process import ForkedProcess
from helpers.tolerances import served
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.engine.training import checkpoint_files
from seqloom_server.engine.training.checkpoint_files import BrokenCheckpoint, CallsDone, RunMeta, RunState, StoredReply
from seqloom_server.engine.training.run_state import MAX_CLIENTS, MAX_REPLIES
from seqloom_server.errors import ServerError
from seqloom_server.nn.optim import Optimizer
from seqloom_server.nn.optimizer_spec import OptimizerSpec
from seqloom_server.nn.spec import ModelSpec

SPEC = ModelSpec(cell="gru", input_size=3, hidden_size=5, output_size=7)
OPTIMIZERS = [OptimizerSpec("sgd", 0.1), OptimizerSpec("sgd", 0.1, momentum=0.9), OptimizerSpec("adam", 1e-3)]


def make(optimizer=OPTIMIZERS[2], spec=SPEC, seed=0, **fields):
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, spec.dtype)

    def draw():
        return {
            name: torch.randn(shape, dtype=dtype, generator=generator)
            for name, shape in spec.parameter_shapes().items()
        }

    parameters = draw()
    state = Optimizer(optimizer, parameters).state()
    for name, tensor in state.items():
        state[name] = torch.tensor(41) if name == "step" else tensor + torch.rand(tensor.shape, generator=generator)
    meta = RunMeta("run-1", "digits", 3, optimizer, clip_norm=1.5, checkpoint_interval=10, request_id="r")
    replies = [StoredReply(6, "ab12", {"losses": [0.1, 1e-300], "step": 41}), StoredReply(7, "save x", {})]
    whole = RunState(
        meta=meta,
        spec=spec,
        step=41,
        loss=0.1 + 0.2,
        accumulated_calls=2,
        parameters=parameters,
        optimizer=state,
        accumulated=draw(),
        calls={"c-1": CallsDone(7, replies), "c-2": CallsDone(0)},
    )
    return replace(whole, **fields)


def parts(state):
    return (state.parameters, state.optimizer, state.accumulated or {})


def same(left, right):
    def plain(state):
        return replace(state, parameters={}, optimizer={}, accumulated=None)

    if plain(left) != plain(right) or (left.accumulated is None) != (right.accumulated is None):
        return False
    return all(
        one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        for one, other in zip(parts(left), parts(right), strict=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "momentum", "adam"])
def test_what_is_saved_is_loaded_bit_by_bit(optimizer, dtype, tmp_path):
    spec = replace(SPEC, dtype=dtype, precision=served(dtype), conv_channels=2, conv_width=3, bidirectional=True)
    whole = make(optimizer, spec)
    for state in (whole, replace(whole, accumulated=None, accumulated_calls=0, loss=None, calls={})):
        checkpoint_files.save(tmp_path / "a", state)
        assert same(checkpoint_files.load(tmp_path / "a"), state)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "state.json", "tensors.safetensors"]


def test_a_checkpoint_of_an_older_server_is_loaded(tmp_path):
    checkpoint_files.save(tmp_path / "a", make())
    field(["generator"], 0)(tmp_path / "a")
    assert same(checkpoint_files.load(tmp_path / "a"), make())


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
stored = st.builds(
    StoredReply, st.integers(1, 2**53), st.text(max_size=99), st.dictionaries(st.text(), json_values, max_size=3)
)
tables = st.dictionaries(
    st.text(max_size=40), st.builds(CallsDone, st.integers(0, 2**53), st.lists(stored, max_size=3)), max_size=3
)


@settings(deadline=None, max_examples=30)
@given(calls=tables, loss=st.floats(allow_nan=False, allow_infinity=False) | st.none(), step=st.integers(0, 2**53))
def test_any_table_of_calls_comes_back(tmp_path_factory, calls, loss, step):
    folder = tmp_path_factory.mktemp("run") / "a"
    state = make(calls=calls, loss=loss, step=step)
    checkpoint_files.save(folder, state)
    assert same(checkpoint_files.load(folder), state)


def field(path, value):
    """state.json with another value, or without the field."""

    def change(folder):
        fields = json.loads((folder / "state.json").read_text())
        *outer, last = path
        inner = fields
        for key in outer:
            inner = inner[key]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
        (folder / "state.json").write_text(json.dumps(fields))

    return change


def text(content):
    return lambda folder: (folder / "state.json").write_bytes(content)


def tensors(edit):
    def change(folder):
        found = safetensors.torch.load_file(folder / "tensors.safetensors")
        edit(found)
        safetensors.torch.save_file(found, folder / "tensors.safetensors")

    return change


def put(name, function):
    return tensors(lambda found: found.update({name: function(found.get(name))}))


def instead(name, make_it):
    def change(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        make_it(folder / name, folder.parent / "elsewhere")

    return change


def filled(value):
    def fill(tensor):
        tensor.view(-1)[-1] = value
        return tensor

    return fill


BROKEN = {
    "no json": (text(b"{meta: 1}"), "a: state.json: is not valid JSON"),
    "not utf-8": (text(b'{"meta": "\xff"}'), "state.json: is not valid JSON"),
    "nested without end": (text(b"[" * 200_000), "state.json: is not valid JSON"),
    "a list": (text(b"[]"), "state.json: it: is []: expected an object"),
    "a repeated key": (text(b'{"step": 1, "step": 2}'), "state.json: is not valid JSON: duplicate key 'step'"),
    "nan": (field(["loss"], math.nan), "state.json: is not valid JSON: NaN"),
    "a number beyond all": (text(b'{"a": ' + b"9" * 5000 + b"}"), "state.json: is not valid JSON"),
    "state cut short": (damage.cut("state.json", 300), "state.json: is not valid JSON"),
    "an empty state": (damage.cut("state.json", 0), "state.json: is not valid JSON"),
    "an unknown field": (field(["more"], 1), "state.json: 'more': unknown field"),
    "a missing field": (field(["step"], ...), "state.json: step: is missing"),
    "a missing inner field": (field(["meta", "model"], ...), "state.json: meta.model: is missing"),
    "a step of text": (field(["step"], "41"), "state.json: step: is '41'"),
    "a step below 0": (field(["step"], -1), "state.json: step: is -1"),
    "a step of true": (field(["step"], True), "state.json: step: is True"),
    "a step beyond all": (field(["step"], 2**53 + 1), "state.json: step: is 9007199254740993"),
    "a loss beyond all": (field(["loss"], 10**400), "state.json: loss: is 1000"),
    "a loss of text": (field(["loss"], "1"), "state.json: loss: is '1'"),
    "accumulated as number": (field(["accumulated"], 1), "state.json: accumulated: is 1: expected true or false"),
    "a random state, which no server wrote": (field(["generator"], 2**40), "state.json: 'generator': unknown field"),
    "meta of null": (field(["meta"], None), "state.json: meta: is None: expected an object"),
    "an id that climbs": (field(["meta", "id"], "../x"), "state.json: meta.id: is '../x'"),
    "a model of no name": (field(["meta", "model"], ""), "state.json: meta.model: is ''"),
    "a version of 0": (field(["meta", "weights_version"], 0), "state.json: meta.weights_version: is 0"),
    "a bound below 0": (field(["meta", "clip_norm"], -1), "state.json: meta.clip_norm: is -1"),
    "an interval of 1.5": (field(["meta", "checkpoint_interval"], 1.5), "state.json: meta.checkpoint_interval: is 1.5"),
    "an endless request": (field(["meta", "request_id"], "x" * 5000), "state.json: meta.request_id: is 'xxx"),
    "a rate of 0": (field(["meta", "optimizer", "lr"], 0), "state.json: meta.optimizer.lr: is 0"),
    "a rate beyond all": (field(["meta", "optimizer", "lr"], 10**400), "state.json: meta.optimizer.lr: is 1000"),
    "an unknown optimizer": (
        field(["meta", "optimizer", "kind"], "lion"),
        "state.json: meta.optimizer.kind: is 'lion'",
    ),
    "an optimizer of a list": (field(["meta", "optimizer"], []), "state.json: meta.optimizer: is []"),
    "a missing beta": (field(["meta", "optimizer", "beta1"], ...), "state.json: meta.optimizer.beta1: is missing"),
    "an unknown cell": (field(["spec", "cell"], "qrnn"), "state.json: spec.cell: is 'qrnn'"),
    "a spec of text": (field(["spec"], "gru"), "state.json: spec: is 'gru'"),
    "sizes beyond all": (field(["spec", "hidden_size"], 10**9), "state.json: spec.hidden_size: is 1000000000"),
    "other sizes": (
        field(["spec", "hidden_size"], 6),
        "tensors.safetensors: tensor parameters.rnn.weight_ih_l0 has shape",
    ),
    "another optimizer": (
        field(["meta", "optimizer", "kind"], "sgd"),
        "tensor 'optimizer.exp_avg.output.bias' is not part",
    ),
    "nothing accumulated": (field(["accumulated"], False), "tensor 'accumulated.output.bias' is not part of this run"),
    "calls of a list": (field(["calls"], []), "state.json: calls: is []"),
    "too many clients": (
        field(["calls"], {f"c{each}": {"done": 1, "replies": []} for each in range(MAX_CLIENTS + 1)}),
        "state.json: calls: is {'c0'",
    ),
    "a client of null": (field(["calls", "c-1"], None), "state.json: calls['c-1']: is None"),
    "done below 0": (field(["calls", "c-1", "done"], -1), "state.json: calls['c-1'].done: is -1"),
    "replies of an object": (field(["calls", "c-1", "replies"], {}), "state.json: calls['c-1'].replies: is {}"),
    "too many replies": (
        field(["calls", "c-1", "replies"], [{"number": 1, "digest": "", "reply": {}}] * (MAX_REPLIES + 1)),
        "state.json: calls['c-1'].replies: is [{",
    ),
    "a reply of text": (field(["calls", "c-1", "replies", 1, "reply"], "x"), "calls['c-1'].replies[1].reply: is 'x'"),
    "a call 0": (field(["calls", "c-1", "replies", 0, "number"], 0), "calls['c-1'].replies[0].number: is 0"),
    "a digest of null": (field(["calls", "c-1", "replies", 0, "digest"], None), "replies[0].digest: is None"),
    "a missing tensor": (tensors(lambda found: found.pop("optimizer.step")), "tensor optimizer.step is missing"),
    "an extra tensor": (
        put("parameters.head", lambda _: torch.zeros(2)),
        "tensor 'parameters.head' is not part of this run",
    ),
    "a misshapen tensor": (
        put("optimizer.exp_avg.output.weight", lambda tensor: tensor.t().contiguous()),
        "tensors.safetensors: tensor optimizer.exp_avg.output.weight has shape [5, 7]: expected [7, 5]",
    ),
    "a mistyped tensor": (
        put("accumulated.output.bias", torch.Tensor.double),
        "accumulated.output.bias is F64: expected F32",
    ),
    "a count of steps in floats": (put("optimizer.step", torch.Tensor.float), "optimizer.step is F32: expected I64"),
    "a count of steps below 0": (
        put("optimizer.step", lambda _: torch.tensor(-1)),
        "optimizer.step holds a number below 0",
    ),
    "a square below 0": (
        put("optimizer.exp_avg_sq.output.bias", filled(-1.0)),
        "tensor optimizer.exp_avg_sq.output.bias holds a number below 0",
    ),
    "weights of nan": (
        put("parameters.output.bias", filled(math.nan)),
        "tensor parameters.output.bias holds a number that is not finite",
    ),
    "an infinite sum": (
        put("accumulated.output.bias", filled(-math.inf)),
        "tensor accumulated.output.bias holds a number",
    ),
    "the tensor of a random state": (
        put("generator", lambda _: torch.zeros(5, dtype=torch.uint8)),
        "tensor 'generator' is not part of this run",
    ),
    "tensors cut short": (damage.cut("tensors.safetensors", -8), "a: tensors.safetensors: "),
    "a header cut short": (damage.cut("tensors.safetensors", 20), "a: tensors.safetensors: "),
    "no tensors at all": (damage.cut("tensors.safetensors", 0), "a: tensors.safetensors: "),
    "a header of 2**60 bytes": (
        lambda folder: (folder / "tensors.safetensors").write_bytes(b"\0" * 7 + b"\x10" + b"\0" * 100),
        "a: tensors.safetensors: ",
    ),
    "a missing file": (lambda folder: (folder / "tensors.safetensors").unlink(), "a: tensors.safetensors is missing"),
    "no state": (lambda folder: (folder / "state.json").unlink(), "a: state.json is missing"),
    "a link": (instead("state.json", lambda path, real: path.symlink_to(real)), "a: state.json is not a regular file"),
    "a pipe": (
        instead("tensors.safetensors", lambda path, _: os.mkfifo(path)),
        "a: tensors.safetensors is not a regular file",
    ),
    "a folder": (instead("state.json", lambda path, _: path.mkdir()), "a: state.json is not a regular file"),
    "a link to a folder": (
        lambda folder: (folder.rename(folder.parent / "b"), folder.symlink_to(folder.parent / "b")),
        "a is not a folder",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_by_name(case, tmp_path):
    change, said = BROKEN[case]
    checkpoint_files.save(tmp_path / "a", make())
    change(tmp_path / "a")
    with pytest.raises(BrokenCheckpoint) as caught:
        checkpoint_files.load(tmp_path / "a")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 1000


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(["state.json", "tensors.safetensors"]), data=st.data())
def test_bytes_that_changed_are_refused_or_loaded_and_nothing_else(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("run") / "a"
    checkpoint_files.save(folder, make())
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 3000) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content)
    with contextlib.suppress(BrokenCheckpoint):
        loaded = checkpoint_files.load(folder)
        assert {key: each.shape for key, each in loaded.parameters.items()} == SPEC.parameter_shapes()


WRONG = {
    "weights that are not finite": (
        lambda state: filled(math.nan)(state.parameters["output.bias"]),
        "parameters.output.bias",
    ),
    "a loss that is not finite": (lambda state: setattr(state, "loss", math.inf), "not JSON compliant"),
    "a tensor too few": (lambda state: state.optimizer.pop("step"), "optimizer.step is missing"),
    "an endless client": (lambda state: state.calls.update({"c" * 5000: CallsDone(1)}), "calls: is 'ccc"),
    "a reply of no JSON": (lambda state: state.calls["c-1"].replies.append(StoredReply(8, "", {"a": {1}})), "set"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_could_not_be_loaded_is_not_written(case, tmp_path):
    change, said = WRONG[case]
    good, bad = make(), make(seed=1)
    checkpoint_files.save_run(tmp_path / "run-1", "one", good)
    change(bad)
    with pytest.raises(BrokenCheckpoint, match=said):
        checkpoint_files.save_run(tmp_path / "run-1", "one", bad)
    assert same(checkpoint_files.load_latest(tmp_path / "run-1"), good)
    assert same(checkpoint_files.load_named(tmp_path / "run-1", "one"), good)


def test_named_checkpoints_are_listed_loaded_and_deleted(tmp_path):
    run = tmp_path / "run-1"
    assert checkpoint_files.names(run) == []
    states = {name: make(seed=seed, step=seed) for seed, name in enumerate(["", "b", "a", "b"])}
    for seed, name in enumerate(["", "b", "a", "b"]):
        checkpoint_files.save_run(run, name, make(seed=seed, step=seed))
        assert same(checkpoint_files.load_latest(run), make(seed=seed, step=seed))
    assert checkpoint_files.names(run) == ["a", "b"]
    for name in ("a", "b"):
        assert same(checkpoint_files.load_named(run, name), states[name])
    checkpoint_files.delete_named(run, "b")
    assert checkpoint_files.names(run) == ["a"]
    assert same(checkpoint_files.load_latest(run), states["b"]), "the bytes that it shared are still there"
    for forget in (checkpoint_files.load_named, checkpoint_files.delete_named):
        with pytest.raises(FileNotFoundError):
            forget(run, "b")


def test_a_named_save_writes_its_bytes_once(tmp_path):
    run = tmp_path / "run-1"
    checkpoint_files.save_run(run, "a", make())
    for file in ("state.json", "tensors.safetensors"):
        assert os.path.samefile(run / "latest" / file, run / "checkpoints" / "a" / file)
    checkpoint_files.save_run(run, "", make(seed=1))
    assert same(checkpoint_files.load_named(run, "a"), make()), "the next is no change of it"


def test_where_a_file_system_has_no_links_the_bytes_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    checkpoint_files.save_run(tmp_path / "run-1", "a", make())
    assert same(checkpoint_files.load_latest(tmp_path / "run-1"), make())


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/a", ".a", "A", "a b", "a\n", "a" * 65, "ä", "-a", "a\0"]
)
def test_a_name_that_could_leave_the_folder_is_refused(name, tmp_path):
    run = tmp_path / "run-1"
    checkpoint_files.save_run(run, "a", make())
    refusing = [
        checkpoint_files.load_named,
        checkpoint_files.delete_named,
        lambda _, name: checkpoint_files.check_checkpoint_name(name),
    ]
    if name:  # without a name it is the latest alone
        refusing.append(lambda run, name: checkpoint_files.save_run(run, name, make()))
    for refuse in refusing:
        with pytest.raises(ServerError) as caught:
            refuse(run, name)
        assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "name")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["a", "checkpoints", "latest", "run-1"]


def test_a_run_whose_folder_was_copied_is_not_loaded_twice(tmp_path):
    checkpoint_files.save_run(tmp_path / "run-2", "a", make())
    with pytest.raises(BrokenCheckpoint, match=r"latest: state\.json: meta\.id: is 'run-1': expected 'run-2'"):
        checkpoint_files.load_latest(tmp_path / "run-2")


def test_a_server_that_starts_finds_its_runs_and_clears_up(tmp_path):
    assert checkpoint_files.run_folders(tmp_path / "nowhere") == []
    for run in ("run-1", "run-2"):
        checkpoint_files.save_run(tmp_path / run, "a", make())
    (tmp_path / "run-1" / "latest").rename(tmp_path / "run-1" / ".latest.being-replaced")
    (tmp_path / "run-2" / "checkpoints" / ".b.being-written").mkdir()
    (tmp_path / "run-3").mkdir()
    (tmp_path / "run-4").symlink_to(tmp_path / "run-1")
    (tmp_path / "notes.txt").write_text("of somebody")
    assert [folder.name for folder in checkpoint_files.run_folders(tmp_path)] == ["run-1", "run-2"]
    assert same(checkpoint_files.load_latest(tmp_path / "run-1"), make())
    assert checkpoint_files.names(tmp_path / "run-2") == ["a"]
    assert not (tmp_path / "run-2" / "checkpoints" / ".b.being-written").exists()
    assert not (tmp_path / "run-3").exists()


WRITER = """
import pathlib, sys, torch
from seqloom_server.engine.training import checkpoint_files
from seqloom_server.engine.training.checkpoint_files import RunMeta, RunState
from seqloom_server.nn.optim import Optimizer
from seqloom_server.nn.optimizer_spec import OptimizerSpec
from seqloom_server.nn.spec import ModelSpec
spec = ModelSpec("gru", 3, 50, 7)
optimizer = OptimizerSpec("adam", 1e-3)
meta = RunMeta("run-1", "m", 1, optimizer)
for step in range(int(sys.argv[2]), 10_000):
    weights = {name: torch.full(shape, float(step)) for name, shape in spec.parameter_shapes().items()}
    state = {**Optimizer(optimizer, weights).state(), "step": torch.tensor(step)}
    name = "odd" if step % 2 else ""
    checkpoint_files.save_run(pathlib.Path(sys.argv[1]), name, RunState(meta, spec, step, None, 0, weights, state))
    print(step, flush=True)
"""


def whole(folder):
    """The step of a checkpoint, all of which is of that step."""
    state = checkpoint_files.load(folder)
    assert int(state.optimizer["step"]) == state.step
    for tensor in state.parameters.values():
        assert torch.equal(tensor, torch.full_like(tensor, state.step))
    return state.step


def test_a_writer_that_is_killed_at_any_moment_leaves_whole_checkpoints(tmp_path):
    moments = random.Random(0)
    run, saved = tmp_path / "run-1", 0
    for saves in (2, 5, 8):
        writer = ForkedProcess(WRITER, run, saved + 1)
        for _ in range(saves):
            saved = int(writer.stdout.readline())
        for _ in range(moments.randrange(100_000)):  # somewhere in the next save
            pass
        writer.kill()
        printed, _ = writer.communicate()
        saved = max([saved, *map(int, printed.split())])
        assert checkpoint_files.run_folders(tmp_path) == [run]
        latest = whole(run / "latest")
        assert saved <= latest <= saved + 1
        named = whole(run / "checkpoints" / "odd")
        assert named % 2 == 1
        assert saved - 1 <= named <= saved + 1
        assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "latest"]
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["odd"]
        saved = latest


# A disk of its own, where this system lets a user have one: the run's folder is copied onto it, and off it at the end.
DISK = """
cp -r "$4" "$4.before" && mount -t tmpfs -o size=300k none "$4" && cp -r "$4.before"/. "$4" || exit 99
"$@"; code=$?
cp -r "$4"/. "$4.after"
exit $code
"""
may_mount = subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
FULL = {"no room for a file": (["bash", "-c", 'ulimit -f 20; exec "$@"', "-"], 27)}
if may_mount.returncode == 0:
    FULL["a full disk"] = (["unshare", "-Urm", "bash", "-c", DISK, "-"], 28)


@pytest.mark.parametrize("case", FULL)
def test_a_full_disk_is_told_and_leaves_the_checkpoints_before_it(case, tmp_path):
    around, number = FULL[case]
    run = tmp_path / "run-1"
    checkpoint_files.save_run(run, "odd", make(step=1))
    before = make(step=1)
    (tmp_path / "run-1.after").mkdir()
    code = WRITER.replace("50, 7", "100, 7")
    process = subprocess.run(
        [*around, sys.executable, "-c", code, str(run), "3"], capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 1, process.stderr
    assert f"OSError: [Errno {number}]" in process.stderr, process.stderr
    assert process.stdout == ""
    left = pathlib.Path(f"{run}.after") if case == "a full disk" else run
    assert same(checkpoint_files.load(left / "latest"), before)
    assert same(checkpoint_files.load_named(left, "odd"), replace(before, meta=replace(before.meta, id=left.name)))
    assert sorted(path.name for path in left.rglob("*") if path.is_dir()) == ["checkpoints", "latest", "odd"]
