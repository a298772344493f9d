"""Draws a results file of the sweeps, or of overload, as one picture of small panels, a PNG.

python -m benchmarks.harness.plot RESULTS.json [PICTURE.png]
"""

import argparse
import json
import math
import pathlib
import sys
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

Point = dict[str, Any]
"""A row of the results file, as table_rows.Row has it."""

_COLUMNS = 3
_STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
_LARGE, _SMALL, _PALE = "#b5432a", "#1f4e79", "#8fb3d9"
_COLOURS = {"H=1000 O=6000": _LARGE, "H=64 O=40": _SMALL, "elman": _SMALL, "gru": "#3a8f5c", "lstm": "#c98a1b"}
_FRAMES, _RATE = "frames_per_second", "frames/s"


class Panel(NamedTuple):
    """Numbers of one sweep. x: an axis of its points. y: a number of their values. alone: whether the network alone is
    drawn, too. legend: what its names are."""

    sweep: str
    title: str
    x: str
    y: str
    xlabel: str
    ylabel: str
    alone: bool = True
    legend: str | None = None


_OFFERED, _OF_PEAK, _OF_COUNT = "offered", "times the peak offered", "times the count on time offered"
_CHUNKS = "frames a chunk, H=64 O=40 but for the last"
_PANELS = (
    Panel("callers", "Whole recordings: throughput", "callers", _FRAMES, "callers", _RATE),
    Panel("callers", "Whole recordings: latency", "callers", "p99_ms", "callers", "p99, ms", False),
    Panel("callers", "Whole recordings: device busy", "callers", "device_busy_share", "callers", "% busy", False),
    Panel("streams", "Live streams: throughput", "streams", _FRAMES, "streams", _RATE, legend=_CHUNKS),
    Panel("streams", "Live streams: time", "streams", "us_a_frame", "streams", "µs a frame", legend=_CHUNKS),
    Panel("streams", "Live streams: device time", "streams", "device_us_a_frame", "streams", "µs a frame",
          legend=_CHUNKS),
    Panel("lengths", "By length, 4 callers: throughput", "steps", _FRAMES, "steps of a sequence", _RATE),
    Panel("widths", "By width, 64 callers: throughput", "hidden", _FRAMES, "hidden units", _RATE),
    Panel("overload", "Whole sequences: answered in time", _OFFERED, "good_share", _OF_PEAK, "% of the peak"),
    Panel("overload", "Whole sequences: refusals", _OFFERED, "refused_p99_ms", _OF_PEAK, "p99 at the caller, ms"),
    Panel("overload-streams", "Streams: admitted", _OFFERED, "opened_share", _OF_COUNT, "% of those on time"),
    Panel("overload-streams", "Streams: delay of those admitted", _OFFERED, "p99_ms", _OF_COUNT, "p99, ms"),
)  # fmt: skip


