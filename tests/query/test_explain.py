"""What `pgsluice route` prints."""

from __future__ import annotations

import json
from typing import Final

import pytest

from proxy.query.explain import explain
from proxy.query.functions import FunctionCatalog

BUILTIN: Final = FunctionCatalog.builtin()


def lines(sql: str, *, each: bool = False) -> list[dict[str, object]]:
    return explain(sql, BUILTIN, 16 * 1024, each=each)


def test_first_keys_are_always_there_and_in_order() -> None:
    (line,) = lines("WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d; SELECT 1")
    start = '{"intent": "write", "target": "primary", "reason": "modifying CTE", "statements": 2, "pin": null'
    assert json.dumps(line).startswith(start)


def test_the_rest_is_told_only_where_there_is_something_to_tell() -> None:
    (line,) = lines("SELECT 1")
    assert line == {
        "intent": "read",
        "target": "readonly",
        "reason": "plain SELECT",
        "statements": 1,
        "pin": None,
        "fingerprint": "50fde20626009aba",
        "normalized": "SELECT $1",
    }
    (line,) = lines("LISTEN a; SET ROLE x; SET b.c = 1 /* sluice: pool=priority */")
    assert line["pin"] == "listen"
    assert line["settings"] == ["role", "b.c"]
    assert line["pool"] == "priority"
    assert line["refused"] == "SET ROLE needs an API key with the permission admin"
    (line,) = lines("BEGIN; DO 'x'")
    assert (line["needs"], line["unclean"], line["begins"]) == ("admin", "DO", "read write")


def test_whether_its_result_may_be_kept() -> None:
    assert [line.get("cacheable") for line in lines("TABLE t; SELECT 1; DELETE FROM t", each=True)] == [
        True,
        None,
        None,
    ]
    assert "cacheable" not in lines("TABLE t /* sluice: cache=off */")[0]


@pytest.mark.parametrize(
    ("sql", "reason", "hint"),
    [
        ("SELECT f()", "calls f: app.f is VOLATILE, so it may write", "routing.safe_functions"),
        ("SELECT pure(f())", "calls f: app.f is VOLATILE, so it may write", "declare it STABLE"),
        ("SELECT g()", "calls unknown function g", "no function of that name"),
        ("SELECT lo_get(1)", "calls lo_get, which is not known to only read", None),
        ("SELECT ts_stat('')", "calls ts_stat, which runs SQL that it is given", None),
        ("SELECT nextval('s')", "calls nextval", None),
        ("EXECUTE p", "EXECUTE", "was prepared"),
        ("FETCH c", "FETCH", "where its cursor is"),
        ("SAVEPOINT a", "SAVEPOINT", "where the transaction is"),
        ("COMMIT", "COMMIT", "where the transaction is"),
        ("SET work_mem = 1", "SET work_mem", "takes it along"),
        ("SET sluice.pool = 'background'", "SET sluice.pool", "the proxy answers"),
        ("SHOW transaction_read_only", "asks for transaction_read_only", "answer differently"),
        ("LISTEN a", "LISTEN", "keeps its server connection"),
        ("BEGIN", "BEGIN", "READ ONLY"),
        ("BEGIN READ ONLY", "BEGIN READ ONLY", None),
        ("SELEC", "parse error", "what is wrong"),
        ("SET ROLE x", "SET role", None),
        ("SELECT 1", "plain SELECT", None),
    ],
)
def test_hint_tells_what_the_reason_leaves_open(sql: str, reason: str, hint: str | None) -> None:
    rows = [
        ("app", "f", "v"),
        ("app", "pure", "i"),
        ("pg_catalog", "lo_get", "v"),
        ("pg_catalog", "ts_stat", "v"),
    ]
    (line,) = explain(sql, FunctionCatalog.from_rows(rows), 16 * 1024)
    assert line["reason"] == reason
    assert list(line)[:5] == ["intent", "target", "reason", "statements", "pin"]
    if hint is None:
        assert "hint" not in line
    else:
        assert hint in str(line["hint"])


def test_argument_is_one_unit() -> None:
    assert len(lines("SELECT 1; SELECT 2; DELETE FROM t")) == 1
    assert len(lines("")) == 1


@pytest.mark.parametrize(
    ("sql", "targets"),
    [
        ("SELECT 1; DELETE FROM t;\nSELECT ';'\n;", ["readonly", "primary", "readonly"]),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 1",
            ["primary", "readonly"],
        ),
        ("SELECT 'é'; SELECT 2", ["readonly", "readonly"]),
        ("SELEC 1; SELECT 2", ["primary", "readonly"]),
        ("SELECT 'x", ["primary"]),
        ("", []),
        ("-- nothing", []),
    ],
)
def test_each_statement_is_a_unit_of_its_own(sql: str, targets: list[str]) -> None:
    assert [line["target"] for line in lines(sql, each=True)] == targets


def test_long_text_is_told_as_not_parsed() -> None:
    (line,) = lines("SELECT " + "a, " * 10_000 + "b")
    assert line["intent"] == "unknown"
    assert line["reason"] == "longer than max_parse_bytes"
