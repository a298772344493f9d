"""A run's folder that is broken is that run's matter: it is told by id and why and can be deleted; the others go on."""

import asyncio
import json
import os
import shutil

import pytest
import seqloom
from helpers import damage
from helpers.real_server import serving
from helpers.run_helpers import SPEC, call_of
from hypothesis import given, settings
from hypothesis import strategies as st
from seqloom_server.config import ServerConfig
from seqloom_server.engine.training import checkpoint_files
from seqloom_server.rpc.server import CannotStart, Server

ADAM = seqloom.Adam(0.01)
LATEST = checkpoint_files.LATEST
JOURNAL = "steps.jsonl"


def of_latest(change):
    return lambda folder: change(folder / LATEST)


def meta(**changes):
    def change(folder):
        path = folder / LATEST / checkpoint_files.STATE
        state = json.loads(path.read_text())
        state["meta"].update(changes)
        path.write_text(json.dumps(state))

    return change


def replies(reply):
    """A kept reply that no server has given."""

    def change(folder):
        path = folder / LATEST / checkpoint_files.STATE
        state = json.loads(path.read_text())
        state["calls"] = {"not a client!": {"done": 1, "replies": [{"number": 1, "digest": "", "reply": reply}]}}
        path.write_text(json.dumps(state))

    return change


DAMAGES = {
    **{what: change for what, change in damage.of_folder().items() if what != "an empty folder"},
    **{
        what: of_latest(change)
        for what, change in damage.of_files(checkpoint_files.STATE, checkpoint_files.TENSORS).items()
    },
    "a file in its place": damage.instead(lambda path: path.write_text("of somebody")),
    "a link to another folder": lambda folder: (
        folder.rename(folder.parent / "elsewhere.d"),
        folder.symlink_to(folder.parent / "elsewhere.d"),
        shutil.move(folder.parent / "elsewhere.d", folder.parent.parent / "elsewhere"),
    ),
    "no checkpoint": lambda folder: (shutil.rmtree(folder / LATEST), (folder / JOURNAL).write_text("")),
    "a file for a checkpoint": damage.instead(lambda path: path.write_text(""), LATEST),
    "a pipe for a checkpoint": damage.instead(os.mkfifo, LATEST),
    "another's id": meta(id="run-000000000000"),
    "no name of a model": meta(model="../m"),
    "a client of no name": replies({}),
    "a reply of no kind": replies({"norm": 1, "step": 1, "calls": []}),
    "a pipe for a journal": damage.instead(os.mkfifo, JOURNAL),
    "a folder for a journal": damage.instead(os.mkdir, JOURNAL),
    "a journal larger than the disk": lambda folder: (
        (folder / JOURNAL).write_text(""),
        os.truncate(folder / JOURNAL, 1 << 43),
    ),
}


async def step(run, seed):
    await run.forward_backward(*call_of(seed))
    return await run.step()


