"""A session between bytes of its client and bytes of servers: statements, transactions, malformed input."""

from __future__ import annotations

import pytest

from proxy.wire.codes import MAX_SMALL_MESSAGE
from tests.session.conftest import Clock
from tests.session.fakes import World
from tests.session.frontend import (
    COPY_DONE,
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    close,
    copy_data,
    describe,
    execute,
    function_call,
    kinds,
    message,
    parse,
    query,
    rows,
    run,
    split,
)

INSERT = "INSERT INTO t VALUES ('alice')"
READ = "SELECT 'alice'"


# -- statements


def test_a_simple_query_is_answered_and_its_connection_returned(world: World) -> None:
    client = world.client()
    answer = client.ask(query("SELECT 7"))
    assert kinds(answer) == "T D C ZI"
    assert rows(answer) == ["7"]
    assert client.server() is None
    assert world.pool("readonly").idle_count == 1
    world.check()


def test_an_extended_query_is_answered_and_its_connection_returned(world: World) -> None:
    client = world.client()
    answer = client.ask(parse("", "SELECT 7"), bind(), describe("", b"P"), execute(), SYNC)
    assert kinds(answer) == "1 2 n D C ZI"
    assert client.server() is None
    world.check()


def test_reads_and_writes_go_to_their_pools(world: World) -> None:
    client = world.client()
    client.ask(query(READ), query(INSERT), run(READ), run(INSERT))
    assert [each.sql for each in world.of("readonly")] == [[READ, READ]]
    assert [each.committed[1:] for each in world.of("primary")] == [[INSERT, INSERT]]


def test_a_read_goes_to_a_replica_until_the_session_writes(clock: Clock) -> None:
    world = World(replica=True)
    replica = world.cluster.hosts[1]
    replica.fresh_as_of = clock.now - 1
    client = world.client()
    client.ask(query("SELECT 1"))
    clock.now += 1
    client.ask(query(INSERT))
    client.ask(query("SELECT 2"))
    replica.fresh_as_of = clock.now + 1
    client.ask(query("SELECT 3"))
    assert world.of("readonly", "two")[0].sql == ["SELECT 1", "SELECT 3"]
    assert world.of("readonly", "one")[0].sql == ["SELECT 2"]


def test_reads_do_not_wait_for_a_replica_where_that_is_switched_off(clock: Clock) -> None:
    world = World(replica=True)
    world.database.read_your_writes = False
    world.cluster.hosts[1].fresh_as_of = clock.now - 1
    client = world.client()
    client.ask(query(INSERT))
    client.ask(query("SELECT 1"))
    assert world.of("readonly", "two")[0].sql == ["SELECT 1"]


def test_everything_goes_to_the_primary_where_routing_is_off() -> None:
    world = World(replica=True)
    world.database.routing = False
    world.client().ask(query("SELECT 1"))
    assert world.of("primary", "one")[0].sql == ["SELECT 1"]


def test_an_empty_query_is_answered_by_the_server(world: World) -> None:
    assert kinds(world.client().ask(query(""))) == "I ZI"


def test_units_of_a_pipeline_are_sent_ahead(world: World) -> None:
    client = world.client()
    client.send(run("SELECT 1"))
    world.open()
    (backend,) = world.backends
    client.send(run("SELECT 2"), query("SELECT 3"), run("SELECT 4"))
    assert backend.transport.all.count(b"SELECT ") == 5
    assert client.take() == b""
    world.settle()
    answer = client.take()
    assert kinds(answer) == "1 2 D C ZI 1 2 D C ZI T D C ZI 1 2 D C ZI"
    assert rows(answer) == ["1", "2", "3", "4"]


