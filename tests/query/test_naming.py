"""Where the names of prepared statements stand in a text."""

from __future__ import annotations

import pytest

from proxy.query.naming import DEALLOCATE, DEALLOCATE_ALL, EXECUTE, PREPARE, find_names

ONE = [
    ("PREPARE a AS SELECT 1", PREPARE, "a"),
    ("prepare /* b */ A (int, text[]) as select execute from b", PREPARE, "a"),
    ('PREPARE "A ""b""" AS SELECT 1', PREPARE, 'A "b"'),
    ("PREPARE transaction AS SELECT 'x'", PREPARE, "transaction"),
    ("EXECUTE a", EXECUTE, "a"),
    ("EXECUTE a (1, 'execute b', (SELECT 2))", EXECUTE, "a"),
    ("EXECUTE execute", EXECUTE, "execute"),
    ("EXPLAIN EXECUTE a(1)", EXECUTE, "a"),
    ("EXPLAIN ANALYZE VERBOSE EXECUTE a(1)", EXECUTE, "a"),
    ("EXPLAIN (ANALYZE, FORMAT json) EXECUTE a(1)", EXECUTE, "a"),
    ("CREATE TABLE execute AS EXECUTE a(1) WITH NO DATA", EXECUTE, "a"),
    ("CREATE TEMP TABLE IF NOT EXISTS s.t (x, y) WITH (fillfactor=10) AS EXECUTE a", EXECUTE, "a"),
    ("EXPLAIN ANALYZE CREATE TABLE t AS EXECUTE a", EXECUTE, "a"),
    ("DEALLOCATE a", DEALLOCATE, "a"),
    ("DEALLOCATE PREPARE a", DEALLOCATE, "a"),
    ("DEALLOCATE prepare", DEALLOCATE, "prepare"),
    ("DEALLOCATE ALL", DEALLOCATE_ALL, "all"),
    ("DEALLOCATE PREPARE ALL", DEALLOCATE_ALL, "all"),
    ('DEALLOCATE "all"', DEALLOCATE, "all"),
    ("EXECUTE " + "é" * 40, EXECUTE, "é" * 31),
]

NONE = [
    "PREPARE TRANSACTION 'x'",
    "SELECT execute FROM t",
    "EXPLAIN SELECT 1 AS execute",
    "CREATE TABLE t AS SELECT 1 AS execute",
    "CREATE TRIGGER x BEFORE INSERT ON t EXECUTE FUNCTION f()",
    "-- EXECUTE a\nSELECT 1",
]


@pytest.mark.parametrize(("text", "verb", "name"), ONE)
def test_the_name_is_found(text: str, verb: int, name: str) -> None:
    sql = text.encode()
    (site,) = find_names(sql, 1) or []
    assert (site.verb, site.name.decode(), site.statement) == (verb, name, 0)
    found = sql[site.start : site.end].decode()
    assert found.lower().removeprefix('"').replace('""', '"').startswith(name.lower())


@pytest.mark.parametrize("text", NONE)
def test_nothing_else_is_taken_for_a_name(text: str) -> None:
    assert find_names(text.encode(), 1) == []


def test_each_statement_has_its_own() -> None:
    sql = b"; PREPARE a AS SELECT ';'; SELECT 1;; EXECUTE a ; DEALLOCATE a -- done"
    sites = find_names(sql, 4)
    assert sites is not None
    assert [(site.verb, site.statement) for site in sites] == [(PREPARE, 0), (EXECUTE, 2), (DEALLOCATE, 3)]
    assert sql[sites[0].statement_start : sites[0].statement_end] == b"PREPARE a AS SELECT ';'"


@pytest.mark.parametrize("text", ["EXECUTE a; SELECT 1", 'EXECUTE U&"a"', "EXECUTE a; SELECT 'x"])
def test_what_is_unclear_is_told(text: str) -> None:
    assert find_names(text.encode(), 1) is None
