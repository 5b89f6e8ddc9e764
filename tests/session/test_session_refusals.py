"""What the proxy answers by itself: refusals, pools that are chosen, connections that are kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.errors import UpstreamUnavailable
from tests.session.conftest import Clock
from tests.session.fakes import Client, World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    TERMINATE,
    bind,
    error,
    execute,
    function_call,
    kinds,
    message,
    parse,
    query,
    run,
    tags,
)

INSERT = "INSERT INTO t VALUES ('alice')"
READ = "SELECT 'alice'"


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


@pytest.mark.parametrize("way", [query, run])
def test_a_refused_setting_is_not_carried_along(world: World, way: Callable[[str], bytes]) -> None:
    client = world.client(permissions=("admin", "write:tasks"))
    # The connection is still held when the refusal comes.
    client.send(
        query("SET TimeZone = 'Asia/Tokyo'"), way("SELECT set_config('sluice.identity', 'bob', false)")
    )
    world.settle()
    assert kinds(client.take()).endswith("E:42501 ZI")
    assert client.session.profile.values == (("timezone", "Asia/Tokyo"),)
    assert not client.session.touched


def test_a_refused_statement_pins_nothing(clock: Clock) -> None:
    world = World()
    client = world.client(rate=2)
    client.send(query("INSERT INTO t VALUES (1)"), query("INSERT INTO t VALUES (1)"), query("LISTEN a"))
    world.settle()
    assert kinds(client.take()) == "C ZI C ZI E:53400 ZI"
    assert client.session.pinned == "" and client.server() is None
    world.check()


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
    world.database.failover_wait = 0.0
    world.cluster.hosts[0].up = False
    world.cluster.roles_changed()
    client = world.client()
    answer = client.ask(query(INSERT), query("SELECT 1"))
    assert kinds(answer) == "E:57P03 ZI T D C ZI"


# -- rate limit


@pytest.mark.parametrize("way", [query, run])
def test_over_the_rate_an_open_transaction_fails_and_can_be_left(
    clock: Clock, way: Callable[[str], bytes]
) -> None:
    world = World()
    client = world.client(rate=2)
    client.ask(way("BEGIN"), way(INSERT))
    answer = client.ask(way("SELECT 1"))
    assert kinds(answer).endswith("E:53400 ZE")
    assert error(answer)["H"] == "Try again in 30.0 seconds."
    (backend,) = world.backends
    assert backend.status == "E"
    # To leave is free: the server connection is needed by others.
    assert tags(client.ask(way("COMMIT"))) == ["ROLLBACK"]
    assert INSERT not in backend.committed
    assert kinds(client.ask(way("COMMIT"))) == "E:53400 ZI"
    clock.now += 30.0
    assert kinds(client.ask(way(READ))).endswith("C ZI")
    world.check()


def test_over_the_rate_a_transaction_that_no_server_knows_of_fails_too(clock: Clock) -> None:
    world = World()
    client = world.client(rate=1)
    assert kinds(client.ask(query("BEGIN"))) == "C ZT"
    assert kinds(client.ask(query(INSERT))) == "E:53400 ZE"
    assert tags(client.ask(query("ROLLBACK"))) == ["ROLLBACK"]
    assert not any(INSERT in backend.sql for backend in world.backends)


def test_over_the_rate_nothing_of_a_pipeline_commits(clock: Clock) -> None:
    world = World()
    client = world.client(rate=2)
    steps = [parse("", INSERT), bind(), execute()]
    answer = client.ask(*steps, *steps, *steps, *steps, SYNC)
    assert kinds(answer).endswith("E:53400 ZI")
    assert kinds(answer).count("E:") == 1
    (backend,) = world.backends
    assert INSERT not in backend.committed
    # What has Syncs of its own stands by itself.
    clock.now += 60.0
    assert kinds(client.ask(run(INSERT), run(INSERT), run(INSERT), run(INSERT))) == (
        "1 2 C ZI 1 2 C ZI 1 2 E:53400 ZI 1 2 E:53400 ZI"
    )
    assert backend.committed.count(INSERT) == 2


def test_each_statement_of_a_text_counts(clock: Clock) -> None:
    world = World()
    client = world.client(rate=3)
    assert kinds(client.ask(query("SELECT 1; SELECT 2; SELECT 3; SELECT 4; SELECT 5"))).endswith("ZI")
    answer = client.ask(query("SELECT 1"))
    assert kinds(answer) == "E:53400 ZI"
    assert error(answer)["H"] == "Try again in 60.0 seconds."


def test_answered_statements_are_counted_for_the_key_whether_they_fail_or_not(world: World) -> None:
    client = world.client()
    world.failing["broken"] = "22012"
    client.ask(
        query(READ), run(INSERT), query("SELECT broken"), query("BEGIN"), query(INSERT), query("COMMIT")
    )
    client.ask(query("SET sluice.identity = 'bob'"))
    usage = world.database.usage
    assert usage.take(9) == []
    client.session.note_usage()
    ((key_id, statements, _),) = usage.take(9)
    assert (key_id, statements) == (client.session.key.id, 6)
    client.ask(query(READ))
    client.vanish()
    assert [use.statements for use in usage.take(9)] == [1]


# -- choosing a pool


def test_set_sluice_pool_decides_where_the_next_statement_goes(world: World) -> None:
    client = world.client()
    assert tags(client.ask(query("SET sluice.pool = 'background'"), query(READ))) == ["SET", "SELECT 1"]
    assert world.of("background")[0].sql == [READ]
    assert tags(client.ask(query("RESET sluice.pool"), query(READ))) == ["RESET", "SELECT 1"]
    assert world.of("readonly")[0].sql[-1] == READ


@pytest.mark.parametrize("sql", ["SET sluice.pool = 'background'", "RESET sluice.pool"])
def test_a_pool_is_chosen_in_the_extended_protocol_too(world: World, sql: str) -> None:
    client = world.client(pool="priority")
    client.ask(run(sql), run(READ))
    chosen = "background" if sql.startswith("SET") else "priority"
    assert READ in world.of(chosen)[0].sql
    assert client.session.asked_pool == chosen
    assert kinds(client.ask(run("SET sluice.pool = 'none'"))) == "E:22023 ZI"
    assert client.session.asked_pool == chosen


def test_a_pool_chosen_in_a_transaction_is_not_if_that_is_rolled_back(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query("SET sluice.pool = 'background'"), query("ROLLBACK"))
    assert client.session.asked_pool == ""
    client.ask(query("BEGIN"), query("SET sluice.pool = 'background'"), query("COMMIT"))
    assert client.session.asked_pool == "background"


def test_the_pool_can_be_shown_before_it_was_chosen(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT current_setting('sluice.pool')"))
    assert world.backends[0].settings["sluice.pool"] == ""


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


@pytest.mark.parametrize(
    ("sql", "release"),
    [
        ("LISTEN news", "UNLISTEN *"),
        ("CREATE TEMP TABLE x (i int)", "DROP TABLE x"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "CLOSE c"),
        ("SELECT pg_advisory_lock(1)", "SELECT pg_advisory_unlock(1)"),
        ("LISTEN news", "DISCARD ALL"),
        ("SELECT set_config($1, 'x', false)", "DISCARD ALL"),
    ],
)
@pytest.mark.parametrize("way", [query, run])
def test_a_pin_ends_with_what_caused_it(
    world: World, sql: str, release: str, way: Callable[[str], bytes]
) -> None:
    client = world.client()
    pool = world.pool("primary")
    client.ask(way(sql), query(READ))
    assert client.session.pinned and pool.pinned == 1
    client.ask(way(release))
    assert client.session.pinned == "" and pool.pinned == 0 and client.server() is None
    (backend,) = world.of("primary")
    assert backend.ran[-1].sql == "DISCARD ALL"
    world.check()


def test_a_pin_with_two_reasons_ends_with_the_last(world: World) -> None:
    client = world.client()
    client.ask(query("LISTEN news; SELECT pg_advisory_lock(1)"))
    client.ask(query("UNLISTEN *"))
    assert client.session.pinned == "advisory lock"
    client.ask(query("SELECT pg_advisory_unlock(1)"))
    assert client.session.pinned == "" and client.server() is None


@pytest.mark.parametrize("sql", ["SELECT setseed(0), 1/0", "LOAD '1/0'", "CREATE TEMP TABLE a AS SELECT 1/0"])
def test_what_fails_pins_no_longer(world: World, sql: str) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query(sql), query("ROLLBACK"))
    assert client.session.pinned == "" and client.server() is None
    world.check()


def test_a_session_with_a_temporary_table_may_drop_it_without_being_admin(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(query("DROP TABLE x"))) == "E:42501 ZI"
    client.ask(query("CREATE TEMP TABLE x (i int)"))
    assert kinds(client.ask(query("DROP TABLE x"))) == "C ZI"
    assert kinds(client.ask(query("DROP TABLE x"))) == "E:42501 ZI"


# -- currval


CURRVAL = "SELECT currval('s')"


def test_currval_means_the_connection_of_the_last_write(world: World) -> None:
    client = world.client()
    world.client().ask(query("BEGIN"), query(INSERT))
    client.ask(query(INSERT), query(CURRVAL))
    backend = world.of("primary")[1]
    assert backend.sql == [INSERT, CURRVAL]
    assert client.session.pinned == "currval"
    client.ask(query("DISCARD ALL"))
    assert client.session.pinned == "" and client.server() is None


def test_a_setting_between_a_write_and_currval_is_no_write(world: World) -> None:
    client = world.client()
    client.ask(query(INSERT), query("SET TimeZone = 'Asia/Tokyo'"), query(CURRVAL))
    (writer,) = world.of("primary")
    assert writer.sql == [INSERT, CURRVAL]
    assert "DISCARD ALL" not in [ran.sql for ran in writer.ran]


def test_currval_finds_nothing_of_another_session(world: World) -> None:
    world = World(maximum=2)
    client, other = world.client(), world.client()
    client.ask(query(INSERT))
    other.ask(query(INSERT))
    client.ask(query(CURRVAL))
    backend = world.of("primary")[0]
    assert [ran.sql for ran in backend.ran if "pg_catalog" not in ran.sql] == [
        *(INSERT, INSERT, "DISCARD ALL", CURRVAL),
    ]


def test_currval_without_a_value_does_not_pin(world: World) -> None:
    client = world.client()
    world.failing["currval"] = "55000"
    assert kinds(client.ask(query(CURRVAL))) == "E:55000 ZI"
    assert client.session.pinned == "" and client.server() is None


# -- session mode


def test_in_session_mode_a_connection_is_kept_until_the_client_ends(world: World) -> None:
    world.database.session_mode = True
    client = world.client()
    client.ask(
        query(READ), query("LISTEN a"), query(INSERT), query("SET TimeZone = 'Asia/Tokyo'"), query(READ)
    )
    (backend,) = world.backends
    assert backend.pool is world.pool("primary") and backend.pool.pinned == 0
    assert client.session.idle()
    client.vanish()
    world.settle()
    assert backend.ran[-1].sql == "DISCARD ALL"
    world.check()


def test_notifications_reach_a_client_that_does_nothing(world: World) -> None:
    client = world.client()
    client.ask(query("LISTEN news"))
    notification = message(b"A", b"\0\0\0\1news\0hello\0")
    world.backends[0].server.data_received(notification)
    assert client.take() == notification


# -- keys that may not write, and functions that may have changed settings

RUN = "SELECT run('SET default_transaction_read_only = off')"
WRITE = "SELECT record_it('x')"


@pytest.fixture
def reader(world: World) -> Client:
    return world.client("rea", permissions=("read:tasks",))


def test_in_one_text_nothing_follows_the_end_of_what_may_have_changed_settings(reader: Client) -> None:
    assert kinds(reader.ask(query(f"{RUN}; COMMIT; {WRITE}"))) == "E:42501 ZI"
    assert kinds(reader.ask(query(f"{RUN}; {WRITE}"))).endswith("C ZI"), "one transaction stays READ ONLY"


@pytest.mark.parametrize("way", [query, run])
def test_what_is_pipelined_behind_it_waits_for_the_reset(
    world: World, reader: Client, way: Callable[[str], bytes]
) -> None:
    assert kinds(reader.ask(way(RUN), way(WRITE))).count("ZI") == 2
    (backend,) = world.backends
    ran = [ran.sql for ran in backend.ran if "set_config" not in ran.sql]
    assert ran == [RUN, "DISCARD ALL", WRITE, "DISCARD ALL"]


def test_what_is_pipelined_behind_its_transaction_waits_too(world: World, reader: Client) -> None:
    answer = reader.ask(query("BEGIN"), query(RUN), query("COMMIT"), query(WRITE))
    assert kinds(answer).endswith("C ZI")
    (backend,) = world.backends
    ran = [ran.sql for ran in backend.ran if "set_config" not in ran.sql]
    assert ran == ["BEGIN", RUN, "COMMIT", "DISCARD ALL", WRITE, "DISCARD ALL"]


def test_within_one_unit_nothing_follows_the_end(world: World, reader: Client) -> None:
    steps = [parse("", sql) + bind() + execute() for sql in (RUN, "COMMIT", WRITE)]
    assert "E:42501" in kinds(reader.ask(*steps, SYNC))
    assert not any(WRITE in backend.sql for backend in world.backends)
    assert kinds(reader.ask(query(WRITE))).endswith("C ZI")
    # Nor by a Query in front of the Sync.
    assert "E:42501" in kinds(reader.ask(*steps[:2], query(WRITE), SYNC))


def test_a_session_that_keeps_its_connection_is_made_read_only_again(world: World, reader: Client) -> None:
    reader.ask(query("LISTEN x"))
    assert reader.session.pinned
    reader.ask(query(RUN))
    (backend,) = world.backends
    backend.settings["default_transaction_read_only"] = "off"
    reader.ask(query(WRITE))
    assert backend.settings["default_transaction_read_only"] == "on"


def test_what_was_refused_loosens_nothing(reader: Client) -> None:
    for sql in ("CALL p(1)", "COMMIT", "COMMIT"):
        reader.ask(run(sql))
    assert kinds(reader.ask(run("SELECT 1"), query("SELECT 1"))).endswith("1 2 D C ZI T D C ZI")
    steps = [parse("", sql) + bind() + execute() for sql in (RUN, "COMMIT", WRITE)]
    reader.ask(*steps, SYNC)
    assert kinds(reader.ask(run("COMMIT"), run("SELECT 1"))).endswith("1 2 D C ZI")


def test_a_key_that_may_write_has_none_of_that(world: World) -> None:
    writer = world.client("wri")
    assert kinds(writer.ask(query(f"{RUN}; COMMIT; {WRITE}"))).endswith("ZI")
    assert "E" not in kinds(writer.take())
