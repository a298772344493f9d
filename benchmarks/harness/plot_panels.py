"""The panels of the sweeps' picture: which numbers each shows, over what, and the lines that the points are on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

Point = dict[str, Any]
"""A row of the results file, as sweep_bench.Point has it."""

Drawing = Callable[[Axes], str]
"""Fills a panel and returns its title."""

LARGE, SMALL, PALE = "#b5432a", "#1f4e79", "#8fb3d9"
_COLOURS = {"H=1000 O=6000": LARGE, "H=64 O=40": SMALL, "elman": SMALL, "gru": "#3a8f5c", "lstm": "#c98a1b"}
_SHADES = {1: 0.0, 2: 0.22, 5: 0.44, 10: 0.66, 20: 0.86}  # of viridis, by frames of a chunk


@dataclass(frozen=True)
class Line:
    """How the points of one name look. order: where it stands in the legend."""

    label: str
    colour: Any
    style: str = "-"
    order: float = 0


@dataclass(frozen=True)
class Panel:
    """Numbers of one sweep. x: an axis of its points. y: a number of their values. line: which one a point is on.

    share: whether the numbers are shares, shown as percentages on a linear axis. legend: what its names are.
    """

    sweep: str
    title: str
    x: str
    y: str
    xlabel: str
    ylabel: str
    line: Callable[[Point], Line | None]
    share: bool = False
    legend: str | None = None


def _by_network(point: Point) -> Line:
    alone = point["who"] == "alone"
    label = f"{point['model']}{', the network alone' if alone else ''}"
    return Line(label, _COLOURS[point["model"]], "--" if alone else "-", alone)


def _served_by_network(point: Point) -> Line | None:
    return None if point["who"] == "alone" else _by_network(point)


def _by_chunk(point: Point) -> Line:
    size = point["at"]["chunk"]
    if _COLOURS[point["model"]] == LARGE:
        return Line(f"{size}, {point['model']}", LARGE, "--", 1e9)
    return Line(f"{size}", matplotlib.colormaps["viridis"](_SHADES.get(size, 0.95)), "-", size)


def _by_cell(point: Point) -> Line:
    cell, _, alone = point["who"].partition(" ")
    return Line(f"{cell}, alone" if alone else cell, _COLOURS[cell], "--" if alone else "-")


_FRAMES, _RATE = "frames_per_second", "frames/s"
_CHUNKS = "frames a chunk, H=64 O=40 but for the last"
_PANELS = (
    Panel("callers", "Whole recordings: throughput", "callers", _FRAMES, "callers", _RATE, _by_network),
    Panel("callers", "Whole recordings: latency", "callers", "p99_ms", "callers", "p99, ms", _served_by_network),
    Panel("callers", "Whole recordings: device busy", "callers", "device_busy_share", "callers", "share of the time, %",
          _served_by_network, share=True),
    Panel("streams", "Live streams: throughput", "streams", _FRAMES, "streams", _RATE, _by_chunk, legend=_CHUNKS),
    Panel("streams", "Live streams: cost on the clock", "streams", "us_a_frame", "streams", "µs a frame",
          _by_chunk, legend=_CHUNKS),
    Panel("streams", "Live streams: cost on the device", "streams", "device_us_a_frame", "streams", "µs a frame",
          _by_chunk, legend=_CHUNKS),
    Panel("lengths", "By length, 4 callers: throughput", "steps", _FRAMES, "steps of a sequence", _RATE, _by_network),
    Panel("widths", "By width, 64 callers: throughput", "hidden", _FRAMES, "hidden units", _RATE, _by_cell),
)  # fmt: skip


def drawings(points: list[Point]) -> list[Drawing]:
    """What is drawn of these points, a panel each: of the sweeps that are among them."""
    by_sweep: dict[str, list[Point]] = {}
    for point in points:
        by_sweep.setdefault(point["sweep"], []).append(point)
    found = [_drawing(panel, by_sweep[panel.sweep]) for panel in _PANELS if panel.sweep in by_sweep]
    return [*found, *([lambda axis: _mixed(axis, by_sweep["mixed"])] if "mixed" in by_sweep else [])]


def _drawing(panel: Panel, points: list[Point]) -> Drawing:
    return lambda axis: _curves(axis, panel, points)


def _curves(axis: Axes, panel: Panel, points: Iterable[Point]) -> str:
    """A line for each name, and around it a shade from the least to the most of the rounds."""
    lines: dict[Line, list[Point]] = {}
    for point in points:
        line = panel.line(point)
        if line is not None:
            lines.setdefault(line, []).append(point)
    scale = 100 if panel.share else 1
    for line, found in sorted(lines.items(), key=lambda each: each[0].order):
        found.sort(key=lambda point: point["at"][panel.x])
        xs = [point["at"][panel.x] for point in found]
        rounds = [[scale * each[panel.y] for each in point["rounds"]] for point in found]
        axis.fill_between(xs, list(map(min, rounds)), list(map(max, rounds)), color=line.colour, alpha=0.15, lw=0)
        ys = [scale * point["values"][panel.y] for point in found]
        axis.plot(xs, ys, line.style, color=line.colour, label=line.label, marker="o", markersize=3, linewidth=1.4)
    axis.set_xscale("log")
    ticks = sorted({point["at"][panel.x] for found in lines.values() for point in found})
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    if panel.share:
        axis.set_ylim(0, 105)
    else:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axis.legend(title=panel.legend)
    return panel.title


def _mixed(axis: Axes, points: list[Point]) -> str:
    """Two bars for each kind of callers: alone, and together."""
    names = list(dict.fromkeys(point["who"] for point in points))
    for together, colour, label in ((0, PALE, "each alone"), (1, SMALL, "all three at once")):
        found = [point for point in points if point["at"]["together"] == together]
        places = [names.index(point["who"]) + 0.4 * together - 0.2 for point in found]
        rates = [point["values"][_FRAMES] for point in found]
        bars = axis.barh(places, rates, height=0.36, color=colour, label=label)
        axis.bar_label(bars, [f"{rate:,.0f}{_delay(each)}" for rate, each in zip(rates, found, strict=True)], padding=3)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.35)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set(xlabel=_RATE)
    axis.legend()
    return f"Mixed traffic, {points[0]['model']}"


def _delay(point: Point) -> str:
    return f", p99 {point['values']['p99_ms']:.0f} ms" if point["who"] == "streams" else ""
