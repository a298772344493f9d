"""The picture of a results file: what it shows is what the file says, and nothing lies over it."""

import json
import pathlib

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.harness import plot

NETWORKS = ("H=1000 O=6000", "H=64 O=40")
CONDITIONS = {"date": "2026-01-02", "device": "cpu", "cores": 2, "rounds": 3}


def row(sweep: str, who: str, at: dict, model: str, **values: float) -> dict:
    rounds = [{name: factor * value for name, value in values.items()} for factor in (0.5, 1, 2)]
    return {"work": "", "model": model, "values": values, "rounds": rounds, "sweep": sweep, "who": who, "at": at}


def every_row() -> list[dict]:
    rows = []
    for model in NETWORKS:
        for n in (1, 16, 256):
            speed = {"frames_per_second": 1000.0 * n, "p99_ms": 3.0 * n, "device_busy_share": 1 - 0.5 / n}
            rows.append(row("callers", "served", {"callers": n}, model, **speed))
            rows.append(row("callers", "alone", {"callers": n}, model, frames_per_second=2000.0 * n, p99_ms=1.0))
        rows += [
            row("lengths", "served", {"steps": steps}, model, frames_per_second=9.0 * steps) for steps in (10, 10_000)
        ]
    for chunk in (1, 20, 7):
        for n in (1000, 10):  # in no order
            cost = {"frames_per_second": 10.0 * n, "us_a_frame": 1e5 / n, "device_us_a_frame": 1e3 * chunk / n}
            rows.append(row("streams", "served", {"streams": n, "chunk": chunk}, NETWORKS[1], **cost))
    for who in ("elman", "elman alone", "gru", "gru alone"):
        rows += [row("widths", who, {"hidden": h}, f"{who} H={h}", frames_per_second=1e6 / h) for h in (64, 2048)]
    for who in ("streams", "callers", "trainers"):
        rows.append(row("mixed", who, {"together": 0}, NETWORKS[0], frames_per_second=4000.0, p99_ms=12.0))
        rows.append(row("mixed", who, {"together": 1}, NETWORKS[0], frames_per_second=1234.0, p99_ms=34.0))
    rows.append(row("idle", "served", {"streams": 2000}, NETWORKS[0], kb_a_stream=3.0))
    return rows


@pytest.fixture(scope="module")
def whole():
    figure = plot.figure(every_row(), CONDITIONS)
    FigureCanvasAgg(figure).draw()  # lays it out
    return figure


def curves(axis) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(map(tuple, line.get_xydata())) for line in axis.get_lines()}


def test_each_sweep_has_panels_whose_lines_are_the_medians_in_order(whole):
    callers, delays, busy, streams, clock, device, lengths, widths, mixed = whole.axes
    assert curves(callers)["H=64 O=40"] == [(1, 1000), (16, 16_000), (256, 256_000)]
    assert curves(callers)["H=1000 O=6000, the network alone"] == [(1, 2000), (16, 32_000), (256, 512_000)]
    assert curves(delays) == {network: [(1, 3), (16, 48), (256, 768)] for network in NETWORKS}
    assert curves(busy)["H=64 O=40"][0] == (1, 50)  # percent
    assert curves(streams) == {f"{n}": [(10, 100), (1000, 10_000)] for n in (1, 7, 20)}
    assert curves(clock)["7"] == [(10, 1e4), (1000, 100)]
    assert curves(device)["20"] == [(10, 2000), (1000, 20)]
    assert curves(lengths)["H=1000 O=6000"] == [(10, 90), (10_000, 90_000)]
    assert set(curves(widths)) == {"elman", "elman, alone", "gru", "gru, alone"}
    told = [text.get_text() for text in mixed.texts]
    assert told == ["4,000, p99 12 ms", "4,000", "4,000", "1,234, p99 34 ms", "1,234", "1,234"]


def test_rounds_lie_within_the_shade(whole):
    shade = whole.axes[0].collections[0].get_paths()[0].get_extents()
    assert (shade.y0, shade.y1) == (500, 512_000)


def test_every_axis_has_a_name_and_no_legend_lies_over_a_panel_or_beyond_the_picture(whole):
    panels = [axis.get_window_extent() for axis in whole.axes]
    for axis in whole.axes:
        assert axis.get_xlabel()
        legend = axis.get_legend().get_window_extent()
        assert not any(legend.overlaps(panel) for panel in panels)
        assert whole.bbox.x0 <= legend.x0 < legend.x1 <= whole.bbox.x1
    assert all(axis.get_ylabel() for axis in whole.axes[:-1])


def test_only_what_was_swept_is_drawn():
    figure = plot.figure([each for each in every_row() if each["sweep"] == "lengths"], CONDITIONS)
    assert len(figure.axes) == 1


def test_overload_is_drawn_beside_triton_without_a_panel_that_would_be_empty():
    whole = f"{NETWORKS[1]}, 450 steps"
    points = [(who, {"offered": n}) for who in ("served", "Triton") for n in (0.5, 5.0)]
    rows = [row("overload", who, at, whole, good_share=0.9) for who, at in points]
    rows.append(row("overload-streams", "served", {"offered": 2.0}, NETWORKS[0], p99_ms=50.0, opened_share=1.4))
    answered, admitted, delays = plot.figure(rows, CONDITIONS).axes
    assert curves(answered) == {each: [(0.5, 90), (5, 90)] for each in (NETWORKS[1], f"{NETWORKS[1]}, Triton")}
    assert [tick.get_text() for tick in answered.get_xticklabels()] == ["0.5", "5"]
    assert curves(admitted) == {NETWORKS[0]: [(2, 140)]}
    assert admitted.get_ylim()[1] > 140
    assert curves(delays) == {NETWORKS[0]: [(2, 50)]}


@pytest.mark.slow
def test_the_command_writes_a_png_beside_the_results(tmp_path: pathlib.Path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"conditions": CONDITIONS, "rows": every_row()}))
    monkeypatch.setattr("sys.argv", ["plot", str(results)])
    assert plot.main() == 0
    picture = matplotlib.image.imread(tmp_path / "results.png")
    height, width, _ = picture.shape
    assert min(height, width) > 1000
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50  # colours
    assert capsys.readouterr().out == f"{tmp_path / 'results.png'}\n"


@pytest.mark.parametrize("text", ["{", "{}", '{"rows": [], "conditions": {}}', "[]"])
def test_what_is_no_results_file_is_one_clear_line(text: str, tmp_path: pathlib.Path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    results.write_text(text)
    monkeypatch.setattr("sys.argv", ["plot", str(results)])
    assert plot.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("plot: ")
    assert error.count("\n") == 1
