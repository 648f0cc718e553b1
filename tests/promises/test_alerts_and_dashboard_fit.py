"""What `deploy/` gives to Prometheus and Grafana is valid, fires when it should, and asks for metrics that there are."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from actors import ONE_WORKER, Proxy, require_peer
from admin import admin_address, visit

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES = PROMETHEUS / "aop_proxy.rules.yml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/aop_proxy.json").read_text())
SITUATIONS = ROOT / "tests/prometheus/alerts.yml"
GIVEN_BY_PROMETHEUS = {"up": {"job", "instance"}}


def promtool(*arguments: str | Path) -> str:
    """What Prometheus's own tool says; fails if it has something against it."""
    command = [require_peer("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queries() -> Iterator[str]:
    """Every query of the dashboard, its variables replaced as Grafana does."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$job", ".+").replace("$instance", ".+")


def test_the_rules_are_valid() -> None:
    """As they stand, and as the sample configuration takes them."""
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", RULES)
    assert "is valid prometheus config" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Series of days on which something is wrong, and of one on which nothing is."""
    situations = tmp_path / "alerts.yml"
    situations.write_text(SITUATIONS.read_text().replace("RULES", str(RULES)))
    assert "SUCCESS" in promtool("test", "rules", situations)


def test_every_alert_is_tried() -> None:
    """Each fires in some situation, and does not in another."""
    tried = [rule for test in yaml.safe_load(SITUATIONS.read_text())["tests"] for rule in test["alert_rule_test"]]
    names = {alert["alert"] for alert in ALERTS}
    assert {rule["alertname"] for rule in tried if "exp_alerts" in rule} == names
    assert {rule["alertname"] for rule in tried if "exp_alerts" not in rule} == names


def test_every_alert_says_what_it_is() -> None:
    """A sentence, and how urgent it is."""
    assert {alert["labels"]["severity"] for alert in ALERTS} == {"critical", "warning"}
    assert [alert["alert"] for alert in ALERTS if not alert["annotations"]["summary"]] == []


def test_the_dashboards_queries_are_valid(tmp_path: Path) -> None:
    """Prometheus can read each of them."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_the_dashboard_is_whole() -> None:
    """Panels of one dashboard, none over another, each with its queries and the variables that there are."""
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) == variables


@pytest.fixture(scope="module")
def real(site: dict[str, Any]) -> dict[str, set[str]]:
    """Names and labels that a real program shows."""
    with Proxy({**ONE_WORKER, "sites": [site], "admin": "127.0.0.1:0"}) as proxy:
        families = text_string_to_metric_families(visit(admin_address(proxy), "/metrics").text)
        samples = [sample for family in families for sample in family.samples]
    return {sample.name: set(sample.labels) | {"job", "instance"} for sample in samples} | GIVEN_BY_PROMETHEUS


@pytest.mark.parametrize("query", [*(alert["expr"] for alert in ALERTS), *queries()])
def test_metrics_that_are_asked_for_are_there(query: str, real: dict[str, set[str]]) -> None:
    """Each name, and each label that is asked for or grouped by."""
    names = re.findall(r"\b(aop_proxy_\w+|up)\b", query.replace('"aop_proxy"', '""'))
    assert names
    assert [name for name in names if name not in real] == []
    known = set.union(*(real[name] for name in names))
    grouped = [label.strip() for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(",")]
    asked = re.findall(r"(\w+)(?:=~|!=|!~|=)\"", query)
    assert {*grouped, *asked} <= known
