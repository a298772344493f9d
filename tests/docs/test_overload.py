"""docs/overload.md: its example runs against a real server; options, defaults and metrics are those of the code."""

import dataclasses
import re
import shutil

from helpers.pages import ROOT, code, table, text
from seqloom_server.config import ServerConfig
from seqloom_server.metrics import Metrics

PAGE = "docs/overload.md"
ADDRESS = "localhost:50051"


def test_the_example_runs(server_process, tmp_path):
    shutil.copytree(ROOT / "examples" / "models", tmp_path / "models")
    started = server_process("--models", tmp_path / "models")
    (example,) = code(PAGE)
    assert example.count(f'"{ADDRESS}"') == 1
    names = {}
    exec(compile(example.replace(ADDRESS, started.address), PAGE, "exec"), names)
    assert sum(map(len, names["live"])) == 300


def test_the_options_are_there_with_the_defaults_that_it_tells():
    options = {field.name: field.default for field in dataclasses.fields(ServerConfig)}
    for names, defaults, _ in table(PAGE, "If you run it"):
        told = [float(default.replace(",", "")) for default in defaults.split(", ")]
        assert [options[name] for name in names.split(", ")] == told
    for name in re.findall(r"`((?:max|live|inference|training)_\w+)`", text(PAGE)):
        assert name in options or name == "live_load", name


def test_the_metrics_that_it_asks_for_are_exported():
    exported = {name for metric in Metrics().registry.collect() for name in {metric.name, f"{metric.name}_total"}}
    asked = re.findall(r"\b(seqloom_\w+?)(?:_sum)?\b(?:\[|`)", text(PAGE))
    assert len(asked) >= 5
    assert set(asked) <= exported
