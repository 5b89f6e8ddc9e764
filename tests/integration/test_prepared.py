"""Prepared statements through a pool of two whose connections others use in between: each answer is PostgreSQL's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import pq

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Login, Proxy

Step = tuple[str, ...]


def q(sql: str) -> Step:
    """Send a simple query."""
    return "query", sql


def x(sql: str, *values: str) -> Step:
    """Send Parse, Bind, Describe, Execute of the unnamed statement."""
    return "unnamed", sql, *values


def p(name: str, sql: str) -> Step:
    """Prepare a named statement."""
    return "prepare", name, sql


def e(name: str, *values: str) -> Step:
    """Execute a named statement."""
    return "execute", name, *values


def d(name: str) -> Step:
    """Describe a named statement."""
    return "describe", name


def ddl(sql: str) -> Step:
    """Change a table past the proxy."""
    return "ddl", sql


SCRIPTS: dict[str, list[Step]] = {
    "prepared by SQL": [
        q("PREPARE a AS SELECT name FROM {t} WHERE id = 1"),
        q("EXECUTE a"),
        x("EXECUTE a"),
        e("a"),
        d("a"),
        q("PREPARE b (integer, text) AS SELECT $1 + 1, $2 || 'x'"),
        q("EXECUTE b (1 + 1, upper('y'))"),
        x("EXECUTE b (40, NULL)"),
        e("b", "6", "z"),
        q("PREPARE c AS INSERT INTO {t} VALUES ($1, $2) RETURNING id"),
        q("EXECUTE c (10, 'ten')"),
        q("PREPARE D AS SELECT 1"),
        q('EXECUTE "d"'),
        q('EXECUTE "D"'),
        q('PREPARE "D" AS SELECT 2'),
        q("EXECUTE d"),
        q('EXECUTE "D"'),
    ],
    "prepared by the protocol": [
        p("a", "SELECT name FROM {t} WHERE id = $1"),
        q("EXECUTE a (1)"),
        x("EXECUTE a (2)"),
        q("PREPARE a AS SELECT 1"),
        x("PREPARE a AS SELECT 1"),
        q("DEALLOCATE a"),
        e("a", "1"),
        x("PREPARE a AS SELECT 2"),
        p("a", "SELECT 3"),
        e("a"),
        x("DEALLOCATE a"),
        x("DEALLOCATE a"),
        q("DEALLOCATE nothing"),
        x("EXECUTE nothing"),
        p("a", "SELECT 4"),
        p("b", "SELECT 5"),
        x("DEALLOCATE ALL"),
        e("a"),
        q("EXECUTE b"),
        q("DEALLOCATE PREPARE ALL"),
    ],
    "a statement that calls another": [
        q("PREPARE a AS SELECT 1"),
        p("call", "EXECUTE a"),
        d("call"),
        e("call"),
        q("DEALLOCATE a"),
        e("call"),
        q("PREPARE a AS SELECT 'other', 2"),
        e("call"),
        p("make", "PREPARE made AS SELECT 3"),
        e("make"),
        e("make"),
        e("made"),
        p("drop", "DEALLOCATE made"),
        e("drop"),
        e("drop"),
        e("made"),
    ],
    "errors": [
        q("PREPARE a AS SELECT nothing FROM {t}"),
        q("PREPARE a_longer_name_than_others AS SELECT nothing"),
        x("PREPARE a AS SELECT nothing"),
        q("EXECUTE a"),
        q("PREPARE a (integer) AS SELECT $1"),
        q("EXECUTE a"),
        q("EXECUTE a (1, 2)"),
        q("EXECUTE a (1, nothing)"),
        q("EXECUTE a (nothing)"),
        q("EXECUTE a ('x')"),
        x("EXECUTE a (true)"),
        q("EXECUTE a (1 / 0)"),
        q("PREPARE a AS"),
        q("EXECUTE"),
        q("PREPARE é AS SELECT é"),
        q("EXECUTE a (2)"),
    ],
    "inside other statements": [
        q("PREPARE a AS SELECT * FROM {t} WHERE id < 0"),
        q("EXPLAIN (COSTS OFF) EXECUTE a"),
        x("EXPLAIN (COSTS OFF) EXECUTE a"),
        q("EXPLAIN (COSTS OFF) EXECUTE nothing"),
        q("CREATE TEMPORARY TABLE copied AS EXECUTE a"),
        q("SELECT count(*) FROM copied"),
        q("CREATE TEMPORARY TABLE copied AS EXECUTE a"),
        x("CREATE TEMPORARY TABLE again AS EXECUTE a WITH NO DATA"),
    ],
    "several statements in one text": [
        q("PREPARE a AS SELECT 1; EXECUTE a; DEALLOCATE a; PREPARE a AS SELECT 2; EXECUTE a"),
        e("a"),
        q("DEALLOCATE a; PREPARE b AS SELECT 3; SELECT 1 / 0; PREPARE c AS SELECT 4"),
        e("a"),
        e("b"),
        e("c"),
        q("PREPARE c AS SELECT 'é', 5; EXECUTE c; EXECUTE c (1); EXECUTE nothing"),
        q("EXECUTE c; DEALLOCATE ALL; EXECUTE c"),
        e("b"),
        q("PREPARE b AS SELECT 1; PREPARE b AS SELECT 2"),
        e("b"),
    ],
    "transactions": [
        q("BEGIN"),
        q("PREPARE a AS SELECT count(*) FROM {t}"),
        q("EXECUTE a"),
        q("ROLLBACK"),
        q("EXECUTE a"),
        q("BEGIN"),
        q("DEALLOCATE a"),
        q("SELECT 1 / 0"),
        q("PREPARE b AS SELECT 1"),
        q("EXECUTE a"),
        x("DEALLOCATE ALL"),
        q("ROLLBACK"),
        q("EXECUTE a"),
        q("EXECUTE b"),
        q("BEGIN; PREPARE c AS SELECT 7"),
        x("EXECUTE c"),
        q("EXECUTE c; COMMIT"),
        e("c"),
    ],
    "DISCARD": [
        q("PREPARE a AS SELECT 1"),
        p("b", "SELECT 2"),
        q("DISCARD PLANS"),
        e("a"),
        q("EXECUTE b"),
        x("DISCARD ALL"),
        e("a"),
        q("EXECUTE b"),
        p("a", "SELECT 3"),
        q("DISCARD ALL"),
        p("a", "SELECT 4"),
        e("a"),
        q("RESET ALL"),
        e("a"),
    ],
    "literals that depend on settings": [
        q("SET TimeZone = 'Asia/Tokyo'"),
        p("a", "SELECT extract(epoch FROM '2026-01-01 00:00'::timestamptz)"),
        q("PREPARE b AS SELECT extract(epoch FROM '2026-01-01 00:00'::timestamptz), now() > '2020-01-01'"),
        q("SET TimeZone = 'UTC'"),
        e("a"),
        e("b"),
        q("EXECUTE a"),
        p("c", "SELECT extract(epoch FROM '2026-01-01 00:00'::timestamptz)"),
        e("c"),
        q("BEGIN"),
        q("SET LOCAL TimeZone = 'Asia/Tokyo'"),
        e("c"),
        q("EXECUTE a"),
        q("EXECUTE b"),
        q("SHOW TimeZone"),
        q("COMMIT"),
        q("SHOW TimeZone"),
        e("a"),
    ],
    "tables that change": [
        p("a", "SELECT * FROM {t} ORDER BY 1"),
        e("a"),
        ddl("ALTER TABLE {t} ADD COLUMN added integer DEFAULT 5"),
        p("b", "SELECT * FROM {t} ORDER BY 1"),
        e("b"),
        p("c", "SELECT id FROM {t} ORDER BY 1"),
        e("c"),
        ddl("ALTER TABLE {t} DROP COLUMN added"),
        p("d", "SELECT * FROM {t} ORDER BY 1"),
        d("d"),
        e("d"),
        e("c"),
        x("SELECT * FROM {t} ORDER BY 1"),
    ],
    "the same again and again": [
        x("SELECT * FROM {t} WHERE id = $1", "1"),
        x("SELECT * FROM {t} WHERE id = $1", "2"),
        x("SELECT * FROM {t} WHERE id = $1", "one"),
        x("SELECT * FROM {t} WHERE id = $1"),
        x("SELECT * FROM {t} WHERE id = $1", "1"),
        ddl("ALTER TABLE {t} ADD COLUMN added integer DEFAULT 5"),
        x("SELECT * FROM {t} WHERE id = $1", "1"),
        x("SELECT * FROM {t} WHERE id = $1", "1"),
        ddl("ALTER TABLE {t} ALTER COLUMN id TYPE text"),
        x("SELECT * FROM {t} WHERE id = $1", "one"),
        x("SELECT * FROM {t} WHERE id = $1", "1"),
        q("SELECT id FROM {t} ORDER BY 1"),
        x("SELECT * FROM {t} WHERE id = $1", "2"),
        x("SELECT * FROM {t} WHERE 1 / (id::integer - $1) = 1", "1"),
        x("SELECT * FROM {t} WHERE 1 / (id::integer - $1) = 1", "1"),
        q("BEGIN"),
        x("SELECT * FROM {t} WHERE id = $1", "2"),
        ddl("CREATE VIEW {t}_view AS SELECT id FROM {t}"),
        x("SELECT * FROM {t} WHERE id = $1", "2"),
        q("COMMIT"),
        x("SELECT * FROM {t}_view WHERE id = $1", "2"),
        ddl("DROP VIEW {t}_view"),
        x("SELECT * FROM {t}_view WHERE id = $1", "2"),
        x("SELECT * FROM {t} WHERE id = $1", "2"),
        ddl("ALTER TABLE {t} ALTER COLUMN id TYPE integer USING id::integer, DROP COLUMN added"),
        x("SELECT * FROM {t} WHERE id = $1", "2"),
    ],
}


class Interference:
    """Others of the same user and of another, who hold one of the two connections every other time."""

    def __init__(self, logins: list[Login]) -> None:
        self._others = [login.connect(options="-c sluice.pool=background") for login in logins]
        self._turn = 0
        self._holder: psycopg.Connection[Any] | None = None

    def interfere(self) -> None:
        if self._holder is not None:
            self._holder.execute("ROLLBACK")
            self._holder = None
        else:
            self._holder = self._others[self._turn // 2 % len(self._others)]
            self._holder.execute("BEGIN; SELECT 1; PREPARE theirs AS SELECT 'theirs'; DEALLOCATE theirs")
        self._turn += 1

    def close(self) -> None:
        for each in self._others:
            each.close()


@pytest.fixture
def interference(proxy: Proxy, make_key: MakeKey) -> Iterator[Interference]:
    """Give two others; the first is the user whose answers are compared."""
    logins = [proxy.login(*make_key(user=user)) for user in ("tester@example.com", "other@example.com")]
    others = Interference(logins)
    yield others
    others.close()


def told(result: pq.abc.PGresult) -> tuple[Any, ...]:
    """Return what a client can see of one result."""
    rows = [[result.get_value(row, at) for at in range(result.nfields)] for row in range(result.ntuples)]
    columns = [(result.fname(at), result.ftype(at)) for at in range(result.nfields)]
    error = [
        result.error_field(field)
        for field in (
            pq.DiagnosticField.SQLSTATE,
            pq.DiagnosticField.MESSAGE_PRIMARY,
            pq.DiagnosticField.MESSAGE_DETAIL,
            pq.DiagnosticField.STATEMENT_POSITION,
        )
    ]
    return pq.ExecStatus(result.status).name, result.command_status, columns, rows, error


def perform(connection: psycopg.Connection[Any], step: Step, table: str) -> list[tuple[Any, ...]]:
    """Take one step and return every result of it."""
    link = connection.pgconn
    what, *texts = [each.replace("{t}", table).encode() for each in step]
    if what == b"query":
        link.send_query(texts[0])
    elif what == b"unnamed":
        link.send_query_params(texts[0], texts[1:])
    elif what == b"prepare":
        link.send_prepare(texts[0], texts[1])
    elif what == b"execute":
        link.send_query_prepared(texts[0], texts[1:])
    else:
        link.send_describe_prepared(texts[0])
    results = []
    while (result := link.get_result()) is not None:
        results.append(told(result))
    return results


def run(
    login: Login,
    script: list[Step],
    table: str,
    installation: Installation,
    interference: Interference | None,
    **options: str,
) -> list[tuple[Step, list[tuple[Any, ...]]]]:
    answers = []
    with login.connect(**options) as connection:
        for step in script:
            if interference is not None:
                interference.interfere()
            if step[0] == "ddl":
                installation.execute(step[1].replace("{t}", "public." + table))
            else:
                answers.append((step, perform(connection, step, table)))
    return answers


@pytest.mark.parametrize("interferes", [True, False])
@pytest.mark.parametrize("name", SCRIPTS)
def test_each_answer_is_that_of_a_connection_of_ones_own(
    name: str,
    interferes: bool,
    proxy: Proxy,
    make_key: MakeKey,
    make_table: MakeTable,
    installation: Installation,
    interference: Interference,
) -> None:
    rows = "VALUES (1, 'one'), (2, 'two')"
    table = make_table("id integer, name text", rows)
    direct = run(installation.role("app_rw"), SCRIPTS[name], table, installation, None)
    installation.execute(f"TRUNCATE public.{table}", f"INSERT INTO public.{table} {rows}")
    login = proxy.login(*make_key())
    options = "-c sluice.pool=background"
    others = interference if interferes else None
    through = run(login, SCRIPTS[name], table, installation, others, options=options)
    for ours, theirs in zip(through, direct, strict=True):
        assert ours == theirs
