"""A BEGIN held back until its transaction needs a server."""

from __future__ import annotations

import struct

import pytest

from proxy.errors import UpstreamUnavailable
from tests.session.conftest import Clock
from tests.session.fakes import Client, World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    close,
    copy_data,
    describe,
    error,
    execute,
    kinds,
    message,
    parse,
    query,
    run,
    split,
)

INSERT = "INSERT INTO t VALUES ('alice')"


@pytest.fixture
def world() -> World:
    return World(replica=True, lazy_begin=True)


@pytest.fixture
def client(world: World) -> Client:
    return world.client()


def deferred(client: Client, *messages: bytes) -> bytes:
    """Send what needs no server; returns the answer that came at once."""
    servers = len(client.world.backends)
    client.send(*messages)
    answer = client.take()
    assert client.server() is None
    client.world.settle()
    assert len(client.world.backends) == servers and client.take() == b""
    return answer


def tags(data: bytes) -> list[str]:
    return [each[5:-1].decode() for each in split(data) if each[:1] == b"C"]


BEGINS = {
    "query": query("BEGIN"),
    "run": run("BEGIN"),
    "described portal": parse("", "BEGIN") + bind() + describe("", b"P") + execute() + SYNC,
    "described statement": parse("", "BEGIN") + describe() + bind() + execute() + SYNC,
    "named": parse("s", "BEGIN") + bind("s", "p") + execute("p") + SYNC,
}


@pytest.mark.parametrize("how", BEGINS)
def test_a_begin_is_answered_at_once_and_sent_with_the_next_unit(
    world: World, client: Client, how: str
) -> None:
    expected = {
        "query": "C ZT",
        "run": "1 2 C ZT",
        "described portal": "1 2 n C ZT",
        "described statement": "1 t n 2 C ZT",
        "named": "1 2 C ZT",
    }
    assert kinds(deferred(client, BEGINS[how])) == expected[how]
    client.send(query(INSERT))
    world.open()
    (backend,) = world.of("primary")
    assert len(backend.transport.writes) == 1, "one write"
    world.settle()
    assert kinds(client.take()) == "C ZT"
    assert kinds(client.ask(query("COMMIT"))) == "C ZI"
    assert backend.sql == ["BEGIN", INSERT, "COMMIT"]
    assert [ran.status for ran in backend.ran if ran.sql == INSERT] == ["T"]
    assert INSERT in backend.committed
    world.check()


@pytest.mark.parametrize("unit", [run(INSERT), parse("", INSERT) + bind() + execute() + FLUSH, query(INSERT)])
def test_any_kind_of_unit_may_follow(world: World, client: Client, unit: bytes) -> None:
    deferred(client, query("BEGIN"))
    client.ask(unit)
    assert kinds(client.ask(SYNC, query("ROLLBACK"))).endswith("ZT C ZI")
    (backend,) = world.of("primary")
    assert backend.sql == ["BEGIN", INSERT, "ROLLBACK"]
    assert INSERT not in backend.committed
    world.check()


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        ("BEGIN", "COMMIT", ["BEGIN", "COMMIT"]),
        ("start transaction isolation level repeatable read", "END", ["START TRANSACTION", "COMMIT"]),
        ("BEGIN READ ONLY;", "ABORT", ["BEGIN", "ROLLBACK"]),
        ("/* x */ begin work", "rollback", ["BEGIN", "ROLLBACK"]),
    ],
)
@pytest.mark.parametrize("wrap", [query, run])
def test_a_transaction_of_no_statements_never_leaves_the_proxy(
    client: Client, begin: str, end: str, expected: list[str], wrap: object
) -> None:
    assert callable(wrap)
    answer = deferred(client, wrap(begin), SYNC, wrap(end))
    assert tags(answer) == expected
    assert kinds(answer).replace("1 2 ", "") == "C ZT ZT C ZI"


