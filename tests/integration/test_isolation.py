"""Two users over the same server connections: nobody sees, or becomes, the other."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Login, Proxy

ALICE = "alice@example.com"
BOB = "bob@example.com"
PERMISSIONS = ["read:tasks", "write:tasks"]
FORGED = "0" * 64 + "aaaa" + "9999999999" + f"|{BOB}|ctm_000000000000|read:tasks write:tasks"


@pytest.fixture(scope="module")
def narrow(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Give a proxy whose users share one server connection of each pool."""
    one = {"min": 0, "max": 1}
    pools = dict.fromkeys(("primary", "readonly", "priority", "background"), one)
    running = Proxy(installation, tmp_path_factory.mktemp("narrow"), {"databases": {"app": {"pools": pools}}})
    running.start()
    yield running
    running.stop()


@pytest.fixture
def alice(narrow: Proxy, make_key: MakeKey) -> Login:
    return narrow.login(*make_key(PERMISSIONS, ALICE))


@pytest.fixture
def bob(narrow: Proxy, make_key: MakeKey) -> Login:
    return narrow.login(*make_key(PERMISSIONS, BOB))


@pytest.fixture
def notes(make_table: MakeTable, installation: Installation) -> str:
    """Give a table with rows of both, protected by row-level security."""
    table = make_table("owner text DEFAULT sluice.current_user_id(), body text")
    installation.execute(
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY own ON {table} USING (owner = (SELECT sluice.current_user_id()))",
        f"INSERT INTO {table} VALUES ('{ALICE}', 'of alice'), ('{BOB}', 'of bob')",
    )
    installation.replicated()
    return table


def _owners(connection: psycopg.Connection[Any], table: str) -> set[str]:
    return {owner for (owner,) in connection.execute(f"SELECT owner FROM {table}").fetchall()}


def test_each_user_sees_and_changes_the_own_rows_only(alice: Login, bob: Login, notes: str) -> None:
    with alice.connect() as first, bob.connect() as second:
        for _ in range(10):
            assert _owners(first, notes) == {ALICE}
            assert _owners(second, notes) == {BOB}
            first.execute(f"INSERT INTO {notes} (body) VALUES ('more')")
            assert (
                second.execute(f"UPDATE {notes} SET body = 'taken' WHERE owner = %s", (ALICE,)).rowcount == 0
            )
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                second.execute(f"INSERT INTO {notes} VALUES (%s, 'planted')", (ALICE,))
        assert first.execute(f"SELECT count(*) FROM {notes} WHERE body = 'more'").fetchone() == (10,)


def test_the_identity_holds_inside_a_transaction_and_after_its_rollback(
    alice: Login, bob: Login, notes: str
) -> None:
    with alice.connect() as first, bob.connect() as second:
        for statement in ("SELECT pg_current_xact_id()", f"UPDATE {notes} SET body = body"):
            with first.transaction(force_rollback=True):
                first.execute(statement)
                assert _owners(first, notes) == {ALICE}
            with pytest.raises(psycopg.errors.DivisionByZero), second.transaction():
                second.execute(statement)
                assert _owners(second, notes) == {BOB}
                second.execute("SELECT 1/0")
        assert _owners(second, notes) == {BOB}


CALL = f"set_config('sluice.identity', '{FORGED}', false)"
FORGERIES = {
    "SET": f"SET sluice.identity = '{FORGED}'",
    "SET LOCAL in a transaction": f"BEGIN; SET LOCAL sluice.identity = '{FORGED}'; SELECT owner FROM {{t}}",
    "set_config": f"SELECT {CALL}",
    "set_config by its schema": f"SELECT pg_catalog.{CALL}",
    "set_config of a computed name": f"SELECT set_config('sluice' || '.identity', '{FORGED}', false)",
    "set_config in the condition": f"SELECT owner FROM {{t}} WHERE {CALL} > ''",
    "UPDATE pg_settings": f"UPDATE pg_settings SET setting = '{FORGED}' WHERE name = 'sluice.identity'",
    "DO": f"DO $$ BEGIN PERFORM {CALL}; END $$",
    "query_to_xml": f"SELECT query_to_xml($$SELECT {CALL}$$, true, true, '')",
    "a function that runs text": f"SELECT public.run($$SELECT {CALL}$$)",
    "such a function and the rows at once": f"SELECT owner FROM {{t}}, public.run($$SELECT {CALL}$$)",
    "PREPARE and EXECUTE": f"PREPARE f AS SELECT {CALL}; EXECUTE f",
    "an oversized statement": f"SELECT {CALL} /* {'x' * 20000} */",
    "RESET ALL": "RESET ALL",
    "DISCARD ALL": "DISCARD ALL",
    "the admin's role": "SET ROLE sluice_admin",
    "no row security": "SET row_security = off",
    "another search_path": "SET search_path = pg_temp, pg_catalog; SELECT sluice.current_user_id()",
}

