"""docs/architecture.md: its rooms and files are those of the tree, its names and bounds those of the code."""

import ast
import dataclasses
import re

import pytest
from helpers.pages import ROOT, table, text
from seqloom_server.config import ServerConfig
from seqloom_server.errors import Reason

PAGE = "docs/architecture.md"


ROOMS = [("server/seqloom_server", "The server's rooms"), ("client/seqloom", "The SDK's rooms")]


def rooms_of(package):
    """The folders of a package that hold Python, by path; "." for its own."""
    return {str(path.parent.relative_to(ROOT / package)) for path in (ROOT / package).rglob("*.py")}


@pytest.mark.parametrize(("package", "heading"), ROOMS)
def test_every_room_has_its_row_and_no_other(package, heading):
    assert sorted(room for room, _, _ in table(PAGE, heading)) == sorted(rooms_of(package))


@pytest.mark.parametrize(("package", "most"), [("server/seqloom_server", 13), ("client/seqloom", 13)])
def test_no_room_is_too_full_to_look_around_in(package, most):
    for room in rooms_of(package) - {"v1"}:  # which is generated
        files = sorted(path.name for path in (ROOT / package / room).glob("*.py"))
        assert len(files) <= most, (room, files)


@pytest.mark.parametrize(("package", "heading"), ROOMS)
def test_every_file_says_what_it_is_for(package, heading):
    for path in (ROOT / package).rglob("*.py"):
        if "v1" not in path.parts:
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_other_file_that_it_names_is_there():
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", text(PAGE)):
        assert (ROOT / name).exists() or (ROOT / "server" / "seqloom_server" / name).exists(), name


def test_every_class_and_method_that_it_names_is_in_the_code():
    code = "".join(path.read_text() for path in (ROOT / "server" / "seqloom_server").rglob("*.py"))
    names = re.findall(r"`((?:[A-Z][a-z]+)+)(?:\.(\w+))?`", text(PAGE))
    assert len(names) > 15
    for owner, member in names:
        assert f"class {owner}" in code or owner == "Infer", owner  # the method, whose servicer another line names
        assert not member or f"def {member}(" in code, member


def test_every_option_that_it_names_is_there_with_the_default_that_it_tells():
    options = {field.name: field.default for field in dataclasses.fields(ServerConfig)}
    bounds = table(PAGE, "What is bounded by what")
    told = dict(re.findall(r"^(\w+_\w+) ([\d,.]+)", bound)[0] for _, bound, _ in bounds if "_" in bound)
    assert len(told) >= 15
    assert {name: float(default.replace(",", "")) for name, default in told.items()} == {
        name: options[name] for name in told
    }
    limits = {name for name in options if name.startswith(("max_", "idle_", "bulk_", "grace_", "window_"))}
    assert limits - set(told) == {"max_padding"}, "no bound is left out"
    for name in re.findall(r"`(\w+_(?:share|padding|slots|ms|seconds|versions))`", text(PAGE)):
        assert name in options


def test_every_reason_that_it_names_is_one():
    for word in set(re.findall(r"\b[A-Z]+_[A-Z]+\b", text(PAGE))) - {"RESOURCE_EXHAUSTED", "NOT_SERVING"}:
        assert word in Reason.__members__