def draw(results: pathlib.Path, picture: pathlib.Path | None = None) -> pathlib.Path:
    """Writes the picture, beside the results unless elsewhere, and returns its path.

    Raises OSError and ValueError: results that cannot be read, or have nothing to draw.
    """
    content = json.loads(results.read_text())
    with matplotlib.rc_context(_STYLE):
        try:
            whole = figure(content["rows"], content["conditions"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{results} is no results file: {error!r}") from None
        picture = picture or results.with_suffix(".png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        whole.savefig(picture, dpi=130)
    return picture


def figure(rows: list[Point], conditions: dict[str, Any]) -> Figure:
    """A panel for each thing that was swept. Raises ValueError where nothing was."""
    by_sweep: dict[str, list[Point]] = {}
    for row in rows:
        by_sweep.setdefault(row.get("sweep", ""), []).append(row)
    found = [(panel, drawn) for panel in _PANELS if (drawn := _drawn(panel, by_sweep.get(panel.sweep, [])))]
    found += [(None, by_sweep["mixed"])] if "mixed" in by_sweep else []
    if not found:
        raise ValueError("the results have no sweep that is drawn")
    columns = 2 if len(found) == 4 else min(_COLUMNS, len(found))
    lines = -(-len(found) // columns)
    whole = Figure(figsize=(4.5 * columns, 3.6 * lines), layout="constrained")
    whole.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
    axes = list(whole.subplots(lines, columns, squeeze=False).flat)
    for letter, (panel, points), axis in zip("abcdefghijkl", found, axes, strict=False):
        title = _mixed(axis, points) if panel is None else _curves(axis, panel, points)
        axis.set_title(f"{letter}  {title}", loc="left", fontweight="bold")
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.19)}  # below, where it covers no data
        axis.legend(**place, ncols=2, title=panel and panel.legend, title_fontsize=8, frameon=False, fontsize=8)
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    under = f"{conditions['date']}, {conditions['device']}, {conditions['cores']} cores, server and callers together"
    if conditions["rounds"] > 1:
        under += f"; medians of {conditions['rounds']} rounds, shaded from the least to the most"
    whole.supxlabel(under, fontsize=8, color="0.3")
    return whole


def _drawn(panel: Panel, points: list[Point]) -> list[Point]:
    """Those of a sweep's points that a panel shows."""
    return [each for each in points if panel.y in each["values"] and (panel.alone or each["who"] != "alone")]


def _line(point: Point) -> tuple[str, Any, str]:
    """The name, the colour and the style of the line that a point is on."""
    model, (who, _, alone) = point["model"], point["who"].partition(" ")
    if point["sweep"] == "widths":
        return f"{who}, alone" if alone else who, _COLOURS[who], "--" if alone else "-"
    if point["sweep"] in ("overload", "overload-streams"):
        network = model.partition(",")[0]
        styles = {"served": ("", "-"), "Triton": (", Triton", ":"), "spread": (", 8 connections", "--")}
        return network + styles[who][0], _COLOURS[network], styles[who][1]
    if point["sweep"] == "streams":
        size = point["at"]["chunk"]
        if _COLOURS[model] == _LARGE:
            return f"{size}, {model}", _LARGE, "--"
        return f"{size}", matplotlib.colormaps["viridis"](min(0.95, 0.2 * math.log2(size))), "-"
    return (f"{model}, the network alone", _COLOURS[model], "--") if who == "alone" else (model, _COLOURS[model], "-")


def _curves(axis: Axes, panel: Panel, points: list[Point]) -> str:
    """A line for each name, and around it a shade from the least to the most of the rounds."""
    lines: dict[tuple[str, Any, str], list[Point]] = {}
    for point in points:
        lines.setdefault(_line(point), []).append(point)
    share = panel.y.endswith("_share")
    scale = 100 if share else 1
    for (label, colour, style), found in lines.items():
        found.sort(key=lambda point: point["at"][panel.x])
        xs = [point["at"][panel.x] for point in found]
        rounds = [[scale * each[panel.y] for each in point["rounds"]] for point in found]
        axis.fill_between(xs, list(map(min, rounds)), list(map(max, rounds)), color=colour, alpha=0.15, lw=0)
        ys = [scale * point["values"][panel.y] for point in found]
        axis.plot(xs, ys, style, color=colour, label=label, marker="o", markersize=3, linewidth=1.4)
    axis.set_xscale("log")
    ticks = sorted({point["at"][panel.x] for found in lines.values() for point in found})
    axis.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    if share:
        axis.set_ylim(0, max(105, axis.get_ylim()[1]))
    else:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(color="0.9", linewidth=0.6)
    axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    return panel.title


def _mixed(axis: Axes, points: list[Point]) -> str:
    """Two bars for each kind of callers: alone, and together."""
    names = list(dict.fromkeys(point["who"] for point in points))
    for together, colour, label in ((0, _PALE, "each alone"), (1, _SMALL, "all three at once")):
        found = [point for point in points if point["at"]["together"] == together]
        places = [names.index(point["who"]) + 0.4 * together - 0.2 for point in found]
        bars = axis.barh(places, [point["values"][_FRAMES] for point in found], height=0.36, color=colour, label=label)
        axis.bar_label(bars, [_told(point) for point in found], padding=3)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.35)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set(xlabel=_RATE)
    return f"Mixed traffic, {points[0]['model']}"


def _told(point: Point) -> str:
    delay = f", p99 {point['values']['p99_ms']:.0f} ms" if point["who"] == "streams" else ""
    return f"{point['values'][_FRAMES]:,.0f}{delay}"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("results", type=pathlib.Path, metavar="RESULTS.json")
    options.add_argument("picture", type=pathlib.Path, nargs="?", metavar="PICTURE.png")
    chosen = options.parse_args()
    try:
        print(draw(chosen.results, chosen.picture))
    except (OSError, ValueError) as error:
        print(f"plot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