def test_a_begin_in_a_pipeline_is_sent_once(world: World, client: Client) -> None:
    answer = client.ask(query("BEGIN"), query(INSERT), query("COMMIT"), query("BEGIN"), query("COMMIT"))
    assert kinds(answer) == "C ZT C ZT C ZI C ZT C ZI"
    assert world.of("primary")[0].sql[:3] == ["BEGIN", INSERT, "COMMIT"]


def test_a_second_transaction_uses_the_same_prepared_begin(world: World, client: Client) -> None:
    for _ in range(3):
        client.ask(query("BEGIN"), query(INSERT), query("COMMIT"))
    (backend,) = world.of("primary")
    assert backend.transport.all.count(b"\0BEGIN\0") == 1
    assert backend.sql == ["BEGIN", INSERT, "COMMIT"] * 3


def test_a_second_begin_goes_to_the_server_for_its_warning(world: World, client: Client) -> None:
    client.ask(query("BEGIN"))
    client.ask(query("BEGIN"))
    assert world.of("primary")[0].sql == ["BEGIN", "BEGIN"]


def test_a_transaction_that_only_reads_goes_where_it_says(world: World, client: Client) -> None:
    client.ask(query("BEGIN READ ONLY"), query("SELECT 1"), query("COMMIT"))
    assert world.of("readonly", "two")[0].sql == ["BEGIN READ ONLY", "SELECT 1", "COMMIT"]
    client.ask(query("BEGIN"), query("SELECT 1"), query("COMMIT"))
    assert world.of("primary")[0].sql == ["BEGIN", "SELECT 1", "COMMIT"]


def test_a_reading_transaction_that_is_made_a_writing_one_goes_to_the_primary(
    world: World, client: Client
) -> None:
    client.ask(query("BEGIN READ ONLY"), query("SET TRANSACTION READ WRITE"))
    assert world.of("primary")[0].sql == ["BEGIN READ ONLY", "SET TRANSACTION READ WRITE"]


@pytest.mark.parametrize(
    ("begin", "pool", "host"),
    [
        ("BEGIN", "readonly", "two"),
        ("BEGIN READ WRITE", "primary", "one"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "primary", "one"),
    ],
)
def test_a_transaction_may_be_made_a_reading_one(
    world: World, client: Client, begin: str, pool: str, host: str
) -> None:
    client.ask(query(begin), query("SET TRANSACTION READ ONLY"))
    assert world.of(pool, host)[0].sql == [begin, "SET TRANSACTION READ ONLY"]


def test_a_savepoint_does_not_decide(world: World, client: Client) -> None:
    client.ask(query("BEGIN READ ONLY"), query("SAVEPOINT a"))
    assert len(world.of("readonly", "two")) == 1


def test_a_begin_that_a_replica_may_refuse_is_sent(world: World) -> None:
    client = world.client(pool="readonly")
    client.send(query("BEGIN ISOLATION LEVEL SERIALIZABLE"))
    assert client.take() == b""
    client.world.settle()
    assert world.of("readonly", "two")[0].sql == ["BEGIN ISOLATION LEVEL SERIALIZABLE"]


def test_a_begin_that_says_read_write_goes_to_the_primary_whatever_pool_was_asked_for(world: World) -> None:
    client = world.client(pool="readonly")
    client.ask(query("BEGIN READ WRITE"), query("SELECT 1"))
    assert world.of("primary", "one")[0].sql == ["BEGIN READ WRITE", "SELECT 1"]


@pytest.mark.parametrize(
    "unit",
    [
        query("BEGIN; SELECT 1"),
        query("BEGIN; COMMIT"),
        parse("", "BEGIN") + bind() + execute() + FLUSH,
        parse("", "BEGIN") + bind(values=(b"1",)) + execute() + SYNC,
        parse("", "BEGIN") + bind() + execute() + parse("", INSERT) + bind() + execute() + SYNC,
        parse("", "BEGIN") + bind() + execute() + close("", b"P") + SYNC,
        parse("", "BEGIN") + bind() + describe("other", b"P") + execute() + SYNC,
        parse("", "BEGIN") + SYNC,
    ],
)
def test_what_is_more_than_a_begin_is_sent(world: World, client: Client, unit: bytes) -> None:
    client.send(unit)
    assert client.take() == b""
    world.settle()
    assert kinds(client.take()) != ""
    assert len(world.of("primary")) == 1


