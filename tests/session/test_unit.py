"""What the messages of a unit deserve together."""

from __future__ import annotations

from proxy.errors import InsufficientPermissions
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import Intent
from proxy.session.unit import Message, Unit
from proxy.wire.codes import FE_BIND, FE_EXECUTE, FE_PARSE, FE_SYNC
from proxy.wire.reply import BIND, EXECUTE, FORWARD, PARSE, SYNC

INTENTS = IntentCache(FunctionCatalog.builtin(), 16384)


def intent(sql: str) -> Intent:
    return INTENTS.lookup(sql.encode())


def using(*texts: str) -> Unit:
    unit = Unit()
    for sql in texts:
        unit.uses(intent(sql))
    return unit


def a_message(code: int, owed: int) -> Message:
    return Message(code, owed, b"x" * 30, 10, 30, None)


def test_messages_keep_their_order_and_are_forwarded() -> None:
    unit = Unit()
    messages = [a_message(FE_PARSE, PARSE), a_message(FE_BIND, BIND), a_message(FE_SYNC, SYNC)]
    for each in messages:
        unit.add(each)
        assert each.mode == FORWARD
    found = []
    at = unit.first
    while at is not None:
        found.append(at)
        at = at.following
    assert found == messages and unit.last is messages[-1]
    assert unit.length == 3 and unit.bytes == 60


def test_the_first_statement_that_is_not_proven_to_read_decides() -> None:
    read, write = "SELECT 1", "INSERT INTO t VALUES (1)"
    assert using(read, write, "DELETE FROM t").intent is intent(write)
    assert using(write, read).intent is intent(write)
    assert using(read, "SELECT 2").intent is intent(read)


def test_only_reads_leave_it_reading_only() -> None:
    assert using("SELECT 1", "SELECT 2").reads_only
    assert not using("SELECT 1", "BEGIN").reads_only


def test_it_knows_whether_a_transaction_begins_and_ends() -> None:
    def found(*texts: str) -> tuple[bool, bool]:
        unit = using(*texts)
        return unit.begins, unit.ends

    assert found("BEGIN") == (True, False)
    assert found("COMMIT") == (False, True)
    assert found("BEGIN", "INSERT INTO t VALUES (1)", "COMMIT") == (False, True)
    assert found("COMMIT", "BEGIN") == (True, True)


def test_what_leaves_something_behind_is_noted() -> None:
    unit = using("SELECT 1", "LISTEN a", "SET TimeZone = 'UTC'", "RESET ALL", "SELECT unheard_of()")
    assert [each.reason or each.kind for each in unit.special] != []
    assert len(unit.special) == 4


def test_the_first_refusal_counts_and_whether_anything_runs_before_it() -> None:
    for runs in (False, True):
        unit = Unit()
        unit.add(a_message(FE_EXECUTE if runs else FE_BIND, EXECUTE if runs else BIND))
        first, second = a_message(FE_EXECUTE, EXECUTE), a_message(FE_EXECUTE, EXECUTE)
        first.error = second.error = InsufficientPermissions()
        unit.add(first)
        unit.add(second)
        unit.add(a_message(FE_EXECUTE, EXECUTE))
        assert unit.refused is first and unit.runs_before_refused is runs


def test_a_cleared_unit_is_as_new() -> None:
    unit = using("LISTEN a", "BEGIN", "COMMIT")
    refused = a_message(FE_EXECUTE, EXECUTE)
    refused.error = InsufficientPermissions()
    unit.add(a_message(FE_EXECUTE, EXECUTE))
    unit.add(refused)
    unit.ended_by = FE_SYNC
    unit.clear()
    new = Unit()
    names = ("first", "last", "length", "bytes", "intent", "reads_only", "special", "begins", "ends")
    for name in (*names, "ended_by", "refused", "runs_before_refused"):
        assert getattr(unit, name) == getattr(new, name), name


def test_a_long_unit_is_let_go_of() -> None:
    unit = Unit()
    for _ in range(100_000):
        unit.add(Message(FE_SYNC, SYNC, b"", 0, 0, None))
    unit.clear()
    assert unit.first is None
