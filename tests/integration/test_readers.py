"""A key that may only read changes nothing: not by any text, in any pool, nor with what it sets before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from psycopg import pq

from tests.integration.grammar import statements
from tests.integration.ground import SCHEMA, digest, execute, unseen_writers, writers
from tests.integration.raw import Raw
from tests.integration.support import Installation, Login, Proxy
from tests.query.corpus import cases
from tests.session.frontend import SYNC, bind, parse, query, run, split
from tests.session.frontend import execute as execute_portal

pytestmark = pytest.mark.long

# What the corpus takes for granted.
_CORPUS: Final = (
    *(
        f"CREATE TABLE {name} (id int, a int, b int, c text, i int, x int, owner text)"
        for name in ("t", "u", "a", "b", "orders", "sessions", "things", "usertable", "pgbench_accounts")
    ),
    *(f"INSERT INTO {name} VALUES (1, 1, 1, 'c', 1, 1, 'o')" for name in ("t", "u", "a", "b", "things")),
    "CREATE SEQUENCE s",
    "CREATE MATERIALIZED VIEW m AS SELECT 1 AS a",
    "CREATE FUNCTION f(int DEFAULT 0) RETURNS int LANGUAGE sql AS 'SELECT ground.record_it(''f'')'",
    "CREATE PROCEDURE p(int) LANGUAGE sql AS 'INSERT INTO ground.ledger (note) VALUES (''p'')'",
)
# With the rights of the superuser who made them, whoever calls: nothing but the transaction's READ ONLY is left.
_DEFINER: Final = (
    "record_it(text)",
    "advance()",
    "rows_of(int)",
    "spoil(int, int)",
    "shout(author)",
    "to_ticket(int)",
    "stamp(int)",
    "keep(int, int)",
    "f(int)",
)


class Reader:
    """Sessions of one key on one proxy, and a look at the primary past it."""

    def __init__(self, proxy: Proxy, login: Login, primary: psycopg.Connection[Any]) -> None:
        self.proxy = proxy
        self.login = login
        self.succeeded = 0
        self._primary = primary
        self._digest = digest(primary)

    def changed(self) -> bool:
        """Tell whether the database is another one than at the last look."""
        before, self._digest = self._digest, digest(self._primary)
        return before != self._digest

    def send(
        self, texts: Iterable[str], *, first: Iterable[str] = (), options: str = "", every: int = 20
    ) -> None:
        """Send each text in both protocols, behind the statements `first`; look behind each few what has changed."""
        connection: psycopg.Connection[Any] | None = None
        sent: list[str] = []
        try:
            for text in texts:
                for extended in (False, True):
                    if connection is None or connection.pgconn.status != pq.ConnStatus.OK:
                        connection = self.connect(options)
                    pgconn = connection.pgconn
                    for statement in first:
                        execute(pgconn, statement)
                    try:
                        self.succeeded += execute(pgconn, text, extended=extended) == ""
                        if pgconn.transaction_status != pq.TransactionStatus.IDLE:
                            execute(pgconn, "COMMIT")
                    except (ConnectionError, psycopg.OperationalError):
                        connection = None
                sent.append(text)
                if len(sent) == every:
                    assert not self.changed(), (first, options, sent)
                    sent = []
            assert not self.changed(), (first, options, sent)
        finally:
            if connection is not None:
                connection.close()

    def connect(self, options: str = "") -> psycopg.Connection[Any]:
        words = f"-c statement_timeout=2000 -c search_path=ground,public {options}"
        return self.login.connect(options=words)


@pytest.fixture(scope="module")
def primary(installation: Installation) -> Iterator[psycopg.Connection[Any]]:
    """Give the superuser's connection to the primary, with the scratch schema in the proxy's database."""
    with installation.superuser().connect() as connection:
        for statement in (*SCHEMA, *_CORPUS):
            connection.execute(statement.encode())
        for function in _DEFINER:
            connection.execute(f"ALTER FUNCTION {function} SECURITY DEFINER".encode())
        connection.execute("GRANT USAGE ON SCHEMA ground TO PUBLIC")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA ground TO PUBLIC")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA ground TO sluice_readwrite")
        connection.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA ground TO sluice_readwrite, sluice_readonly")
        installation.replicated()
        yield connection
        connection.execute("DROP SCHEMA ground CASCADE")


@pytest.fixture(scope="module")
def own_proxy(
    installation: Installation, primary: psycopg.Connection[Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    directory: Path = tmp_path_factory.mktemp("readers")
    running = Proxy(installation, directory, {"access_log": {"sinks": []}})
    running.start()
    yield running
    running.stop()


@pytest.fixture
def reader(own_proxy: Proxy, installation: Installation, primary: psycopg.Connection[Any]) -> Reader:
    key = own_proxy.login(*installation.generate_key("reader@example.com", ["read:tasks"]))
    return Reader(own_proxy, key, primary)


ALL_WRITERS: Final = [*writers(), *(text for _, text in unseen_writers())]
MODES: Final[dict[str, dict[str, Any]]] = {
    "as it comes": {},
    "pool primary by options": {"options": "-c sluice.pool=primary"},
    "pool background by options": {"options": "-c sluice.pool=background"},
    "pool primary by SET": {"first": ["SET sluice.pool = 'primary'"]},
    "pool priority by SET": {"first": ["SET sluice.pool = 'priority'"]},
    "pool readonly by SET": {"first": ["SET sluice.pool = 'readonly'"]},
    "default off": {"first": ["SET default_transaction_read_only = off"]},
    "default off on the primary": {
        "first": ["SET sluice.pool = 'primary'", "SET default_transaction_read_only = off"]
    },
    "characteristics": {
        "first": ["SET sluice.pool = 'primary'", "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"]
    },
    "set_config": {
        "first": [
            "SELECT set_config('default_transaction_read_only', 'off', false)",
            "SELECT 1 FROM txid_current()",
        ]
    },
    "set_config of an expression": {
        "first": [
            "SET sluice.pool = 'primary'",
            "SELECT set_config('default_' || 'transaction_read_only', 'off', false)",
        ]
    },
    "BEGIN": {"first": ["BEGIN"]},
    "BEGIN READ WRITE": {"first": ["BEGIN READ WRITE"]},
    "SET TRANSACTION READ WRITE": {"first": ["BEGIN", "SET TRANSACTION READ WRITE"]},
    "transaction_read_only off": {"first": ["BEGIN", "SET transaction_read_only = off"]},
    "transaction_read_only by set_config": {
        "first": ["BEGIN", "SELECT set_config('transaction_read_only', 'off', true)"]
    },
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_no_way_to_write_is_open(mode: dict[str, Any], reader: Reader) -> None:
    reader.send(ALL_WRITERS, every=1, **mode)


def test_no_comment_opens_one(reader: Reader) -> None:
    for pool in ("primary", "priority", "background", "readonly", "admin"):
        reader.send([f"/* sluice: pool={pool} */ {text}" for text in ALL_WRITERS])


def test_no_text_of_the_corpus_changes_anything(reader: Reader) -> None:
    texts = [case["text"] for case in cases()]
    reader.send(texts)
    # Those that stand for reads mostly work.
    assert reader.succeeded > len(texts) / 3


def test_no_random_statement_changes_anything(reader: Reader) -> None:
    texts: list[str] = []

    @settings(max_examples=250, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(statements())
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    reader.send(texts)
    assert reader.succeeded > len(texts)


def test_what_is_too_long_to_be_parsed_changes_nothing(reader: Reader) -> None:
    for size in (20_000, 70_000):
        padding = f"/* {'x' * size} */ "
        for options in ("", "-c sluice.pool=primary"):
            reader.send([padding + text for text in ALL_WRITERS], options=options)
        for opening in ("BEGIN READ WRITE", "SET default_transaction_read_only = off; COMMIT"):
            reader.send([f"{padding}{opening}; {text}; COMMIT" for text in ALL_WRITERS])


def test_a_key_that_may_write_does_change_it_by_each_of_them(
    own_proxy: Proxy, installation: Installation, primary: psycopg.Connection[Any]
) -> None:
    key = own_proxy.login(*installation.generate_key("writer@example.com", ["read:tasks", "write:tasks"]))
    writing = Reader(own_proxy, key, primary)
    with writing.connect("-c sluice.pool=primary") as connection:
        # The pool's login may not create tables there.
        for text in [text for text in ALL_WRITERS if " INTO more " not in text]:
            assert execute(connection.pgconn, text) == "", text
            assert writing.changed(), text


# What runs the text that it is given, with its caller's rights, may switch READ ONLY off for the transaction behind it.
_RUN: Final = "SELECT ground.run('SET default_transaction_read_only = off')"
_RECORD: Final = "SELECT ground.record_it('x')"
_STEPS: Final = {
    "in one text": [query(f"{_RUN}; COMMIT; {_RECORD}")],
    "in one text, rolled back": [query(f"{_RUN}; ROLLBACK; {_RECORD}")],
    "one after the other": [query(_RUN), query(_RECORD)],
    "pipelined": [query(_RUN) + query(_RECORD)],
    "pipelined in the extended protocol": [run(_RUN) + run(_RECORD)],
    "pipelined behind a transaction": [query("BEGIN") + query(_RUN) + query("COMMIT") + query(_RECORD)],
    "in one unit": [
        b"".join(parse("", sql) + bind() + execute_portal() for sql in (_RUN, "COMMIT", _RECORD)) + SYNC
    ],
    "a query before the Sync": [
        b"".join(parse("", sql) + bind() + execute_portal() for sql in (_RUN, "COMMIT")) + query(_RECORD)
    ],
    "on a connection of its own": [query("LISTEN x"), query(_RUN), query(_RECORD)],
    "pipelined on a connection of its own": [
        query("LISTEN x"),
        query(_RUN) + query(_RECORD) + query(_RECORD),
    ],
    "behind a lock": [query("SELECT pg_advisory_lock(7)"), query(_RUN), query(_RECORD)],
}


@pytest.mark.parametrize("steps", _STEPS.values(), ids=_STEPS.keys())
def test_what_runs_text_opens_none(
    steps: list[bytes], reader: Reader, own_proxy: Proxy, primary: psycopg.Connection[Any]
) -> None:
    primary.execute(
        "CREATE OR REPLACE FUNCTION ground.run(text) RETURNS void LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; END'"
    )
    primary.execute("GRANT EXECUTE ON FUNCTION ground.run TO PUBLIC")
    reader.changed()
    with Raw(own_proxy.port).log_in((reader.login.user, reader.login.password)) as client:
        for step in steps:
            client.send(step)
            kinds_of = [each[:1] for each in split(step)]
            client.until_ready(kinds_of.count(b"Q") + kinds_of.count(b"S"))
    assert not reader.changed()