def test_commit_and_chain_goes_to_the_server(world: World, client: Client) -> None:
    client.ask(query("BEGIN"), query("COMMIT AND CHAIN"))
    assert world.of("primary")[0].sql == ["BEGIN", "COMMIT AND CHAIN"]


# -- errors


def test_a_refusal_behind_a_begin_fails_the_transaction(world: World, client: Client) -> None:
    deferred(client, query("BEGIN"))
    answer = deferred(client, query("DROP TABLE t"), query(INSERT), run(INSERT), SYNC, query(""))
    assert kinds(answer) == "E:42501 ZE E:25P02 ZE E:25P02 ZE ZE I ZE"
    told = [each for each in split(answer) if each[:1] == b"E"][1]
    assert error(told)["M"].startswith("current transaction is aborted") and "D" not in error(told)
    answer = deferred(client, query("COMMIT"))
    assert tags(answer) == ["ROLLBACK"] and kinds(answer) == "C ZI"
    assert kinds(client.ask(query(INSERT))) == "C ZI"
    assert world.of("primary")[0].sql == [INSERT]


def test_an_extended_refusal_skips_to_sync_and_fails_the_transaction(client: Client) -> None:
    deferred(client, run("BEGIN"))
    assert kinds(deferred(client, parse("", "DROP TABLE t") + bind() + execute() + FLUSH)) == "E:42501"
    assert kinds(deferred(client, run(INSERT))) == "ZE"
    assert kinds(deferred(client, SYNC, FLUSH, copy_data(b"x"))) == "ZE"
    assert kinds(deferred(client, parse("", INSERT) + FLUSH)) == "E:25P02"
    assert kinds(deferred(client, SYNC, query("SET sluice.pool = 'background'"))) == "ZE E:25P02 ZE"
    assert tags(deferred(client, run("ROLLBACK"))) == ["ROLLBACK"]


def test_a_refusal_behind_a_statement_fails_the_servers_transaction(world: World, client: Client) -> None:
    assert kinds(client.ask(query("BEGIN"), query(INSERT), query("DROP TABLE t"))) == "C ZT C ZT E:42501 ZE"
    assert kinds(client.ask(query("COMMIT"))) == "C ZI"
    assert INSERT not in world.of("primary")[0].committed


def test_no_connection_for_the_first_statement_fails_the_transaction(world: World, client: Client) -> None:
    deferred(client, query("BEGIN"))
    client.send(query(INSERT))
    world.fail_to_open(UpstreamUnavailable("down"))
    assert kinds(client.take()) == "E:08006 ZE"
    assert kinds(deferred(client, query(INSERT), query("ROLLBACK"))) == "E:25P02 ZE C ZI"
    assert kinds(client.ask(query(INSERT))) == "C ZI"


def test_nothing_runs_behind_a_begin_that_fails(world: World, client: Client) -> None:
    world.failing["BEGIN"] = "57014"
    client.ask(query("BEGIN"), query(INSERT))
    assert kinds(client.transport.all).endswith("FATAL:08006")
    assert client.closed()
    (backend,) = world.of("primary")
    assert INSERT not in backend.sql and backend.transport.aborted


def test_an_undefined_statement_behind_a_begin_fails_the_transaction(client: Client) -> None:
    deferred(client, query("BEGIN"))
    assert kinds(deferred(client, bind("none") + execute() + SYNC, query("ROLLBACK"))) == "E:26000 ZE C ZI"


# -- other states


def test_names_prepared_in_a_deferred_transaction_stay(world: World, client: Client) -> None:
    deferred(client, query("BEGIN"))
    assert kinds(client.ask(parse("s", INSERT), SYNC)) == "1 ZT"
    assert kinds(client.ask(query("ROLLBACK"), bind("s"), execute(), SYNC)) == "C ZI 2 C ZI"
    world.check()


