"""Prometheus' own tool on its configuration and rules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from tests.deploy.alerts import CASES, as_tests
from tests.test_watching import DEPLOY, RULES, alerts


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_configuration_and_the_rules(promtool: str) -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in run(promtool, "check", "rules", str(RULES))
    run(promtool, "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))


def test_each_alert_fires_and_each_has_a_case(promtool: str, tmp_path: Path) -> None:
    rules = {rule["alert"]: rule for rule in alerts()}
    assert {case.alert for case in CASES} == set(rules)
    tests = tmp_path / "tests.yml"
    tests.write_text(yaml.safe_dump(as_tests(CASES, str(RULES), rules)))
    assert "SUCCESS" in run(promtool, "test", "rules", str(tests))
