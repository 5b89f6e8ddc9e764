from __future__ import annotations

import pytest

from proxy.observe.recent import (
    LEAST_ROWS,
    MAX_TEXT,
    MOST_DENIALS,
    MOST_TOTALS,
    SLICE_SECONDS,
    SLICES,
    Recent,
)
from proxy.observe.record import AccessBuffer, pool_part, route_part, session_part
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog

AT = 1_763_680_000.0
POOL = pool_part("readonly", "replica1")
ROUTE = route_part("readonly", "read")


class Log:
    """Records as sessions do, and hands over batches as the access log does."""

    def __init__(self, statements: str = "normalized", databases: tuple[str, ...] = ("app",)) -> None:
        self.buffer = AccessBuffer(b"0123456789", statements)
        self.intents = IntentCache(FunctionCatalog.builtin(()), 32_768)
        self.recent = Recent(list(databases), statements)

    def statement(
        self,
        sql: str,
        us: int = 100,
        key: str = "ctm_aaaaaaaaaaaa",
        database: str = "app",
        sqlstate: bytes = b"",
    ) -> None:
        text = sql.encode()
        self.buffer.statement(
            session_part(key, f"{key}@example.com", "192.0.2.7", "psql", database),
            POOL, ROUTE, self.intents.lookup(text), AT, 5, 50, us, 3, 10, 20, False, False, sqlstate, b"", b"", text,
        )  # fmt: skip

    def event(
        self, name: str, user: str = "u", reason: str = "", text: str = "", database: str = "app"
    ) -> None:
        part = session_part("ctm_aaaaaaaaaaaa", user, "192.0.2.7", "psql", database)
        self.buffer.event(name, AT, part, reason, "42501", "CODE", statement=text)

    def flush(self, now: float = AT) -> None:
        number, events = self.buffer.rows, self.buffer.events
        self.recent.add(self.buffer.take(), number, events, now)


def test_statements_add_up_by_fingerprint_the_longest_in_all_first() -> None:
    log = Log()
    for number in range(3):
        log.statement(f"SELECT {number}", us=100 + number)
    log.statement("SELECT a FROM b", us=1000, sqlstate=b"42P01")
    log.flush()
    first, second = log.recent.statements("app", AT)
    assert (first.text, first.about, first.number, first.errors) == ("SELECT a FROM b", "read", 1, 1)
    assert (second.text, second.number, second.errors, second.rows) == ("SELECT $1", 3, 0, 9)
    assert (second.total_us, second.most_us, second.bytes_out) == (303, 102, 60)
    assert len(second.name) == 16


def test_keys_add_up_over_their_sessions() -> None:
    log = Log()
    log.statement("SELECT 1", key="ctm_aaaaaaaaaaaa")
    log.statement("SELECT 1", us=700, key="ctm_bbbbbbbbbbbb")
    log.event("denied", user="x")
    log.flush()
    first, second = log.recent.keys("app", AT)
    assert (first.name, first.about, first.number, first.denied) == (
        "ctm_bbbbbbbbbbbb",
        "ctm_bbbbbbbbbbbb@example.com",
        1,
        0,
    )
    assert (second.name, second.number, second.denied) == ("ctm_aaaaaaaaaaaa", 1, 1)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    log = Log()
    log.statement("SELECT 1")
    log.flush(AT)
    log.statement("SELECT 1")
    log.flush(AT + 70)
    (both,) = log.recent.statements("app", AT + 100)
    assert both.number == 2
    assert log.recent.since("app", AT + 100) == AT
    (later,) = log.recent.statements("app", AT + SLICES * SLICE_SECONDS + 1)
    assert later.number == 1
    assert log.recent.statements("app", AT + 1000) == []


def test_a_clock_that_is_set_back_leaves_no_slice_in_the_future() -> None:
    log = Log()
    log.statement("SELECT 1")
    log.flush(AT + 3600)
    log.statement("SELECT 1")
    log.flush(AT)
    (total,) = log.recent.statements("app", AT)
    assert total.number == 1


def test_databases_are_apart_and_an_unknown_one_counts_for_the_first() -> None:
    log = Log(databases=("app", "other"))
    log.statement("SELECT 1", database="other")
    log.event("login_failed", database="nonsense")
    log.flush()
    assert log.recent.statements("app", AT) == []
    assert len(log.recent.statements("other", AT)) == 1
    assert len(log.recent.denials("app")) == 1
    assert log.recent.denials("other") == []


