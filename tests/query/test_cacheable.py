"""Which relations a text reads or changes, and whether its answer may be kept."""

from __future__ import annotations

import pytest

from proxy.query.cache import IntentCache
from proxy.query.facts import CACHE_ON, NO_HINT
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import Intent

ROWS = [
    ("pg_catalog", "count", "i"),
    ("pg_catalog", "now", "s"),
    ("pg_catalog", "random", "v"),
    ("pg_catalog", "nextval", "v"),
    ("pg_catalog", "pg_backend_pid", "s"),
    ("pg_catalog", "inet_client_addr", "s"),
    ("pg_catalog", "current_setting", "s"),
    ("app", "peek", "s"),
    ("app", "abs", "v"),
    ("pg_catalog", "abs", "i"),
    ("app", "writes", "v"),
]


def intent(sql: str, safe: tuple[str, ...] = ()) -> Intent:
    return IntentCache(FunctionCatalog.from_rows(ROWS, safe), 16_384).lookup(sql.encode())


KEPT = {
    "SELECT * FROM t": {"t"},
    "TABLE t": {"t"},
    "SELECT now(), current_date, count(*) FROM s.t JOIN u USING (x)": {"t", "u"},
    "SELECT peek(1) FROM ONLY t": {"t"},
    'SELECT * FROM "T", "ta\\ble", "a""b"': {"T", "ta\\ble", 'a"b'},
    'SELECT * FROM U&"\\00e9t\\00e9"': {"été"},
    "WITH q AS (SELECT * FROM t) SELECT * FROM q WHERE a IN (SELECT b FROM u)": {"q", "t", "u"},
    'SELECT \'"relname":"x"\' FROM t': {"t"},
    "SELECT 1 FROM t UNION SELECT 2 FROM u": {"t", "u"},
    "SELECT 1 FROM t;": {"t"},
}


@pytest.mark.parametrize("sql", KEPT)
def test_may_be_kept(sql: str) -> None:
    found = intent(sql)
    assert found.cacheable
    assert set(found.relations) == KEPT[sql]
    assert not found.changes


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "SELECT peek(1)",
        "SELECT random() FROM t",
        "SELECT writes() FROM t",
        "SELECT unheard_of() FROM t",
        # Every function of a name has to be stable: which of them is called the text doesn't tell.
        "SELECT abs(a) FROM t",
        "SELECT pg_backend_pid() FROM t",
        "SELECT inet_client_addr() FROM t",
        "SELECT current_setting('a.b') FROM t",
        "SELECT * FROM pg_class",
        "SELECT * FROM pg_catalog.anything",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM sluice.access_log",
        "SELECT * FROM pg_temp.t",
        "SELECT * FROM t FOR SHARE",
        "SELECT * INTO u FROM t",
        "SELECT * FROM t TABLESAMPLE system (1)",
        "SELECT * FROM t; SELECT * FROM u",
        "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d",
        "EXPLAIN SELECT * FROM t",
        "SHOW timezone",
        "COPY t TO STDOUT",
        "PREPARE p AS SELECT * FROM t",
        "DECLARE c CURSOR FOR SELECT * FROM t",
        "EXECUTE p",
        "not SQL",
    ],
)
def test_may_not_be_kept(sql: str) -> None:
    assert not intent(sql).cacheable


def test_a_function_that_the_operator_answers_for_reads_and_may_still_change_its_mind() -> None:
    found = intent("SELECT writes() FROM t", ("writes", "elsewhere"))
    assert (found.kind, found.cacheable) == ("read", False)
    assert not intent("SELECT elsewhere() FROM t", ("elsewhere",)).cacheable


CHANGES: dict[str, set[str] | None] = {
    "INSERT INTO t SELECT * FROM u": {"t", "u"},
    "UPDATE s.t SET a = 1": {"t"},
    "DELETE FROM t USING u": {"t", "u"},
    "MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE": {"t", "u"},
    "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d": {"t", "d"},
    "EXPLAIN ANALYZE DELETE FROM t": {"t"},
    "COPY t FROM STDIN": {"t"},
    "TRUNCATE t, u": {"t", "u"},
    "REFRESH MATERIALIZED VIEW m": {"m"},
    "SELECT 1 FROM v; INSERT INTO t VALUES (1)": {"t", "v"},
    "PREPARE p AS INSERT INTO t VALUES (1)": {"t"},
    # What they change the text doesn't tell.
    "TRUNCATE t CASCADE": None,
    "CALL p()": None,
    "DO 'BEGIN END'": None,
    "SELECT writes()": None,
    "SELECT unheard_of() FROM t": None,
    "INSERT INTO t VALUES (writes())": None,
    "CREATE TABLE t (a int)": None,
    "CREATE TABLE t AS SELECT 1": None,
    "ALTER TABLE t ADD b int": None,
    "DROP TABLE t": None,
    "GRANT SELECT ON t TO x": None,
    "COMMIT PREPARED 'x'": None,
    "not SQL": None,
    "INSERT INTO t VALUES (1); not SQL": None,
}


@pytest.mark.parametrize("sql", CHANGES)
def test_what_a_text_may_change(sql: str) -> None:
    found = intent(sql)
    named = CHANGES[sql]
    assert found.changes
    assert found.unseen == (named is None)
    if named is not None:
        assert set(found.relations) == named


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN",
        "COMMIT",
        "SET a.b = 1",
        "RESET ALL",
        "LISTEN x",
        "NOTIFY x",
        "SELECT nextval('s')",
        "DEALLOCATE ALL",
    ],
)
def test_what_changes_no_relation(sql: str) -> None:
    assert not intent(sql).changes


def test_more_relations_than_are_told_apart() -> None:
    many = ", ".join(f"t{number}" for number in range(101))
    found = intent(f"SELECT 1 FROM {many}")
    assert (found.cacheable, found.relations, found.changes) == (False, (), False)
    found = intent(f"DELETE FROM t USING {many}")
    assert (found.relations, found.unseen, found.changes) == ((), True, True)


def test_what_was_refused_as_a_read_may_change_everything() -> None:
    found = intent("SELECT * FROM t")
    found.refuted("25006")
    assert (found.changes, found.unseen) == (True, True)


@pytest.mark.parametrize(
    ("comment", "seconds"),
    [
        ("", NO_HINT),
        ("/* sluice: cache=30s */", 30.0),
        ("-- sluice: cache = 1.5m", 90.0),
        ("/* sluice: pool=readonly cache='250ms' */", 0.25),
        ("/* sluice: cache=2h pool=readonly */", 7200.0),
        ("/* sluice: cache=on */", CACHE_ON),
        ("/* sluice: cache=OFF */", 0.0),
        ("/* sluice: cache=0s */", 0.0),
        ("/* sluice: cache=banana */", NO_HINT),
        ("/* sluice: cache=30 */", NO_HINT),
        ("/* cache=30s */", NO_HINT),
    ],
)
def test_what_a_comment_asks_for(comment: str, seconds: float) -> None:
    assert intent(f"SELECT * FROM t {comment}").cache_hint == seconds


def test_texts_that_differ_in_it_alone_are_told_apart() -> None:
    cache = IntentCache(FunctionCatalog.from_rows(ROWS), 16_384)
    texts = {f"SELECT * FROM t WHERE a = 1 /* sluice: cache={each} */": each for each in ("1s", "2s", "off")}
    for _ in range(2):
        assert [cache.lookup(text.encode()).cache_hint for text in texts] == [1.0, 2.0, 0.0]
