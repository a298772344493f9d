"""A real Prometheus with deploy/'s configuration watches a server under load: every panel has data, an alert fires."""

import json
import signal
import sys

import numpy as np
import pytest
import seqloom
from helpers.pages import ROOT
from helpers.prometheus import DEPLOY, scraping, wait_for
from helpers.real_server import SMALL, write_models

sys.path.insert(0, str(ROOT / "tools"))
import make_dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

BOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "seqloom.json").read_text())
QUERIES = {
    (panel["title"], target["refId"]): target["expr"] for panel in BOARD["panels"] for target in panel["targets"]
}


def encoded(board):
    return json.loads(JSONEncoder().encode(board))


def test_the_dashboard_is_made_by_its_tool_and_fits_grafanas_schema():
    """The classes are generated from Grafana's schema: what they do not know is lost on the way through them."""
    assert encoded(make_dashboard.made()) == BOARD
    assert encoded(Dashboard.from_json(BOARD)) == BOARD


def test_what_grafanas_schema_does_not_know_is_noticed():
    first, *others = BOARD["panels"]
    wrong = {**BOARD, "panels": [{**first, "targetz": []}, *others]}
    assert encoded(Dashboard.from_json(wrong)) != wrong


def test_panels_do_not_overlap_and_names_fit():
    cells = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells
        assert max(x for x, _ in own) < make_dashboard.GRID
        cells |= own
    (source,) = {target["datasource"]["uid"] for panel in BOARD["panels"] for target in panel["targets"]}
    assert f"uid: {source}\n" in (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    compose = (ROOT / "docker-compose.yml").read_text()
    assert "./deploy/grafana/dashboards:/etc/grafana/dashboards:ro" in compose
    assert "options: {path: /etc/grafana/dashboards}" in (
        (DEPLOY / "grafana" / "provisioning" / "dashboards" / "seqloom.yml").read_text()
    )


@pytest.mark.prometheus
def test_every_panel_has_data_under_load_and_a_server_that_is_gone_is_told(server_process, tmp_path):
    write_models(tmp_path / "models", {"small": SMALL})
    (tmp_path / "prometheus").mkdir()
    started = server_process("--models", tmp_path / "models", "--max-sessions", 2)
    x = np.random.default_rng(0).standard_normal((50, 5))
    with scraping(started.http_address, tmp_path / "prometheus") as prometheus:

        def without_data():
            return [
                place for place, query in QUERIES.items() if not prometheus.numbers(query.replace("$instance", ".*"))
            ]

        with (
            seqloom.Client(started.address, retries=0) as client,
            client.stream("small") as stream,
            client.create_run("small", optimizer=seqloom.SGD(lr=1e-3)) as run,
        ):

            def every_panel_has_data():
                client.infer("small", [x, x[:7]])
                client.gradients("small", [x], [np.zeros(len(x), int)])
                run.forward_backward([x], [np.zeros(len(x), int)])
                run.step()
                stream.send(x[:10])
                stream.receive()
                with pytest.raises(seqloom.Overloaded), client.stream("small"), client.stream("small"):
                    pass
                return not without_data()

            try:
                wait_for(every_panel_has_data, "every panel has data")
            except TimeoutError:
                pytest.fail(f"no data for {without_data()}")
        assert not prometheus.query('ALERTS{alertstate="firing", severity="critical"}')
        [(build, _)] = prometheus.query("seqloom_build_info")
        assert build.keys() >= {"version", "python", "torch", "device", "precision"}
        started.process.send_signal(signal.SIGKILL)
        wait_for(lambda: prometheus.query('ALERTS{alertname="SeqloomDown", alertstate="firing"}'), "SeqloomDown fires")