# Not permitted; no libxml here; no such setting; and what might pin the pool's only connection.
REFUSALS = ("42501", "0A000", "42704", "53300")


@pytest.fixture(scope="module")
def runner(installation: Installation) -> Iterator[None]:
    """Have a function that runs any text, as careless applications do."""
    installation.execute(
        "CREATE FUNCTION public.run(statement text) RETURNS text LANGUAGE plpgsql"
        " AS 'DECLARE result text; BEGIN EXECUTE statement INTO result; RETURN result; END'",
        "GRANT EXECUTE ON FUNCTION public.run TO PUBLIC",
    )
    installation.replicated()
    yield
    installation.execute("DROP FUNCTION public.run")


@pytest.mark.parametrize("attempt", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_identity_shows_no_row_of_another(
    attempt: str, alice: Login, bob: Login, notes: str, runner: None
) -> None:
    with alice.connect() as first, bob.connect() as second:
        assert _owners(second, notes) == {BOB}
        seen: set[str] = set()
        try:
            cursor = first.execute(attempt.format(t=notes))
            while True:
                seen |= (
                    {str(value) for row in cursor.fetchall() or [] for value in row}
                    if cursor.description
                    else set()
                )
                if not cursor.nextset():
                    break
        except psycopg.Error as refused:
            assert refused.sqlstate in REFUSALS, refused
        assert BOB not in seen
        if first.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            first.execute("ROLLBACK")
        try:
            assert _owners(first, notes) <= {ALICE}
        except psycopg.Error as refused:
            # With row_security off PostgreSQL refuses, and another search_path finds no table.
            assert refused.sqlstate in ("42501", "42P01")
        assert _owners(second, notes) == {BOB}


def test_query_to_xml_is_no_way_in_where_the_server_has_it(
    alice: Login, notes: str, installation: Installation
) -> None:
    with installation.superuser().connect() as connection:
        try:
            connection.execute("SELECT query_to_xml('SELECT 1', true, true, '')")
            has_libxml = True
        except psycopg.errors.FeatureNotSupported:
            has_libxml = False
    with alice.connect() as connection:
        try:
            row = connection.execute(
                f"SELECT query_to_xml('SELECT owner FROM {notes}', true, true, '')::text"
            ).fetchone()
            assert has_libxml
            assert row is not None and ALICE in row[0] and BOB not in row[0]
        except psycopg.errors.FeatureNotSupported:
            assert not has_libxml


def test_a_claim_serves_no_other_connection_and_no_other_login(
    alice: Login, bob: Login, notes: str, installation: Installation
) -> None:
    with bob.connect() as connection:
        row = connection.execute("SELECT current_setting('sluice.identity', true)").fetchone()
    assert row is not None and BOB in row[0]
    for role in ("app_rw", "app_ro", "app_admin"):
        # What a thief of a pool's password could do.
        with installation.role(role).connect() as thief:
            thief.execute("SELECT set_config('sluice.identity', %s, false)", (row[0],))
            assert thief.execute("SELECT sluice.current_user_id()").fetchone() == (None,)
            if role != "app_admin":
                assert _owners(thief, notes) == set()


def test_no_mutation_of_a_claim_holds_on_its_own_connection(
    narrow: Proxy, make_key: MakeKey, installation: Installation, runner: None
) -> None:
    dice = random.Random(4711)
    with narrow.login(*make_key(PERMISSIONS, ALICE)).connect() as connection:
        connection.execute("BEGIN")
        row = connection.execute(
            "SELECT current_setting('sluice.identity'), sluice.current_user_id(), pg_current_xact_id()"
        ).fetchone()
        assert row is not None and row[1] == ALICE
        claims = [_mutated(row[0], dice) for _ in range(300)]
        # The function runs where the claim was made out for; the proxy can't see into it.
        tried = "SELECT public.run(format('SELECT set_config(%L, %L, false)', 'sluice.identity', %s::text))"
        for claim in claims:
            connection.execute(tried.replace("%L", "%%L"), (claim,))
            found = connection.execute("SELECT sluice.current_user_id()").fetchone()
            assert found == ((None,) if claim != row[0] else (ALICE,)), claim
        connection.execute("ROLLBACK")
        assert connection.execute("SELECT sluice.current_user_id()").fetchone() == (ALICE,)


def _mutated(claim: str, dice: random.Random) -> str:
    at = dice.randrange(len(claim))
    kind = dice.randrange(3)
    letter = dice.choice(string.printable.strip())
    if kind == 0:
        return claim[:at] + letter + claim[at + 1 :]
    if kind == 1:
        return claim[:at] + letter + claim[at:]
    return claim[:at] + claim[at + 1 :]


def test_nothing_of_a_session_is_left_for_the_next(alice: Login, bob: Login, notes: str) -> None:
    with alice.connect() as first:
        first.execute("SET timezone = 'Asia/Tokyo'")
        first.execute("SET search_path = pg_catalog")
        first.execute("SELECT set_config('statement_timeout', '54321', false)")
    with bob.connect() as second:
        for primary in (False, True):
            if primary:
                second.execute("SELECT pg_current_xact_id()")
            assert second.execute("SHOW timezone").fetchone() == ("UTC",)
            assert second.execute("SHOW search_path").fetchone() != ("pg_catalog",)
            assert second.execute("SHOW statement_timeout").fetchone() == ("0",)
        assert _owners(second, notes) == {BOB}


def test_temporary_tables_and_locks_end_with_their_session(proxy: Proxy, make_key: MakeKey) -> None:
    background = "-c sluice.pool=background"
    with proxy.login(*make_key(PERMISSIONS, ALICE)).connect(options=background) as first:
        first.execute("CREATE TEMPORARY TABLE left_behind AS SELECT 'of alice' AS body")
        first.execute("SELECT pg_advisory_lock(815)")
        first.execute("PREPARE left_prepared AS SELECT 'of alice'")
    bob = proxy.login(*make_key(PERMISSIONS, BOB))
    # Both of the pool's connections at the same time: one of them was the other user's.
    with bob.connect(options=background) as second, bob.connect(options=background) as third:
        for connection in (second, third):
            connection.execute("BEGIN")
            with pytest.raises(psycopg.errors.UndefinedTable), connection.transaction():
                connection.execute("SELECT body FROM left_behind")
            with pytest.raises(psycopg.errors.InvalidSqlStatementName), connection.transaction():
                connection.execute("EXECUTE left_prepared")
        assert second.execute("SELECT pg_try_advisory_xact_lock(815)").fetchone() == (True,)


def test_activity_shows_nobody_s_statements(alice: Login, bob: Login) -> None:
    with alice.connect() as first, bob.connect() as second:
        first.execute("SELECT 'a secret of alice', pg_current_xact_id()")
        for view in ("pg_stat_activity", "pg_prepared_statements", "pg_cursors"):
            rows = second.execute(f"SELECT x::text FROM {view} x").fetchall()
            assert not [row for row in rows if "secret of alice" in row[0] or ALICE in row[0]]


async def test_listeners_hear_what_was_meant_for_their_channel_only(alice: Login, bob: Login) -> None:
    async with alice.asyncpg() as first, bob.asyncpg() as second:
        await first.execute("SELECT pg_notify('private', 'of alice')")
        with pytest.raises(asyncpg.PostgresError) as caught:
            # With one connection in the pool none may be pinned: the last one has to stay for the others.
            await second.execute("LISTEN private")
        assert caught.value.sqlstate == "53300"


def test_permissions_are_told_to_the_database(proxy: Proxy, make_key: MakeKey) -> None:
    question = (
        "SELECT sluice.current_user_id(), sluice.has_permission('read:metrics'),"
        " sluice.has_permission('admin')"
    )
    with proxy.login(*make_key(["read:metrics"], "grüße@example.com")).connect() as connection:
        assert connection.execute(question).fetchone() == ("grüße@example.com", True, False)
    with proxy.login(*make_key(["admin"], "root@example.com")).connect() as connection:
        row = connection.execute(f"{question.replace('SELECT', 'SELECT current_user,', 1)}").fetchone()
        assert row == ("app_admin", "root@example.com", False, True)


def test_an_expired_claim_is_renewed(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, notes: str
) -> None:
    hasty = start_proxy({"identity": {"token_ttl": "2s"}})
    with hasty.login(*make_key(PERMISSIONS, ALICE)).connect() as connection:
        for _ in range(3):
            assert _owners(connection, notes) == {ALICE}
            connection.execute("SELECT pg_sleep(1.2)")
