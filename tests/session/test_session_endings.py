"""How sessions end, and what the supervisor asks of them."""

from __future__ import annotations

import pytest

from proxy.errors import KeyRevoked, QueryTimeout
from proxy.session.state import CANCEL_PATIENCE
from proxy.upstream.server import CLOSED
from tests.session.conftest import Clock
from tests.session.fakes import World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    copy_data,
    error,
    execute,
    kinds,
    message,
    parse,
    query,
    run,
)

INSERT = "INSERT INTO t VALUES ('alice')"
READ = "SELECT 'alice'"


# -- endings


def test_terminate_lets_what_stands_before_it_complete(world: World) -> None:
    client = world.client()
    client.send(query(INSERT), TERMINATE, query("DELETE FROM t"))
    assert not client.closed()
    world.settle()
    assert kinds(client.take()) == "C ZI"
    assert client.closed()
    assert world.backends[0].committed[1:] == [INSERT]
    world.check()


@pytest.mark.parametrize("pieces", [1, 2])
def test_terminate_lets_what_waits_for_a_connection_complete(pieces: int) -> None:
    world = World(maximum=1)
    other, client = world.client(), world.client()
    other.ask(query("BEGIN"), query("INSERT INTO other VALUES (1)"))
    sent = [query(INSERT) + TERMINATE] if pieces == 1 else [query(INSERT), TERMINATE]
    for each in sent:
        client.send(each)
    assert client.paused() and not client.closed(), "an end of file would be the client's end"
    other.ask(query("COMMIT"))
    (backend,) = world.of("primary")
    assert backend.committed[-1] == INSERT
    assert client.closed()
    world.check()