def test_denials_of_one_kind_are_one_entry_the_newest_first() -> None:
    log = Log()
    for _ in range(3):
        log.event("denied", reason="one", text="DELETE FROM t")
    log.event("denied", reason="two")
    log.event("login")
    log.flush()
    log.event("denied", reason="one", text="DELETE FROM t")
    log.flush()
    first, second = log.recent.denials("app")
    assert (first.number, first.at, first.fields["reason"], first.fields["statement"]) == (
        4,
        AT,
        "one",
        "DELETE FROM t",
    )
    assert (second.number, second.fields["reason"]) == (1, "two")
    assert first.fields["client_addr"] == "192.0.2.7"
    assert (first.fields["sqlstate"], first.fields["code"]) == ("42501", "CODE")


@pytest.mark.parametrize("mode", ["normalized", "full", "none"])
def test_no_literal_is_kept(mode: str) -> None:
    log = Log(mode)
    log.statement("SELECT 'confidential', 8675309 -- confidential")
    log.statement("SELECT 'confidential")
    log.event("denied", text="DELETE FROM t WHERE a = 'confidential'" if mode == "full" else "")
    log.flush()
    texts = [total.text for total in log.recent.statements("app", AT)]
    texts += [denial.fields["statement"] for denial in log.recent.denials("app")]
    assert not any("confidential" in text or "8675309" in text for text in texts)
    assert ("SELECT $1, $2" in texts) == (mode != "none")
    assert ("DELETE FROM t WHERE a = $1" in texts) == (mode == "full")


def test_literals_make_no_statement_of_their_own_where_texts_are_full() -> None:
    log = Log("full")
    for number in range(5):
        log.statement(f"SELECT {number}")
    log.flush()
    (total,) = log.recent.statements("app", AT)
    assert total.number == 5


def test_texts_of_clients_are_safe_and_short() -> None:
    log = Log()
    log.statement('SELECT 1 AS "\u202e\x1b[2J' + "x" * MAX_TEXT + '"')
    log.statement("SELECT\n  a,\n\tb")
    log.event("login_failed", user="\u202euser\n", reason="\x07")
    log.flush()
    texts = {total.text for total in log.recent.statements("app", AT)}
    (fields,) = (denial.fields for denial in log.recent.denials("app"))
    assert "SELECT a, b" in texts
    assert all(text.isprintable() for text in (*texts, *fields.values()))
    assert max(map(len, texts)) <= MAX_TEXT + 20
    assert fields["user_id"] == "\\u202euser\\n"


def test_fingerprints_and_keys_are_bounded_and_the_slowest_stay() -> None:
    log = Log()
    log.statement("SELECT slow FROM t", us=1_000_000)
    now = AT
    for number in range(MOST_TOTALS * 3):
        log.statement(f"SELECT c{number} FROM t", key=f"ctm_{number:012}")
        if number % LEAST_ROWS == LEAST_ROWS - 2:
            log.flush(now)
            now += 0.1
    log.flush(now)
    totals = log.recent.statements("app", now)
    assert MOST_TOTALS <= len(totals) <= 2 * MOST_TOTALS
    assert totals[0].text == "SELECT slow FROM t"
    assert len(log.recent.keys("app", now)) <= 2 * MOST_TOTALS


def test_denials_are_bounded_and_the_newest_stay() -> None:
    log = Log()
    for number in range(MOST_DENIALS + 5):
        log.event("denied", reason=f"reason {number}")
    log.flush()
    denials = log.recent.denials("app")
    assert len(denials) == MOST_DENIALS
    assert denials[0].fields["reason"] == f"reason {MOST_DENIALS + 4}"


def test_of_a_large_batch_a_part_is_read_and_stands_for_all() -> None:
    log = Log()
    log.flush(AT)
    for _ in range(10 * LEAST_ROWS):
        log.statement("SELECT 1", us=10)
    log.event("denied", reason="behind all of them")
    log.flush(AT)
    (total,) = log.recent.statements("app", AT)
    assert log.recent.weight == 10.0
    assert (total.number, total.total_us, total.most_us) == (10 * LEAST_ROWS, 100 * LEAST_ROWS, 10)
    assert [denial.fields["reason"] for denial in log.recent.denials("app")] == ["behind all of them"]
