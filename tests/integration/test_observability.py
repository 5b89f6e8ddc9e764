"""What the operator sees: rows in the access log, JSON lines, metrics and health."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import dict_row

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Proxy, wait_until


def _logged(installation: Installation, key_id: str, event: str, at_least: int = 1) -> list[dict[str, Any]]:
    """Wait for rows of `event` in the access log's table, return them in their order."""
    query = "SELECT * FROM sluice.api_access_logs WHERE key_id = %s AND event = %s ORDER BY id"
    with installation.superuser().connect(row_factory=dict_row) as connection:
        return (
            wait_until(
                lambda: (
                    rows
                    if len(rows := connection.execute(query, (key_id, event)).fetchall()) >= at_least
                    else None
                ),
                message=f"{at_least} rows of {event}",
            )
            or []
        )


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def _samples(proxy: Proxy) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(_fetch(proxy.url("/metrics")))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def _sum(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    return sum(
        value
        for (sample, have), value in samples.items()
        if sample == name and labels.items() <= dict(have).items()
    )


def test_each_statement_has_a_row(
    proxy: Proxy, make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    table = make_table("id integer", "VALUES (1), (2), (3)")
    key_id, key = make_key(user="logged@example.com")
    with proxy.login(key_id, key).connect(application_name="the test") as connection:
        connection.execute(f"SELECT id FROM {table} WHERE id < 1000")
        connection.execute(f"INSERT INTO {table} VALUES (%s)", (4,))
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        connection.execute("BEGIN")
        connection.execute(f"DELETE FROM {table}")
        connection.execute("ROLLBACK")
    rows = {row["statement"]: row for row in _logged(installation, key_id, "statement", 5)}
    read = rows[f"SELECT id FROM {table} WHERE id < $1"]
    assert read["user_id"] == "logged@example.com"
    assert (read["target"], read["intent"], read["pool"], read["host"]) == (
        "readonly",
        "read",
        "readonly",
        "replica1",
    )
    assert (str(read["client_addr"]), read["application_name"], read["database"]) == (
        "127.0.0.1",
        "the test",
        "app",
    )
    assert read["rows"] == 3
    assert read["bytes_out"] > 0 < read["bytes_in"]
    assert 0 <= read["first_byte_us"] <= read["duration_us"]
    assert (read["sqlstate"], read["in_transaction"], read["pinned"]) == (None, False, False)
    assert len(read["fingerprint"]) == 16
    written = rows[f"INSERT INTO {table} VALUES ($1)"]
    assert (written["target"], written["intent"], written["host"], written["rows"]) == (
        "primary",
        "write",
        "primary",
        1,
    )
    assert rows["SELECT $1/$2"]["sqlstate"] == "22012"
    assert rows[f"DELETE FROM {table}"]["in_transaction"]


def test_a_row_names_the_trace_that_the_statement_s_comment_names(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    comment = f"/*action='test',traceparent='{trace}'*/"
    with proxy.login(key_id, key).connect() as connection:
        connection.execute(f"SELECT 1 {comment}")
        connection.execute(f"SELECT %s {comment}", (2,))
        connection.execute("SELECT 3 /*traceparent='00-nonsense'*/")
    rows = _logged(installation, key_id, "statement", 3)
    assert [row["traceparent"] for row in rows] == [trace, trace, None]
    assert not any(trace in row["statement"] for row in rows)


def test_logins_refusals_and_revocations_have_rows(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key(["read:tasks"])
    login = proxy.login(key_id, key)
    with pytest.raises(psycopg.OperationalError):
        proxy.login(key_id, key + "x").connect()
    with login.connect() as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE denied (id integer)")
        installation.execute(f"SELECT sluice.revoke_api_key('{key_id}')")
        assert _logged(installation, key_id, "revoked")
    with pytest.raises(psycopg.OperationalError):
        login.connect()
    assert len(_logged(installation, key_id, "login")) == 1
    (denied,) = _logged(installation, key_id, "denied")
    assert (denied["sqlstate"], denied["code"]) == ("42501", "INSUFFICIENT_PERMISSIONS")
    failed = _logged(installation, key_id, "login_failed", 2)
    # The client is told one thing for all; the log tells them apart.
    assert len({row["reason"] for row in failed}) == 2
    assert {row["sqlstate"] for row in failed} == {"28P01"}


def test_no_secret_and_no_literal_is_logged(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    with proxy.login(key_id, key).connect() as connection:
        connection.execute("SELECT 'a confidential literal', 8675309")
        connection.execute("SELECT %s", ("a confidential parameter",))
    rows = _logged(installation, key_id, "statement", 2)
    everything = str(rows) + proxy.output.read_text() + proxy.errors.read_text()
    for secret in ("confidential", "8675309", key.removeprefix(key_id)):
        assert secret not in everything


def test_standard_output_gets_json_lines(proxy: Proxy, make_key: MakeKey) -> None:
    key_id, key = make_key()
    with proxy.login(key_id, key).connect() as connection:
        connection.execute("SELECT 'for standard output'")

    def lines() -> list[dict[str, Any]]:
        complete = proxy.output.read_text().rpartition("\n")[0].splitlines()
        parsed = [json.loads(line) for line in complete if line.startswith("{")]
        return [line for line in parsed if line.get("key_id") == key_id and line.get("event") == "statement"]

    (line,) = wait_until(lines, message="a JSON line of the statement")
    assert line["intent"] == "read"
    assert line["statement"] == "SELECT $1"


def test_users_read_their_own_rows_of_the_log(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    one, other = make_key(user="one@example.com"), make_key(user="other@example.com")
    for key in (one, other):
        with proxy.login(*key).connect() as connection:
            connection.execute("SELECT 1")
        _logged(installation, key[0], "statement")
    installation.replicated()
    with proxy.login(*one).connect() as connection:
        assert connection.execute("SELECT DISTINCT user_id FROM sluice.access_log").fetchall() == [
            ("one@example.com",)
        ]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT count(*) FROM sluice.api_access_logs")


def test_metrics_count_what_clients_did(proxy: Proxy, make_key: MakeKey, make_table: MakeTable) -> None:
    table = make_table("id integer")
    before = _samples(proxy)
    key_id, key = make_key()
    with proxy.login(key_id, key).connect() as connection:
        for _ in range(10):
            connection.execute("SELECT 1")
        for _ in range(3):
            connection.execute(f"INSERT INTO {table} VALUES (1)")
        for _ in range(2):
            connection.execute("SELECT 2", prepare=True)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DO $$ BEGIN END $$")
        after = _samples(proxy)

    def grown(name: str, **labels: str) -> float:
        return _sum(after, name, **labels) - _sum(before, name, **labels)

    assert grown("pgsluice_logins_total") == 1
    assert grown("pgsluice_query_duration_seconds_count", pool="readonly", intent="read") == 12
    assert grown("pgsluice_queue_duration_seconds_count", pool="readonly", intent="read") == 12
    assert grown("pgsluice_query_duration_seconds_count", pool="primary", intent="write") == 3
    assert grown("pgsluice_assignments_total", pool="readonly") >= 12
    # At the first use of a connection by this user, and not at the others.
    assert 1 <= grown("pgsluice_identity_claims_total", pool="readonly") <= 4
    assert grown("pgsluice_server_parses_total", pool="readonly") >= 1
    assert grown("pgsluice_prepared_cache_lookups_total") >= 1
    assert grown("pgsluice_key_cache_lookups_total", result="miss") == 1
    assert grown("pgsluice_key_cache_lookups_total", result="hit") >= 1
    assert grown("pgsluice_statements_denied_total") == 1
    assert _sum(after, "pgsluice_clients") >= 1
    assert key_id not in _fetch(proxy.url("/metrics"))


def test_health_and_readiness_answer(proxy: Proxy) -> None:
    assert _fetch(proxy.url("/healthz"))
    assert _fetch(proxy.url("/readyz"))
    detail = json.loads(_fetch(proxy.url("/health")))
    assert detail["status"] == "ready"
    assert {(host["role"], host["connected"]) for host in detail["hosts"]} == {
        ("primary", True),
        ("replica", True),
    }
    assert all(host["response_time"] > 0 for host in detail["hosts"])
    assert [host["lag"] for host in detail["hosts"] if host["role"] == "replica"] != [None]
    assert {pool["pool"] for pool in detail["pools"]} == {
        "primary",
        "readonly",
        "priority",
        "background",
        "admin",
    }
    assert detail["tunnel"] is None
    assert {"pgsluice", "python", "compiled"} == set(detail["versions"])
    with pytest.raises(urllib.error.HTTPError) as missing:
        _fetch(proxy.url("/nothing"))
    missing.value.close()
    assert missing.value.code == 404


def test_http_can_be_turned_off(start_proxy: Callable[..., Proxy], make_key: MakeKey) -> None:
    silent = start_proxy({"http": "off"})
    with silent.login(*make_key()).connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(OSError):
        _fetch(silent.url("/healthz"))


def test_a_proxy_that_drains_is_alive_and_not_ready(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    proxy = start_proxy({"listen": {"drain_timeout": "30s"}})
    with proxy.login(*make_key()).connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1")
        assert _fetch(proxy.url("/readyz")) == "ready\n"
        proxy.process.send_signal(signal.SIGTERM)
        answers = wait_until(
            lambda: said if (said := httpx.get(proxy.url("/readyz"))).status_code == 503 else None,
            message="not ready while a transaction is open",
        )
        assert answers and answers.text == "not ready\n"
        assert _fetch(proxy.url("/healthz")) == "ok\n"
        detail = httpx.get(proxy.url("/health"))
        assert (detail.status_code, detail.json()["status"]) == (503, "draining")
        connection.execute("COMMIT")
    proxy.stop()


@pytest.mark.long
def test_a_slow_statement_is_a_warning_without_its_literals(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    proxy = start_proxy({"access_log": {"slow_query": "100ms"}})
    user, key = make_key()
    with proxy.login(user, key).connect() as connection:
        connection.execute("SELECT pg_sleep(0.2), 'a secret'")
        connection.execute("SELECT 'quick'")
    wait_until(lambda: proxy.said("slow statement"))
    (line,) = [line for line in proxy.errors.read_text().splitlines() if "slow statement" in line]
    assert " WARNING " in line and f"key {user}; pool readonly on replica1; 1 rows" in line
    assert line.endswith("SELECT pg_sleep($1), $2") and "secret" not in line
