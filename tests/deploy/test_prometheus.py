"""A real Prometheus scrapes a real proxy and evaluates the rules; a host is killed, and the alerts fire."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from proxy.embedded import Cluster, free_port
from tests.integration.support import Installation, Proxy, wait_until
from tests.test_watching import DASHBOARD, DEPLOY, RULES, alerts, panels

pytestmark = pytest.mark.timeout(120)

# What Grafana fills in.
_VARIABLES = {"$instance": ".*", "$database": ".*", "$__rate_interval": "10s", "$__range": "1m"}

# Panels of what doesn't happen here, or not always.
_MAY_BE_EMPTY = {"pins and resets", "refused and repeated", "errors by class", "server connections", "caches"}


class Prometheus:
    """A running Prometheus, by its HTTP interface."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False)

    def ask(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        answer = self._client.get(path, params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def answers(self) -> bool:
        try:
            return bool(self.ask("/targets")["activeTargets"])
        except (httpx.TransportError, AssertionError):
            return False

    def value(self, expression: str) -> float | None:
        result = self.ask("/query", {"query": expression})["result"]
        return float(result[0]["value"][1]) if result else None

    def firing(self) -> set[tuple[str, str]]:
        """Return the alerts that fire, each with the host that it names."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("host", ""))
            for alert in self.ask("/alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def server(prometheus: str, proxy: Proxy, tmp_path: Path) -> Iterator[Prometheus]:
    """Give a Prometheus with deploy/'s configuration, but for the address and the time that things take."""
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{proxy.http_port}"]}]
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = "1s"
    (tmp_path / RULES.name).write_text(yaml.safe_dump(rules))
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [prometheus, f"--config.file={configuration}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=output, stderr=output
        )
    running = Prometheus(port)
    try:
        wait_until(lambda: process.poll() is not None or running.answers(), 30.0, "Prometheus answers")
        assert process.poll() is None, (tmp_path / "output").read_text()
        yield running
    finally:
        running.close()
        process.terminate()
        process.wait(20)


def test_a_breach_fires_the_alert(
    server: Prometheus, proxy: Proxy, installation: Installation, cluster: Cluster
) -> None:
    key = installation.generate_key("watched@example.com", ["read:tasks", "write:tasks"])
    wait_until(lambda: server.value("up") == 1, message="a scrape")
    with proxy.login(*key).connect() as connection:
        assert server.value("count(pgsluice_host_up == 1)") == len(cluster.servers)
        wait_until(
            lambda: (
                connection.execute("SELECT 1")
                and (server.value("sum(rate(pgsluice_query_duration_seconds_count[5s]))") or 0) > 0
            ),
            message="a rate",
        )
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
    assert {rule["name"] for group in server.ask("/rules")["groups"] for rule in group["rules"]} == {
        rule["alert"] for rule in alerts()
    }
    assert {rule["health"] for group in server.ask("/rules")["groups"] for rule in group["rules"]} == {"ok"}
    assert server.firing() == set()

    _panels_show_something(server)

    replica = next(each for each in cluster.servers if each is not cluster.primary)
    replica.kill()
    try:
        wanted = {("PgsluiceHostDown", replica.name), ("PgsluiceBreakerOpen", replica.name)}
        wait_until(lambda: wanted <= server.firing(), 30.0, "the alerts of a host that is gone")
        assert server.firing() == wanted
    finally:
        replica.start()
    wait_until(lambda: server.firing() == set(), 30.0, "no alert when it is back")


def _panels_show_something(server: Prometheus) -> None:
    """Expect an answer to what each panel of the dashboard asks, and to most of them a value."""
    for panel in panels():
        values = []
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in _VARIABLES.items():
                expression = expression.replace(name, value)
            values.append(server.value(expression))
        if panel["title"] not in _MAY_BE_EMPTY:
            assert any(value is not None for value in values), panel["title"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            label = variable["query"]["query"].rstrip(")").rpartition(" ")[2]
            assert server.ask(f"/label/{label}/values")
