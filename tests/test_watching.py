"""What deploy/ says about metrics agrees with what the proxy shows; Prometheus itself looks at it in tests/deploy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.metrics import Metrics
from tests.observe.snapshots import snapshot

DEPLOY = Path(__file__).parent.parent / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())

# A metric with its matchers, as in pgsluice_pool_connections{state!="idle"}.
_SELECTOR = re.compile(r"\b((?:pgsluice|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!=|!~|=)")
_GROUPING = re.compile(r"\bby \(([^)]*)\)")
# What Prometheus adds to each sample.
_ADDED = {"instance", "job"}


@pytest.fixture
async def shown() -> dict[str, set[str]]:
    """Give the names of all samples that /metrics shows, with their labels."""
    body, _ = await Metrics(snapshot).render()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


@pytest.mark.parametrize(("where", "expression"), [pytest.param(*each, id=each[0]) for each in expressions()])
def test_each_metric_that_is_named_is_shown_with_these_labels(
    shown: dict[str, set[str]], where: str, expression: str
) -> None:
    selectors = _SELECTOR.findall(expression)
    assert selectors or expression.startswith("up{")
    known = set(_ADDED)
    for name, matchers in selectors:
        assert name in shown, f"{where}: {name}"
        assert set(_MATCHER.findall(matchers)) <= shown[name] | _ADDED, f"{where}: {name}{{{matchers}}}"
        known |= shown[name]
    for grouping in _GROUPING.findall(expression):
        assert {label.strip() for label in grouping.split(",")} <= known, f"{where}: by ({grouping})"


def test_the_dashboard_shows_every_metric_of_ours_but_these(shown: dict[str, set[str]]) -> None:
    named = {name for _, expression in expressions() for name, _ in _SELECTOR.findall(expression)}
    named |= {name.removesuffix("_bucket").removesuffix("_count") for name in named}
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown if name.startswith("pgsluice_")}
    assert families - named == {
        "pgsluice_build_info",
        "pgsluice_access_log_backlog_records",
        "pgsluice_cancel_requests_total",
        "pgsluice_client_connections_total",
        "pgsluice_host_breaker_state",
        "pgsluice_host_role",
        "pgsluice_key_cache_entries",
        "pgsluice_parse_cache_entries",
        "pgsluice_pool_connections_minimum",
        "pgsluice_prepared_cache_entries",
        *(
            f"pgsluice_result_cache_{name}"
            for name in (
                "waits_total",
                "stores_total",
                "refusals_total",
                "evictions_total",
                "invalidations_total",
                "entries",
                "bytes",
                "limit_bytes",
            )
        ),
        "pgsluice_rate_limit_store_failures_total",
    }


def test_each_alert_says_what_to_do() -> None:
    found = alerts()
    assert len({rule["alert"] for rule in found}) == len(found) >= 12
    for rule in found:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "runbook"}
        assert rule["annotations"]["runbook"].endswith(".")


def test_prometheus_is_told_of_these_rules_and_scrapes_the_metrics() -> None:
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert settings["rule_files"] == [RULES.name]
    (job,) = settings["scrape_configs"]
    # PgsluiceDown goes by this name, and deploy/pgsluice.yaml by this port.
    assert (job["job_name"], job["metrics_path"]) == ("pgsluice", "/metrics")
    port = yaml.safe_load((DEPLOY / "pgsluice.yaml").read_text())["http"]["port"]
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]


def test_the_dashboard_can_be_provisioned() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "pgsluice.yml").read_text())["providers"]
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards/pgsluice")
    (source,) = yaml.safe_load((provisioning / "datasources" / "pgsluice.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    # What a dashboard that was exported for sharing holds, and provisioning doesn't fill in.
    assert "__inputs" not in DASHBOARD and DASHBOARD["uid"] == "pgsluice"
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "instance", "database"}


def test_panels_are_whole_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        # A description in a dashboard is a sentence, as in HELP.
        assert panel["description"].endswith(".")
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert "$instance" in target["expr"], panel["title"]