async def make_runs(root, count=3):
    """Runs of one step each, by id; the server that made them has ended."""
    async with (
        serving(root / "made", {"m": SPEC}, runs=str(root / "runs")) as served,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        ids = []
        for seed in range(count):
            run = await client.create_run("m", optimizer=ADAM)
            await step(run, seed)
            await run.save()
            ids.append(run.id)
    return sorted(ids)


async def assert_one_is_broken(root, ids):
    """The second of three is broken, the others go on; it is deleted in the end."""
    first, bad, last = ids
    async with (
        serving(root / "models", {"m": SPEC}, runs=str(root / "runs")) as served,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        infos = {info.id: info for info in await client.runs()}
        assert list(infos) == ids
        assert [infos[each].broken for each in (first, last)] == ["", ""]
        why = infos[bad].broken
        assert why
        assert "\n" not in why
        for what in ("spec", "optimizer"):
            with pytest.raises(seqloom.InvalidArgument) as unknown:
                getattr(infos[bad], what)
            assert (unknown.value.reason, why in unknown.value.message) == ("RUN_BROKEN", True)
        assert repr(infos[bad]) == f"RunInfo(id={bad!r}, broken={why!r})"
        assert f"spec={infos[first].spec!r}" in repr(infos[first])
        with pytest.raises(seqloom.InvalidArgument) as refused:
            await client.attach_run(bad)
        assert (refused.value.reason, why in refused.value.message) == ("RUN_BROKEN", True)
        for run_id in (first, last):
            run = await client.attach_run(run_id)
            assert (await step(run, 7)).step_number == 2
            await run.save()
        await client.delete_run(bad)
        assert bad not in os.listdir(root / "runs")
        assert [(info.id, info.step) for info in await client.runs()] == [(first, 2), (last, 2)]
        with pytest.raises(seqloom.NotFound):
            await client.delete_run(bad)
    return why


@pytest.mark.parametrize("what", DAMAGES)
async def test_a_broken_run_is_told_by_id_and_the_others_go_on(tmp_path, what):
    ids = await make_runs(tmp_path)
    DAMAGES[what](tmp_path / "runs" / ids[1])
    options = {"models": str(tmp_path / "strict"), "runs": str(tmp_path / "runs"), "device": "cpu"}
    strict = Server(ServerConfig(**options, listen="127.0.0.1:0", http="127.0.0.1:0", strict_models=True))
    with pytest.raises(CannotStart) as ended:
        await strict.start()
    assert str(ended.value).startswith(f"runs: {tmp_path / 'runs'}: {ids[1]}: ")
    assert "\n" not in str(ended.value)
    await assert_one_is_broken(tmp_path, ids)


@settings(deadline=None, max_examples=8)
@given(share=st.floats(0, 1), name=st.sampled_from([checkpoint_files.STATE, checkpoint_files.TENSORS]))
def test_a_checkpoint_that_is_cut_anywhere_is_that_runs_matter(tmp_path_factory, share, name):
    root = tmp_path_factory.mktemp("root")
    ids = asyncio.run(make_runs(root))
    folder = root / "runs" / ids[1] / LATEST
    damage.cut(name, int(share * ((folder / name).stat().st_size - 3)))(folder)
    asyncio.run(assert_one_is_broken(root, ids))


GARBAGE = [
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b'{"step": 2, "client": 1, "number": "x", "calls": []}\n',
    b'{"step": 2, "client": "c", "number": 1, "calls": {"c": NaN}}\n',
    b'{"step": 1e999, "client": "c", "number": 1, "calls": {}}\n',
    b'{"step": true, "client": "c", "number": 1, "calls": {}}\n',
    b"9" * 5000 + b"\n",
    b"x" * (3 << 20) + b"\n",
]


@pytest.mark.parametrize("garbage", range(len(GARBAGE)))
async def test_what_is_no_line_of_a_journal_is_passed_over_and_the_lines_around_it_are_not(tmp_path, garbage):
    """A crash after step 2: the client sends the step again, which the journal knows in spite of the garbage."""
    (run_id,) = await make_runs(tmp_path, 1)
    path = tmp_path / "runs" / run_id / JOURNAL
    line = json.dumps({"step": 2, "client": "ann", "number": 2, "calls": {"ann": 2}}).encode() + b"\n"
    path.write_bytes(GARBAGE[garbage] + line + GARBAGE[garbage])
    async with (
        serving(tmp_path / "models", {"m": SPEC}, runs=str(tmp_path / "runs")) as served,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        (info,) = await client.runs()
        assert (info.step, info.broken) == (1, "")
        assert "step 2" in info.waiting_for
        assert "calls 1 to 1 of client ann" in info.waiting_for


async def test_all_runs_are_found_again_by_a_server_that_would_make_no_more(tmp_path):
    ids = await make_runs(tmp_path)
    async with (
        serving(tmp_path / "models", {"m": SPEC}, runs=str(tmp_path / "runs"), max_runs=1) as served,
        seqloom.AsyncClient(served.address, timeout=30, retries=0) as client,
    ):
        assert [info.id for info in await client.runs()] == ids
        with pytest.raises(seqloom.Overloaded):
            await client.create_run("m", optimizer=ADAM)


async def test_what_a_crash_left_of_a_run_that_was_deleted_is_cleared_up(tmp_path):
    ids = await make_runs(tmp_path)
    runs = tmp_path / "runs"
    (runs / ids[1]).rename(runs / f".{ids[1]}.being-written")
    shutil.rmtree(runs / f".{ids[1]}.being-written" / LATEST)
    async with (
        serving(tmp_path / "models", {"m": SPEC}, runs=str(runs)) as served,
        seqloom.AsyncClient(served.address, timeout=30) as client,
    ):
        assert [info.id for info in await client.runs()] == [ids[0], ids[2]]
    assert not [path for path in runs.iterdir() if ids[1] in path.name]
