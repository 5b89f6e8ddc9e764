"""The HTTP API of a real proxy, with real keys: who may ask what, whose tasks they see, and what is refused."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.integration.apis import ITEMS, STATUS, TASKS, WRITER, Api, code, make
from tests.integration.support import Installation, wait_until

pytest_plugins = ["tests.integration.tasksapi"]


def operations(api: Api) -> list[tuple[str, str]]:
    """Return method and path of every operation that the API describes."""
    with httpx.Client() as client:
        paths = client.get(api.proxy.url("/openapi.json")).json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def request(client: httpx.Client, method: str, path: str, item: str) -> httpx.Response:
    """Ask an operation for `item`, with a body that it takes."""
    name = path.split("/")[3]
    body: dict[str, Any] | None = None
    if path.endswith("/query"):
        body = {"sql": "SELECT 1"}
    elif path.endswith("/status"):
        body = {"status": STATUS[name]}
    elif method == "POST":
        body = {**ITEMS[name], **({"task_id": item} if name in ("executions", "validations") else {})}
    elif method == "PATCH":
        body = {"status": STATUS[name]}
    return client.request(method, path.removeprefix("/api/database").replace("{id}", item), json=body)


# -- keys


def test_every_operation_needs_a_key(api: Api) -> None:
    revoked = api.key()
    api.execute("SELECT sluice.revoke_api_key(%s)", (revoked.rpartition("_")[0],))
    expired = api.key()
    past = "UPDATE sluice.api_keys SET expires_at = '2001-01-01' WHERE id = %s"
    api.execute(past, (expired.rpartition("_")[0],))
    wrong = api.key()[:-1] + "!"
    found = operations(api)
    assert len(found) == 28
    for number, (method, path) in enumerate(found):
        # Each from an address of its own: ten failed attempts close one.
        with api.client(address=f"127.1.0.{number + 1}") as client:
            answer = request(client, method, path, str(uuid4()))
            assert code(answer) == (401, "MISSING_API_KEY"), (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            for key in (revoked, expired, wrong, "ctm_x", "x" * 500):
                client.headers["x-api-key"] = key
                told = request(client, method, path, str(uuid4()))
                assert code(told) == (401, "INVALID_API_KEY"), (method, path)
    with api.client(headers={"authorization": f"Bearer {api.key()}"}) as client:
        assert client.get("/health").status_code == 200


def test_every_operation_needs_its_permission(api: Api) -> None:
    item = None
    with api.client(api.key(user="permitted@example.com")) as client:
        item = make(client)["id"]
    needs = {"health": (), "metrics": ("read:metrics",), "query": ("admin",)}
    keys = {
        permissions: api.key(*permissions, user="permitted@example.com")
        for permissions in (("read:tasks",), WRITER, ("read:metrics",), ("write:tasks",), ("admin",))
    }
    for method, path in operations(api):
        needed = needs.get(path.split("/")[3], ("read:tasks",) if method == "GET" else WRITER)
        for permissions, key in keys.items():
            with api.client(key) as client:
                answer = request(client, method, path, item if "tasks" in path else str(uuid4()))
            allowed = set(needed) <= set(permissions) or permissions == ("admin",)
            if allowed:
                assert answer.status_code not in (401, 403), (method, path, permissions, answer.text)
            else:
                assert code(answer) == (403, "INSUFFICIENT_PERMISSIONS"), (method, path, permissions)


def test_a_key_is_held_to_its_addresses(api: Api) -> None:
    key = api.key(allowed_addresses=["127.9.0.0/16"])
    with api.client(key, "127.9.0.1") as client:
        assert client.get("/health").status_code == 200
    with api.client(key, "127.8.0.1", headers={"x-forwarded-for": "127.9.0.1"}) as client:
        assert code(client.get("/health")) == (403, "ADDRESS_NOT_ALLOWED")


def test_ten_failed_attempts_close_an_address(api: Api) -> None:
    with api.client("ctm_wrong", "127.7.0.1") as client:
        for _ in range(10):
            assert client.get("/health").status_code == 401
        answer = client.get("/health")
        assert code(answer) == (429, "RATE_LIMIT_EXCEEDED")
        assert 1 <= int(answer.headers["retry-after"]) <= 6


def test_a_rate_limit_is_told_with_headers(api: Api) -> None:
    with api.client(api.key(rate=3)) as client:
        answers = [client.get("/tasks") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert code(answers[-1]) == (429, "RATE_LIMIT_EXCEEDED")
    headers = answers[-1].headers
    assert (headers["ratelimit-limit"], headers["ratelimit-remaining"]) == ("3", "0")
    assert 1 <= int(headers["retry-after"]) == int(headers["ratelimit-reset"]) <= 20


def test_a_key_sees_the_databases_that_know_it(ada: httpx.Client) -> None:
    assert ada.get("/health", params={"database": TASKS}).json()["database"] == TASKS
    assert code(ada.get("/health", params={"database": "other"})) == (404, "UNKNOWN_DATABASE")


# -- whose tasks


def test_users_never_see_each_others_rows(ada: httpx.Client, ben: httpx.Client) -> None:
    mine = {name: make(ada, name, **({"title": "xyzzy"} if name == "tasks" else {})) for name in ITEMS}
    task = mine["tasks"]["id"]
    for name, item in mine.items():
        path = f"/{name}/{item['id']}"
        assert code(ben.get(path)) == (404, "NOT_FOUND")
        assert code(ben.patch(path, json={"status": STATUS[name]})) == (404, "NOT_FOUND")
        assert code(ben.patch(f"{path}/status", json={"status": STATUS[name]})) == (404, "NOT_FOUND")
        assert code(ben.delete(path)) == (404, "NOT_FOUND")
        assert ada.get(path).json() == item
        theirs = ben.get(f"/{name}", params={"limit": 100}).json()
        assert item["id"] not in json.dumps(theirs)
    assert code(ben.get(f"/tasks/{task}/hierarchy")) == (404, "NOT_FOUND")
    assert ben.get("/tasks", params={"q": "xyzzy"}).json()["total"] == 0
    assert ben.get("/executions", params={"task_id": task}).json()["total"] == 0
    for name in ("executions", "validations"):
        assert code(ben.post(f"/{name}", json={**ITEMS[name], "task_id": task})) == (409, "CONFLICT")
    assert code(ben.post("/tasks", json={"title": "below", "parent_task_id": task})) == (409, "CONFLICT")
    assert code(ben.post("/tasks", json={"title": "x", "workflow_id": mine["workflows"]["id"]}))[0] == 409


def test_an_assignee_sees_the_task_and_an_administrator_all(
    ada: httpx.Client, ben: httpx.Client, root: httpx.Client
) -> None:
    make(ben)
    task = make(ada, assigned_to="ben@example.com")["id"]
    assert ben.get(f"/tasks/{task}").json()["id"] == task
    found = ben.get("/tasks", params={"assigned_to": "ben@example.com", "limit": 100}).json()
    assert task in [item["id"] for item in found["items"]]
    assert root.get(f"/tasks/{task}").status_code == 200


def test_many_users_at_once_see_their_own(api: Api) -> None:
    users = [f"crowd{number}@example.com" for number in range(6)]
    keys = {user: api.key(user=user) for user in users}

    def work(number: int) -> None:
        user = users[number % len(users)]
        with api.client(keys[user]) as client:
            make(client, title=f"of {user}")
            told = client.get("/tasks", params={"limit": 100}).json()
            assert told["items"] and {item["created_by"] for item in told["items"]} == {user}

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(60)))


def test_who_writes_reads_it_though_the_replica_is_behind(
    api: Api, ada: httpx.Client, installation: Installation
) -> None:
    (replica,) = installation.cluster.replicas
    with installation.superuser(replica, TASKS).connect() as behind:
        behind.execute("SELECT pg_wal_replay_pause()")
        try:
            for _ in range(20):
                made = make(ada)
                assert ada.get(f"/tasks/{made['id']}").json() == made
        finally:
            behind.execute("SELECT pg_wal_replay_resume()")


# -- what comes in


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b'{"title": 5}', "application/json", 422),
        (b'{"title": "a\\u0000"}', "application/json", 422),
        (b'{"title": "x", "unknown": 1}', "application/json", 422),
        (b'{"title": "x"}', "text/plain", 415),
        (b"title=x", "application/x-www-form-urlencoded", 415),
        (b'{"title": "x", "description": "' + b"x" * 2_000_000 + b'"}', "application/json", 413),
    ],
)
def test_a_wrong_body_is_refused(ada: httpx.Client, content: bytes, kind: str, status: int) -> None:
    answer = ada.post("/tasks", content=content, headers={"content-type": kind})
    assert code(answer) == (status, "VALIDATION_ERROR")


def test_a_long_body_without_a_length_is_refused(ada: httpx.Client) -> None:
    pieces = (b"x" * 65_536 for _ in range(100))
    answer = ada.post("/tasks", content=pieces, headers={"content-type": "application/json"})
    assert code(answer) == (413, "VALIDATION_ERROR")


def test_the_largest_texts_are_taken(ada: httpx.Client) -> None:
    text = "ü" * 100_000
    made = make(ada, description=text, metadata={"text": text})
    assert ada.get(f"/tasks/{made['id']}").json()["description"] == text


def test_headers_are_bounded(ada: httpx.Client) -> None:
    assert ada.get("/health", headers={"x-long": "x" * 1_000_000}).status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=x",
        "limit=1000",
        "sort=nothing",
        "status=x",
        "unknown=1",
        "q=ab",
        "page=1&page=2",
        "q=%00abc",
    ],
)
def test_a_wrong_query_string_is_refused(ada: httpx.Client, query: str) -> None:
    assert code(ada.get(f"/tasks?{query}")) == (422, "VALIDATION_ERROR")


@pytest.mark.parametrize("id", ["1", "x", "%00", "..", "0f8fad5bd9cb469fa165708667728950", "' OR 1=1"])
def test_what_is_no_id_is_not_there(ada: httpx.Client, id: str) -> None:
    assert code(ada.get(f"/tasks/{id}"))[0] == 404


def test_paths_and_methods_that_are_not_there(api: Api, ada: httpx.Client) -> None:
    assert code(ada.get("/nothing")) == (404, "NOT_FOUND")
    answer = ada.put(f"/tasks/{uuid4()}", json={})
    assert code(answer) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "DELETE, GET, PATCH"
    assert httpx.get(api.proxy.url("/metrics")).status_code == 200
    assert httpx.get(api.proxy.url("/healthz")).text == "ok\n"


def test_answers_carry_security_headers_and_no_permission_for_other_pages(ada: httpx.Client) -> None:
    answer = ada.get("/tasks", headers={"origin": "https://evil.example.com"})
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert ada.options("/tasks", headers={"origin": "https://evil.example.com"}).status_code == 405


# -- what is told


def test_health_and_metrics_are_told(api: Api, ada: httpx.Client) -> None:
    told = ada.get("/health").json()
    assert (told["status"], told["database"]) == ("ok", TASKS)
    with api.client(api.key("read:metrics", "write:metrics", user="ops@example.com")) as client:
        api.execute("SELECT taskmaster.record_metric('cpu', 0.5)")
        metrics = client.get("/metrics").json()
    assert {pool["pool"] for pool in metrics["pools"]} >= {"primary", "readonly"}
    assert {host["host"] for host in metrics["hosts"]} == {"primary", "replica1"}
    assert "error" not in metrics["hosts"][0]
    assert any("cpu" in json.dumps(each) for each in metrics["measurements"])


def test_no_session_stays_behind(api: Api, ada: httpx.Client) -> None:
    ada.get("/tasks")
    wait_until(
        lambda: "pgsluice_clients 0" in httpx.get(api.proxy.url("/metrics")).text, message="no client is left"
    )


def test_the_description_and_its_page_load_nothing_from_elsewhere(api: Api) -> None:
    told = httpx.get(api.proxy.url("/openapi.json")).json()
    assert told["openapi"].startswith("3.1")
    page = httpx.get(api.proxy.url("/docs"))
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for file in ("docs.js", "docs.css"):
        assert f"/docs/{file}" in page.text
        assert "://" not in httpx.get(api.proxy.url(f"/docs/{file}")).text


def test_half_a_request_holds_nobody_up(api: Api, ada: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", api.proxy.http_port)) as opened:
        opened.sendall(b"POST /api/database/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert ada.get("/health").status_code == 200
