"""Hosts and logins for each kind of key, and what is refused."""

from __future__ import annotations

from typing import Final

import pytest

from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import Intent
from proxy.query.route import POOLS, choose, pool_problem, refusal

CACHE: Final = IntentCache(FunctionCatalog.builtin(), 16 * 1024)

READ: Final = "SELECT 1"
HOST: Final = "SHOW transaction_read_only"
MAYBE: Final = "SELECT f(1)"
BROKEN: Final = "SELEC 1"
WRITE: Final = "DELETE FROM t"
DDL: Final = "CREATE TABLE t (a int)"
LISTEN: Final = "LISTEN c"
BEGIN: Final = "BEGIN"
READ_ONLY: Final = "BEGIN READ ONLY"

READER: Final = (False, False)
WRITER: Final = (True, False)
ADMIN: Final = (False, True)

REPLICA: Final = ("replica", "readonly")
READER_ON_PRIMARY: Final = ("primary", "readonly")
PRIMARY: Final = ("primary", "primary")
ADMINS: Final = ("primary", "admin")


def intent(text: str) -> Intent:
    return CACHE.lookup(text.encode())


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        (READER, READ, REPLICA),
        (READER, READ_ONLY, REPLICA),
        (READER, HOST, READER_ON_PRIMARY),
        (READER, MAYBE, READER_ON_PRIMARY),
        (READER, BROKEN, READER_ON_PRIMARY),
        (READER, LISTEN, READER_ON_PRIMARY),
        (READER, BEGIN, READER_ON_PRIMARY),
        (READER, WRITE, READER_ON_PRIMARY),
        (READER, DDL, READER_ON_PRIMARY),
        (WRITER, READ, REPLICA),
        (WRITER, READ_ONLY, REPLICA),
        (WRITER, HOST, PRIMARY),
        (WRITER, MAYBE, PRIMARY),
        (WRITER, BROKEN, PRIMARY),
        (WRITER, LISTEN, PRIMARY),
        (WRITER, BEGIN, PRIMARY),
        (WRITER, WRITE, PRIMARY),
        (WRITER, DDL, PRIMARY),
        (ADMIN, READ, ADMINS),
        (ADMIN, READ_ONLY, ADMINS),
        (ADMIN, HOST, ADMINS),
        (ADMIN, BROKEN, ADMINS),
        (ADMIN, WRITE, ADMINS),
        (ADMIN, DDL, ADMINS),
    ],
)
def test_route_without_a_wish(key: tuple[bool, bool], text: str, expected: tuple[str, str]) -> None:
    route = choose(intent(text), *key, "", "", "")
    assert (route.host_role, route.pool) == expected
    assert route.target == ("readonly" if route.host_role == "replica" else "primary")
    assert route.reason


@pytest.mark.parametrize(
    ("key", "text", "asked", "expected"),
    [
        (READER, READ, "primary", READER_ON_PRIMARY),
        (READER, READ, "priority", READER_ON_PRIMARY),
        (READER, READ, "background", READER_ON_PRIMARY),
        (READER, READ, "admin", REPLICA),
        (READER, MAYBE, "readonly", REPLICA),
        (READER, LISTEN, "readonly", READER_ON_PRIMARY),
        (READER, BEGIN, "readonly", REPLICA),
        (WRITER, READ, "primary", PRIMARY),
        (WRITER, READ, "priority", ("primary", "priority")),
        (WRITER, WRITE, "background", ("primary", "background")),
        (WRITER, READ, "readonly", REPLICA),
        (WRITER, MAYBE, "readonly", REPLICA),
        (WRITER, BROKEN, "readonly", REPLICA),
        (WRITER, BEGIN, "readonly", REPLICA),
        (WRITER, HOST, "readonly", REPLICA),
        (WRITER, LISTEN, "readonly", READER_ON_PRIMARY),
        (WRITER, WRITE, "readonly", PRIMARY),
        (WRITER, DDL, "readonly", PRIMARY),
        (WRITER, "INSERT INTO t VALUES (", "readonly", PRIMARY),
        (WRITER, READ, "admin", REPLICA),
        (WRITER, WRITE, "admin", PRIMARY),
        (WRITER, READ, "nonsense", REPLICA),
        (WRITER, WRITE, "nonsense", PRIMARY),
        (ADMIN, READ, "admin", ADMINS),
        (ADMIN, READ, "readonly", REPLICA),
        (ADMIN, WRITE, "readonly", ADMINS),
        (ADMIN, DDL, "primary", PRIMARY),
        (ADMIN, WRITE, "background", ("primary", "background")),
        (ADMIN, READ, "nonsense", ADMINS),
    ],
)
def test_pool_asked_for(key: tuple[bool, bool], text: str, asked: str, expected: tuple[str, str]) -> None:
    for wishes in ((asked, ""), ("", asked), (asked, "priority")):
        route = choose(intent(text), *key, "", *wishes)
        assert (route.host_role, route.pool) == expected


