"""Endings from outside in each state of a session: vanished clients, revoked keys, a shutdown, idle timeouts."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.raw import Raw
from tests.integration.support import Installation, Proxy, wait_until
from tests.session.frontend import (
    COPY_DONE,
    FLUSH,
    SYNC,
    bind,
    copy_data,
    execute,
    kinds,
    message,
    parse,
    query,
    split,
)

# What is sent, and what is answered to it before the session stands in that state.
_STATES = {
    "idle": (query("SELECT 1"), "T D C ZI"),
    "deferred BEGIN": (query("BEGIN"), "C ZT"),
    "transaction": (query("BEGIN") + query("INSERT INTO {t} VALUES (1)"), "C ZT C ZT"),
    "failed transaction": (
        query("BEGIN") + query("INSERT INTO {t} VALUES (1)") + query("SELECT 1/0"),
        "C ZT C ZT E:22012 ZE",
    ),
    "behind a Flush": (parse("", "INSERT INTO {t} VALUES (1)") + bind() + execute() + FLUSH, "1 2 C"),
    "pinned": (query("LISTEN something"), "C ZI"),
    "query": (query("INSERT INTO {t} SELECT 1 FROM pg_sleep(30)"), ""),
    "pipeline": (
        (parse("", "INSERT INTO {t} VALUES (1)") + bind() + execute()) * 2
        + parse("", "SELECT pg_sleep(30)")
        + bind()
        + execute()
        + SYNC,
        "",
    ),
    "COPY in": (query("COPY {t} FROM STDIN") + copy_data(b"1\n"), "G"),
    "half a message of COPY in": (query("COPY {t} FROM STDIN") + b"d\0\1\0\0" + b"1\n" * 100, "G"),
    "COPY in, extended": (
        parse("", "COPY {t} FROM STDIN") + bind() + execute() + FLUSH + copy_data(b"1\n"),
        "1 2 G",
    ),
    "COPY in, in a transaction": (
        query("BEGIN")
        + query("INSERT INTO {t} VALUES (1)")
        + query("COPY {t} FROM STDIN")
        + copy_data(b"1\n"),
        "C ZT C ZT G",
    ),
    "COPY out": (query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 1000000)) TO STDOUT"), "H d"),
}

_BUSY = (
    "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('app_rw', 'app_ro') AND backend_xmin IS NOT NULL"
    " OR pid IN (SELECT pid FROM pg_locks WHERE locktype = 'transactionid')"
)


def enter(port: int, key: tuple[str, str], table: str, state: str) -> Raw:
    """Return a client whose session is in `state`."""
    client = Raw(port).log_in(key)
    sent, answered = _STATES[state]
    text = b"{t}"
    at = 0
    while at < len(sent):
        end = at + 1 + int.from_bytes(sent[at + 1 : at + 5], "big")
        each = sent[at:end]
        client.send(message(each[:1], each[5:].replace(text, table.encode())) if text in each else each)
        at = end
    for expected in answered.split():
        assert kinds(client.message()) == expected, state
    return client


def _quiet(installation: Installation, table: str) -> None:
    """Wait until no transaction of the pools is left on the primary, and see that nothing came into `table`."""
    with installation.superuser().connect() as direct:
        wait_until(lambda: direct.execute(_BUSY).fetchone() == (0,), message="all is rolled back")
        assert direct.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def _writes(running: Proxy, key: tuple[str, str]) -> None:
    """See that more clients than the pool has connections are served."""
    for _ in range(3):
        with Raw(running.port).log_in(key) as other:
            assert kinds(b"".join(other.ask(query("SELECT pg_current_xact_id()")))) == "T D C ZI"


SMALL = {"databases": {"app": {"pools": {"primary": {"min": 1, "max": 2}, "readonly": {"min": 1, "max": 2}}}}}


@pytest.mark.long
def test_a_client_that_vanishes_leaves_nothing_behind(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    table = make_table("id integer")
    key, other = make_key(), make_key(user="other@example.com")
    running = start_proxy(SMALL)
    for state in _STATES:
        enter(running.port, key, table, state).socket.close()
        _quiet(installation, table)
        _writes(running, other)
    running.stop()


@pytest.mark.long
def test_a_revoked_key_ends_its_sessions_in_each_state(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    table = make_table("id integer")
    other = make_key(user="other@example.com")
    running = start_proxy(SMALL)
    for state in _STATES:
        key = make_key()
        with enter(running.port, key, table, state) as client:
            installation.execute(f"UPDATE sluice.api_keys SET revoked_at = now() WHERE id = '{key[0]}'")
            rest = client.rest()
            assert b"Z\0\0\0\5" not in rest, state
            if state != "COPY out":
                # What comes out may be cut within a row; the end of it is all that can be told then.
                assert kinds(split(rest)[-1]) == "FATAL:57P01", state
                assert rest.count(b"VFATAL") == 1, state
        _quiet(installation, table)
        _writes(running, other)
    running.stop()


def test_a_shutdown_lets_each_state_come_to_its_end(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    table = make_table("id integer")
    key = make_key()
    running = start_proxy()
    ends = {
        "idle": (b"", ""),
        "pinned": (b"", ""),
        "deferred BEGIN": (_about("INSERT INTO {t} VALUES (2)", table) + query("COMMIT"), "C ZT C ZI"),
        "transaction": (query("COMMIT"), "C ZI"),
        "failed transaction": (query("ROLLBACK"), "C ZI"),
        "behind a Flush": (SYNC, "ZI"),
        "COPY in": (copy_data(b"3\n") + COPY_DONE, "C ZI"),
        "COPY in, extended": (copy_data(b"3\n") + COPY_DONE + SYNC, "C ZI"),
        "COPY in, in a transaction": (COPY_DONE + query("COMMIT"), "C ZT C ZI"),
    }
    with ExitStack() as stack:
        clients = {state: stack.enter_context(enter(running.port, key, table, state)) for state in ends}
        asleep = stack.enter_context(Raw(running.port).log_in(key))
        asleep.send(_about("INSERT INTO {t} SELECT 9 FROM pg_sleep(1)", table))
        running.process.send_signal(signal.SIGTERM)
        for state in ("idle", "pinned"):
            assert kinds(clients[state].rest()) == "FATAL:57P01", state
        for state, (sent, answered) in ends.items():
            if sent:
                clients[state].send(sent)
                assert kinds(clients[state].rest()) == answered + " FATAL:57P01", state
        assert kinds(asleep.rest()) == "C ZI FATAL:57P01"
    running.stop()
    with installation.superuser().connect() as direct:
        rows = direct.execute(f"SELECT id, count(*) FROM {table} GROUP BY id ORDER BY id").fetchall()
    assert rows == [(1, 6), (2, 1), (3, 2), (9, 1)]


@pytest.mark.parametrize(
    ("timeout", "sqlstate", "states"),
    [
        (
            "idle_in_transaction",
            "25P03",
            ("deferred BEGIN", "transaction", "failed transaction", "behind a Flush"),
        ),
        ("client_idle", "57P05", ("idle", "pinned")),
    ],
)
@pytest.mark.long
def test_an_idle_timeout_ends_what_is_idle_and_nothing_else(
    start_proxy: Callable[..., Proxy],
    make_key: MakeKey,
    make_table: MakeTable,
    installation: Installation,
    timeout: str,
    sqlstate: str,
    states: tuple[str, ...],
) -> None:
    table = make_table("id integer")
    key = make_key()
    running = start_proxy({"databases": {"app": {"timeouts": {timeout: "500ms"}}}})
    # A COPY whose client is silent is no idle transaction to PostgreSQL either.
    with enter(running.port, key, table, "COPY in") as busy:
        for state in states:
            with enter(running.port, key, table, state) as client:
                assert kinds(client.rest()) == "FATAL:" + sqlstate, state
        busy.send(COPY_DONE)
        assert kinds(busy.until_ready()) == "C ZI"
    with installation.superuser().connect() as direct:
        wait_until(lambda: direct.execute(_BUSY).fetchone() == (0,))
        assert direct.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)
    running.stop()


def _about(sql: str, table: str) -> bytes:
    return query(sql.replace("{t}", table))
