"""Statements over the HTTP API of a real proxy: typed rows, limits, errors, and that they are as any other client's."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.integration.apis import WRITER, Api, code, make
from tests.integration.support import wait_until

pytest_plugins = ["tests.integration.tasksapi"]

HOUR = "at > now() - interval '1 hour'"


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