def test_comment_comes_before_session_and_session_before_key() -> None:
    hinted = intent("SELECT 1 /* sluice: pool=background */")
    assert choose(hinted, *WRITER, "", "priority", "primary").pool == "background"
    assert choose(intent(READ), *WRITER, "", "priority", "primary").pool == "priority"
    assert choose(intent(READ), *WRITER, "", "", "primary").pool == "primary"


@pytest.mark.parametrize("text", [READ, MAYBE, WRITE, HOST, BROKEN])
def test_transaction_decides_for_all_that_is_in_it(text: str) -> None:
    assert choose(intent(text), *WRITER, "primary", "", "").pool == "primary"
    assert choose(intent(text), *WRITER, "readonly", "", "").pool == "readonly"
    assert choose(intent(text), *READER, "primary", "", "").host_role == "primary"


@pytest.mark.parametrize("text", [READ, MAYBE, WRITE, DDL, HOST, BROKEN, LISTEN, BEGIN, READ_ONLY])
@pytest.mark.parametrize("asked", ["", *POOLS, "nonsense"])
@pytest.mark.parametrize("transaction", ["", "primary", "readonly"])
def test_invariants(text: str, asked: str, transaction: str) -> None:
    one = intent(text)
    for key in (READER, WRITER, ADMIN):
        route = choose(one, *key, transaction, asked, "")
        assert choose(one, *key, transaction, asked, "") is route
        if key == READER:
            assert route.pool == "readonly"
        if key == WRITER:
            assert route.pool != "admin"
        if route.host_role == "replica":
            assert route.pool == "readonly"
        if route.pool == "readonly" and key != READER and transaction != "readonly":
            assert not one.needs_write
            assert not one.needs_admin


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        (READER, READ, ""),
        (READER, MAYBE, ""),
        (READER, BROKEN, ""),
        (READER, "SELECT pg_advisory_unlock_all(); RESET ALL", ""),
        (READER, "SELECT set_config('jit', 'off', false)", ""),
        (READER, WRITE, "a write permission (DELETE)"),
        (READER, "SELECT nextval('s')", "a write permission (calls nextval)"),
        (READER, DDL, "the permission admin (CREATE TABLE)"),
        (READER, "DO 'x'", "the permission admin (DO)"),
        (READER, "SET ROLE x", "SET ROLE"),
        (READER, "SET sluice.identity = 'x'", "sluice.identity"),
        (WRITER, WRITE, ""),
        (WRITER, "CREATE TEMP TABLE t (a int)", ""),
        (WRITER, DDL, "the permission admin"),
        (WRITER, "DO 'x'", "the permission admin"),
        (WRITER, "SET ROLE x", "SET ROLE"),
        (ADMIN, WRITE, ""),
        (ADMIN, DDL, ""),
        (ADMIN, "DO 'x'", ""),
        (ADMIN, "SET ROLE x", ""),
        (ADMIN, "SET sluice.identity = 'x'", "sluice.identity"),
        (ADMIN, "SET ROLE x; SET sluice.identity = 'x'", "sluice.identity"),
    ],
)
def test_refusal(key: tuple[bool, bool], text: str, words: str) -> None:
    message = refusal(intent(text), *key)
    assert words in message
    assert bool(words) == bool(message)


@pytest.mark.parametrize(
    ("pool", "is_admin", "words"),
    [
        ("", False, ""),
        ("readonly", False, ""),
        ("background", False, ""),
        ("admin", True, ""),
        ("admin", False, "permission admin"),
        ("Readonly", False, 'pool "Readonly" does not exist'),
    ],
)
def test_pool_problem(pool: str, is_admin: bool, words: str) -> None:
    message = pool_problem(pool, is_admin)
    assert words in message
    assert bool(words) == bool(message)
