"""What docs/performance.md shows of a result: its tables and its picture, written anew with each result that is kept.

python -m benchmarks.parts.overload.page RESULTS.json
"""

import json
import pathlib
import re
import sys
from typing import Any

from benchmarks.harness.child_process import ROOT
from benchmarks.harness.results_file import markdown
from benchmarks.loads.overload_workload import CALLS
from benchmarks.loads.workload import TITLES

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- overload: written by make bench-overload -->\n", "<!-- overload: end -->\n"
_NAME = re.compile(r"\d{4}-\d\d-\d\d-overload-cpu[a-z0-9-]*")

Point = dict[str, Any]
"""A row of the results file, as table_rows.Row has it."""


def write(results: pathlib.Path, page: pathlib.Path = PAGE) -> None:
    """Puts a result's tables between the marks of a page, and its name wherever another's was.

    Raises ValueError where the page has no marks.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the results of overload")
    taken = json.loads(results.read_text())
    tables = "\n\n".join(tables_of(taken["rows"]))
    picture = f"![overload](../benchmarks/results/{results.stem}.png)"
    on = "Taken on {date}, on {cores} cores of: {processor}.".format_map(taken["conditions"])
    shown = f"{before}{begin}\n{picture}\n\n{on}\n\n{tables}\n\n{end}{after}"
    page.write_text(_NAME.sub(results.stem, shown))


def tables_of(rows: list[Point]) -> list[str]:
    """Markdown tables of whole sequences, of streams and of the modest caller; cells without numbers are empty."""
    found = {(each["sweep"], each["who"], each["model"], each["at"]["offered"]): each for each in rows if each["at"]}
    factors = sorted({key[3] for key in found})

    def told(sweep: str, who: str, model: str, factor: float, number: str, form: str) -> str:
        return _told(found.get((sweep, who, model, factor)), number, form)

    calls = [["offered, of the peak", *(f"{TITLES[size]}: {name}" for size in CALLS for name in _CALLS)]]
    streams = [["offered, of the count on time", *(f"{TITLES[size]}: {name}" for size in CALLS for name in _STREAMS)]]
    for factor in factors:
        columns = [("overload", *column) for column in _CALLS.values()]
        cells = [told(s, w, CALLS[size], factor, n, f) for size in CALLS for s, w, n, f in columns]
        calls.append([f"{factor:g} x", *cells])
        columns = [("overload-streams", *column) for column in _STREAMS.values()]
        cells = [told(s, w, TITLES[size], factor, n, f) for size in CALLS for s, w, n, f in columns]
        streams.append([f"{factor:g} x", *cells])
    unrated = {each["model"]: each for each in rows if each["sweep"] == "overload-unrated"}
    if unrated:
        cells = [_told(unrated.get(TITLES[size]), n, f) for size in CALLS for _, n, f in _STREAMS.values()]
        streams.append(["0.8 x with a rate, then 1 x without", *cells])
    works = dict.fromkeys(each["work"] for each in rows if each["sweep"] == "neighbours")
    modest = [["a caller of 10 calls a second", *(f"{TITLES[size]}: {name}" for size in CALLS for name in _MODEST)]]
    for work in works:
        of = {each["model"]: each for each in rows if each["work"] == work}
        cells = [_told(of.get(CALLS[size]), n, f) for size in CALLS for n, f in _MODEST.values()]
        modest.append([work.partition(" second")[2].lstrip(", "), *cells])
    return [markdown(table) for table in (calls, streams, modest) if len(table) > 1]


_CALLS = {
    "good": ("served", "good_share", "{:.2f}"),
    "wasted": ("served", "wasted_share", "{:.0%}"),
    "refusals' p99, ms": ("served", "refused_p99_ms", "{:.0f}"),
    "Triton: good": ("Triton", "good_share", "{:.2f}"),
}
_STREAMS = {
    "admitted": ("served", "opened_share", "{:.2f}"),
    "p99, ms": ("served", "p99_ms", "{:.0f}"),
    "of the first": ("served", "first_p99_ms", "{:.0f}"),
}
_MODEST = {
    "p99, ms": ("p99_ms", "{:.0f}"),
    "a slice, ms": ("slice_ms", "{:.0f}"),
    "refused": ("refused", "{:.0f}"),
    "lost": ("lost", "{:.0f}"),
}
"""The columns by name: whose numbers, which, and how they are written."""


def _told(row: Point | None, number: str, form: str) -> str:
    return form.format(row["values"][number]) if row and number in row["values"] else ""


def main() -> int:
    write(pathlib.Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
