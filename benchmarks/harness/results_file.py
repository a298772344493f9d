"""What the benchmark leaves: a Markdown table for people, and JSON with every round."""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

_PACKAGES = ("seqloom", "grpcio", "protobuf", "numpy", "torch")

_COLUMNS = {
    "streams": ("streams", "{:,.0f}"),
    "frames_per_second": ("frames/s", "{:,.0f}"),
    "answers_per_second": ("answers/s", "{:,.0f}"),
    "opened": ("opened", "{:,.0f}"),
    "opened_share": ("of those on time", "{:.0%}"),
    "calls": ("calls", "{:,.0f}"),
    "refused": ("refused", "{:,.0f}"),
    "lost": ("lost", "{:,.0f}"),
    "offered_per_second": ("offered/s", "{:,.0f}"),
    "good_per_second": ("good/s", "{:,.0f}"),
    "good_share": ("good, of the peak", "{:.0%}"),
    "good_of_offered": ("of the offered", "{:.0%}"),
    "refused_per_second": ("refused/s", "{:,.0f}"),
    "lost_per_second": ("timed out/s", "{:,.0f}"),
    "wasted_share": ("wasted", "{:.0%}"),
    "dropped": ("dropped", "{:,.0f}"),
    "p50_ms": ("p50 ms", "{:.1f}"),
    "p99_ms": ("p99 ms", "{:.1f}"),
    "first_p99_ms": ("of the first: p99 ms", "{:.1f}"),
    "refused_p50_ms": ("refused: p50 ms", "{:.1f}"),
    "refused_p99_ms": ("refused: p99 ms", "{:.1f}"),
    "slice_ms": ("a slice, ms", "{:.1f}"),
    "flood_per_second": ("the flood's answers/s", "{:,.0f}"),
    "flood_refused_per_second": ("the flood's refusals/s", "{:,.0f}"),
    "sent_late_p99_ms": ("sent late: p99 ms", "{:.1f}"),
    "client_us": ("µs a call", "{:.0f}"),
    "batch_sequences": ("sequences a batch", "{:.1f}"),
    "padding_share": ("padding", "{:.0%}"),
    "device_busy_share": ("device busy", "{:.0%}"),
    "messages_per_second": ("messages/s", "{:,.0f}"),
    "entries_per_second": ("entries/s", "{:,.0f}"),
    "cpu_us_a_message": ("server's CPU µs a message", "{:,.0f}"),
    "cpu_us_an_entry": ("µs an entry", "{:,.1f}"),
    "echo_cpu_us_a_message": ("the echo's CPU µs a message", "{:,.0f}"),
    "server_us_a_frame": ("server's CPU µs a frame", "{:.1f}"),
    "device_us_a_frame": ("device µs a frame", "{:.1f}"),
    "ceiling_us": ("its bare products, µs a frame", "{:.1f}"),
    "device_share": ("share of the device", "{:.0%}"),
    "of_what_streams_leave": ("of what streams leave", "{:.2f}"),
    "max_ms": ("longest ms", "{:.1f}"),
    "kb_a_stream": ("kB a stream", "{:.1f}"),
    "reply_kb": ("kB", "{:,.0f}"),
    "right": ("right in float32", "{:.1%}"),
    "right_bf16": ("right in bfloat16", "{:.1%}"),
    "right_rounded": ("right so", "{:.1%}"),
    "same_labels": ("frames with the same label", "{:.2%}"),
    "probability": ("farthest probability", "{:.3f}"),
    "hidden_state": ("hidden state", "{:.3f}"),
    "logit": ("logit, of the largest", "{:.3f}"),
}


def conditions(device: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What the numbers were taken under; nothing that tells the machine's name or folders."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "device": device,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        **settings,
    }


def processor_in_short(told: str) -> str:
    """Of a processor as `conditions` tells it, its make and model as a part of a file's name, such as
    "amd-epyc-9b14" or "intel-xeon-platinum-8481c-amx"."""
    model, _, own = told.rpartition(" with ")
    words = re.sub(
        r"\((?:R|TM|C)\)|@.*|\b(?:with\b|w/).*|\b(?:CPU|Processor)\b|\b\S+-Core\b", " ", model or told, flags=re.I
    )
    short = "-".join(re.findall(r"[a-z0-9]+", words.lower())) or "unknown"
    return short + ("-amx" if "amx_bf16" in own.split() else "")


def _processor() -> str:
    """Its make, and whether it multiplies bfloat16 and int8 itself."""
    told = pathlib.Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    make = re.search(r"^model name\s*: (.*)$", told, re.MULTILINE)
    own = [name for name in ("amx_bf16", "avx512_bf16", "amx_int8", "avx512_vnni") if f" {name} " in told]
    return f"{make[1] if make else platform.machine()} with {' '.join(own) or 'neither bfloat16 nor int8'}"


def _commit() -> str:
    """The short hash of what runs, and whether files that git knows have been changed since."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty= changed"]
    try:
        return subprocess.check_output(
            command, cwd=pathlib.Path(__file__).parent, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def table(rows: Sequence[Any]) -> str:
    """A Markdown table of rows (table_rows.Row): the columns that any of them has."""
    shown = [name for name in _COLUMNS if any(name in row.values for row in rows)]
    lines = [["work", "network", *(_COLUMNS[name][0] for name in shown), "beside"]]
    for row in rows:
        cells = [_COLUMNS[name][1].format(row.values[name]) if name in row.values else "" for name in shown]
        lines.append([row.work, row.model, *cells, _beside(row)])
    return markdown(lines)


def _beside(row: Any) -> str:
    text = row.beside if row.ratio is None else f"{row.ratio:.2f} of {row.beside}"
    if row.goal is not None:
        bound = "at most " if row.lower_is_better else ""
        verdict = {True: "reached", False: "not reached", None: "not measured"}[row.reached]
        text += f" (goal {bound}{row.goal:g}, {verdict})"
    return f"{text}; {row.note}" if text and row.note else text + row.note


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    padded.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(padded)


def save(folder: pathlib.Path, name: str, taken: dict[str, Any], text: str, rows: Iterable[Any]) -> pathlib.Path:
    """Writes NAME.json and NAME.md, with the date before the name and the processor behind it; returns the path of the
    JSON, which has a line for each row."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{taken['date']}-{name}-{processor_in_short(taken['processor'])}"
    lines = ",\n".join(json.dumps(_rounded(dataclasses.asdict(row))) for row in rows)
    path.with_suffix(".json").write_text(f'{{"conditions": {json.dumps(_rounded(taken))},\n"rows": [\n{lines}\n]}}\n')
    under = ", ".join(f"{key} {value}" for key, value in taken.items() if key != "processor")
    on = f"Taken on: {taken['processor']}. Medians of interleaved rounds. {under}."
    path.with_suffix(".md").write_text(f"{text}\n\n{on}\n")
    return path.with_suffix(".json")


def _rounded(value: Any) -> Any:
    """Numbers to four digits, since no more of them are repeatable."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
