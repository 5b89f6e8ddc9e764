"""A scratch database in which everything can be written that a statement may write unseen, and a look at all of it.

What is called a read is run there as the superuser, whom nothing holds back but the transaction's READ ONLY, or nothing
at all: a read that changes something is found by what it changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import psycopg
from psycopg import pq

from proxy.embedded import Server
from proxy.query.cache import IntentCache
from proxy.query.functions import SNAPSHOT_QUERY, FunctionCatalog

MAX_PARSE: Final = 16 * 1024
READ_ONLY_REFUSAL: Final = "25006"

# Where the text doesn't tell that a function is called. The proxy sends again what a server then refuses.
HOLES: Final = {
    "view": re.compile(r"\bnumbered\b"),
    "operator": re.compile(r"##"),
    "cast": re.compile(r"(?:::|\bas )\s*(?:ground\.)?(?:ticket|stamped)\b"),
    "attribute notation": re.compile(r"\.shout\b(?! *\()"),
}
"""How the grammar and sqlsmith write what is known to be unseen."""

SCHEMA: Final = (
    "CREATE SCHEMA ground",
    "SET search_path = ground, public",
    "CREATE TABLE author (id int PRIMARY KEY, name text NOT NULL)",
    "INSERT INTO author VALUES (1, 'Ada'), (2, 'Bo'), (3, 'Cy')",
    "CREATE TABLE book (id int PRIMARY KEY, author_id int REFERENCES author, title text, price numeric)",
    "INSERT INTO book SELECT n, n % 3 + 1, 'title ' || n, n * 1.5 FROM generate_series(1, 8) n",
    "CREATE TABLE ledger (id int GENERATED ALWAYS AS IDENTITY, note text)",
    "CREATE SEQUENCE counter",
    "CREATE MATERIALIZED VIEW prices AS SELECT sum(price) AS total FROM book",
    # Functions that tell what they are.
    "CREATE FUNCTION pure(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1'",
    "CREATE FUNCTION peek(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT count(*)::int + $1 FROM ground.book'",
    "CREATE FUNCTION label(author) RETURNS text LANGUAGE sql STABLE AS 'SELECT $1.name || $1.id'",
    "CREATE FUNCTION record_it(text) RETURNS int LANGUAGE sql VOLATILE"
    " AS 'INSERT INTO ground.ledger (note) VALUES ($1) RETURNING id'",
    "CREATE FUNCTION advance() RETURNS int LANGUAGE plpgsql AS"
    " $$BEGIN RETURN nextval('ground.counter'); END$$",
    "CREATE FUNCTION \"Advance\"() RETURNS int LANGUAGE sql AS 'SELECT ground.advance()'",
    "CREATE FUNCTION rows_of(int) RETURNS SETOF int LANGUAGE sql VOLATILE"
    " AS 'INSERT INTO ground.ledger (note) SELECT ''row'' FROM generate_series(1, $1) RETURNING id'",
    # Under the names of PostgreSQL's own.
    "CREATE FUNCTION current_setting(int) RETURNS text LANGUAGE sql AS 'SELECT ground.record_it(''x'')::text'",
    "CREATE FUNCTION pg_advisory_note(int) RETURNS int LANGUAGE sql AS 'SELECT ground.record_it(''x'')'",
    "CREATE FUNCTION abs(text) RETURNS int LANGUAGE sql AS 'SELECT ground.record_it($1)'",
    # An aggregate is immutable by its row in pg_proc.
    "CREATE FUNCTION keep(int, int) RETURNS int LANGUAGE sql AS 'SELECT ground.record_it(''kept'') + $2'",
    "CREATE AGGREGATE collect(int) (SFUNC = keep, STYPE = int, INITCOND = '0')",
    "CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0')",
    "CREATE PROCEDURE fill() LANGUAGE sql AS 'INSERT INTO ground.ledger (note) VALUES (''called'')'",
    # The holes.
    "CREATE VIEW numbered AS SELECT nextval('ground.counter')::int AS id, name FROM author",
    "CREATE VIEW plain_books AS SELECT b.id, a.name || ': ' || b.title AS title FROM book b JOIN author a"
    " ON a.id = b.author_id",
    "CREATE FUNCTION spoil(int, int) RETURNS int LANGUAGE sql AS 'SELECT ground.record_it(''spoilt'') + $1 + $2'",
    "CREATE OPERATOR ## (LEFTARG = int, RIGHTARG = int, FUNCTION = spoil)",
    "CREATE FUNCTION shout(author) RETURNS text LANGUAGE sql"
    " AS 'SELECT upper($1.name) || ground.record_it(''shouted'')'",
    "CREATE TYPE ticket AS (n int)",
    "CREATE FUNCTION to_ticket(int) RETURNS ticket LANGUAGE sql AS"
    " 'SELECT ROW(ground.record_it(''ticket''))::ground.ticket'",
    "CREATE CAST (int AS ticket) WITH FUNCTION to_ticket(int)",
    "CREATE FUNCTION stamp(int) RETURNS boolean LANGUAGE plpgsql AS"
    " $$BEGIN PERFORM ground.record_it('stamped'); RETURN true; END$$",
    "CREATE DOMAIN stamped AS int CHECK (stamp(VALUE))",
    "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
)

_TABLES: Final = ("author", "book", "ledger", "prices")
_DIGEST: Final = (
    "SELECT "
    + ", ".join(
        f"(SELECT md5(coalesce(string_agg(r::text, ';' ORDER BY r::text), '')) FROM ground.{t} r)"
        for t in _TABLES
    )
    + """,
    (SELECT (last_value, is_called)::text FROM ground.counter),
    (SELECT (last_value, is_called)::text FROM ground.ledger_id_seq),
    (SELECT count(*) FROM pg_class WHERE relnamespace NOT IN
     (SELECT oid FROM pg_namespace WHERE nspname IN ('sluice', 'pg_toast'))),
    (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_type),
    (SELECT count(*) FROM pg_namespace), (SELECT count(*) FROM pg_largeobject_metadata),
    (SELECT count(*) FROM pg_roles), (SELECT count(*) FROM pg_db_role_setting),
    (SELECT count(*) FROM pg_prepared_xacts), (SELECT count(*) FROM pg_replication_slots)"""
)


class Ground:
    """The scratch database on `server`: classifies texts as its proxy would, runs them, and looks what changed."""

    def __init__(self, server: Server, name: str, timeout_ms: int = 1000) -> None:
        with psycopg.connect(server.dsn(), autocommit=True) as maintenance:
            maintenance.execute(f"CREATE DATABASE {name}".encode())
        self._looking = psycopg.connect(server.dsn(name), autocommit=True)
        for statement in SCHEMA:
            self._looking.execute(statement.encode())
        self._running = psycopg.connect(server.dsn(name), autocommit=True)
        self._running.execute(f"SET statement_timeout = {timeout_ms}".encode())
        self._running.execute("SET search_path = ground, public")
        self._running.execute("SET client_min_messages = error")
        rows = self._looking.execute(SNAPSHOT_QUERY.encode()).fetchall()
        self.intents = IntentCache(FunctionCatalog.from_rows(rows), MAX_PARSE)
        self._digest = digest(self._looking)

    def close(self) -> None:
        """Close the connections."""
        self._looking.close()
        self._running.close()

    def is_read(self, text: str) -> bool:
        """Tell whether a replica may have `text`."""
        return self.intents.lookup(text.encode()).target == "readonly"

    def changed(self) -> bool:
        """Tell whether the content is another one than at the last look."""
        before, self._digest = self._digest, digest(self._looking)
        return before != self._digest

    def run(self, text: str) -> str:
        """Run `text` in a transaction of its own, "" or its SQLSTATE is the result."""
        return execute(self._running.pgconn, text)

    def run_read_only(self, text: str) -> str:
        """Run `text` in a READ ONLY transaction."""
        pgconn = self._running.pgconn
        execute(pgconn, "BEGIN READ ONLY")
        state = execute(pgconn, text)
        execute(pgconn, "ROLLBACK")
        return state

    def complaint(self, text: str) -> tuple[str, str]:
        """Run `text`, which was called a read; return what is wrong with that, "" where nothing is, and its SQLSTATE.

        Where no hole is in it, it runs outside a READ ONLY transaction too, and must change nothing there either.
        """
        unseen = holes(text)
        state = self.run_read_only(text)
        if state == READ_ONLY_REFUSAL and not unseen:
            return "refused as a write by a read-only transaction", state
        if self.changed():
            return "changed the database in a read-only transaction", state
        if not unseen:
            state = self.run(text)
            if self.changed():
                return "changed the database", state
        return "", state


def holes(text: str) -> list[str]:
    """Return which of the holes `text` uses."""
    return [name for name, pattern in HOLES.items() if pattern.search(text)]


def digest(connection: psycopg.Connection[Any]) -> tuple[Any, ...]:
    """Return what tells one content of the database from another; the bundled SQL's own isn't looked at."""
    row = connection.execute(_DIGEST.encode()).fetchone()
    assert row is not None
    return tuple(row)


def execute(pgconn: pq.abc.PGconn, text: str, *, extended: bool = False) -> str:
    """Send `text`, take all that comes, and return its SQLSTATE, "" for success."""
    if extended:
        pgconn.send_query_params(text.encode(), None)
    else:
        pgconn.send_query(text.encode())
    state = ""
    while (result := pgconn.get_result()) is not None:
        status = result.status
        if status == pq.ExecStatus.COPY_OUT:
            while pgconn.get_copy_data(0)[0] > 0:
                pass
        elif status == pq.ExecStatus.COPY_IN:
            pgconn.put_copy_end(b"nothing to copy")
        elif status == pq.ExecStatus.FATAL_ERROR:
            code = result.error_field(pq.DiagnosticField.SQLSTATE)
            if code is None:
                raise ConnectionError(f"the server is gone behind {text!r}")
            state = code.decode()
    return state


def writers() -> Iterable[str]:
    """Give one statement for each way to write; each of them does change the database."""
    yield from (
        "INSERT INTO ledger (note) VALUES ('x')",
        "WITH w AS (INSERT INTO ledger (note) VALUES ('x') RETURNING *) SELECT * FROM w",
        "SELECT nextval('counter')",
        "SELECT record_it('x')",
        "SELECT advance()",
        'SELECT "Advance"()',
        "SELECT * FROM rows_of(2)",
        "SELECT current_setting(1)",
        "SELECT pg_advisory_note(1)",
        "SELECT abs('x'::text)",
        "SELECT collect(id) FROM book",
        "SELECT shout(a) FROM author a",
        "SELECT lo_create(0)",
        "SELECT * INTO more FROM book",
        "COPY (INSERT INTO ledger (note) VALUES ('x') RETURNING id) TO STDOUT",
        "EXPLAIN ANALYZE INSERT INTO ledger (note) VALUES ('x')",
        "CALL fill()",
        "SELECT 1; SELECT setval('counter', 99)",
    )


def unseen_writers() -> Iterable[tuple[str, str]]:
    """Give for each hole a statement that writes through it."""
    yield "view", "SELECT * FROM numbered"
    yield "operator", "SELECT 1 ## 2"
    yield "cast", "SELECT (1::ticket).n"
    yield "cast", "SELECT 1::stamped"
    yield "attribute notation", "SELECT (a).shout FROM author a"
    yield "attribute notation", "SELECT a.shout FROM author a"
