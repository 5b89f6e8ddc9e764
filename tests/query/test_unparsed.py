"""What the tokens of a text tell where it isn't parsed."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.query.unparsed import MAX_LEXED, lex


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT 1", {"needs_write": False, "needs_admin": False, "statements": 1}),
        ("", {"statements": 1}),
        ("SELECT 1; SELECT 2;", {"statements": 2}),
        ("INSERT INTO t VALUES ('x", {"needs_write": True}),
        ("SELECT 1; DELETE FROM t", {"needs_write": True}),
        ("WITH a AS (UPDATE t SET b = 1) SELECT 1", {"needs_write": True}),
        ("SELECT 'insert', \"delete\", a AS update", {"needs_write": False}),
        ("COPY t FROM STDIN", {"needs_write": True}),
        ("COPY (SELECT a FROM t) TO STDOUT", {"needs_write": False}),
        ("COPY t TO STDOUT", {"needs_write": False}),
        ("CALL f()", {"needs_write": True}),
        ("DO $$ x $$", {"needs_admin": True, "needs_write": True}),
        ("CREATE TABLE t (a int)", {"needs_admin": True, "pin": ""}),
        ("CREATE LOCAL TEMPORARY TABLE t (a int)", {"needs_write": True, "pin": "temporary table"}),
        ("create or replace temp view v as select 1", {"needs_admin": False, "pin": "temporary table"}),
        ("SELECT 1 INTO TEMP t", {"pin": "temporary table"}),
        ("GRANT a TO b", {"needs_admin": True}),
        ("ALTER ROLE a SUPERUSER", {"refused": "ALTER ROLE"}),
        ("alter user a superuser", {"refused": "ALTER USER"}),
        ("DROP OWNED BY a", {"refused": "DROP OWNED"}),
        ("SET ROLE a", {"refused": "SET ROLE"}),
        ("SET LOCAL ROLE 'a'", {"refused": "SET ROLE"}),
        ("SET ROLE = a", {"refused": "SET ROLE"}),
        ("SET ROLE NONE", {"refused": ""}),
        ("SET SESSION AUTHORIZATION a", {"refused": "SET SESSION AUTHORIZATION"}),
        ("SET SESSION AUTHORIZATION DEFAULT", {"refused": ""}),
        ("SET sluice.identity = 'x'", {"refused_for_admin": True, "settings": {"sluice.identity": None}}),
        ('SET "sluice"."identity" = \'x\'', {"refused_for_admin": True}),
        ('SET "sluice.identity" = \'x\'', {"refused_for_admin": True}),
        ("SET SESSION sluice.pool = 'x'", {"refused": ""}),
        ("SELECT set_config('sluice.identity', 'x", {"refused_for_admin": True, "pin": "unseen settings"}),
        ("SELECT pg_catalog.set_config ( 'Sluice.Identity', 'x", {"refused_for_admin": True}),
        ("SELECT set_config('a.b', 'x", {"refused": "", "pin": "unseen settings"}),
        ("SET a.b.c = 1", {"settings": {"a.b.c": None}}),
        ("SET LOCAL a = 1", {"settings": {}}),
        ("SET SESSION a = 1", {"settings": {"a": None}}),
        ("SET TIME ZONE 'UTC'", {"settings": {"timezone": None}}),
        ("SET TRANSACTION READ ONLY", {"settings": {}}),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", {"settings": {}}),
        ("SET CONSTRAINTS ALL DEFERRED", {"settings": {}}),
        ("RESET a.b", {"settings": {"a.b": None}}),
        ("RESET ALL", {"settings": {"all": None}}),
        ("DISCARD ALL", {"settings": {"all": None}}),
        ("SET session_replication_role = replica", {"refused": "session_replication_role"}),
        ("BEGIN; SELECT 1", {"begins": "read write", "ends": False}),
        ("START TRANSACTION READ ONLY", {"begins": "read write"}),
        ("BEGIN; COMMIT", {"begins": "", "ends": True}),
        ("END", {"ends": True}),
        ("PREPARE TRANSACTION 'x'", {"ends": True, "pin": ""}),
        ("PREPARE a AS SELECT 1", {"ends": False, "pin": "prepare"}),
        ("LISTEN a", {"pin": "listen"}),
        ("LOAD 'a'", {"pin": "load", "lasting": True}),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", {"pin": "hold cursor"}),
        ("DECLARE c CURSOR FOR SELECT hold", {"pin": ""}),
        ("SELECT pg_advisory_lock(1)", {"pin": "advisory lock"}),
        ("SELECT pg_try_advisory_lock_shared(1)", {"pin": "advisory lock"}),
        ("SELECT pg_advisory_xact_lock(1)", {"pin": ""}),
        ("SELECT setseed(1)", {"pin": "setseed", "lasting": True}),
        ("SELECT dblink_connect('x')", {"pin": "dblink", "lasting": True}),
        ("/* LISTEN a */ SELECT '; SET ROLE x; '", {"pin": "", "refused": "", "statements": 1}),
        ("SELECT é, 'é'; SET ROLE x", {"statements": 2, "refused": "SET ROLE"}),
    ],
)  # fmt: skip
def test_tokens_tell(text: str, expected: dict[str, Any]) -> None:
    facts = lex(text.encode(), "parse error")
    found = {name: getattr(facts, name) for name in expected}
    found["refused"] = facts.refused.removesuffix(" needs an API key with the permission admin")
    assert found == {"refused": found["refused"], **expected}
    assert facts.kind == "unknown"
    assert facts.unclean == "not parsed"
    assert facts.literal_dependent


@pytest.mark.parametrize(
    "behind",
    [
        "BEGIN READ WRITE",
        "begin read /* */ write",
        "SET default_transaction_read_only = off",
        'SET "transaction_read_only" TO 0',
        "SELECT Set_Config('default_transaction_read_only', 'off', false)",
        "SELECT set_config /**/ ( /**/ 'default_' || 'transaction_read_only', 'off', false)",
        "SELECT set_config(E'default_transaction\\x5fread_only', 'off', false)",
        "SELECT set_config('default_'\n'transaction_read_only', 'off', false)",
        "SELECT set_config($1, 'off', false)",
        "SELECT set_config(name, 'off', false)",
        'SET U&"transaction\\005fread_only" = off',
    ],
)
def test_what_may_leave_read_only_needs_a_key_that_may_write_wherever_it_stands(behind: str) -> None:
    for text in (behind, f"SELECT '{'x' * MAX_LEXED}'; {behind}", f"/* {'x' * (MAX_LEXED - 10)} */ {behind}"):
        assert lex(text.encode(), "long").needs_write
    assert lex(f"{';' * 20}{'SELECT 1;' * 600}{behind}".encode(), "long").needs_write


def test_long_read_needs_no_key_that_may_write() -> None:
    ids = ", ".join(str(number) for number in range(8_000))
    assert not lex(b"SELECT set_config('app.tenant', 'x', true)", "LATIN1").needs_write
    assert not lex(f"SELECT a FROM t WHERE id IN ({ids}) AND b = 'read only'".encode(), "long").needs_write


def test_only_the_beginning_is_looked_at() -> None:
    text = b"SELECT '" + b"x" * MAX_LEXED + b"'; SET ROLE x"
    assert lex(text, "long").refused == ""
    assert lex(b"SET ROLE x; " + text, "long").refused != ""
