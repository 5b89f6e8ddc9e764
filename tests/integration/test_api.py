"""The HTTP API of a real proxy, with real keys, in front of PostgreSQL with the schema taskmaster."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.integration.apis import TASKS, WRITER, Api
from tests.integration.support import Installation, wait_until

pytest_plugins = ["tests.integration.tasksapi"]

HOUR = "at > now() - interval '1 hour'"
ITEMS = {
    "tasks": {"title": "a task"},
    "executions": {"agent_type": "codegen"},
    "validations": {"validation_type": "tests"},
    "workflows": {"name": "a workflow"},
}
STATUS = {
    "tasks": "in_progress",
    "executions": "running",
    "validations": "running",
    "workflows": "active",
}


def make(client: httpx.Client, name: str = "tasks", /, **fields: Any) -> dict[str, Any]:
    """Make one of `name`, with a task of its own where it needs one."""
    if name in ("executions", "validations") and "task_id" not in fields:
        fields["task_id"] = make(client)["id"]
    answer = client.post(f"/{name}", json={**ITEMS[name], **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def code(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "detail"}
    assert all(isinstance(each, str) for each in error.values())
    return answer.status_code, error["code"]


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


# -- items


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_is_made_changed_and_deleted(alice: httpx.Client, name: str) -> None:
    made = make(alice, name)
    path = f"/{name}/{made['id']}"
    answer = alice.get(path)
    assert (answer.status_code, answer.json()) == (200, made)
    assert answer.headers["content-type"] == "application/json"
    changed = alice.patch(path, json={"status": STATUS[name]})
    assert (changed.status_code, changed.json()["status"]) == (200, STATUS[name])
    assert changed.json()["updated_at"] > made["updated_at"]
    assert alice.get(path).json() == changed.json()
    gone = alice.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert code(alice.get(path)) == code(alice.delete(path)) == (404, "NOT_FOUND")
    assert code(alice.patch(path, json={"status": STATUS[name]})) == (404, "NOT_FOUND")


@pytest.mark.parametrize("name", ITEMS)
def test_a_status_is_changed(alice: httpx.Client, name: str) -> None:
    path = f"/{name}/{make(alice, name)['id']}"
    answer = alice.patch(f"{path}/status", json={"status": STATUS[name]})
    assert (answer.status_code, answer.json()["status"]) == (200, STATUS[name])
    assert code(alice.patch(f"{path}/status", json={"status": "nonsense"})) == (422, "VALIDATION_ERROR")
    missing = alice.patch(f"/{name}/{uuid4()}/status", json={"status": STATUS[name]})
    assert code(missing) == (404, "NOT_FOUND")


def test_everything_that_can_be_sent_is_stored(alice: httpx.Client) -> None:
    sent = {
        "title": "ü, '; DROP TABLE tasks; --", "description": "two\nlines", "type": "review", "priority": 9,
        "complexity_score": 3, "requirements": {"a": [1, None, "x"]}, "acceptance_criteria": ["it works"],
        "affected_files": ["a.py"], "tags": ["x", "y"], "metadata": {"n": 1.5}, "execution_order": 4,
        "repository_url": "https://example.com/r.git", "branch_name": "main", "pr_number": 7,
        "linear_issue_id": "L-1", "github_issue_number": 8, "codegen_session_id": "c", "command": "make",
        "parameters": {"p": True}, "environment": {"HOME": "/"}, "working_directory": "/srv",
        "timeout_seconds": 60, "max_retries": 1, "estimated_hours": 1.5, "actual_hours": 0.25,
    }  # fmt: skip
    made = alice.post("/tasks", json=sent)
    assert made.status_code == 201
    assert {name: made.json()[name] for name in sent} == sent
    assert made.json()["created_by"] == "alice@example.com"
    assert made.headers["location"] == f"/api/database/tasks/{made.json()['id']}"
    nothing = dict.fromkeys(("description", "complexity_score", "branch_name", "estimated_hours"))
    changed = alice.patch(f"/tasks/{made.json()['id']}", json=nothing).json()
    assert {name: changed[name] for name in sent} == {**sent, **nothing}


def test_illegal_changes_conflict(alice: httpx.Client) -> None:
    path = f"/tasks/{make(alice)['id']}"
    answer = alice.patch(f"{path}/status", json={"status": "completed"})
    assert code(answer) == (409, "CONFLICT")
    assert answer.json()["error"]["message"] == "a task cannot go from pending to completed"
    assert code(alice.patch(path, json={"project_id": str(uuid4())})) == (409, "CONFLICT")
    assert code(alice.patch(path, json={"assigned_to": "nobody@example.com"})) == (409, "CONFLICT")
    task = make(alice, "executions")["task_id"]
    again = alice.post("/executions", json={"task_id": task, "agent_type": "codegen"})
    assert code(again) == (409, "CONFLICT")


def test_a_status_keeps_its_reason(alice: httpx.Client, api: Api) -> None:
    task = make(alice)["id"]
    alice.patch(f"/tasks/{task}/status", json={"status": "cancelled", "reason": "not needed"})
    events = "SELECT payload ->> 'reason', actor FROM taskmaster.workflow_events WHERE task_id = %s"
    assert api.execute(events, (task,)) == [("not needed", "alice@example.com")]


def test_a_hierarchy_shows_what_is_below(alice: httpx.Client) -> None:
    root = make(alice)["id"]
    child = make(alice, parent_task_id=root)["id"]
    leaf = make(alice, parent_task_id=child)["id"]
    told = alice.get(f"/tasks/{root}/hierarchy").json()
    assert [task["id"] for task in told["tasks"]] == [root, child, leaf]
    assert (told["root"], told["completion"], told["truncated"]) == (root, 0.0, False)
    shallow = alice.get(f"/tasks/{root}/hierarchy", params={"depth": 1}).json()
    assert [task["depth"] for task in shallow["tasks"]] == [0, 1]
    assert code(alice.get(f"/tasks/{uuid4()}/hierarchy")) == (404, "NOT_FOUND")


# -- entity tags


def test_an_etag_saves_the_answer(alice: httpx.Client) -> None:
    made = alice.post("/tasks", json={"title": "tagged"})
    path, tag = f"/tasks/{made.json()['id']}", made.headers["etag"]
    assert alice.get(path).headers["etag"] == tag
    same = alice.get(path, headers={"if-none-match": f'"x", {tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert alice.get(path, headers={"if-none-match": '"x"'}).status_code == 200


def test_an_etag_keeps_from_changing_what_has_changed(alice: httpx.Client) -> None:
    made = alice.post("/tasks", json={"title": "tagged"})
    path, old = f"/tasks/{made.json()['id']}", made.headers["etag"]
    first = alice.patch(path, json={"priority": 1}, headers={"if-match": old})
    assert first.status_code == 200
    new = first.headers["etag"]
    assert new != old
    for stale in (old, '"x"', f"W/{new}"):
        answer = alice.patch(path, json={"priority": 2}, headers={"if-match": stale})
        assert code(answer) == (412, "PRECONDITION_FAILED")
        assert code(alice.delete(path, headers={"if-match": stale})) == (412, "PRECONDITION_FAILED")
    assert alice.get(path).json()["priority"] == 1
    assert code(alice.delete(f"/tasks/{uuid4()}", headers={"if-match": old})) == (404, "NOT_FOUND")
    assert alice.delete(path, headers={"if-match": f"{old}, {new}"}).status_code == 204


def test_of_two_that_change_at_once_one_is_refused(alice: httpx.Client) -> None:
    made = alice.post("/tasks", json={"title": "tagged"})
    path, headers = f"/tasks/{made.json()['id']}", {"if-match": made.headers["etag"]}

    def change(number: int) -> int:
        return alice.patch(path, json={"priority": number}, headers=headers).status_code

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(change, range(8))) == [200] + [412] * 7


# -- lists


def test_pages_have_totals_and_links(api: Api) -> None:
    with api.client(api.key(user=f"{uuid4()}@example.com")) as client:
        made = [make(client, title=f"task {number}", priority=number)["id"] for number in range(5)]
        first = client.get("/tasks", params={"limit": 2, "sort": "priority", "status": "pending"})
        told = first.json()
        assert [item["id"] for item in told["items"]] == made[:2]
        assert {name: told[name] for name in ("page", "limit", "total", "pages")} == {
            "page": 1, "limit": 2, "total": 5, "pages": 3,
        }  # fmt: skip
        assert told["links"].keys() == {"self", "first", "last", "next"}
        assert {link["rel"]: link["url"] for link in first.links.values()} == {
            name: url for name, url in told["links"].items() if name != "self"
        }
        seen, address = list[str](), told["links"]["self"]
        while address:
            page = client.get(api.proxy.url(address)).json()
            seen += [item["id"] for item in page["items"]]
            address = page["links"].get("next")
        assert seen == made
        beyond = client.get("/tasks", params={"limit": 2, "page": 9}).json()
        assert (beyond["items"], beyond["total"], beyond["links"]["prev"][-6:]) == ([], 5, "page=3")


def test_lists_are_filtered_sorted_and_searched(api: Api) -> None:
    with api.client(api.key(user=f"{uuid4()}@example.com")) as client:
        flow = make(client, "workflows", name="Nightly build", workflow_type="nightly", priority=8)
        make(client, "workflows", name="Release", status="active")
        task = make(client, title="Find me: 100% of it", priority=7)
        make(client, title="another", priority=2)
        runs = [make(client, "executions", task_id=task["id"], attempt=number) for number in (1, 2)]
        make(client, "executions")
        check = make(client, "validations", task_id=task["id"], execution_id=runs[0]["id"], score=99.5)

        def ids(path: str, **query: Any) -> list[str]:
            answer = client.get(path, params=query)
            assert answer.status_code == 200, answer.text
            assert answer.json()["total"] == len(answer.json()["items"])
            return [item["id"] for item in answer.json()["items"]]

        assert ids("/tasks", priority=7) == ids("/tasks", q="me: 100%") == [task["id"]]
        assert ids("/tasks", q="find", status="failed") == ids("/tasks", q="%%%") == []
        assert ids("/tasks", assigned_to="nobody@example.com") == []
        assert ids("/workflows", q="nightly") == ids("/workflows", workflow_type="nightly") == [flow["id"]]
        assert ids("/workflows", status="draft", priority=8) == [flow["id"]]
        wanted = [run["id"] for run in runs]
        assert ids("/executions", task_id=task["id"], sort="attempt") == wanted
        assert ids("/executions", task_id=task["id"], sort="-attempt") == wanted[::-1]
        assert ids("/executions", agent_type="claude-code") == []
        assert ids("/validations", execution_id=runs[0]["id"], validation_type="tests") == [check["id"]]


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


def test_a_key_sees_the_databases_that_know_it(alice: httpx.Client) -> None:
    assert alice.get("/health", params={"database": TASKS}).json()["database"] == TASKS
    assert code(alice.get("/health", params={"database": "other"})) == (404, "UNKNOWN_DATABASE")


# -- whose tasks


def test_users_never_see_each_others_rows(alice: httpx.Client, bob: httpx.Client) -> None:
    mine = {name: make(alice, name, **({"title": "xyzzy"} if name == "tasks" else {})) for name in ITEMS}
    task = mine["tasks"]["id"]
    for name, item in mine.items():
        path = f"/{name}/{item['id']}"
        assert code(bob.get(path)) == (404, "NOT_FOUND")
        assert code(bob.patch(path, json={"status": STATUS[name]})) == (404, "NOT_FOUND")
        assert code(bob.patch(f"{path}/status", json={"status": STATUS[name]})) == (404, "NOT_FOUND")
        assert code(bob.delete(path)) == (404, "NOT_FOUND")
        assert alice.get(path).json() == item
        theirs = bob.get(f"/{name}", params={"limit": 100}).json()
        assert item["id"] not in json.dumps(theirs)
    assert code(bob.get(f"/tasks/{task}/hierarchy")) == (404, "NOT_FOUND")
    assert bob.get("/tasks", params={"q": "xyzzy"}).json()["total"] == 0
    assert bob.get("/executions", params={"task_id": task}).json()["total"] == 0
    for name in ("executions", "validations"):
        assert code(bob.post(f"/{name}", json={**ITEMS[name], "task_id": task})) == (409, "CONFLICT")
    assert code(bob.post("/tasks", json={"title": "below", "parent_task_id": task})) == (409, "CONFLICT")
    assert code(bob.post("/tasks", json={"title": "x", "workflow_id": mine["workflows"]["id"]}))[0] == 409


def test_an_assignee_sees_the_task_and_an_administrator_all(
    alice: httpx.Client, bob: httpx.Client, root: httpx.Client
) -> None:
    make(bob)
    task = make(alice, assigned_to="bob@example.com")["id"]
    assert bob.get(f"/tasks/{task}").json()["id"] == task
    found = bob.get("/tasks", params={"assigned_to": "bob@example.com", "limit": 100}).json()
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
    api: Api, alice: httpx.Client, installation: Installation
) -> None:
    (replica,) = installation.cluster.replicas
    with installation.superuser(replica, TASKS).connect() as behind:
        behind.execute("SELECT pg_wal_replay_pause()")
        try:
            for _ in range(20):
                made = make(alice)
                assert alice.get(f"/tasks/{made['id']}").json() == made
        finally:
            behind.execute("SELECT pg_wal_replay_resume()")


# -- once only


def test_a_repeated_post_makes_nothing_again(api: Api, alice: httpx.Client, bob: httpx.Client) -> None:
    headers, body = {"idempotency-key": str(uuid4())}, {"title": "once", "tags": ["a"], "priority": 3}
    first = alice.post("/tasks", json=body, headers=headers)
    again = alice.post("/tasks", content=json.dumps(body, indent=3, sort_keys=True), headers={
        **headers, "content-type": "application/json",
    })  # fmt: skip
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert first.headers["etag"] == again.headers["etag"]
    assert [each.headers["idempotency-replayed"] for each in (first, again)] == ["false", "true"]
    other = alice.post("/tasks", json={**body, "title": "twice"}, headers=headers)
    assert code(other) == (422, "VALIDATION_ERROR")
    assert code(alice.post("/workflows", json={"name": "once"}, headers=headers))[0] == 422
    theirs = bob.post("/tasks", json=body, headers=headers)
    assert theirs.json()["created_by"] == "bob@example.com"


def test_of_many_at_once_one_is_made(api: Api) -> None:
    with api.client(api.key(user=f"{uuid4()}@example.com")) as client:
        headers = {"idempotency-key": "the-same"}

        def post(_: int) -> tuple[int, str, str]:
            answer = client.post("/tasks", json={"title": "once"}, headers=headers)
            assert answer.status_code == 201, answer.text
            return answer.status_code, answer.json()["id"], answer.headers["idempotency-replayed"]

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(post, range(16)))
        assert {status for status, _, _ in answers} == {201}
        assert len({made for _, made, _ in answers}) == 1
        assert sorted(replayed for _, _, replayed in answers) == ["false"] + ["true"] * 15
        assert client.get("/tasks").json()["total"] == 1


def test_what_failed_can_be_tried_again(alice: httpx.Client) -> None:
    headers = {"idempotency-key": str(uuid4())}
    body = {"task_id": str(uuid4()), "agent_type": "codegen"}
    assert code(alice.post("/executions", json=body, headers=headers)) == (409, "CONFLICT")
    body["task_id"] = make(alice)["id"]
    assert alice.post("/executions", json=body, headers=headers).status_code == 201


def test_a_key_is_forgotten_after_a_day(api: Api, alice: httpx.Client) -> None:
    headers = {"idempotency-key": str(uuid4())}
    first = alice.post("/tasks", json={"title": "once"}, headers=headers)
    api.execute(
        "UPDATE taskmaster.idempotency_keys SET expires_at = now() - interval '1 second' WHERE key = %s",
        (headers["idempotency-key"],),
    )
    again = alice.post("/tasks", json={"title": "another"}, headers=headers)
    assert again.status_code == 201 and again.json()["id"] != first.json()["id"]
    for bad in ("", "x" * 256, "with space"):
        assert alice.post("/tasks", json={"title": "x"}, headers={"idempotency-key": bad}).status_code == 422


# -- statements


def ask(client: httpx.Client, sql: str, *params: Any, **more: Any) -> httpx.Response:
    return client.post("/query", json={"sql": sql, "params": list(params), **more})


def test_a_query_is_answered_with_types(root: httpx.Client) -> None:
    told = ask(
        root,
        "SELECT $1::int AS a, $2::text AS b, $3::bool AS c, NULL AS d, $4::int[] AS e, $5::jsonb AS f,"
        " 1.5::float8 AS g, 1.5::numeric AS h, 'NaN'::float8 AS i, '2026-11-28 12:00+00'::timestamptz AS j",
        7, "ü", True, [1, None], {"k": [1]},
    ).json()  # fmt: skip
    assert told["rows"] == [
        [7, "ü", True, None, "{1,NULL}", {"k": [1]}, 1.5, "1.5", "NaN", "2026-11-28 12:00:00+00"]
    ]
    assert [column["name"] for column in told["columns"]] == list("abcdefghij")
    assert told["columns"][0] == {"name": "a", "type": "int4", "oid": 23}
    rest = {name: told[name] for name in ("row_count", "truncated", "command", "error")}
    assert rest == {"row_count": 1, "truncated": False, "command": "SELECT 1", "error": None}


def test_rows_come_as_lines_where_that_is_asked_for(root: httpx.Client) -> None:
    sql = "SELECT n, E'a\\nb', '{\"a\":\n1}'::json FROM generate_series(1, 2) n"
    answer = root.post("/query", json={"sql": sql}, headers={"accept": "application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert lines[1:3] == [[1, "a\nb", {"a": 1}], [2, "a\nb", {"a": 1}]]
    assert lines[3] == {"row_count": 2, "truncated": False, "command": "SELECT 2", "error": None}


def test_statements_without_rows_and_writes(root: httpx.Client) -> None:
    assert ask(root, "").status_code == 422
    assert ask(root, "-- nothing").json()["command"] == ""
    assert ask(root, "SET timezone = 'Asia/Tokyo'").json()["command"] == "SET"
    assert ask(root, "SHOW timezone").json()["rows"] == [["UTC"]]
    sql = "INSERT INTO taskmaster.tasks (title, created_by) VALUES ($1, $2) RETURNING title"
    user = "by-sql@example.com"
    ask(root, "INSERT INTO taskmaster.users (user_id) VALUES ($1) ON CONFLICT DO NOTHING", user)
    told = ask(root, sql, "made by SQL", user).json()
    assert (told["rows"], told["command"]) == ([["made by SQL"]], "INSERT 0 1")
    assert ask(root, "SELECT count(*) FROM taskmaster.tasks WHERE created_by = $1", user).json()["rows"] == [
        [1]
    ]


def test_rows_are_bounded(root: httpx.Client) -> None:
    told = ask(root, "SELECT n FROM generate_series(1, 1000000) n").json()
    assert (told["row_count"], len(told["rows"]), told["truncated"]) == (10_000, 10_000, True)
    exact = ask(root, "SELECT n FROM generate_series(1, 10000) n").json()
    assert (exact["row_count"], exact["truncated"], exact["command"]) == (10_000, False, "SELECT 10000")
    wide = ask(root, "SELECT repeat('x', 1000000) FROM generate_series(1, 5000)").json()
    assert (wide["row_count"], wide["truncated"], wide["error"]) == (8, True, None)
    huge = ask(root, "SELECT repeat('x', 20000000)")
    assert code(huge) == (422, "RESULT_TOO_LARGE")
    assert ask(root, "SELECT 1").status_code == 200


def test_a_write_of_many_rows_is_not_cut_off(api: Api, root: httpx.Client) -> None:
    api.execute("CREATE TABLE public.numbers (n int)")
    api.execute("GRANT SELECT, INSERT ON public.numbers TO sluice_admin")
    told = ask(root, "INSERT INTO public.numbers SELECT generate_series(1, 10050) RETURNING n").json()
    assert (told["row_count"], told["truncated"], told["error"]) == (10_000, True, None)
    wide = "WITH made AS (INSERT INTO public.numbers SELECT generate_series(1, 50) RETURNING n)"
    told = ask(root, f"{wide} SELECT repeat('x', 1000000) FROM made").json()
    assert (told["row_count"], told["truncated"], told["error"]) == (8, True, None)
    assert ask(root, "SELECT count(*) FROM public.numbers").json()["rows"] == [[10_100]]
    api.execute("DROP TABLE public.numbers")


def test_a_statement_over_its_time_is_cancelled_on_the_server(api: Api, root: httpx.Client) -> None:
    mark = f"m{uuid4().hex}"
    began = time.monotonic()
    answer = ask(root, f"SELECT pg_sleep(60) AS {mark}", timeout_ms=300)
    assert code(answer) == (504, "QUERY_TIMEOUT")
    assert time.monotonic() - began < 5
    late = ask(root, "SELECT pg_sleep(n) FROM generate_series(0, 60, 20) n", timeout_ms=300).json()
    assert late["error"] is None or late["error"]["code"] == "QUERY_TIMEOUT"
    assert nobody_runs(api, mark)


def nobody_runs(api: Api, mark: str) -> bool:
    busy = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'"
    return bool(wait_until(lambda: not api.execute(busy), message=f"{mark} is cancelled"))


def test_a_client_that_leaves_ends_its_statement(api: Api) -> None:
    key = api.key("admin", user="leaver@example.com")
    with api.client(key) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/query", json={"sql": "SELECT pg_sleep(50)"}, timeout=0.5)
    assert nobody_runs(api, "the sleep")


@pytest.mark.parametrize(
    ("sql", "status", "told"),
    [
        ("SELEC 1", 400, "syntax error"),
        ("SELECT 1; SELECT 2", 400, "multiple commands"),
        ("SELECT * FROM nowhere", 400, "does not exist"),
        ("SELECT 1/0", 400, "division by zero"),
        ("SELECT $1", 400, ""),
        ("COPY (SELECT 1) TO STDOUT", 400, "COPY"),
        ("SELECT pg_catalog.set_config('sluice.identity', 'x', false)", 403, ""),
        ("SET ROLE sluice_owner", 403, ""),
    ],
)
def test_a_wrong_statement_is_told_why(root: httpx.Client, sql: str, status: int, told: str) -> None:
    answer = ask(root, sql)
    assert answer.status_code == status, answer.text
    assert told in answer.json()["error"]["message"]
    assert ask(root, "SELECT 1").json()["rows"] == [[1]]


def test_an_error_behind_the_first_row_is_told_at_the_end(root: httpx.Client) -> None:
    told = ask(root, "SELECT 1 / (n - 3) FROM generate_series(1, 5) n").json()
    assert told["rows"] == [[0], [-1]]
    assert told["error"]["code"] == "QUERY_EXECUTION_ERROR"


def test_a_pool_is_chosen_as_by_any_client(api: Api, root: httpx.Client) -> None:
    assert ask(root, "SELECT current_user", pool="readonly").json()["rows"] == [["app_ro"]]
    assert ask(root, "SELECT current_user", pool="background").json()["rows"] == [["app_rw"]]
    assert ask(root, "SELECT current_user").json()["rows"] == [["app_admin"]]
    assert code(ask(root, "SELECT 1", pool="nonsense")) == (422, "VALIDATION_ERROR")


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
def test_a_wrong_body_is_refused(alice: httpx.Client, content: bytes, kind: str, status: int) -> None:
    answer = alice.post("/tasks", content=content, headers={"content-type": kind})
    assert code(answer) == (status, "VALIDATION_ERROR")


def test_a_long_body_without_a_length_is_refused(alice: httpx.Client) -> None:
    pieces = (b"x" * 65_536 for _ in range(100))
    answer = alice.post("/tasks", content=pieces, headers={"content-type": "application/json"})
    assert code(answer) == (413, "VALIDATION_ERROR")


def test_the_largest_texts_are_taken(alice: httpx.Client) -> None:
    text = "ü" * 100_000
    made = make(alice, description=text, metadata={"text": text})
    assert alice.get(f"/tasks/{made['id']}").json()["description"] == text


def test_headers_are_bounded(alice: httpx.Client) -> None:
    assert alice.get("/health", headers={"x-long": "x" * 1_000_000}).status_code == 400


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
def test_a_wrong_query_string_is_refused(alice: httpx.Client, query: str) -> None:
    assert code(alice.get(f"/tasks?{query}")) == (422, "VALIDATION_ERROR")


@pytest.mark.parametrize("id", ["1", "x", "%00", "..", "0f8fad5bd9cb469fa165708667728950", "' OR 1=1"])
def test_what_is_no_id_is_not_there(alice: httpx.Client, id: str) -> None:
    assert code(alice.get(f"/tasks/{id}"))[0] == 404


def test_paths_and_methods_that_are_not_there(api: Api, alice: httpx.Client) -> None:
    assert code(alice.get("/nothing")) == (404, "NOT_FOUND")
    answer = alice.put(f"/tasks/{uuid4()}", json={})
    assert code(answer) == (405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "DELETE, GET, PATCH"
    assert httpx.get(api.proxy.url("/metrics")).status_code == 200
    assert httpx.get(api.proxy.url("/healthz")).text == "ok\n"


def test_answers_carry_security_headers_and_no_permission_for_other_pages(alice: httpx.Client) -> None:
    answer = alice.get("/tasks", headers={"origin": "https://evil.example.com"})
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert alice.options("/tasks", headers={"origin": "https://evil.example.com"}).status_code == 405


# -- like any other statement


def test_statements_over_http_are_routed_and_logged(api: Api) -> None:
    user = f"{uuid4()}@example.com"
    key = api.key("admin", *WRITER, user=user)
    with api.client(key, "127.0.0.9") as client:
        for pool in ("readonly", "primary"):
            ask(client, "SELECT 42 + $1", 1, pool=pool)
        make(client)
    reader = api.key("read:tasks", user=user)
    with api.client(reader, "127.0.0.9") as client:
        client.get("/tasks")
        assert client.post("/tasks", json={"title": "x"}).status_code == 403
        assert ask(client, "SELECT 1").status_code == 403

    def found() -> list[Any]:
        rows = api.execute(
            "SELECT event, pool, target, host, intent, sqlstate, code, statement FROM sluice.api_access_logs"
            f" WHERE user_id = %s AND application_name = 'http' AND client_addr = '127.0.0.9' AND {HOUR}"
            " ORDER BY at",
            (user,),
        )
        return rows if len(rows) >= 8 else []

    rows = wait_until(found, message="the access log has it all")
    statements = [row for row in rows if row[0] == "statement"]
    assert [row[1] for row in statements] == ["readonly", "primary", "admin", "readonly"]
    assert (statements[0][2], statements[0][3]) == ("readonly", "replica1")
    assert statements[0][7] == "SELECT $2 + $1"
    assert (statements[3][2], statements[3][4]) == ("readonly", "read")
    assert [row[4] for row in statements][2] == "write"
    denied = [row for row in rows if row[0] == "denied"]
    assert [(row[5], row[6]) for row in denied] == [("42501", "INSUFFICIENT_PERMISSIONS")] * 2
    assert [row[0] for row in rows].count("login") == 2
    metrics = httpx.get(api.proxy.url("/metrics")).text
    assert 'pgsluice_statements_denied_total{code="INSUFFICIENT_PERMISSIONS"' in metrics


def test_health_and_metrics_are_told(api: Api, alice: httpx.Client) -> None:
    told = alice.get("/health").json()
    assert (told["status"], told["database"]) == ("ok", TASKS)
    with api.client(api.key("read:metrics", "write:metrics", user="ops@example.com")) as client:
        api.execute("SELECT taskmaster.record_metric('cpu', 0.5)")
        metrics = client.get("/metrics").json()
    assert {pool["pool"] for pool in metrics["pools"]} >= {"primary", "readonly"}
    assert {host["host"] for host in metrics["hosts"]} == {"primary", "replica1"}
    assert "error" not in metrics["hosts"][0]
    assert any("cpu" in json.dumps(each) for each in metrics["measurements"])


def test_no_session_stays_behind(api: Api, alice: httpx.Client) -> None:
    alice.get("/tasks")
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


def test_half_a_request_holds_nobody_up(api: Api, alice: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", api.proxy.http_port)) as opened:
        opened.sendall(b"POST /api/database/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert alice.get("/health").status_code == 200
