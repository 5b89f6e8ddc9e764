"""Everything that the proxy writes: no secret and no literal in it, and nothing that breaks a line or a label."""

from __future__ import annotations

import json
import unicodedata
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Login, Proxy, wait_until

SECRET = "zyxwvu-secret-literal"
HOSTILE = f"a\nb\r\x1b[31m\u202e\u2066'\"\\ {{}} ctm_000000000000_{'s' * 32} \x7f"
# What no line of a log may hold: it would be another line, or a terminal would obey it.
_HARMFUL = {"Cc", "Cf", "Zl", "Zp"}


def provoke(proxy: Proxy, user: str, key: str, other: str) -> None:
    """Do everything that is written down somewhere, with secrets and hostile texts wherever a client has a say."""
    login = proxy.login(user, key)
    with login.connect(application_name=HOSTILE.replace("\0", "")) as connection:
        connection.execute("SELECT %s, pg_sleep(0.15)", (SECRET,))
        connection.execute(f"SELECT '{SECRET}', 42424242 -- {HOSTILE.encode('unicode_escape').decode()}")
        connection.execute(f'SELECT 1 AS "{HOSTILE[:3]}\u202e"')
        for wrong in (
            f"SELECT '{SECRET}' FROM no_such_table",
            f"SELEC '{SECRET}'",
            f"SELECT '{SECRET}'::int",
            f"SELECT '{SECRET}' || repeat('x', 20000) /* {'y' * 20000} */",
            f"SET sluice.identity = '{SECRET}'",
            f"SELECT E'{SECRET}\\' FROM x",
        ):
            with pytest.raises(psycopg.Error):
                connection.execute(wrong)
                raise psycopg.DataError("some of these run")
        connection.execute("PREPARE p AS SELECT $1::text")
        connection.execute(f"EXECUTE p('{SECRET}')")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SET statement_timeout = '50ms'")
            connection.execute(f"SELECT '{SECRET}', pg_sleep(5)")
    for name, password in (
        (user, other),
        (other, other),
        (HOSTILE.replace("\0", ""), SECRET),
        (key, SECRET),
    ):
        with pytest.raises(psycopg.OperationalError):
            Login("127.0.0.1", proxy.port, name, password).connect()
    # With the password method any name will do.
    proxy.login(SECRET, key).connect().close()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_no_literal_and_no_control_character_is_written(
    log_format: str,
    start_proxy: Callable[..., Proxy],
    make_key: MakeKey,
    installation: Installation,
    tmp_path: Path,
) -> None:
    path = tmp_path / "access.log"
    proxy = start_proxy(
        {
            "access_log": {"sinks": ["table", "stdout", f"file:{path}"], "slow_query": "100ms"},
            "logging": {"level": "debug", "format": log_format},
        }
    )
    user, key = make_key()
    _, other = make_key()
    provoke(proxy, user, key, other)
    with urllib.request.urlopen(proxy.url("/metrics"), timeout=10) as answer:
        metrics = answer.read().decode()
    with urllib.request.urlopen(proxy.url("/health"), timeout=10) as answer:
        health = answer.read().decode()
    proxy.stop()

    written = {
        "errors": proxy.errors.read_text(),
        "output": proxy.output.read_text(),
        "file": path.read_text(),
        "metrics": metrics,
        "health": health,
    }
    for each in (proxy.config.parent / "spool").rglob("*"):
        if each.is_file():
            written[f"spool {each.name}"] = each.read_bytes().decode(errors="replace")
    with installation.superuser().connect() as connection:
        rows = connection.execute(
            "SELECT row_to_json(l)::text FROM sluice.api_access_logs l WHERE key_id = %s OR application_name LIKE %s",
            (user, "%[31m%"),
        ).fetchall()
    written["table"] = "\n".join(row for (row,) in rows)
    secrets = [SECRET, "42424242", key.rpartition("_")[2], other.rpartition("_")[2], "s" * 32]
    secrets += list(installation.passwords.values())
    for where, text in written.items():
        assert [secret for secret in secrets if secret in text] == [], where
    assert len(rows) > 10 and "slow statement" in written["errors"]

    for where in ("errors", "output", "file", "metrics"):
        for line in written[where].split("\n"):
            assert not _HARMFUL & {unicodedata.category(char) for char in line}, (where, line)
    for where in ("output", "file"):
        records = [json.loads(line) for line in written[where].splitlines()]
        names = {record.get("application_name", "") for record in records}
        assert any("[31m" in name for name in names), names
    if log_format == "json":
        lines = [line for line in written["errors"].splitlines() if not line.startswith("listening on")]
        assert all(json.loads(line)["message"] for line in lines)
    labels = {
        value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        for value in sample.labels.values()
    }
    assert not any("[31m" in label or SECRET in label or user in label for label in labels)


@pytest.mark.long
def test_without_statements_no_text_is_logged(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    proxy = start_proxy({"access_log": {"statements": "none", "slow_query": "100ms"}})
    user, key = make_key()
    with proxy.login(user, key).connect() as connection:
        connection.execute("SELECT pg_sleep(0.15) AS a_name_of_my_own")
    query = "SELECT count(*), count(statement) FROM sluice.api_access_logs WHERE key_id = %s AND event = 'statement'"
    with installation.superuser().connect() as connection:
        wait_until(lambda: (connection.execute(query, (user,)).fetchone() or (0,))[0] >= 1)
        assert connection.execute(query, (user,)).fetchone() == (1, 0)
    assert "a_name_of_my_own" not in proxy.errors.read_text() + proxy.output.read_text()
    assert proxy.said("slow statement")


def test_with_full_statements_texts_are_logged_as_they_came(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    proxy = start_proxy({"access_log": {"statements": "full"}})
    user, key = make_key()
    long = f"SELECT length('{'x' * 20_000}')"
    with proxy.login(user, key).connect() as connection:
        connection.execute("SELECT 'as it came', 42")
        connection.execute("SELECT 'prepared', %s::int", (7,), prepare=True)
        connection.execute(long)
    query = (
        "SELECT statement FROM sluice.api_access_logs WHERE key_id = %s AND event = 'statement' ORDER BY id"
    )
    with installation.superuser().connect() as connection:
        rows = wait_until(
            lambda: rows if len(rows := connection.execute(query, (user,)).fetchall()) >= 3 else None
        )
    assert rows is not None
    assert [row[0][:30] for row in rows] == [
        "SELECT 'as it came', 42",
        "SELECT 'prepared', $1::int",
        long[:30],
    ]
    # A whole key is masked there too.
    assert all(key.rpartition("_")[2] not in row[0] for row in rows)