def test_a_unit_that_needs_another_pool_waits_for_idle(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 0"), query(INSERT))
    reader, writer = world.of("readonly")[0], world.of("primary")[0]
    client.send(query("SELECT 1"), run(INSERT), query("SELECT 2"))
    assert len(writer.sql) == 1
    reader.answer()
    assert kinds(client.take()) == "T D C ZI"
    assert client.server() is writer.server
    assert len(reader.sql) == 2
    world.settle()
    assert kinds(client.take()) == "1 2 C ZI T D C ZI"
    assert reader.sql[1:] == ["SELECT 1", "SELECT 2"]


def test_a_query_behind_an_unfinished_unit_keeps_its_place(world: World) -> None:
    client = world.client()
    answer = client.ask(parse("", "SELECT 1"), bind(), execute(), query("SELECT 2"), query("SELECT 3"))
    assert kinds(answer) == "1 2 D C T D C ZI T D C ZI"
    assert rows(answer) == ["1", "2", "3"]


def test_a_flush_is_answered_before_the_sync(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(parse("", "SELECT 1"), describe(), FLUSH)) == "1 t n"
    assert client.server() is not None
    assert kinds(client.ask(bind(), execute(), FLUSH)) == "2 D C"
    assert kinds(client.ask(SYNC)) == "ZI"
    assert client.server() is None


def test_what_a_flush_ends_goes_to_the_primary(world: World) -> None:
    client = world.client()
    client.ask(parse("", "SELECT 1"), bind(), execute(), FLUSH)
    client.ask(parse("", INSERT), bind(), execute(), SYNC)
    assert world.of("primary")[0].committed[1:] == ["SELECT 1", INSERT]
    assert not world.of("readonly")


def test_a_query_behind_a_flush_ends_its_transaction(world: World) -> None:
    client = world.client()
    client.ask(parse("", INSERT), bind(), execute(), FLUSH)
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"
    assert client.server() is None
    assert INSERT in world.backends[0].committed


def test_a_query_behind_an_error_is_skipped_to_sync(world: World) -> None:
    client = world.client()
    client.ask(parse("", "SELECT 1/0"), bind(), execute(), FLUSH)
    assert client.ask(query("SELECT 1"), run("SELECT 2")[:-5]) == b""
    assert kinds(client.ask(SYNC, query("SELECT 3"))) == "ZI T D C ZI"


def test_a_flush_behind_a_sync_begins_nothing(world: World) -> None:
    # psycopg ends its pipelines so: the connection isn't kept for what comes next.
    client = world.client()
    assert kinds(client.ask(run(READ), FLUSH)) == "1 2 D C ZI"
    assert client.server() is None
    client.ask(query("BEGIN READ ONLY"), run(READ), run("COMMIT"), FLUSH)
    assert client.server() is None
    client.ask(run(INSERT), FLUSH)
    assert [each.sql for each in world.of("primary")] == [[INSERT]]
    world.check()


def test_lone_syncs_and_flushes_need_no_server(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(SYNC * 1000, FLUSH)) == " ".join(["ZI"] * 1000)
    assert not world.backends


def test_each_sync_of_a_flood_behind_a_statement_is_answered_once(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(run("SELECT 1"), SYNC * 50)) == " ".join(["1 2 D C ZI", *["ZI"] * 50])
    client.ask(query("BEGIN"))
    assert kinds(client.ask(SYNC * 50)) == " ".join(["ZT"] * 50)


def test_more_answers_than_may_be_owed_at_once_come_in_the_end(world: World) -> None:
    client = world.client()
    client.ask(parse("s", INSERT), SYNC)
    (bound, ran) = (bind("s"), execute())
    client.take()
    client.send((bound + ran) * 6_000 + FLUSH)
    client.send((bound + ran) * 1_000 + SYNC)
    world.settle()
    assert client.take() == (message(b"2") + message(b"C", b"INSERT 0 1\0")) * 7_000 + message(b"Z", b"I")


# -- transactions


def test_a_transaction_keeps_its_connection_until_commit(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(query("BEGIN"))) == "C ZT"
    server = client.server()
    assert server is not None
    assert kinds(client.ask(run("SELECT 1"))) == "1 2 D C ZT"
    assert client.server() is server
    assert kinds(client.ask(query("COMMIT"))) == "C ZI"
    assert client.server() is None
    assert world.of("primary")[0].sql == ["BEGIN", "SELECT 1", "COMMIT"]


def test_a_failed_transaction_keeps_its_connection_until_rollback(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(query("BEGIN"), query("SELECT 1/0"))) == "C ZT E:22012 ZE"
    assert kinds(client.ask(query("SELECT 1"))) == "E:25P02 ZE"
    assert client.server() is not None
    assert kinds(client.ask(query("ROLLBACK"))) == "C ZI"
    assert client.server() is None


def test_statements_behind_a_commit_in_one_packet_choose_their_pool_anew(world: World) -> None:
    client = world.client()
    answer = client.ask(query("BEGIN"), query(INSERT), query("COMMIT"), query("SELECT 1"))
    assert kinds(answer) == "C ZT C ZT C ZI T D C ZI"
    assert world.of("readonly")[0].sql == ["SELECT 1"]


# -- malformed input


@pytest.mark.parametrize(
    "data",
    [
        b"!\0\0\0\4",
        b"Q\0\0\0\3",
        b"Q\xff\xff\xff\xff",
        b"Q\x7f\xff\xff\xff",
        b"Q\0\0\0\4",
        message(b"Q", b"SELECT 1"),
        message(b"Q", b"SELECT\0 1\0"),
        message(b"S", b"x"),
        message(b"H", b"x"),
        message(b"p", b"secret\0"),
        message(b"P", b"name"),
        message(b"P", b"\0SELECT 1\0"),
        message(b"P", b"\0SELECT 1\0\0\1\0\0"),
        message(b"B", b"no terminator"),
        message(b"D", b"X\0"),
        message(b"D", b"Sname"),
        message(b"C", b"Sname\0more"),
        message(b"E", b"\0\0\0"),
        message(b"E", b""),
        b"D" + (MAX_SMALL_MESSAGE + 1).to_bytes(4, "big"),
        b"E" + (MAX_SMALL_MESSAGE + 1).to_bytes(4, "big"),
        b"C" + (MAX_SMALL_MESSAGE + 1).to_bytes(4, "big"),
        b"S\0\1\0\0",
        b"P\x01\x00\x00\x01",
    ],
)
def test_rejects_what_the_protocol_does_not_allow(world: World, data: bytes) -> None:
    client = world.client()
    client.send(data + b"x" * 100_000)
    assert kinds(client.take()) == "FATAL:08P01"
    assert client.closed()
    client.session.data_received(query("SELECT 1"))
    assert not world.backends


@pytest.mark.parametrize(
    "header",
    [
        b"\0\0\0\x09\0",
        b"!\0\0\1\0",
        b"S\0\0\0\5",
        b"H\0\0\1\0",
        *(bytes([kind]) + (MAX_SMALL_MESSAGE + 1).to_bytes(4, "big") for kind in b"CDEXcf"),
    ],
)
def test_a_header_that_cannot_become_a_message_is_refused_at_once(world: World, header: bytes) -> None:
    client = world.client()
    client.send(header)
    assert kinds(client.take()) == "FATAL:08P01"


def test_an_unknown_type_is_refused_while_the_rest_is_skipped_too(world: World) -> None:
    client = world.client()
    client.send(bind("nobody") + FLUSH + message(b"!"))
    assert kinds(client.take()) == "E:26000 FATAL:08P01"


@pytest.mark.parametrize(
    "conversation",
    [
        query("SELECT 1") + query(INSERT) + query("SELECT 2"),
        run(INSERT) + run("SELECT 1/0") + run(READ),
        parse("s", READ) + bind("s") + execute() + SYNC + close("s") + SYNC + bind("s") + SYNC,
        query("BEGIN") + run(INSERT) + query("DROP TABLE t") + query("SELECT 1") + query("ROLLBACK"),
        query("SET TimeZone = 'Asia/Tokyo'") + query(READ),
        query("SET sluice.pool = 'background'") + query(READ) + function_call() + SYNC,
        query("COPY t FROM STDIN") + copy_data(b"1") + COPY_DONE + query(READ) + TERMINATE,
        parse("", "COPY t FROM STDIN") + bind() + execute() + SYNC + copy_data(b"1") + COPY_DONE + SYNC,
    ],
)
def test_a_conversation_in_single_bytes_is_answered_as_in_one_piece(conversation: bytes) -> None:
    def converse(pieces: list[bytes], settle: bool) -> tuple[bytes, list[list[str]]]:
        world = World()
        client = world.client()
        for piece in pieces:
            client.send(piece)
            if settle:
                world.settle()
        world.settle()
        world.check()
        return client.take(), [each.sql for each in world.backends]

    single = [conversation[at : at + 1] for at in range(len(conversation))]
    whole = converse([conversation], False)
    assert converse(single, False) == whole
    assert converse(single, True) == whole
    assert converse(split(conversation), True) == whole


def test_each_answered_statement_is_recorded_and_counted(world: World) -> None:
    client = world.client()
    client.ask(query(READ), run(INSERT), query("SELECT 1/0"))
    assert world.access.rows == 3
    stats = world.pool("readonly").stats
    assert stats.query_time["read"].total() == 2
    assert stats.errors.counts == {"22": 1}
    assert world.pool("primary").stats.query_time["write"].total() == 1
