"""The HTTP API where something is missing: the database, the schema, the API itself; and what it must not tell."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from proxy.setup import setup
from tests.drills.relay import Relay
from tests.integration.apis import TASKS, Api, TasksProxy, code
from tests.integration.conftest import StartProxy
from tests.integration.support import DATABASE, Installation, wait_until

pytest_plugins = ["tests.integration.tasksapi"]

StartApi = Callable[..., Api]


@pytest.fixture
def start_api(installation: Installation, tasks_database: str, tmp_path: Path) -> Iterator[StartApi]:
    """Give a function that starts a proxy of its own in front of the database of tasks."""
    started: list[TasksProxy] = []

    def start(changes: dict[str, Any]) -> Api:
        directory = tmp_path / f"api{len(started)}"
        directory.mkdir()
        started.append(TasksProxy(installation, directory, changes))
        started[-1].start()
        return Api(started[-1], tasks_database)

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def relay(installation: Installation) -> Iterator[Relay]:
    """Give a network between proxy and primary."""
    between = Relay(installation.cluster.primary.port)
    between.heal()
    yield between
    between.close()


@pytest.mark.long
def test_a_lost_database_is_told_in_a_word(
    start_api: StartApi, relay: Relay, installation: Installation
) -> None:
    host = {"name": "main", "host": "127.0.0.1", "port": relay.port}
    health = {"interval": "200ms", "failover_wait": "500ms", "retry_after": "300ms"}
    api = start_api({"databases": {DATABASE: {"hosts": [host], "health": health}}})
    key = api.key("admin", "read:tasks", "write:tasks", user="loser@example.com")
    with api.client(key) as client:
        assert client.get("/health").status_code == 200
        relay.refuse()
        inside = re.compile(
            rf"127\.0\.0\.1|:{relay.port}\b|app_rw|app_ro|app_admin|sluice_control|Traceback|errno|"
            + "|".join(map(re.escape, installation.passwords.values()))
        )
        task = str(uuid4())
        operations: list[tuple[str, str, dict[str, str] | None]] = [
            ("GET", "/health", None),
            ("GET", "/tasks", None),
            ("GET", f"/tasks/{task}", None),
            ("POST", "/tasks", {"title": "x"}),
            ("PATCH", f"/tasks/{task}", {"title": "x"}),
            ("DELETE", f"/tasks/{task}", None),
            ("GET", f"/tasks/{task}/hierarchy", None),
            ("POST", "/query", {"sql": "SELECT 1"}),
        ]

        def ask(operation: tuple[str, str, dict[str, str] | None]) -> None:
            method, path, body = operation
            began = time.monotonic()
            answer = client.request(method, path, json=body)
            assert answer.status_code == 503, (method, path, answer.text)
            assert code(answer)[1] in ("UPSTREAM_UNAVAILABLE", "NO_PRIMARY", "POOL_EXHAUSTED")
            assert inside.search(answer.text) is None, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            assert time.monotonic() - began < 10

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, operations))
        unknown = api.key(user="new@example.com")
        assert code(httpx.get(f"{client.base_url}health", headers={"x-api-key": unknown})) == (
            503,
            "UPSTREAM_UNAVAILABLE",
        )
        relay.heal()
        wait_until(lambda: client.get("/tasks").status_code == 200, message="it is there again")


@pytest.mark.long
def test_a_server_that_dies_in_the_middle_of_an_answer_is_told(api: Api) -> None:
    key = api.key("admin", user="middle@example.com")
    sql = "SELECT n, repeat('x', 100000), CASE WHEN n > 3 THEN pg_sleep(30) END FROM generate_series(1, 9) n"
    with api.client(key) as client, client.stream("POST", "/query", json={"sql": sql}) as answer:
        busy = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_until(lambda: api.execute(busy), message="it is at work")
        told = answer.read()
    assert answer.status_code in (200, 503)
    assert b"UPSTREAM_UNAVAILABLE" in told
    assert b"127.0.0.1" not in told


@pytest.mark.long
def test_a_key_that_is_revoked_ends_what_it_asked(api: Api) -> None:
    key = api.key("admin", user="revoked@example.com")
    with api.client(key) as client:
        client.get("/health")
        api_key = key.rpartition("_")[0]
        sql = "SELECT sluice.revoke_api_key($1), pg_sleep(30)"
        answer = client.post("/query", json={"sql": "SELECT 1"})
        assert answer.status_code == 200
        api.execute("SELECT sluice.revoke_api_key(%s)", (api_key,))
        wait_until(lambda: client.get("/health").status_code == 401, message="the key is refused")
        assert code(client.post("/query", json={"sql": sql, "params": [api_key]})) == (401, "INVALID_API_KEY")


@pytest.mark.long
def test_without_the_schema_it_is_told_what_is_missing(
    start_proxy: StartProxy, installation: Installation
) -> None:
    dsn = installation.cluster.primary.dsn("bare")
    setup(dsn, "bare", ["core"])
    installation.replicated()
    proxy = start_proxy({"databases": {DATABASE: {"database": "bare"}}})
    key = Api(proxy, dsn).key("admin", "read:tasks", "read:metrics", user="none@example.com")
    with httpx.Client(base_url=proxy.url("/api/database"), headers={"x-api-key": key}) as client:
        for path in ("/tasks", f"/workflows/{uuid4()}", f"/tasks/{uuid4()}/hierarchy"):
            assert code(client.get(path)) == (501, "SCHEMA_NOT_INSTALLED")
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/metrics").json()["measurements"] == []
        assert client.post("/query", json={"sql": "SELECT 1"}).json()["rows"] == [[1]]


@pytest.mark.long
def test_it_can_be_switched_off(start_api: StartApi) -> None:
    api = start_api({"http": {"api": "off"}})
    with api.client(api.key()) as client:
        assert client.get("/health").status_code == 404
        assert client.get(api.proxy.url("/openapi.json")).status_code == 404
        assert client.get(api.proxy.url("/healthz")).status_code == 200


@pytest.mark.long
def test_pages_that_are_named_may_ask(start_api: StartApi) -> None:
    here = "https://tasks.example.com"
    api = start_api({"http": {"cors_origins": [here]}})
    with api.client(api.key()) as client:
        asked = {
            "access-control-request-method": "PATCH",
            "access-control-request-headers": "x-api-key,if-match",
        }
        allowed = client.options("/tasks", headers={"origin": here, **asked})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == here
        assert "PATCH" in allowed.headers["access-control-allow-methods"]
        assert "access-control-allow-credentials" not in allowed.headers
        answer = client.get("/tasks", headers={"origin": here})
        assert answer.headers["access-control-allow-origin"] == here
        assert "etag" in answer.headers["access-control-expose-headers"].lower()
        refused = client.options("/tasks", headers={"origin": "https://evil.example.com", **asked})
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.long
def test_requests_beyond_the_limit_are_told_to_come_again(api: Api) -> None:
    key = api.key("admin", user="crowd@example.com")

    async def crowd() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=95)
        headers = {"x-api-key": key}
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=30, verify=False) as client:
            body = {"sql": "SELECT pg_sleep(0.3)", "timeout_ms": 20_000}
            url = api.proxy.url("/api/database/query")
            return await asyncio.gather(*(client.post(url, json=body) for _ in range(90)))

    answers = asyncio.run(crowd())
    refused = [answer for answer in answers if answer.status_code == 503]
    assert 5 <= len(refused) <= 15
    assert {code(answer) for answer in refused} == {(503, "POOL_EXHAUSTED")}
    assert {answer.status_code for answer in answers} == {200, 503}
    assert httpx.get(api.proxy.url("/healthz")).status_code == 200


@pytest.mark.long
def test_what_is_told_and_logged_holds_no_secret(api: Api, installation: Installation) -> None:
    key = api.key(user="secretive@example.com")
    with api.client(key) as client:
        client.post("/tasks", json={"title": "x", "environment": {"TOKEN": "hush-hush-value"}})
        client.get("/tasks", params={"q": "findable-text"})
    with api.client(key[:-1] + "!", "127.6.0.1") as client:
        client.get("/tasks")

    def logged() -> str:
        rows = api.execute(
            "SELECT l::text FROM sluice.api_access_logs l WHERE user_id = 'secretive@example.com'"
        )
        return "\n".join(row[0] for row in rows) if len(rows) >= 3 else ""

    written = wait_until(logged, message="the access log has it")
    written += api.proxy.errors.read_text() + api.proxy.output.read_text()
    for secret in (key[20:], "hush-hush-value", "findable-text", *installation.passwords.values()):
        assert secret not in written
    assert TASKS in written


@pytest.mark.long
def test_with_several_workers_the_first_answers(start_api: StartApi) -> None:
    api = start_api({"workers": 2})
    with api.client(api.key("admin", "read:tasks", "write:tasks", rate=50)) as client:
        made = client.post("/tasks", json={"title": "x"}, headers={"idempotency-key": str(uuid4())})
        assert client.get(f"/tasks/{made.json()['id']}").json() == made.json()
        late = client.post("/query", json={"sql": "SELECT pg_sleep(30)", "timeout_ms": 200})
        assert code(late) == (504, "QUERY_TIMEOUT")
        answers = [client.get("/tasks") for _ in range(50)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert int(answers[-1].headers["retry-after"]) >= 1
