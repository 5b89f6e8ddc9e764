"""A session between bytes of its client and bytes of servers: statements, transactions, refusals, endings."""

from __future__ import annotations

import pytest

from proxy.errors import UpstreamUnavailable
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
    error,
    execute,
    kinds,
    message,
    parse,
    query,
    rows,
    run,
    split,
    tags,
)

INSERT = "INSERT INTO t VALUES ('alice')"
READ = "SELECT 'alice'"


def function_call() -> bytes:
    return message(b"F", b"\0\0\0\1\0\0\0\0\0\0")


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


# -- refusals


def test_a_write_without_permission_is_refused_and_touches_no_server(world: World) -> None:
    client = world.client(permissions=("read:tasks",))
    for messages in (query(INSERT), run(INSERT)):
        answer = client.ask(messages)
        assert kinds(answer) == "E:42501 ZI"
        assert error(answer)["D"].startswith("INSUFFICIENT_PERMISSIONS")
    assert not world.backends
    assert world.stats.denials.counts == {"INSUFFICIENT_PERMISSIONS": 2}


def test_nothing_of_a_unit_that_is_refused_later_on_commits(world: World) -> None:
    client = world.client()
    answer = client.ask(
        parse("", INSERT), bind(), execute(), parse("", "DROP TABLE t"), bind(), execute(), SYNC
    )
    assert kinds(answer) == "1 2 C 1 2 E:42501 ZI"
    (backend,) = world.backends
    assert INSERT in backend.sql and INSERT not in backend.committed
    assert kinds(client.ask(run(INSERT))) == "1 2 C ZI"


@pytest.mark.parametrize("refused", [query("DROP TABLE t"), run("DROP TABLE t")])
def test_a_refusal_in_a_transaction_fails_it_on_the_server_too(world: World, refused: bytes) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query(INSERT))
    assert kinds(client.ask(refused)).endswith("E:42501 ZE")
    (backend,) = world.backends
    assert backend.status == "E"
    assert kinds(client.ask(query("SELECT 1"))) == "E:25P02 ZE"
    assert tags(client.ask(query("COMMIT"))) == ["ROLLBACK"]
    assert INSERT not in backend.committed


def test_a_refusal_that_a_flush_ends_skips_to_sync(world: World) -> None:
    client = world.client(permissions=("read:tasks",))
    answer = client.ask(parse("", INSERT), bind(), execute(), FLUSH)
    assert kinds(answer).endswith("E:42501")
    assert client.ask(parse("", "SELECT 1"), bind(), execute(), FLUSH, query("SELECT 2")) == b""
    assert kinds(client.ask(SYNC)) == "ZI"
    assert kinds(client.ask(query("SELECT 3"))) == "T D C ZI"


def test_the_identity_cannot_be_set_by_a_client(world: World) -> None:
    for client in (world.client(), world.client("root", ("admin",))):
        assert kinds(client.ask(query("SET sluice.identity = 'bob'"))) == "E:42501 ZI"


def test_more_statements_than_the_rate_allows_are_refused_until_there_is_time(clock: Clock) -> None:
    world = World()
    client = world.client(rate=2)
    assert kinds(client.ask(query("SELECT 1"), run("SELECT 2"))) == "T D C ZI 1 2 D C ZI"
    answer = client.ask(query("SELECT 3"))
    assert kinds(answer) == "E:53400 ZI"
    assert error(answer)["D"] == "RATE_LIMIT_EXCEEDED: limit=2 per minute"
    assert error(answer)["H"] == "Try again in 30.0 seconds."
    clock.now += 30.0
    assert kinds(client.ask(query("SELECT 4"))) == "T D C ZI"


def test_a_function_call_is_refused_in_its_turn(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(function_call())) == "E:0A000 ZI"
    assert kinds(client.ask(query("SELECT 1"), function_call(), query("SELECT 2"))) == (
        "T D C ZI E:0A000 ZI T D C ZI"
    )
    client.ask(query("BEGIN"), query(INSERT))
    assert kinds(client.ask(function_call())) == "E:0A000 ZE"
    assert tags(client.ask(query("COMMIT"))) == ["ROLLBACK"]


def test_an_exhausted_pool_is_told_with_its_numbers(clock: Clock) -> None:
    world = World(maximum=1)
    world.client("bob").ask(query("BEGIN"))
    client = world.client()
    client.send(query(INSERT))
    clock.now += 31.0
    world.pool("primary").maintain(clock.now)
    answer = client.take()
    assert kinds(answer) == "E:53300 ZI"
    assert error(answer)["D"] == "POOL_EXHAUSTED: pool=primary host=one size=1 waiting=1"
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"


def test_a_unit_that_no_server_takes_is_answered_with_the_reason(world: World) -> None:
    client = world.client()
    client.send(parse("s", "SELECT 1"), bind("s"), execute(), SYNC, query("SELECT 2"))
    world.fail_to_open(UpstreamUnavailable(extra="refused"))
    world.fail_to_open(UpstreamUnavailable(extra="refused"))
    assert kinds(client.take()) == "E:08006 ZI E:08006 ZI"
    assert kinds(client.ask(parse("s", "SELECT 1"), SYNC)) == "1 ZI"