def test_what_comes_behind_a_terminate_later_on_is_dropped(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    client.send(query(INSERT), TERMINATE)
    client.send(query(INSERT))
    world.settle()
    assert world.of("primary")[0].committed[1:] == [INSERT]


def test_terminate_in_a_transaction_rolls_back_and_resets(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query(INSERT))
    client.send(TERMINATE)
    world.settle()
    (backend,) = world.backends
    assert [ran.sql for ran in backend.ran][-2:] == ["ROLLBACK", "DISCARD ALL"]
    assert INSERT not in backend.committed
    assert world.pool("primary").idle_count == 1
    world.check()


def test_a_client_that_vanishes_in_a_query_has_it_cancelled_and_its_connection_closed(world: World) -> None:
    client = world.client()
    client.send(query("SELECT 1"))
    world.open()
    (backend,) = world.backends
    client.vanish()
    assert world.abandoned == [backend.server]
    assert backend.transport.aborted
    assert world.pool("readonly").size == 0


def test_a_client_that_vanishes_in_an_idle_transaction_has_it_rolled_back(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query(INSERT))
    client.vanish()
    world.settle()
    (backend,) = world.backends
    assert not world.abandoned
    assert [ran.sql for ran in backend.ran][-2:] == ["ROLLBACK", "DISCARD ALL"]


def test_a_client_that_vanishes_without_reading_has_its_transaction_rolled_back(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"))
    client.session.pause_writing()
    client.vanish()
    world.settle()
    assert [ran.sql for ran in world.backends[0].ran][-2:] == ["ROLLBACK", "DISCARD ALL"]
    assert world.pool("primary").idle_count == 1


def test_a_client_that_vanishes_between_flush_and_sync_leaves_a_closed_connection(world: World) -> None:
    client = world.client()
    client.ask(parse("", INSERT), bind(), execute(), FLUSH)
    client.vanish()
    assert world.backends[0].transport.aborted
    assert INSERT not in world.backends[0].committed


def test_a_client_that_vanishes_from_a_server_that_waits_for_a_sync_leaves_a_closed_connection(
    world: World,
) -> None:
    # Behind an error in a COPY of the extended protocol all that follows is swallowed up to Sync.
    client = world.client()
    client.ask(run("COPY t FROM STDIN"), copy_data(b"bad"), query("INSERT INTO t VALUES (1)"))
    (backend,) = world.backends
    assert kinds(client.take()) == "" and client.server() is backend.server
    client.vanish()
    assert backend.transport.aborted
    assert kinds(world.client().ask(query("INSERT INTO t VALUES (2)"))) == "C ZI"
    world.check()


def test_a_transaction_that_waits_for_a_sync_is_stalled(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(run("COPY t FROM STDIN"), copy_data(b"bad"), query("INSERT INTO t VALUES (1)"))
    clock.now += 61.0
    assert client.session.stalled(clock.now, 60.0)
    assert kinds(client.ask(SYNC)) == "ZI"
    assert client.server() is None
    world.check()


def test_a_client_that_vanishes_while_it_waits_leaves_the_queue() -> None:
    world = World(maximum=1)
    world.client("bob").ask(query("BEGIN"))
    client = world.client()
    client.send(query(INSERT))
    assert world.pool("primary").waiters.length == 1
    client.vanish()
    assert world.pool("primary").waiters.length == 0


# -- what the supervisor asks


def test_a_statement_over_its_time_is_told_so_when_its_cancel_takes_effect(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(query("SELECT 1"))
    (backend,) = world.backends
    session = client.session
    assert session.overdue(clock.now + 5.0, 5.0) is None
    assert session.overdue(clock.now + 5.1, 5.0) is backend.server
    assert session.overdue(clock.now + 5.2, 5.0) is None, "one cancel is enough"
    backend.fails["SELECT 1"] = "57014"
    world.settle()
    answer = client.take()
    assert kinds(answer) == "E:57014 ZI"
    assert error(answer)["D"] == "QUERY_TIMEOUT: query_timeout=5s"


def test_a_parse_or_bind_that_waits_counts_for_its_statement(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(parse("", "SELECT 1"), bind(), execute(), SYNC)
    (backend,) = world.backends
    session = client.session
    assert session.overdue(clock.now + 5.0, 5.0) is None
    assert session.overdue(clock.now + 5.1, 5.0) is backend.server
    backend.fails["SELECT 1"] = "57014"
    world.settle()
    answer = client.take()
    assert kinds(answer) == "E:57014 ZI"
    assert error(answer)["D"] == "QUERY_TIMEOUT: query_timeout=5s"


def test_a_pipelined_statement_has_its_own_time(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(query("SELECT 1"), query("SELECT 2"))
    (backend,) = world.backends
    session = client.session
    start = clock.now
    assert session.overdue(start + 4.0, 5.0) is None
    backend.answer(1)
    assert kinds(client.take()) == "T D C ZI"
    assert session.overdue(start + 6.0, 5.0) is None, "the second began at second 4 at the earliest"
    assert session.overdue(start + 9.1, 5.0) is backend.server
    backend.fails["SELECT 2"] = "57014"
    world.settle()
    assert error(client.take())["D"] == "QUERY_TIMEOUT: query_timeout=5s"


@pytest.mark.parametrize(
    "sent", [query("SELECT 1"), run("SELECT 1"), query(INSERT), query("COPY t FROM STDIN")]
)
def test_a_statement_that_ignores_its_cancel_is_ended_by_force(clock: Clock, sent: bytes) -> None:
    world = World()
    client = world.client()
    client.ask(query("SELECT 0"), query("INSERT INTO t VALUES (0)"))
    client.send(sent)
    session = client.session
    server = client.server()
    assert server is not None and session.overdue(clock.now + 5.1, 5.0) is server
    assert not session.defies(clock.now + 5.0 + CANCEL_PATIENCE, 5.0)
    assert not session.defies(clock.now + 60.0, 0.0)
    assert session.defies(clock.now + 5.1 + CANCEL_PATIENCE, 5.0)
    session.fatal(QueryTimeout())
    answer = client.take()
    assert kinds(answer) == "FATAL:57014" and client.closed()
    assert server.state == CLOSED and world.abandoned == [server]
    world.check()


def test_a_statement_behind_one_that_heeded_its_cancel_has_its_own_time(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(query("SELECT 1"), query("SELECT 2"))
    (backend,) = world.backends
    session = client.session
    start = clock.now
    assert session.overdue(start + 5.1, 5.0) is backend.server
    backend.fails["SELECT 1"] = "57014"
    backend.answer(1)
    assert error(client.take())["D"] == "QUERY_TIMEOUT: query_timeout=5s"
    assert session.overdue(start + 10.0, 5.0) is None
    assert not session.defies(start + 5.1 + CANCEL_PATIENCE, 5.0)
    assert session.overdue(start + 10.2, 5.0) is backend.server
    assert session.defies(start + 10.2 + CANCEL_PATIENCE, 5.0)


def test_statements_up_to_one_sync_have_their_time_together(clock: Clock) -> None:
    # PostgreSQL sends what it answered to the first when it comes to the Sync.
    world = World()
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(
        *(parse("", "SELECT 1"), bind(), execute(), parse("", "SELECT 2"), bind(), execute(), SYNC),
        query("SELECT 3"),
    )
    (backend,) = world.backends
    session = client.session
    start = clock.now
    assert session.overdue(start + 6.0, 5.0) is None
    assert session.overdue(start + 10.0, 5.0) is None
    assert session.overdue(start + 10.1, 5.0) is backend.server
    assert not session.defies(start + 10.0 + CANCEL_PATIENCE, 5.0)
    assert session.defies(start + 10.1 + CANCEL_PATIENCE, 5.0)
    backend.fails["SELECT 2"] = "57014"
    world.settle()
    answer = client.take()
    assert kinds(answer) == "1 2 D C E:57014 ZI T D C ZI"
    assert error(answer)["D"] == "QUERY_TIMEOUT: query_timeout=5s"


def test_a_statement_that_ends_before_its_cancel_takes_effect_was_not_cancelled(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.ask(query("SELECT 0"))
    client.send(query("SELECT 1"))
    assert client.session.overdue(clock.now + 5.1, 5.0) is not None
    world.access.take()
    world.settle()
    assert kinds(client.take()) == "T D C ZI"
    record = world.access.take()
    assert record and b"QUERY_TIMEOUT" not in record


def test_a_question_of_the_proxys_own_has_its_time_too(clock: Clock) -> None:
    world = World()
    client = world.client()
    client.send(query("LISTEN x"), query("UNLISTEN *"))
    world.open()
    (backend,) = world.backends
    while client.session.look is None:
        backend.answer(1)
    session = client.session
    asked = clock.now
    assert session.overdue(asked + 5.0, 5.0) is None
    assert session.overdue(asked + 5.1, 5.0) is backend.server
    assert session.defies(asked + 5.1 + CANCEL_PATIENCE, 5.0)
    world.settle()
    assert kinds(client.take()) == "C ZI C ZI" and not client.closed()


def test_a_session_that_asks_nothing_is_silent(clock: Clock) -> None:
    world = World()
    client = world.client()
    session = client.session
    client.ask(query("SELECT 0"))
    start = clock.now
    assert not session.silent(start + 60.0, 60.0)
    assert session.silent(start + 60.1, 60.0)
    assert not session.silent(start + 60.1, 0.0)
    client.send(query("SELECT 1"))
    assert not session.silent(start + 100.0, 60.0), "it waits for its answer"
    world.settle()
    assert not session.silent(start + 160.0, 60.0)
    assert session.silent(start + 160.1, 60.0)
    client.ask(query("BEGIN"))
    assert not session.silent(start + 300.0, 60.0), "that is idle_in_transaction's"


def test_a_violation_behind_queries_is_told_in_its_turn(world: World) -> None:
    client = world.client()
    client.send(query(INSERT), query("SELECT 1"), b"!\0\0\0\4", query("DELETE FROM t"))
    assert not client.closed()
    world.settle()
    assert kinds(client.take()) == "C ZI T D C ZI FATAL:08P01"
    assert client.closed()
    assert world.of("primary")[0].committed[1:] == [INSERT]
    world.check()


def test_a_violation_behind_a_flush_ends_at_once(world: World) -> None:
    client = world.client()
    client.ask(parse("", INSERT), bind(), execute(), FLUSH)
    client.send(b"!\0\0\0\4")
    assert kinds(client.take()) == "FATAL:08P01"
    assert client.closed()
    assert INSERT not in world.backends[0].committed


def test_a_transaction_that_stands_idle_is_stalled(clock: Clock) -> None:
    world = World()
    client = world.client()
    session = client.session
    client.ask(query("SELECT 1"))
    assert not session.stalled(clock.now + 100, 60.0)
    client.ask(query("BEGIN"))
    assert not session.stalled(clock.now + 59, 60.0)
    assert session.stalled(clock.now + 61, 60.0)
    assert not session.stalled(clock.now + 61, 0.0)
    client.send(query("SELECT 2"))
    assert not session.stalled(clock.now + 61, 60.0), "it is at work"


def test_a_session_without_anything_under_way_is_idle(world: World) -> None:
    client = world.client()
    session = client.session
    assert session.idle()
    client.send(query("SELECT 1"))
    assert not session.idle()
    world.settle()
    assert session.idle()
    client.ask(query("BEGIN"))
    assert not session.idle()


# -- the access log


@pytest.mark.parametrize("sent", [query(INSERT), run(INSERT), run(READ), query("COPY t FROM STDIN")])
@pytest.mark.parametrize("how", ["vanish", "revoke", "die", "last words"])
def test_a_statement_that_is_not_answered_any_more_is_recorded_once(
    world: World, sent: bytes, how: str
) -> None:
    client = world.client()
    client.ask(query("INSERT INTO u VALUES (1)"), query("SELECT 1"))
    client.send(sent)
    server = client.server()
    (backend,) = [each for each in world.backends if each.server is server]
    if READ.encode() in sent:
        # So it isn't tried once more.
        backend.server.data_received(message(b"1") + message(b"2") + message(b"D", b"\0\0"))
    before = world.access.rows
    world.access.take()
    if how == "vanish":
        client.vanish()
    elif how == "revoke":
        client.session.fatal(KeyRevoked())
    else:
        backend.die("FATAL" if how == "last words" else "")
    assert client.closed() and before > 0 and world.access.rows == 1
    record = world.access.take()
    sqlstate = {"vanish": b"08006", "revoke": b"57P01", "die": b"08006", "last words": b"57P01"}[how]
    assert sqlstate in record


def test_a_pipeline_that_is_not_answered_any_more_is_recorded_whole(world: World) -> None:
    client = world.client()
    client.ask(query(INSERT))
    client.send(query(INSERT), run("INSERT INTO u VALUES (1)"), query(INSERT))
    world.access.take()
    client.vanish()
    assert world.access.rows == 3
