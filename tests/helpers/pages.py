"""What tests read from the pages: their tables, and the code in them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]


def text(page: str) -> str:
    """The text of a page, by its path in the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next of its level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$\n(.*?)(?=^#{{1,2}} |\Z)", text(page), re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[2]


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the one table below a heading, without its head: cells without backticks."""
    rows = re.findall(r"^\| (.*) \|$", section(page, heading), re.MULTILINE)
    assert len(rows) > 2
    return [[cell.strip().replace("`", "") for cell in row.split(" |")] for row in rows[2:]]


def code(page: str) -> list[str]:
    """The blocks of Python on a page."""
    return re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)


def names(page: str) -> list[str]:
    """The dotted names of this project's code on a page."""
    return sorted(set(re.findall(r"`(seqloom(?:_server)?\.[\w.]+)`", text(page))))