def test_without_a_primary_a_write_is_refused_and_a_read_is_served() -> None:
    world = World(replica=True)
    world.cluster.hosts[0].up = False
    world.cluster.roles_changed()
    client = world.client()
    answer = client.ask(query(INSERT), query("SELECT 1"))
    assert kinds(answer) == "E:57P03 ZI T D C ZI"


# -- choosing a pool


def test_set_sluice_pool_is_answered_by_the_proxy(world: World) -> None:
    client = world.client()
    assert tags(client.ask(query("SET sluice.pool = 'background'"), query(READ))) == ["SET", "SELECT 1"]
    assert world.of("background")[0].sql == [READ]
    assert tags(client.ask(query("RESET sluice.pool"), query(READ))) == ["RESET", "SELECT 1"]
    assert world.of("readonly")[0].sql == [READ]


def test_set_sluice_pool_is_answered_in_its_turn(world: World) -> None:
    client = world.client()
    answer = client.ask(query(READ), query("SET sluice.pool = 'background'"), query(INSERT), query(READ))
    assert tags(answer) == ["SELECT 1", "SET", "INSERT 0 1", "SELECT 1"]
    assert world.of("background")[0].sql == [INSERT, READ]


def test_an_unknown_pool_is_an_error_and_fails_the_transaction(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(query("SET sluice.pool = 'none'"))) == "E:22023 ZI"
    client.ask(query("BEGIN"), query(INSERT))
    assert kinds(client.ask(query("SET sluice.pool = 'none'"))) == "E:22023 ZE"
    assert tags(client.ask(query("COMMIT"))) == ["ROLLBACK"]


# -- pins


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("LISTEN news", "listen"),
        ("CREATE TEMP TABLE x (i int)", "temporary table"),
        ("SELECT pg_advisory_lock(1)", "advisory lock"),
    ],
)
@pytest.mark.parametrize("way", [query, run])
def test_what_cannot_be_carried_pins_the_connection(world: World, sql: str, reason: str, way: object) -> None:
    client = world.client()
    client.ask(query(sql) if way is query else run(sql))
    pool = world.pool("primary")
    assert client.session.pinned == reason
    assert pool.pinned == 1 and pool.idle_count == 0
    assert kinds(client.ask(query(READ))) == "T D C ZI"
    (backend,) = world.backends
    client.send(TERMINATE)
    world.settle()
    assert client.closed() and pool.pinned == 0
    assert backend.ran[-1].sql == "DISCARD ALL"
    world.check()


def test_one_connection_of_a_pool_is_never_pinned(world: World) -> None:
    first, second = world.client(), world.client()
    first.ask(query("LISTEN a"))
    answer = second.ask(query("LISTEN b"))
    assert kinds(answer) == "E:53300 ZI"
    assert error(answer)["D"] == "POOL_EXHAUSTED: pool=primary pinned=1 size=2"
    second.ask(query("BEGIN"), query(INSERT))
    assert kinds(second.ask(query("LISTEN b"))) == "E:53300 ZE"
    assert tags(second.ask(query("COMMIT"))) == ["ROLLBACK"]
    first.vanish()
    world.settle()
    assert kinds(second.ask(query("LISTEN b"))) == "C ZI"


def test_notifications_reach_a_client_that_does_nothing(world: World) -> None:
    client = world.client()
    client.ask(query("LISTEN news"))
    notification = message(b"A", b"\0\0\0\1news\0hello\0")
    world.backends[0].server.data_received(notification)
    assert client.take() == notification


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


def test_a_client_that_vanishes_while_it_waits_leaves_the_queue() -> None:
    world = World(maximum=1)
    world.client("bob").ask(query("BEGIN"))
    client = world.client()
    client.send(query(INSERT))
    assert world.pool("primary").waiters.length == 1
    client.vanish()
    assert world.pool("primary").waiters.length == 0


def test_a_server_that_dies_in_a_unit_ends_the_client_with_a_fatal_error(world: World) -> None:
    client = world.client()
    client.send(query("SELECT 1"))
    world.open()
    world.backends[0].die()
    answer = client.take()
    assert kinds(answer) == "FATAL:08006"
    assert "one:5432" in error(answer)["M"]
    assert client.closed()


def test_a_server_that_dies_while_nobody_uses_it_is_not_noticed(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    world.backends[0].die()
    assert kinds(client.ask(query("SELECT 2"))) == "T D C ZI"


def test_a_server_that_breaks_the_protocol_is_closed(world: World) -> None:
    client = world.client()
    client.send(query("SELECT 1"))
    world.open()
    world.backends[0].server.data_received(b"D\xff\xff\xff\xff")
    assert kinds(client.take()) == "FATAL:08006"
    assert world.backends[0].transport.aborted


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
