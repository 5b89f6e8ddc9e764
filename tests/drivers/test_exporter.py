"""Debian's prometheus-pgbouncer-exporter scrapes the admin console as it is."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.support import Installation, Login, Proxy, own_port, wait_until

PROGRAM = Path("/usr/bin/prometheus-pgbouncer-exporter")

Samples = dict[tuple[str, str, str], float]


@pytest.fixture
def observer(proxy: Proxy, installation: Installation) -> Login:
    """Give the login of a monitoring system, which may do nothing else."""
    return replace(
        proxy.login(*installation.generate_key("observer@example.com", ["read:metrics"])),
        database="pgbouncer",
    )


@pytest.fixture
def address(observer: Login, tmp_path: Path) -> Iterator[str]:
    """Run the exporter; it connects once, when it starts."""
    port = own_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTHON"))}
    log = tmp_path / "log"
    with log.open("wb") as output:
        exporter = subprocess.Popen(
            [
                str(PROGRAM),
                "--host=127.0.0.1",
                f"--port={port}",
                f"--pgbouncer-host={observer.host}",
                f"--pgbouncer-port={observer.port}",
                f"--pgbouncer-user={observer.user}",
            ],
            env={**kept, "PGPASSWORD": observer.password},
            stdout=output,
            stderr=output,
        )
    try:
        # It says "Listing".
        wait_until(
            lambda: exporter.poll() is not None or f"on port 127.0.0.1:{port}" in log.read_text(),
            30.0,
            "it listens",
        )
        assert exporter.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/metrics"
        assert "Error" not in log.read_text(), log.read_text()
    finally:
        exporter.kill()
        exporter.wait()


def scraped(address: str) -> Samples:
    with urllib.request.urlopen(address, timeout=10) as answer:
        text: str = answer.read().decode()
    return {
        (sample.name, sample.labels.get("database", ""), sample.labels.get("user", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("pgbouncer_")
    }


def test_the_exporter_scrapes_the_console_unchanged(
    address: str, proxy: Proxy, installation: Installation
) -> None:
    application = proxy.login(*installation.generate_key("app@example.com", ["read:tasks", "write:tasks"]))
    before = scraped(address)
    requests = ("pgbouncer_requests_total", "app", "")
    with application.connect(autocommit=False) as connection:
        for _ in range(10):
            connection.execute("SELECT pg_backend_pid()")
        during = wait_until(
            lambda: now if (now := scraped(address))[requests] >= before[requests] + 11 else None
        )
        assert during is not None
        assert during["pgbouncer_active_clients", "app", "app_rw"] >= 1
        assert during["pgbouncer_waiting_clients", "app", "app_rw"] == 0
        connection.commit()
    after = scraped(address)
    assert after["pgbouncer_sent_bytes_total", "app", ""] > before["pgbouncer_sent_bytes_total", "app", ""]
    assert after["pgbouncer_query_microseconds_total", "app", ""] > 0
    assert after["pgbouncer_pool_size", "app", ""] > 0
    assert after["pgbouncer_reserve_pool", "app", ""] == 0
    # What is in SHOW LISTS, and the console's own client among it.
    assert after["pgbouncer_databases", "", ""] == 2
    assert after["pgbouncer_used_clients", "", ""] >= 1
    assert after["pgbouncer_active_clients", "pgbouncer", "pgbouncer"] >= 1
