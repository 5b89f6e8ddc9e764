"""examples/notes: an application's own schema on core alone, used by two keys through the proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from proxy import migrate
from proxy.resources import sql_directory
from tests.integration.conftest import MakeKey
from tests.integration.databases import quiet
from tests.integration.support import Installation, Login, Proxy

MIGRATIONS = Path(__file__).parents[2] / "examples" / "notes" / "migrations"


@pytest.fixture(scope="module", autouse=True)
def notes(installation: Installation) -> Iterator[None]:
    """Apply the example's migrations for the time of these tests."""
    dsn = installation.cluster.primary.dsn("app")
    assert migrate.run("up", dsn, directory=MIGRATIONS) == 0
    assert migrate.run("up", dsn, directory=MIGRATIONS) == 0
    installation.replicated()
    yield
    directories = (sql_directory(), MIGRATIONS)
    assert migrate.validate(dsn, directories=directories) == []
    undone = migrate.rollback(dsn, "notes@base", directories=directories, backup=None, say=quiet)
    assert undone == ["notes_0002", "notes_0001"]


@pytest.fixture
def login(proxy: Proxy, make_key: MakeKey) -> Callable[..., Login]:
    def made(user: str, *permissions: str) -> Login:
        return proxy.login(*make_key([*permissions] or ["read:notes", "write:notes"], f"{user}@example.com"))

    return made


def titles(login: Login, table: str = "notes.notes") -> list[str]:
    with login.connect() as connection:
        return [row[0] for row in connection.execute(f"SELECT title FROM {table} ORDER BY 1".encode())]


def run(login: Login, statement: str) -> int:
    with login.connect() as connection:
        return connection.execute(statement.encode()).rowcount


def test_each_sees_their_own_and_what_was_shared(
    login: Callable[..., Login], installation: Installation
) -> None:
    alice, bob = login("alice"), login("bob")
    assert run(alice, "INSERT INTO notes.notes (title) VALUES ('for bob'), ('mine')") == 2
    shared = "INSERT INTO notes.shares (note_id, reader) SELECT id, 'bob@example.com' FROM notes.notes"
    assert run(alice, f"{shared} WHERE title = 'for bob'") == 1
    assert run(bob, "INSERT INTO notes.notes (title) VALUES ('bob''s')") == 1
    installation.replicated()
    assert titles(alice) == ["for bob", "mine"]
    assert titles(bob) == ["bob's", "for bob"]

    # Nobody changes, takes or shares another's.
    assert run(bob, "UPDATE notes.notes SET body = 'x' WHERE title = 'for bob'") == 0
    assert run(bob, "DELETE FROM notes.notes WHERE title = 'for bob'") == 0
    assert run(bob, "DELETE FROM notes.shares") == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        run(bob, "INSERT INTO notes.notes (owner, title) VALUES ('alice@example.com', 'x')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
        run(bob, "UPDATE notes.notes SET owner = 'alice@example.com' WHERE title = 'bob''s'")
    with installation.superuser().connect() as superuser:
        row = superuser.execute("SELECT id FROM notes.notes WHERE title = 'mine'").fetchone()
    assert row is not None
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        run(bob, f"INSERT INTO notes.shares (note_id, reader) VALUES ('{row[0]}', 'bob@example.com')")

    # What is put away leaves the view, for whoever may see it.
    assert run(alice, "UPDATE notes.notes SET archived_at = now() WHERE title = 'for bob'") == 1
    installation.replicated()
    assert (titles(alice, "notes.current"), titles(bob, "notes.current")) == (["mine"], ["bob's"])
    assert run(alice, "DELETE FROM notes.shares") == 1
    installation.replicated()
    assert titles(bob) == ["bob's"]


def test_permissions_are_the_keys(login: Callable[..., Login], installation: Installation) -> None:
    carol = login("carol")
    run(carol, "INSERT INTO notes.notes (title) VALUES ('carol''s')")
    installation.replicated()
    assert titles(login("carol", "read:notes")) == ["carol's"]
    assert titles(login("carol", "read:tasks")) == []
    assert titles(login("carol", "write:notes", "read:tasks")) == ["carol's"]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run(login("carol", "read:notes"), "INSERT INTO notes.notes (title) VALUES ('x')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run(login("carol", "write:tasks"), "INSERT INTO notes.notes (title) VALUES ('x')")
    assert "carol's" in titles(login("root", "admin"))
