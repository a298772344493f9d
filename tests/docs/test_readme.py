"""README.md: its example runs against a real server, and what it names is there."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.pages import ROOT, code, text
from seqloom_server.config import ServerConfig
from seqloom_server.nn.files import model_folder

README = text("README.md")
ADDRESS = "localhost:50051"


def test_the_examples_run_and_print_what_the_network_computes(server_process, tmp_path, capsys, monkeypatch):
    example, by_hand, group, training = code("README.md")
    assert len(example.splitlines()) <= 15
    assert example.count(f'"{ADDRESS}"') == 1
    shutil.copytree(ROOT / "examples" / "models", tmp_path / "models")
    started = server_process("--models", tmp_path / "models")
    names = {}
    exec(compile(example.replace(ADDRESS, started.address), "README.md", "exec"), names)

    network, _ = model_folder.load(ROOT / "examples" / "models" / "digits")
    expected = [reference(network, x) for x in names["xs"]]
    for labels, (logits, _) in zip(names["result"].outputs, expected, strict=True):
        np.testing.assert_array_equal(labels, logits.argmax(axis=1))
    np.testing.assert_allclose(names["state"].hidden, expected[0][1], rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().out
    assert [int(steps) for steps in re.findall(r"^(\d+) steps: \[", printed, re.MULTILINE)] == [100, 43, 7]
    live = re.findall(r"^from step (\d+) likeliest: \[([\d ]+)\]$", printed, re.MULTILINE)
    assert [int(step) for step, _ in live] == list(range(0, 100, 10))
    assert [int(label) for _, row in live for label in row.split()] == expected[0][0].argmax(axis=1).tolist()

    monkeypatch.chdir(tmp_path)
    exec(compile(by_hand.replace(ADDRESS, started.address), "README.md", "exec"), {})
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {model_folder.CONFIG, model_folder.WEIGHTS}

    exec(compile(group.replace(ADDRESS, started.address), "README.md", "exec"), names)
    first = [reference(network, each) for each in names["frames"]]
    assert names["labels"][:, 0].tolist() == [int(logits.argmax()) for logits, _ in first]
    assert names["some"].shape == (2, 1)
    np.testing.assert_allclose(names["state"].hidden, first[3][1], rtol=1e-4, atol=1e-6)

    exec(compile(training.replace(ADDRESS, started.address), "README.md", "exec"), names)
    losses = [float(loss) for loss in re.findall(r"^loss (\S+)$", capsys.readouterr().out, re.MULTILINE)]
    assert names["own"].loss == pytest.approx(losses[0], rel=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 3
    assert model_folder.load(tmp_path / "models" / "digits")[1] == 2


def reference(network, xs):
    """Logits [T, O] and final state [1, 1, H] of one sequence, by torch.nn in float64."""
    spec, parameters = network.spec, {name: each.double() for name, each in network.parameters().items()}
    rnn = torch.nn.GRU(spec.input_size, spec.hidden_size, spec.num_layers).double()
    output = torch.nn.Linear(spec.hidden_size, spec.output_size).double()
    torch.nn.ModuleDict({"rnn": rnn, "output": output}).load_state_dict(parameters)
    with torch.no_grad():
        hidden, final = rnn(torch.from_numpy(xs.astype("f4").astype("f8"))[:, None])
        return output(hidden)[:, 0].numpy(), final.numpy()


def test_the_examples_address_is_where_both_servers_listen():
    port = ADDRESS.rpartition(":")[2]
    assert ServerConfig().listen == f"127.0.0.1:{port}"
    assert f'"127.0.0.1:${{SEQLOOM_PORT:-{port}}}:{port}"' in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    ["README.md", "CHANGELOG.md", "docs/architecture.md", "docs/protocol.md", "docs/overload.md", "docs/security.md"],
)
def test_every_link_leads_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([\w-]+))?\)", path.read_text(encoding="utf-8"))
    for file, anchor in links:
        target = path.parent / file if file else path
        assert target.exists(), file
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_command_that_it_names_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:`| {4})make ([a-z-]+)", README))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    options = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(ServerConfig)} | {"--help"}
    for command in re.findall(r"seqloom-server ((?:--\S+ ?\S*)+)", README):
        assert set(re.findall(r"--[a-z-]+", command)) <= options
    for script in re.findall(r"\b(?:examples|tools)/[\w/.]+\w", README):
        assert (ROOT / script).exists(), script


def test_its_picture_is_small():
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", README)
    data = (ROOT / picture).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 200_000
