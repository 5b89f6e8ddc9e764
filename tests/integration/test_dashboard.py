"""The dashboard's JSON of a real proxy, and `pgsluice top` that asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Proxy, wait_until


def ask(proxy: Proxy, key: str, **parameters: str | int) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(trust_env=False) as client:
        return client.get(proxy.url("/api/status"), params=parameters, headers=headers)


def status(proxy: Proxy, key: str, **parameters: str | int) -> dict[str, Any]:
    answer = ask(proxy, key, **parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def top(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "PGSLUICE_API"))}
    return subprocess.run(
        [sys.executable, "-m", "proxy", "top", *arguments],
        env={**kept, "PGSLUICE_API_KEY": key, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture(scope="module")
def operator(make_key: MakeKey) -> str:
    return make_key(["read:metrics"], "operator@example.com")[1]


def test_it_tells_what_clients_did(
    proxy: Proxy, make_key: MakeKey, make_table: MakeTable, operator: str
) -> None:
    table = make_table("id integer", "VALUES (1), (2), (3)")
    key_id, key = make_key(["read:tasks"], "seen@example.com")
    with proxy.login(key_id, key).connect() as connection:
        # Slow enough to be among the foremost, whatever other tests have run through this proxy.
        for number in range(20):
            connection.execute(
                f"SELECT id FROM {table}, pg_sleep(0.05) WHERE id > {number} AND 'confidential' <> ''"
            )
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"DELETE FROM {table} WHERE id = 8675309")

        def found() -> dict[str, Any] | None:
            told = status(proxy, operator)
            users = {each["key_id"]: each for each in told["recent"]["keys"]}
            drawn = max(told["history"]["pools"].get("readonly", {}).get("statements", [0]), default=0)
            return told if users.get(key_id, {}).get("count") == 21 and drawn > 0 else None

        told = wait_until(found, message="21 statements and a sample")
    assert told is not None
    assert (told["database"], told["state"], told["clients"] >= 1) == ("app", "ready", True)
    assert {(host["host"], host["role"], host["connected"]) for host in told["hosts"]} == {
        ("primary", "primary", True),
        ("replica1", "replica", True),
    }
    assert {pool["pool"] for pool in told["pools"]} >= {"primary", "readonly"}
    (statement,) = (each for each in told["recent"]["statements"] if table in each["statement"])
    assert statement["statement"] == f"SELECT id FROM {table}, pg_sleep($1) WHERE id > $2 AND $3 <> $4"
    assert (statement["count"], statement["intent"], statement["errors"]) == (20, "read", 0)
    assert statement["max_ms"] >= statement["mean_ms"] > 0
    (user,) = (each for each in told["recent"]["keys"] if each["key_id"] == key_id)
    assert (user["user_id"], user["errors"], user["denied"]) == ("seen@example.com", 1, 1)
    (denial,) = (each for each in told["recent"]["denials"] if each["key_id"] == key_id)
    assert (denial["event"], denial["code"]) == ("denied", "INSUFFICIENT_PERMISSIONS")
    assert denial["statement"] == f"DELETE FROM {table} WHERE id = $1"
    whole = json.dumps(told)
    assert not any(secret in whole for secret in ("confidential", "8675309", key[20:], operator[20:]))
    again = status(proxy, operator, since=told["history"]["last"])
    assert len(again["history"]["at"]) <= 2


def test_only_keys_with_the_permission_are_told(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    refused = ask(proxy, "")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "MISSING_API_KEY")
    key_id, key = make_key(["read:tasks", "write:tasks"])
    refused = ask(proxy, key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "INSUFFICIENT_PERMISSIONS")
    key_id, key = make_key(["admin"])
    assert ask(proxy, key).status_code == 200
    installation.execute(f"SELECT sluice.revoke_api_key('{key_id}')")
    wait_until(lambda: ask(proxy, key).status_code == 401, message="the revoked key is refused")
    query = "SELECT event, reason, code FROM sluice.api_access_logs WHERE key_id = %s ORDER BY id"
    with installation.superuser().connect() as connection:
        rows = wait_until(
            lambda: found if len(found := connection.execute(query, (key_id,)).fetchall()) >= 2 else None
        )
    assert rows is not None
    assert rows[0] == ("admin", "status", None)
    assert rows[1] == ("login_failed", "revoked", "INVALID_API_KEY")


def test_without_an_access_log_the_rest_is_told(
    start_proxy: Callable[..., Proxy], operator: str, make_key: MakeKey
) -> None:
    silent = start_proxy({"access_log": {"sinks": []}})
    with silent.login(*make_key()).connect() as connection:
        connection.execute("SELECT 1")
    told = status(silent, operator)
    assert told["recent"]["enabled"] is False
    assert told["hosts"]


def test_the_page_is_there(proxy: Proxy) -> None:
    with httpx.Client(trust_env=False) as client:
        page = client.get(proxy.url("/"))
        script = client.get(proxy.url("/static/dashboard.js"))
    assert (page.status_code, script.status_code) == (200, 200)
    assert "script-src 'self'" in page.headers["content-security-policy"]


def test_top_prints_a_frame(proxy: Proxy, operator: str) -> None:
    done = top("--url", proxy.url("/"), "--once", key=operator)
    assert (done.returncode, done.stderr) == (0, "")
    assert "replica1" in done.stdout
    assert "slowest statements" in done.stdout
    assert "\x1b" not in done.stdout


def test_top_finds_the_port_in_the_configuration(proxy: Proxy, operator: str) -> None:
    done = top("-c", str(proxy.config), "--once", "--json", key=operator)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["database"] == "app"


def test_top_says_that_the_key_is_refused(proxy: Proxy, operator: str) -> None:
    done = top("--url", proxy.url("/"), "--once", key=operator + "x")
    assert done.returncode == 1
    assert done.stderr.startswith("pgsluice: API key rejected")
    assert done.stderr.endswith("(INVALID_API_KEY)\n")
