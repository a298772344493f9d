"""deploy/rules.yml: promtool takes it and its unit tests, which have each alert, and its metrics are those exported."""

import re
import subprocess

import pytest
from helpers.pages import ROOT, table, text
from helpers.prometheus import DEPLOY, program
from seqloom_server.metrics import Metrics

RULES = (DEPLOY / "rules.yml").read_text()
TESTS = ROOT / "tests" / "deploy" / "rules_test.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES)
RECORDED = re.findall(r"- record: (\S+)", RULES)


def promtool(*arguments):
    return subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.prometheus
@pytest.mark.parametrize("arguments", [("check", "config"), ("check", "rules"), ("test", "rules")], ids=" ".join)
def test_promtool_takes_it(arguments):
    file = {"config": DEPLOY / "prometheus.yml", "rules": DEPLOY / "rules.yml"}[arguments[1]]
    done = promtool(*arguments, TESTS if arguments[0] == "test" else file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.prometheus
@pytest.mark.parametrize("alert", ALERTS)
def test_a_rule_that_does_not_alert_any_more_is_noticed(alert, tmp_path):
    (tmp_path / "deploy").mkdir()
    (tmp_path / "tests" / "deploy").mkdir(parents=True)
    head, _, rest = RULES.partition(f"- alert: {alert}\n")
    expression = re.match(r"\s+expr: (.*)\n", rest)[1]
    (tmp_path / "deploy" / "rules.yml").write_text(
        f"{head}- alert: {alert}\n{rest.replace(expression, 'vector(1) > 2', 1)}"
    )
    (tmp_path / "tests" / "deploy" / "rules_test.yml").write_text(TESTS.read_text())
    done = promtool("test", "rules", tmp_path / "tests" / "deploy" / "rules_test.yml")
    assert done.returncode
    assert alert in done.stdout + done.stderr


def test_the_metrics_that_it_asks_for_are_exported():
    exported = {"up", "seqloom_certificate_expiry_timestamp_seconds"}  # the second only by a server with a certificate
    for metric in Metrics().registry.collect():
        exported |= {metric.name, f"{metric.name}_total", f"{metric.name}_bucket"}
    asked = set(re.findall(r"(?<![:\w])seqloom_\w+(?=[\[{) ]|$)", re.sub(r"#.*|summary.*|description.*", "", RULES)))
    assert len(asked) >= 9
    assert asked <= exported, asked - exported


def test_the_page_tells_of_every_alert_and_every_recorded_series():
    page = "docs/watching.md"
    assert [name for name, _, _ in table(page, "Alerts")] == ALERTS
    severities = re.findall(r"severity: (\w+)", RULES)
    assert [severity for _, severity, _ in table(page, "Alerts")] == severities
    for name in RECORDED:
        assert f"`{name}`" in text(page)
