"""Draws a results file of the sweeps as one picture of small panels, a PNG.

python -m benchmarks.harness.plot RESULTS.json [PICTURE.png]
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness.plot_panels import drawings

_COLUMNS = 3
_STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


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


def figure(rows: list[dict[str, Any]], conditions: dict[str, Any]) -> Figure:
    """A panel for each thing that was swept. Raises ValueError where nothing was."""
    found = drawings([row for row in rows if row.get("sweep")])
    if not found:
        raise ValueError("the results have no sweep that is drawn")
    columns = min(_COLUMNS, len(found))
    lines = -(-len(found) // columns)
    whole = Figure(figsize=(4.5 * columns, 3.6 * lines), layout="constrained")
    whole.get_layout_engine().set(w_pad=0.1, h_pad=0.12)
    axes = list(whole.subplots(lines, columns, squeeze=False).flat)
    for letter, drawing, axis in zip("abcdefghijkl", found, axes, strict=False):
        axis.set_title(f"{letter}  {drawing(axis)}", loc="left", fontweight="bold")
        _legend(axis)
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    whole.supxlabel(_told(conditions), fontsize=8, color="0.3")
    return whole


def _legend(axis: Axes) -> None:
    """Below the panel, where it covers no data."""
    columns = 3 if len(axis.get_legend_handles_labels()[1]) > 4 else 2
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.19), "ncols": columns}
    title = axis.get_legend().get_title().get_text()
    axis.legend(**place, title=title, title_fontsize=8, frameon=False, fontsize=8, handlelength=2.6, columnspacing=1.2)


def _told(conditions: dict[str, Any]) -> str:
    under = f"{conditions['date']}, {conditions['device']}, {conditions['cores']} cores, server and callers together"
    rounds = conditions["rounds"]
    return f"{under}; medians of {rounds} rounds, shaded from the least to the most" if rounds > 1 else under


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
