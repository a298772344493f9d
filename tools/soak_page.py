"""The report of a soak, as it stands in docs/reliability.md."""

import datetime
import os
import pathlib
from collections.abc import Mapping
from typing import Any

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- soak: written by `make soak` -->", "<!-- soak ends -->"


def report(
    minutes: float, done: Mapping[str, int], kills: int, lost: int, before: Any, after: Any, first: Any, last: Any
) -> str:
    """Returns the report in Markdown. before, after: Measured of soak_server; first, last: Window of soak."""
    faults = ("cancelled calls", "timeouts", "connections closed on open streams", "streams left open")
    rows = [(name, f"{number:,}") for name, number in sorted(done.items()) if name not in faults]
    rows += [(name, f"{done.get(name, 0):,}") for name in faults]
    rows += [("client processes killed", f"{kills:,}"), ("**lost**: wrong, missing or failed", f"**{lost:,}**")]
    rest = (
        ("memory, MiB", before.memory / 2**20, after.memory / 2**20),
        ("bytes of hidden states", before.states, after.states),
        ("descriptors", before.descriptors, after.descriptors),
        ("threads", before.threads, after.threads),
        ("series of metrics", before.series, after.series),
        ("mean sequences of a slice", first.batch, last.batch),
        ("p99 of calls with whole sequences, ms", 1e3 * first.p99, 1e3 * last.p99),
        ("how busy the machine was: p90 of a fixed piece of work, ms", 1e3 * first.pace, 1e3 * last.pace),
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return "\n".join(
        [
            f"{minutes:g} minutes on {datetime.date.today().isoformat()}, server and clients on {cores} cores.",
            "",
            "| what | count |",
            "| --- | --- |",
            *(f"| {name} | {number} |" for name, number in rows),
            "",
            "| of the server | before, or first minute | after, or last minute |",
            "| --- | --- | --- |",
            *(f"| {name} | {_short(old)} | {_short(new)} |" for name, old, new in rest),
        ]
    )


def write(text: str) -> None:
    """Puts the report in its place on the page."""
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}")


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"
