"""docs/reliability.md: the tests that it names are there, and the report of a soak goes to its place."""

import re
import sys

from helpers.pages import ROOT, table, text

sys.path.insert(0, str(ROOT / "tools"))
import soak
import soak_page
import soak_server

PAGE = "docs/reliability.md"


def test_the_tests_that_it_names_are_there():
    rows = table(PAGE, "Faults injected")
    assert len(rows) > 4
    for *_, test in rows:
        assert (ROOT / test).exists(), test


def test_a_report_replaces_the_one_before(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(text(PAGE))
    monkeypatch.setattr(soak_page, "PAGE", page)
    soak_page.write("one")
    soak_page.write("two")
    begin, end = soak_page.BEGIN, soak_page.END
    before, after = (re.sub(f"{begin}.*{end}", "", whole, flags=re.DOTALL) for whole in (text(PAGE), page.read_text()))
    assert before == after
    assert f"{begin}\n\ntwo\n\n{end}" in page.read_text()


def test_what_grows_or_is_lost_is_a_problem():
    rest = soak_server.Measured(memory=300 << 20, states=1000, descriptors=20, threads=10, series=400)
    while_ = soak.Window(batch=4.0, p99=0.05, pace=0.01)
    assert soak.problems(rest, rest, while_, while_, []) == []
    assert soak.problems(rest, rest, while_, while_, ["a", "a"]) == ["a"]
    for change in (
        {"memory": 500 << 20},
        {"states": 2000},
        {"descriptors": 30},
        {"threads": 20},
        {"series": 500},
    ):
        (problem,) = soak.problems(rest, soak_server.Measured(**{**vars(rest), **change}), while_, while_, [])
        assert "grew" in problem
    for later in (soak.Window(2.0, 0.05, 0.01), soak.Window(4.0, 0.2, 0.01)):
        assert len(soak.problems(rest, rest, while_, later, [])) == 1
    assert not soak.problems(rest, rest, while_, soak.Window(4.0, 0.2, 0.03), []), "the machine was as much slower"
    report = soak_page.report(30, {"groups": 7}, 3, 0, rest, rest, while_, while_)
    assert "| groups | 7 |" in report
    assert "**0**" in report
