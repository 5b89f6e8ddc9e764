"""`timeouts.query` against real servers: those that heed a cancel, and those that don't."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.raw import Raw
from tests.integration.support import Installation, Proxy, wait_until
from tests.session.frontend import (
    SYNC,
    bind,
    copy_data,
    error,
    execute,
    fields,
    kinds,
    parse,
    query,
    split,
)

LIMIT = {"databases": {"app": {"timeouts": {"query": "500ms"}, "pools": {"primary": {"min": 1, "max": 2}}}}}

_STUBBORN = """
CREATE FUNCTION public.stubborn() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    FOR i IN 1..60 LOOP
        BEGIN
            PERFORM pg_sleep(0.5);
        EXCEPTION WHEN query_canceled THEN
            NULL;
        END;
    END LOOP;
END $$
"""


@pytest.fixture
def stubborn(installation: Installation) -> Iterator[str]:
    installation.execute(_STUBBORN)
    yield "SELECT public.stubborn()"
    installation.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app_rw'",
        "DROP FUNCTION public.stubborn()",
    )


@pytest.mark.long
def test_a_statement_that_catches_its_cancel_is_ended_by_force(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, stubborn: str
) -> None:
    running = start_proxy(LIMIT)
    key = make_key()
    ways = (
        query(stubborn),
        parse("", stubborn) + bind() + execute() + SYNC,
        query("BEGIN") + query(stubborn),
    )
    for sent in ways:
        with Raw(running.port).log_in(key) as client:
            client.send(sent)
            rest = client.rest()
            last = split(rest)[-1]
            assert kinds(last) == "FATAL:57014" and error(last)["D"] == "QUERY_TIMEOUT: query_timeout=0.5s"
            assert kinds(rest[: len(rest) - len(last)]) in ("", "1 2", "C ZT")
    # The pool has two connections at most, and all three were closed.
    with Raw(running.port).log_in(key) as client:
        assert kinds(b"".join(client.ask(query("SELECT pg_current_xact_id()")))) == "T D C ZI"
    running.stop()


@pytest.mark.long
def test_a_copy_whose_client_is_silent_is_ended_by_force(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    # PostgreSQL looks for a cancel only between two messages.
    table = make_table("id integer")
    running = start_proxy(LIMIT)
    with Raw(running.port).log_in(make_key()) as silent, Raw(running.port).log_in(make_key()) as slow:
        for client in (silent, slow):
            client.send(query(f"COPY {table} FROM STDIN") + copy_data(b"1\n"))
            assert kinds(client.message()) == "G"
        wait_until(lambda: _cancelled(slow))
        told = fields(slow.message())
        assert told["C"] == "57014" and told["D"] == "QUERY_TIMEOUT: query_timeout=0.5s"
        assert kinds(slow.message()) == "ZI"
        assert kinds(b"".join(slow.ask(query("SELECT 1")))) == "T D C ZI"
        assert kinds(silent.rest()) == "FATAL:57014"
    with installation.superuser().connect() as direct:
        assert direct.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    running.stop()


@pytest.mark.long
def test_pipelined_statements_have_each_their_own_time(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    running = start_proxy({"databases": {"app": {"timeouts": {"query": "1s"}}}})
    nap = "SELECT pg_sleep(0.6)"
    with Raw(running.port).log_in(make_key()) as client:
        client.send(query(nap) * 3)
        assert kinds(client.until_ready(3)) == "T D C ZI T D C ZI T D C ZI"
        client.send((parse("", nap) + bind() + execute()) * 3 + SYNC)
        assert kinds(client.until_ready()) == "1 2 D C 1 2 D C 1 2 D C ZI"
        client.send(query(nap) + query("SELECT pg_sleep(30)") + query(nap))
        came = client.until_ready(3)
        assert kinds(came) == "T D C ZI T E:57014 ZI T D C ZI"
        assert error(came)["D"] == "QUERY_TIMEOUT: query_timeout=1s"
    running.stop()


def _cancelled(client: Raw) -> bool:
    """Send a line of COPY data; tell whether the server has answered that it was cancelled."""
    client.send(copy_data(b"2\n"))
    client.socket.settimeout(0.1)
    try:
        client.held += client.socket.recv(1)
    except TimeoutError:
        return False
    finally:
        client.socket.settimeout(30.0)
    return True
