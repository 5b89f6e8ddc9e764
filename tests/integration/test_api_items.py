"""Tasks and the like over the HTTP API of a real proxy: made, changed, deleted, listed, tagged, made once only."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.integration.apis import ITEMS, STATUS, Api, code, make

pytest_plugins = ["tests.integration.tasksapi"]


# -- items


@pytest.mark.parametrize("name", ITEMS)
def test_an_item_is_made_changed_and_deleted(ada: httpx.Client, name: str) -> None:
    made = make(ada, name)
    path = f"/{name}/{made['id']}"
    answer = ada.get(path)
    assert (answer.status_code, answer.json()) == (200, made)
    assert answer.headers["content-type"] == "application/json"
    changed = ada.patch(path, json={"status": STATUS[name]})
    assert (changed.status_code, changed.json()["status"]) == (200, STATUS[name])
    assert changed.json()["updated_at"] > made["updated_at"]
    assert ada.get(path).json() == changed.json()
    gone = ada.delete(path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert code(ada.get(path)) == code(ada.delete(path)) == (404, "NOT_FOUND")
    assert code(ada.patch(path, json={"status": STATUS[name]})) == (404, "NOT_FOUND")


@pytest.mark.parametrize("name", ITEMS)
def test_a_status_is_changed(ada: httpx.Client, name: str) -> None:
    path = f"/{name}/{make(ada, name)['id']}"
    answer = ada.patch(f"{path}/status", json={"status": STATUS[name]})
    assert (answer.status_code, answer.json()["status"]) == (200, STATUS[name])
    assert code(ada.patch(f"{path}/status", json={"status": "nonsense"})) == (422, "VALIDATION_ERROR")
    missing = ada.patch(f"/{name}/{uuid4()}/status", json={"status": STATUS[name]})
    assert code(missing) == (404, "NOT_FOUND")


def test_everything_that_can_be_sent_is_stored(ada: httpx.Client) -> None:
    sent = {
        "title": "ü, '; DROP TABLE tasks; --", "description": "two\nlines", "type": "review", "priority": 9,
        "complexity_score": 3, "requirements": {"a": [1, None, "x"]}, "acceptance_criteria": ["it works"],
        "affected_files": ["a.py"], "tags": ["x", "y"], "metadata": {"n": 1.5}, "execution_order": 4,
        "repository_url": "https://example.com/r.git", "branch_name": "main", "pr_number": 7,
        "linear_issue_id": "L-1", "github_issue_number": 8, "codegen_session_id": "c", "command": "make",
        "parameters": {"p": True}, "environment": {"HOME": "/"}, "working_directory": "/srv",
        "timeout_seconds": 60, "max_retries": 1, "estimated_hours": 1.5, "actual_hours": 0.25,
    }  # fmt: skip
    made = ada.post("/tasks", json=sent)
    assert made.status_code == 201
    assert {name: made.json()[name] for name in sent} == sent
    assert made.json()["created_by"] == "ada@example.com"
    assert made.headers["location"] == f"/api/database/tasks/{made.json()['id']}"
    nothing = dict.fromkeys(("description", "complexity_score", "branch_name", "estimated_hours"))
    changed = ada.patch(f"/tasks/{made.json()['id']}", json=nothing).json()
    assert {name: changed[name] for name in sent} == {**sent, **nothing}


def test_illegal_changes_conflict(ada: httpx.Client) -> None:
    path = f"/tasks/{make(ada)['id']}"
    answer = ada.patch(f"{path}/status", json={"status": "completed"})
    assert code(answer) == (409, "CONFLICT")
    assert answer.json()["error"]["message"] == "a task cannot go from pending to completed"
    assert code(ada.patch(path, json={"project_id": str(uuid4())})) == (409, "CONFLICT")
    assert code(ada.patch(path, json={"assigned_to": "nobody@example.com"})) == (409, "CONFLICT")
    task = make(ada, "executions")["task_id"]
    again = ada.post("/executions", json={"task_id": task, "agent_type": "codegen"})
    assert code(again) == (409, "CONFLICT")


def test_a_status_keeps_its_reason(ada: httpx.Client, api: Api) -> None:
    task = make(ada)["id"]
    ada.patch(f"/tasks/{task}/status", json={"status": "cancelled", "reason": "not needed"})
    events = "SELECT payload ->> 'reason', actor FROM taskmaster.workflow_events WHERE task_id = %s"
    assert api.execute(events, (task,)) == [("not needed", "ada@example.com")]


def test_a_hierarchy_shows_what_is_below(ada: httpx.Client) -> None:
    root = make(ada)["id"]
    child = make(ada, parent_task_id=root)["id"]
    leaf = make(ada, parent_task_id=child)["id"]
    told = ada.get(f"/tasks/{root}/hierarchy").json()
    assert [task["id"] for task in told["tasks"]] == [root, child, leaf]
    assert (told["root"], told["completion"], told["truncated"]) == (root, 0.0, False)
    shallow = ada.get(f"/tasks/{root}/hierarchy", params={"depth": 1}).json()
    assert [task["depth"] for task in shallow["tasks"]] == [0, 1]
    assert code(ada.get(f"/tasks/{uuid4()}/hierarchy")) == (404, "NOT_FOUND")


# -- entity tags


def test_an_etag_saves_the_answer(ada: httpx.Client) -> None:
    made = ada.post("/tasks", json={"title": "tagged"})
    path, tag = f"/tasks/{made.json()['id']}", made.headers["etag"]
    assert ada.get(path).headers["etag"] == tag
    same = ada.get(path, headers={"if-none-match": f'"x", {tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert ada.get(path, headers={"if-none-match": '"x"'}).status_code == 200


def test_an_etag_keeps_from_changing_what_has_changed(ada: httpx.Client) -> None:
    made = ada.post("/tasks", json={"title": "tagged"})
    path, old = f"/tasks/{made.json()['id']}", made.headers["etag"]
    first = ada.patch(path, json={"priority": 1}, headers={"if-match": old})
    assert first.status_code == 200
    new = first.headers["etag"]
    assert new != old
    for stale in (old, '"x"', f"W/{new}"):
        answer = ada.patch(path, json={"priority": 2}, headers={"if-match": stale})
        assert code(answer) == (412, "PRECONDITION_FAILED")
        assert code(ada.delete(path, headers={"if-match": stale})) == (412, "PRECONDITION_FAILED")
    assert ada.get(path).json()["priority"] == 1
    assert code(ada.delete(f"/tasks/{uuid4()}", headers={"if-match": old})) == (404, "NOT_FOUND")
    assert ada.delete(path, headers={"if-match": f"{old}, {new}"}).status_code == 204


def test_of_two_that_change_at_once_one_is_refused(ada: httpx.Client) -> None:
    made = ada.post("/tasks", json={"title": "tagged"})
    path, headers = f"/tasks/{made.json()['id']}", {"if-match": made.headers["etag"]}

    def change(number: int) -> int:
        return ada.patch(path, json={"priority": number}, headers=headers).status_code

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


# -- once only


def test_a_repeated_post_makes_nothing_again(api: Api, ada: httpx.Client, ben: httpx.Client) -> None:
    headers, body = {"idempotency-key": str(uuid4())}, {"title": "once", "tags": ["a"], "priority": 3}
    first = ada.post("/tasks", json=body, headers=headers)
    again = ada.post("/tasks", content=json.dumps(body, indent=3, sort_keys=True), headers={
        **headers, "content-type": "application/json",
    })  # fmt: skip
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert first.headers["etag"] == again.headers["etag"]
    assert [each.headers["idempotency-replayed"] for each in (first, again)] == ["false", "true"]
    other = ada.post("/tasks", json={**body, "title": "twice"}, headers=headers)
    assert code(other) == (422, "VALIDATION_ERROR")
    assert code(ada.post("/workflows", json={"name": "once"}, headers=headers))[0] == 422
    theirs = ben.post("/tasks", json=body, headers=headers)
    assert theirs.json()["created_by"] == "ben@example.com"


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


def test_what_failed_can_be_tried_again(ada: httpx.Client) -> None:
    headers = {"idempotency-key": str(uuid4())}
    body = {"task_id": str(uuid4()), "agent_type": "codegen"}
    assert code(ada.post("/executions", json=body, headers=headers)) == (409, "CONFLICT")
    body["task_id"] = make(ada)["id"]
    assert ada.post("/executions", json=body, headers=headers).status_code == 201


def test_a_key_is_forgotten_after_a_day(api: Api, ada: httpx.Client) -> None:
    headers = {"idempotency-key": str(uuid4())}
    first = ada.post("/tasks", json={"title": "once"}, headers=headers)
    api.execute(
        "UPDATE taskmaster.idempotency_keys SET expires_at = now() - interval '1 second' WHERE key = %s",
        (headers["idempotency-key"],),
    )
    again = ada.post("/tasks", json={"title": "another"}, headers=headers)
    assert again.status_code == 201 and again.json()["id"] != first.json()["id"]
    for bad in ("", "x" * 256, "with space"):
        assert ada.post("/tasks", json={"title": "x"}, headers={"idempotency-key": bad}).status_code == 422
