"""Makes Grafana's dashboard, deploy/grafana/dashboards/seqloom.json, from the panels listed here.

`--check` only says whether the file is what would be made, by its exit status.
"""

import pathlib
import sys
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard, DataSourceRef, GridPos, VariableRefresh

FILE = pathlib.Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards" / "seqloom.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")  # as in deploy/grafana/provisioning/datasources
ON = 'instance=~"$instance"'
GRID = 24  # columns of Grafana's grid


@dataclass(frozen=True)
class Panel:
    """A panel. queries: by legend, PromQL. unit: one of Grafana's. what: shown when the mouse is on its corner."""

    title: str
    unit: str
    queries: dict[str, str]
    what: str = ""


# Numbers as of now, in one line.
NUMBERS = (
    Panel("Serving", "none", {"{{instance}}": f"seqloom_serving{{{ON}}}"}, "1 while it takes new work."),
    Panel("Alerts", "none", {"firing": 'count(ALERTS{alertname=~"Seqloom.*", alertstate="firing"}) or vector(0)'}),
    Panel("Open streams", "none", {"streams": f"sum(seqloom_active_streams{{{ON}}})"}),
    Panel("Steps a second", "none", {"steps": f"sum(instance_op_model:seqloom_steps:rate1m{{{ON}}})"}),
    Panel("Device busy", "percentunit", {"{{instance}}": f"instance:seqloom_device_busy:ratio_rate1m{{{ON}}}"}),
    Panel("Refused", "percentunit", {"{{instance}}": f"instance:seqloom_rejected:ratio_rate5m{{{ON}}}"}),
)
# Over time, two to a line.
CURVES = (
    Panel(
        "Throughput: steps a second",
        "none",
        {"{{instance}} {{op}} {{model}}": f"instance_op_model:seqloom_steps:rate1m{{{ON}}}"},
        "Useful steps, without padding. op: stream, live sessions; infer, whole sequences; train.",
    ),
    Panel(
        "Answered and refused a second",
        "none",
        {
            "answered {{instance}}": f"instance:seqloom_answered:rate5m{{{ON}}}",
            "refused {{instance}} {{reason}}": f"instance_reason:seqloom_rejected:rate5m{{{ON}}}",
        },
        "Calls, sessions and groups. The reason of a refusal is what there was no room for.",
    ),
    Panel(
        "Waiting for the device: 99 of 100 at most",
        "s",
        {"{{instance}} {{op}}": f"instance_op:seqloom_queue_duration_seconds:p99_rate5m{{{ON}}}"},
    ),
    Panel(
        "Computing a slice: 99 of 100 at most",
        "s",
        {"{{instance}} {{op}}": f"instance_op:seqloom_compute_duration_seconds:p99_rate5m{{{ON}}}"},
        "A live frame waits for a slice that runs: max_slice_ms bounds it while live sessions are open.",
    ),
    Panel(
        "Calls, from their first byte to their end: 99 of 100 at most",
        "s",
        {"{{instance}} {{method}}": f"instance_method:seqloom_request_duration_seconds:p99_rate5m{{{ON}}}"},
        "A session's is from its opening to its end.",
    ),
    Panel(
        "Device busy",
        "percentunit",
        {"{{instance}}": f"instance:seqloom_device_busy:ratio_rate1m{{{ON}}}"},
    ),
    Panel(
        "Sequences in a slice, on average",
        "none",
        {
            "{{instance}} {{op}}": f"sum by (instance, op) (rate(seqloom_batch_sequences_sum{{{ON}}}[5m])) / "
            f"sum by (instance, op) (rate(seqloom_batch_sequences_count{{{ON}}}[5m]) > 0)"
        },
        "Batches grow while the device is busy.",
    ),
    Panel("Waiting work", "none", {"{{instance}} {{op}}": f"seqloom_queue_items{{{ON}}}"}),
    Panel("Open streams", "none", {"{{instance}} {{model}}": f"seqloom_active_streams{{{ON}}}"}),
    Panel(
        "Steps in vain",
        "percentunit",
        {
            "for nobody {{instance}}": f"instance:seqloom_wasted_steps:ratio_rate5m{{{ON}}}",
            "padding {{instance}}": f"sum by (instance) (rate(seqloom_padded_steps_total{{{ON}}}[5m])) / "
            f"(sum by (instance) (rate(seqloom_steps_total{{{ON}}}[5m])) > 0)",
        },
    ),
    Panel(
        "Memory on the device",
        "bytes",
        {
            "weights, states and runs {{instance}}": f"seqloom_device_memory_bytes{{{ON}}}",
            "states {{instance}}": f"seqloom_state_bytes{{{ON}}}",
        },
    ),
    Panel(
        "Training",
        "none",
        {
            "optimizer steps a second {{instance}} {{model}}": f"rate(seqloom_optimizer_steps_total{{{ON}}}[5m])",
            "checkpoints not written {{instance}}": f"seqloom_run_save_failures_total{{{ON}}}",
        },
    ),
    Panel("Version of the weights", "none", {"{{instance}} {{model}}": f"seqloom_weights_version{{{ON}}}"}),
    Panel(
        "What runs",
        "none",
        {
            "{{instance}} {{version}}, Python {{python}}, torch {{torch}}, {{device}}, {{precision}}": (
                f"seqloom_build_info{{{ON}}}"
            )
        },
    ),
)


def made() -> Dashboard:
    """Returns the dashboard."""
    instance = (
        dashboard.QueryVariable("instance")
        .label("server")
        .query("label_values(seqloom_build_info, instance)")
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )
    board = (
        dashboard.Dashboard("Seqloom")
        .uid("seqloom")
        .tags(["seqloom"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .with_variable(instance)
    )
    across = GRID // len(NUMBERS)
    for place, panel in enumerate(NUMBERS):
        drawn = _with_queries(stat.Panel(), panel).id(place + 1)
        board = board.with_panel(drawn.grid_pos(GridPos(h=4, w=across, x=place * across, y=0)))
    for place, panel in enumerate(CURVES):
        drawn = _with_queries(timeseries.Panel(), panel).id(len(NUMBERS) + place + 1).min(0)
        board = board.with_panel(drawn.grid_pos(GridPos(h=8, w=GRID // 2, x=place % 2 * 12, y=4 + place // 2 * 8)))
    return board.build()


def _with_queries(drawn: timeseries.Panel | stat.Panel, panel: Panel) -> timeseries.Panel | stat.Panel:
    drawn = drawn.title(panel.title).description(panel.what).unit(panel.unit).datasource(SOURCE)
    for number, (legend, query) in enumerate(panel.queries.items()):
        target = prometheus.Dataquery().ref_id("ABCDEF"[number]).expr(query).legend_format(legend)
        drawn = drawn.with_target(target.datasource(SOURCE).range())
    return drawn


def main() -> None:
    text = JSONEncoder(sort_keys=True, indent=2).encode(made()) + "\n"
    if "--check" in sys.argv[1:]:
        if FILE.read_text() != text:
            sys.exit(f"{FILE.name} is not what tools/make_dashboard.py makes: run it")
    else:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
