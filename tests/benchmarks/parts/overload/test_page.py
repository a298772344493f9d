"""The tables in docs/performance.md are those of the newest result."""

import json
import pathlib

import pytest

from benchmarks.loads.overload_workload import CALLS
from benchmarks.loads.workload import LARGE, TITLES
from benchmarks.parts.overload import page

_PAGE = f"[old](2020-01-02-overload-cpu.md)\n{page.BEGIN}what was before\n{page.END}after\n"
_CONDITIONS = {"date": "2026-01-02", "cores": 2, "processor": "AMD EPYC with avx512_vnni"}


def row(sweep: str, who: str, model: str, offered: float | None, work: str = "", **values: float) -> dict:
    at = None if offered is None else {"offered": offered}
    return {"sweep": sweep, "who": who, "model": model, "at": at, "work": work, "values": values}


def rows() -> list[dict]:
    return [
        row("overload", "served", CALLS[LARGE], 2.0, good_share=0.934, wasted_share=0.02),
        row("overload", "Triton", CALLS[LARGE], 2.0, good_share=0.72),
        row("overload-streams", "served", TITLES[LARGE], 2.0, opened_share=1.0, p99_ms=51.2, first_p99_ms=50.0),
        row("overload-unrated", "", TITLES[LARGE], None, p99_ms=200.0, first_p99_ms=49.0),
        row("neighbours", "alone", CALLS[LARGE], None, "10 calls a second, alone", p99_ms=30.0, refused=0, lost=0),
        row("", "", CALLS[LARGE], None, "the peak", answers_per_second=300.0),
    ]


def cells(line: str) -> list[str]:
    return [each.strip() for each in line.strip("|").split("|")]


def test_each_table_has_a_line_for_each_multiple_and_empty_cells_for_what_was_not_measured():
    calls, streams, modest = page.tables_of(rows())
    assert cells(calls.splitlines()[2]) == ["2 x", "0.93", "2%", "", "0.72", "", "", "", ""]
    assert cells(streams.splitlines()[2])[:4] == ["2 x", "1.00", "51", "50"]
    assert cells(streams.splitlines()[3])[1:4] == ["", "200", "49"]
    assert cells(modest.splitlines()[2])[:3] == ["alone", "30", ""]


def test_they_take_the_place_of_those_before_and_the_name_of_the_old_result_goes(tmp_path: pathlib.Path):
    results, shown = tmp_path / "2026-01-02-overload-cpu-amd-epyc.json", tmp_path / "page.md"
    results.write_text(json.dumps({"conditions": _CONDITIONS, "rows": rows()}))
    shown.write_text(_PAGE)
    page.write(results, shown)
    once = shown.read_text()
    page.write(results, shown)
    assert shown.read_text() == once, "its own name is replaced, too"
    assert "2020" not in once
    assert "what was before" not in once
    assert once.startswith("[old](2026-01-02-overload-cpu-amd-epyc.md)\n")
    assert once.endswith(f"{page.END}after\n")
    assert "![overload](../benchmarks/results/2026-01-02-overload-cpu-amd-epyc.png)" in once
    assert "Taken on 2026-01-02, on 2 cores of: AMD EPYC with avx512_vnni." in once


def test_a_page_without_a_place_for_them_is_refused(tmp_path: pathlib.Path):
    results, shown = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(json.dumps({"conditions": _CONDITIONS, "rows": rows()}))
    shown.write_text("nothing")
    with pytest.raises(ValueError, match="no place"):
        page.write(results, shown)
