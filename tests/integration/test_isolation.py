"""Two users over the same server connections, each minding their own business; test_forgery.py has attackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Login, Proxy

ALICE = "alice@example.com"
BOB = "bob@example.com"
PERMISSIONS = ["read:tasks", "write:tasks"]


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


@pytest.mark.long
def test_an_expired_claim_is_renewed(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, notes: str
) -> None:
    hasty = start_proxy({"identity": {"token_ttl": "2s"}})
    with hasty.login(*make_key(PERMISSIONS, ALICE)).connect() as connection:
        for _ in range(3):
            assert _owners(connection, notes) == {ALICE}
            connection.execute("SELECT pg_sleep(1.2)")