def test_a_proven_statement_is_prepared_without_a_server(world: World, client: Client) -> None:
    client.ask(parse("s", INSERT), bind("s"), execute(), SYNC, close("s"), SYNC)
    other = world.client()
    assert kinds(deferred(other, query("BEGIN"), parse("s", INSERT), SYNC)) == "C ZT 1 ZT"


def test_a_deferred_transaction_can_stall_and_keeps_a_drain_waiting(clock: Clock) -> None:
    client = World(lazy_begin=True).client()
    session = client.session
    deferred(client, query("BEGIN"))
    assert not session.idle()
    assert not session.stalled(clock.now + 60.0, 60.0)
    assert session.stalled(clock.now + 60.1, 60.0)
    deferred(client, query("ROLLBACK"))
    assert session.idle() and not session.stalled(clock.now + 100.0, 60.0)


def test_a_client_may_leave_a_deferred_transaction(world: World, client: Client) -> None:
    deferred(client, query("BEGIN"))
    client.send(TERMINATE)
    assert client.closed() and not world.backends


def test_settings_and_identity_precede_the_begin(world: World) -> None:
    client = world.client(settings={"timezone": "Asia/Tokyo"})
    client.ask(query("BEGIN"), query(INSERT))
    (backend,) = world.of("primary")
    assert [ran.owner for ran in backend.ran if ran.sql in ("BEGIN", INSERT)] == ["alice", "alice"]
    assert backend.settings["timezone"] == "Asia/Tokyo"
    client.ask(query("ROLLBACK"))
    assert backend.owner == "alice", "set outside the transaction"


def test_a_session_that_holds_its_connection_saves_the_round_trip_too(world: World) -> None:
    world.database.session_mode = True
    client = world.client()
    client.ask(query(INSERT))
    backend = world.of("primary")[0]
    before = len(backend.sql)
    client.send(query("BEGIN"))
    assert kinds(client.take()) == "C ZT"
    assert kinds(client.ask(query("DROP TABLE t"))) == "E:42501 ZE"
    assert backend.sql[before:] == ["BEGIN"]
    assert kinds(client.ask(query("ROLLBACK"))) == "C ZI"


def test_a_session_that_listens_begins_at_once(world: World, client: Client) -> None:
    client.ask(query("LISTEN a"))
    assert client.session.pinned
    client.send(query("BEGIN"))
    assert client.take() == b"", "a notification must not come within the transaction"
    world.settle()
    assert kinds(client.take()) == "C ZT"


def test_without_lazy_begin_it_goes_to_the_server(world: World, client: Client) -> None:
    world.database.lazy_begin = False
    assert kinds(client.ask(query("BEGIN"))) == "C ZT"
    assert world.of("primary")[0].sql == ["BEGIN"]


def test_it_is_recorded_when_it_is_sent(world: World, client: Client) -> None:
    client.ask(query("BEGIN"))
    assert world.access.rows == 0
    client.ask(query(INSERT))
    assert world.access.rows == 2


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_single_bytes_are_answered_as_one_piece(ending: str) -> None:
    conversation = (
        query("BEGIN")
        + run(INSERT)
        + query(ending)
        + run("BEGIN")
        + query(ending)
        + query("BEGIN")
        + query("DROP TABLE t")
        + run("SELECT 1")
        + query(ending)
        + query("SELECT 1")
    )

    def converse(pieces: list[bytes]) -> str:
        world = World(lazy_begin=True)
        client = world.client()
        for piece in pieces:
            client.send(piece)
            world.settle()
        world.check()
        return kinds(client.take())

    whole = converse([conversation])
    assert converse([conversation[at : at + 1] for at in range(len(conversation))]) == whole
    assert whole.endswith("C ZT E:42501 ZE E:25P02 ZE C ZI T D C ZI")


def test_a_malformed_bind_of_a_begin_is_left_to_the_server(world: World, client: Client) -> None:
    body = b"\0\0" + struct.pack("!H", 40_000)
    client.send(parse("", "BEGIN") + message(b"B", body) + execute() + SYNC)
    assert client.take() == b"" and client.world.database.lazy_begin
