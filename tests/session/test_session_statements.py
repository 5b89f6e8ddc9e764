"""Prepared statements that follow a client from one server connection to the next, and settings that do."""

from __future__ import annotations

import pytest

from proxy.session.collect import MAX_STATEMENT_BYTES
from proxy.upstream.server import MAX_STATEMENTS
from tests.session.backend import DEFAULTS, Backend
from tests.session.fakes import Client, World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    bind,
    close,
    describe,
    error,
    execute,
    kinds,
    message,
    parse,
    query,
    rows,
    run,
)

READ = "SELECT 'alice'"
INSERT = "INSERT INTO t VALUES ('alice')"


def use(name: str) -> bytes:
    return bind(name) + execute() + SYNC


def moved(world: World, client: Client, other: Client) -> Backend:
    """Have `client` hold another connection than that on which it prepared, and return it."""
    other.ask(query("BEGIN"))
    client.ask(query("BEGIN"))
    assert len(world.of("primary")) == 2
    return world.of("primary")[1]


# -- prepared statements


def test_a_named_statement_works_on_another_connection(world: World) -> None:
    client, other = world.client(), world.client()
    assert kinds(client.ask(parse("s", INSERT), describe("s"), SYNC)) == "1 t n ZI"
    second = moved(world, client, other)
    assert kinds(client.ask(use("s"))) == "2 C ZT"
    assert kinds(client.ask(describe("s"), use("s"))) == "t n 2 C ZT"
    assert sum(INSERT.encode() in each for each in second.transport.writes) == 1


def test_the_unnamed_statement_works_on_another_connection(world: World) -> None:
    client, other = world.client(), world.client()
    assert kinds(client.ask(parse("", INSERT), SYNC)) == "1 ZI"
    second = moved(world, client, other)
    assert kinds(client.ask(parse("", INSERT), SYNC, query("SELECT 1"))) == "1 ZT T D C ZT"
    assert kinds(client.ask(use(""))) == "E:26000 ZE", "a simple query destroys it"
    client.ask(query("ROLLBACK"))
    client.ask(parse("", INSERT), SYNC)
    assert kinds(client.ask(use(""))) == "2 C ZI"
    assert second.sql


def test_the_unnamed_statement_of_another_client_is_not_taken_for_ones_own(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    client.ask(parse("", "SELECT 1"), SYNC)
    other.ask(parse("", "SELECT 2"), SYNC)
    assert rows(client.ask(use(""))) == ["1"]
    assert rows(other.ask(use(""))) == ["2"]


def test_clients_with_the_same_statement_share_it(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("one", READ), use("one"))
    assert kinds(other.ask(parse("two", READ), use("two"))) == "1 2 D C ZI"
    (backend,) = world.backends
    assert backend.transport.all.count(READ.encode()) == 1
    assert len([name for name in backend.statements if name.startswith("_sluice_1")]) == 1


def test_parses_that_a_server_is_sent_or_spared_are_counted() -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    pool = world.pool("primary")
    client.ask(parse("s", INSERT), SYNC)
    assert (pool.parses(), pool.spared()) == (1, 0)
    other.ask(parse("q", INSERT), describe("q"), SYNC)
    client.ask(parse("t", INSERT), use("t"))
    assert (pool.parses(), pool.spared()) == (1, 2)
    for server in list(pool.servers):
        server.close()
    assert (pool.parses(), pool.spared()) == (1, 2), "closed connections still count"


def test_closing_a_name_frees_it_for_its_client_alone(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("s", READ), SYNC)
    other.ask(parse("s", READ), SYNC)
    assert kinds(client.ask(close("s"), SYNC)) == "3 ZI"
    assert kinds(client.ask(use("s"))) == "E:26000 ZI"
    assert kinds(other.ask(use("s"))) == "2 D C ZI"
    assert kinds(client.ask(parse("s", "SELECT 2"), use("s"))) == "1 2 D C ZI"


def test_closing_what_does_not_exist_is_no_error(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(close("none"), close("none", b"P"), SYNC)) == "3 3 ZI"


def test_closing_the_unnamed_statement_takes_it_from_nobody_else(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    other.ask(parse("", READ), SYNC)
    client.ask(parse("", READ), close(""), SYNC)
    assert kinds(client.ask(use(""))) == "E:26000 ZI"
    assert kinds(other.ask(use(""))) == "2 D C ZI"


def test_a_name_that_is_taken_is_refused(world: World) -> None:
    client = world.client()
    client.ask(parse("s", READ), SYNC)
    answer = client.ask(parse("s", "SELECT 2"), bind("s"), execute(), SYNC)
    assert kinds(answer) == "E:42P05 ZI"
    assert error(answer)["M"] == 'prepared statement "s" already exists'
    assert rows(client.ask(use("s"))) == ["'alice'"]


def test_a_missing_statement_is_refused_and_the_rest_skipped_to_sync(world: World) -> None:
    client = world.client()
    answer = client.ask(use("s"), use(""), describe("s"), SYNC, query("SELECT 1"))
    assert kinds(answer) == "E:26000 ZI E:26000 ZI E:26000 ZI T D C ZI"
    assert 'prepared statement "s" does not exist' in answer.decode(errors="replace")
    client.ask(query("BEGIN"))
    assert kinds(client.ask(bind("s"), execute(), parse("x", READ), SYNC)) == "E:26000 ZE"


def test_what_stands_before_a_missing_statement_is_done(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(parse("s", READ), close("x"), use("t"))) == "1 3 E:26000 ZI"
    assert kinds(client.ask(parse("s", READ), SYNC)) == "E:42P05 ZI", "the name is taken"
    assert rows(client.ask(use("s"))) == ["'alice'"]
    assert kinds(client.ask(parse("u", READ), parse("s", READ), SYNC, use("u"))) == "1 E:42P05 ZI 2 D C ZI"


def test_a_parse_that_fails_leaves_its_name_free(world: World) -> None:
    client = world.client()
    world.failing["SELECT nothing"] = "42703"
    assert kinds(client.ask(parse("s", "SELECT nothing"), SYNC)) == "E:42703 ZI"
    assert kinds(client.ask(parse("s", READ), use("s"))) == "1 2 D C ZI"


@pytest.mark.parametrize("failing", ["SELECT 1/0", "DROP TABLE t"])
@pytest.mark.parametrize("begun", [False, True])
def test_names_prepared_behind_an_error_are_free_again(world: World, failing: str, begun: bool) -> None:
    client = world.client()
    client.ask(parse("kept", READ), SYNC)
    if begun:
        client.ask(query("BEGIN"))
    pipeline = parse("", failing) + bind() + execute() + close("kept") + parse("s", READ) + use("s")
    assert " E:" in " " + kinds(client.ask(pipeline))
    if begun:
        client.ask(query("ROLLBACK"))
    assert kinds(client.ask(use("s"))) == "E:26000 ZI"
    assert kinds(client.ask(parse("s", "SELECT 2"), use("s"))) == "1 2 D C ZI"
    assert kinds(client.ask(use("kept"))) == "2 D C ZI"


def test_a_unit_behind_one_with_an_error_keeps_its_names(world: World) -> None:
    client = world.client()
    pipeline = parse("a", "SELECT 1/0") + use("a") + parse("b", READ) + use("b")
    assert kinds(client.ask(pipeline)) == "1 2 E:22012 ZI 1 2 D C ZI"
    assert kinds(client.ask(use("b"))) == "2 D C ZI"


def test_an_unnamed_statement_that_was_skipped_is_not_taken_for_parsed(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    other.ask(parse("", "SELECT 2"), SYNC)
    client.ask(parse("", "SELECT 1/0"), bind(), execute(), parse("", "SELECT 2"), bind(), execute(), SYNC)
    assert rows(other.ask(use(""))) == ["2"]


@pytest.mark.parametrize("name", ["s", ""])
def test_a_statement_that_no_longer_parses_elsewhere_is_an_error_of_its_own(world: World, name: str) -> None:
    client, other = world.client(), world.client()
    client.ask(parse(name, READ), SYNC)
    other.ask(query("SELECT 1"), query("BEGIN"))
    reader = world.of("readonly")[0]
    reader.die()
    client.send(use(name))
    world.open()
    world.of("readonly")[1].fails[READ] = "42P01"
    world.settle()
    assert kinds(client.take()) == "E:42P01 ZI"
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"
    if name:
        assert kinds(client.ask(use(name))) == "2 D C ZI"


def test_a_connection_holds_a_bounded_number_of_statements(world: World) -> None:
    world = World(maximum=1)
    client = world.client()
    for number in range(MAX_STATEMENTS + 10):
        assert kinds(client.ask(parse(f"s{number}", f"SELECT x{number}"), SYNC)) == "1 ZI"
    (backend,) = world.backends
    held = [name for name in backend.statements if name[len("_sluice_")].isdigit()]
    assert len(held) == MAX_STATEMENTS
    for number in range(MAX_STATEMENTS + 10):
        assert kinds(client.ask(use(f"s{number}"))) == "2 D C ZI"


def test_a_statement_whose_eviction_was_skipped_is_still_known(world: World) -> None:
    world = World(maximum=1)
    client = world.client()
    for number in range(MAX_STATEMENTS):
        client.ask(parse(f"s{number}", f"SELECT x{number}"), SYNC)
    assert "E:22012" in kinds(
        client.ask(parse("", "SELECT 1/0"), bind(), execute(), parse("one", "SELECT more"), SYNC)
    )
    for number in range(MAX_STATEMENTS):
        assert kinds(client.ask(use(f"s{number}"))) == "2 D C ZI"


def test_discard_all_empties_the_names(world: World) -> None:
    client = world.client()
    client.ask(parse("s", READ), SYNC)
    assert kinds(client.ask(query("DISCARD ALL"))) == "C ZI"
    assert kinds(client.ask(use("s"))) == "E:26000 ZI"
    assert kinds(client.ask(parse("s", READ), use("s"))) == "1 2 D C ZI"


def test_what_is_prepared_behind_a_discard_all_in_one_packet_stays(world: World) -> None:
    client = world.client()
    answer = client.ask(query("DISCARD ALL"), parse("s", READ), SYNC, use("s"))
    assert kinds(answer) == "C ZI 1 ZI 2 D C ZI"
    assert kinds(client.ask(use("s"))) == "2 D C ZI"


def test_a_portal_lives_as_long_as_its_transaction(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), parse("s", READ), bind("s", "p"), SYNC)
    assert kinds(client.ask(execute("p"), describe("p", b"P"), close("p", b"P"), SYNC)) == "D C n 3 ZT"
    client.ask(query("COMMIT"))
    assert kinds(client.ask(execute("p"), SYNC)) == "E:34000 ZI"


def test_a_name_of_too_long_a_text_is_refused(world: World) -> None:
    client = world.client()
    text = "SELECT '" + "x" * 70_000 + "'"
    assert kinds(client.ask(parse("s", text), use("s"))) == "E:0A000 ZI"
    assert kinds(client.ask(run(text))) == "1 2 D C ZI"
    assert kinds(client.ask(parse("s", READ), use("s"))) == "1 2 D C ZI"


def test_a_statement_is_shared_only_among_sessions_that_parse_alike() -> None:
    world = World(maximum=1)
    ours, theirs = world.client(), world.client(settings={"timezone": "Asia/Tokyo"})
    same = world.client(settings={"application_name": "other", "statement_timeout": "1min"})
    ours.ask(parse("s", READ), use("s"))
    (backend,) = world.backends
    same.ask(parse("s", READ), use("s"))
    assert backend.transport.all.count(READ.encode()) == 1
    theirs.ask(parse("s", READ), use("s"))
    assert backend.transport.all.count(READ.encode()) == 2
    assert backend.parsed_under[READ] == "Asia/Tokyo"


def test_a_statement_is_parsed_elsewhere_under_the_settings_it_was_prepared_under(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("s", INSERT), SYNC, query("SET TimeZone = 'Asia/Tokyo'"))
    second = moved(world, client, other)
    client.take()
    assert kinds(client.ask(use("s"))) == "2 C ZT"
    assert second.parsed_under[INSERT] == "UTC"
    assert second.settings["timezone"] == "Asia/Tokyo"


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_statement_keeps_its_settings_behind_set_local(world: World, pipelined: bool) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("s", INSERT), parse("t", READ), SYNC)
    other.ask(query("BEGIN"))
    begun = query("BEGIN") + query("SET LOCAL TimeZone = 'Asia/Tokyo'")
    if pipelined:
        assert kinds(client.ask(begun, use("s"))) == "C ZT C S:TimeZone=Asia/Tokyo ZT 2 C ZT"
    else:
        client.ask(begun)
        assert kinds(client.ask(use("s"))) == "2 C ZT"
    second = world.of("primary")[1]
    assert second.parsed_under[INSERT] == "UTC" and second.settings["timezone"] == "Asia/Tokyo"
    assert kinds(client.ask(use("s"))) == "2 C ZT"
    assert second.transport.all.count(INSERT.encode()) == 1
    assert kinds(client.ask(query("EXECUTE t"))) == "T D C ZT"
    assert second.parsed_under[READ] == "UTC" and second.settings["timezone"] == "Asia/Tokyo"
    client.ask(query("COMMIT"), use("s"))
    assert second.transport.all.count(INSERT.encode()) == 1


def test_what_is_parsed_behind_set_local_is_shared_with_nobody() -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    tokyo = "SET LOCAL TimeZone = 'Asia/Tokyo'"
    assert kinds(client.ask(query("BEGIN"), query(tokyo), parse("s", INSERT), SYNC, query("COMMIT")))
    (backend,) = world.of("primary")
    assert backend.parsed_under[INSERT] == "Asia/Tokyo"
    other.ask(parse("s", INSERT), use("s"))
    assert backend.parsed_under[INSERT] == "UTC"
    client.ask(parse("", "BEGIN"), bind(), execute(), SYNC)
    within = parse("", tokyo) + bind() + execute() + parse("t", READ) + SYNC
    client.ask(within, query("COMMIT"))
    assert backend.parsed_under[READ] == "Asia/Tokyo"
    other.ask(query("BEGIN"), parse("t", READ), use("t"), query("COMMIT"))
    assert backend.parsed_under[READ] == "UTC"


@pytest.mark.parametrize("begin", [b"", parse("", "BEGIN") + bind() + execute() + SYNC])
@pytest.mark.parametrize("scope", ["", "LOCAL "])
def test_a_statement_keeps_its_settings_behind_a_set_in_its_own_unit(
    world: World, begin: bytes, scope: str
) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("s", INSERT), SYNC)
    other.ask(query("BEGIN"), query(INSERT))
    client.ask(begin)
    answer = client.ask(parse("", f"SET {scope}TimeZone = 'Asia/Tokyo'"), bind(), execute(), use("s"))
    assert kinds(answer).startswith("1 2 C 2 C ")
    second = world.of("primary")[1]
    assert second.parsed_under[INSERT] == "UTC"
    assert second.sql[-1] == INSERT, "it writes, whatever stands before it"


def test_what_changes_no_literal_takes_no_savepoint(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("s", INSERT), SYNC)
    other.ask(query("BEGIN"))
    client.ask(query("BEGIN"), query("SET a.b = '1'"))
    assert kinds(client.ask(use("s"))) == "2 C ZT"
    second = world.of("primary")[1]
    assert b"SAVEPOINT" not in second.transport.all
    client.ask(query("COMMIT"), use("s"))
    assert second.transport.all.count(INSERT.encode()) == 1


def test_a_statement_that_no_longer_parses_behind_set_local_fails_the_transaction(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("s", INSERT), SYNC)
    other.ask(query("BEGIN"))
    client.ask(query("BEGIN"), query("SET TimeZone = 'Asia/Tokyo'"))
    second = world.of("primary")[1]
    second.fails[INSERT] = "42P01"
    assert kinds(client.ask(use("s"))) == "E:42P01 S:TimeZone=UTC ZE"
    assert kinds(client.ask(use("s"))) == "E:25P02 ZE"
    assert kinds(client.ask(query("ROLLBACK"), use("s"))).endswith("ZI 2 C ZI")


def test_what_is_prepared_behind_a_set_is_not_taken_for_what_others_prepare(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("first", READ), SYNC)
    client.ask(query("BEGIN"), query("SET TimeZone = 'Asia/Tokyo'"), parse("s", READ), SYNC)
    (backend,) = world.of("primary")
    assert backend.parsed_under[READ] == "Asia/Tokyo"
    client.ask(query("ROLLBACK"))
    assert kinds(other.ask(query("BEGIN"), parse("s", READ), use("s"))) == "C ZT 1 2 D C ZT"
    assert backend.parsed_under[READ] == "UTC"


def test_what_is_prepared_behind_ddl_is_parsed_anew(world: World) -> None:
    world = World(maximum=1)
    client, admin = world.client(permissions=("admin",)), world.client(permissions=("admin",))
    client.ask(parse("s", READ), use("s"))
    admin.ask(query("CREATE TABLE t ()"))
    sent = world.backends[0].transport.all.count(READ.encode())
    assert kinds(client.ask(use("s"))) == "2 D C ZI", "who has it keeps it"
    assert world.backends[0].transport.all.count(READ.encode()) == sent
    admin.ask(parse("s", READ), use("s"))
    assert world.backends[0].transport.all.count(READ.encode()) == sent + 1


CHANGED = "0A000\0RRevalidateCachedQuery"


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_table_that_changed_before_ones_own_parse_is_no_error(pipelined: bool) -> None:
    world = World(maximum=1)
    first, client = world.client(), world.client()
    first.ask(parse("s", READ), use("s"))
    (backend,) = world.backends
    backend.stale[READ] = CHANGED
    behind = query("SELECT 1")
    if pipelined:
        assert kinds(client.ask(parse("s", READ) + use("s") + behind)) == "1 2 D C ZI T D C ZI"
    else:
        assert kinds(client.ask(parse("s", READ), SYNC)) == "1 ZI"
        assert kinds(client.ask(use("s") + behind)) == "2 D C ZI T D C ZI"
    assert backend.sql.count(READ) == 2
    assert kinds(client.ask(use("s"))) == "2 D C ZI"


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_table_that_changed_before_ones_own_parse_is_no_error_behind_flush(pipelined: bool) -> None:
    world = World(maximum=1)
    first, client = world.client(), world.client()
    first.ask(query("BEGIN"), parse("s", READ), use("s"), query("COMMIT"))
    (backend,) = world.of("primary")
    backend.stale[READ] = CHANGED
    prepared = parse("s", READ) + describe("s") + FLUSH
    if pipelined:
        assert kinds(client.ask(prepared + use("s"))).startswith("1 E:0A000 ZI"), "what is skipped isn't run"
        return
    assert kinds(client.ask(prepared)) == "1 t n"
    assert kinds(client.ask(bind("s"), describe("", b"P"), execute(), FLUSH)) == "2 n D C"
    assert kinds(client.ask(SYNC)) == "ZI"
    assert client.server() is None
    third = world.client()
    backend.fresh.clear()
    assert kinds(third.ask(parse("s", READ), bind("s"), execute(), FLUSH)) == "1 2 D C"
    assert kinds(third.ask(SYNC, query("SELECT 1"))) == "ZI T D C ZI"
    world.check()


def test_a_table_that_changed_since_ones_own_parse_is_postgresqls_error() -> None:
    world = World(maximum=1)
    client = world.client()
    client.ask(parse("s", READ), use("s"))
    world.backends[0].stale[READ] = CHANGED
    assert kinds(client.ask(use("s"))) == "E:0A000 ZI"
    assert kinds(client.ask(use("s"))) == "E:0A000 ZI"
    assert kinds(client.ask(close("s"), parse("s", READ), use("s"))).startswith("3 1 ")


def test_in_a_transaction_a_table_that_changed_is_an_error() -> None:
    world = World(maximum=1)
    first, client = world.client(), world.client()
    first.ask(query("BEGIN"), parse("s", READ), use("s"), query("COMMIT"))
    world.of("primary")[0].stale[READ] = CHANGED
    client.ask(query("BEGIN"))
    assert kinds(client.ask(parse("s", READ), use("s"))) == "1 E:0A000 ZE"


def test_the_texts_that_a_client_may_name_are_bounded(world: World) -> None:
    client = world.client()
    text = "SELECT '" + "x" * 60_000 + "'"
    client.session.statements.named_bytes = MAX_STATEMENT_BYTES - 100_000
    assert kinds(client.ask(parse("a", text), SYNC)) == "1 ZI"
    assert kinds(client.ask(parse("b", text), SYNC)) == "E:54000 ZI"
    assert kinds(client.ask(close("a"), parse("b", text), SYNC)) == "3 1 ZI"


# -- settings


def test_a_setting_follows_the_session_to_another_connection(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(query("SET TimeZone = 'Asia/Tokyo'"))) == "C S:TimeZone=Asia/Tokyo ZI"
    client.ask(query(INSERT))
    (writer,) = world.of("primary")
    assert writer.settings["timezone"] == "Asia/Tokyo"
    assert INSERT in writer.committed
    assert "current_setting" not in writer.transport.all.decode(errors="replace")


def test_a_setting_is_no_other_sessions(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    client.ask(query("SET TimeZone = 'Asia/Tokyo'"))
    other.ask(query(READ))
    assert world.of("readonly")[0].settings["timezone"] == "UTC"
    client.ask(query(READ))
    assert world.of("readonly")[0].settings["timezone"] == "Asia/Tokyo"


def test_a_setting_without_a_known_default_is_reset_before_another_session(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    client.ask(query("SET a.b = '1'"))
    (backend,) = world.backends
    assert kinds(other.ask(query(READ))) == "T D C ZI"
    assert "DISCARD ALL" in [ran.sql for ran in backend.ran]
    assert "a.b" not in backend.settings
    client.ask(query(READ))
    assert backend.settings["a.b"] == "1"


def test_a_default_that_was_learned_is_set_again_for_another_session(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    client.ask(query("SET work_mem = '1MB'"))
    (backend,) = world.backends
    assert kinds(other.ask(query(READ))) == "T D C ZI"
    assert backend.settings["work_mem"] == DEFAULTS["work_mem"]
    assert "DISCARD ALL" not in [ran.sql for ran in backend.ran]
    client.ask(query(READ))
    assert backend.settings["work_mem"] == "1MB"


def test_a_setting_is_read_back_as_the_server_has_it(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query("SET TimeZone = 'Asia/Tokyo'"), query("ROLLBACK"))
    assert client.session.profile is client.session.startup_profile
    client.ask(query("BEGIN"), query("SET TimeZone = 'Asia/Tokyo'"), query("COMMIT"), query(READ))
    assert world.of("readonly")[0].settings["timezone"] == "Asia/Tokyo"


def test_a_read_back_keeps_each_value_with_its_name(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query("SET \"été.x\" = '1'"), query("SET work_mem = '1MB'"), query("COMMIT"))
    assert client.session.profile.get("work_mem") == "1MB"


def test_statements_behind_a_set_in_one_packet_wait_for_the_read_back(world: World) -> None:
    client = world.client()
    answer = client.ask(query("SET TimeZone = 'Asia/Tokyo'"), query(INSERT), query(READ))
    assert kinds(answer) == "C S:TimeZone=Asia/Tokyo ZI C ZI T D C ZI"
    assert world.of("primary")[0].settings["timezone"] == "Asia/Tokyo"


@pytest.mark.parametrize("sql", ["RESET ALL", "DISCARD ALL"])
def test_a_reset_restores_what_the_session_started_with(world: World, sql: str) -> None:
    client = world.client(settings={"timezone": "Europe/Berlin"})
    client.ask(query("SET TimeZone = 'Asia/Tokyo'"))
    client.ask(query(sql))
    client.ask(query(READ))
    assert world.of("readonly")[0].settings["timezone"] == "Europe/Berlin"
    assert kinds(client.ask(query(READ))) == "T D C ZI"


def test_a_reset_inside_a_transaction_restores_at_once(world: World) -> None:
    client = world.client(settings={"timezone": "Europe/Berlin"})
    client.ask(query("SET TimeZone = 'Asia/Tokyo'"), query("BEGIN"))
    assert kinds(client.ask(query("RESET TimeZone"))) == "C S:TimeZone=Europe/Berlin ZT"
    client.ask(query(INSERT))
    server = client.server()
    (backend,) = [each for each in world.backends if each.server is server]
    assert backend.settings["timezone"] == "Europe/Berlin"
    assert kinds(client.ask(query("ROLLBACK"))) == "C S:TimeZone=Asia/Tokyo ZI"
    client.ask(query(READ))
    assert client.session.profile.get("timezone") == "Asia/Tokyo"


def test_the_identity_is_back_behind_a_reset_all_in_a_transaction(world: World) -> None:
    client = world.client()
    client.ask(
        query("BEGIN"), query("RESET ALL"), query(READ), query("SAVEPOINT a"), query(INSERT), query("COMMIT")
    )
    client.ask(query(INSERT))
    owners = {ran.owner for backend in world.backends for ran in backend.ran if ran.sql in (READ, INSERT)}
    assert owners == {"alice"}


def test_nothing_is_set_again_in_front_of_a_transactions_end(world: World) -> None:
    client = world.client(settings={"timezone": "Europe/Berlin"})
    client.ask(query("BEGIN"), query("RESET TimeZone"))
    server = client.server()
    assert server is not None
    (backend,) = [each for each in world.backends if each.server is server]
    ran = len(backend.ran)
    client.send(query("COMMIT"))
    backend.answer()
    assert [each.sql for each in backend.ran[ran:]] == ["COMMIT"]


def test_a_server_that_does_not_tell_its_settings_is_kept(world: World) -> None:
    client = world.client()
    world.failing["current_setting"] = "57014"
    assert kinds(client.ask(query("SET work_mem = '1MB'"))) == "C ZI"
    assert client.session.pinned == "unseen settings" and client.server() is not None
    assert kinds(client.ask(query(READ))) == "T D C ZI"
    del world.failing["current_setting"]
    client.ask(query("DISCARD ALL"))
    assert client.session.pinned == "" and client.server() is None


def test_a_client_that_vanishes_during_a_look_costs_no_connection(world: World) -> None:
    client = world.client()
    client.send(query("SET work_mem = '1MB'"))
    world.open()
    (backend,) = world.backends
    while client.session.look is None:
        backend.answer()
    client.vanish()
    world.settle()
    assert not backend.transport.closed and world.pool("readonly").idle_count == 1
    assert backend.ran[-1].sql == "DISCARD ALL"
    world.check()


def test_what_a_function_sets_is_followed_where_it_is_reported(world: World) -> None:
    client = world.client(permissions=("admin",))
    client.ask(query("BEGIN"), query("DO 'x'"))
    server = client.server()
    assert server is not None
    (backend,) = [each for each in world.backends if each.server is server]
    backend.settings = {**backend.settings, "timezone": "Asia/Tokyo"}
    server.data_received(message(b"S", b"TimeZone\0Asia/Tokyo\0"))
    assert kinds(client.ask(query("COMMIT"))) == "S:TimeZone=Asia/Tokyo C ZI"
    client.ask(query(READ))
    assert client.session.profile.get("timezone") == "Asia/Tokyo"


def test_a_client_is_told_where_another_host_has_other_defaults() -> None:
    world = World(replica=True)
    client = world.client()
    client.send(query(READ), query(INSERT))
    world.open()
    (replica,) = world.of("readonly", "two")
    replica.server.defaults[b"TimeZone"] = replica.server.replies.parameters[b"TimeZone"] = b"Asia/Tokyo"
    replica.server.family += 2
    world.settle()
    assert kinds(client.take()) == "T D C ZI C ZI"
    assert kinds(client.ask(query(READ), query(READ))) == "S:TimeZone=Asia/Tokyo T D C ZI T D C ZI"
    assert kinds(client.ask(query(INSERT))) == "S:TimeZone=UTC C ZI"


def test_parameters_that_tell_of_routing_are_not_shown(world: World) -> None:
    client = world.client()
    client.send(query(READ))
    world.open()
    (backend,) = world.backends
    backend.answer()
    backend.answer()
    client.take()
    client.ask(query("BEGIN"))
    status = message(b"S", b"in_hot_standby\0on\0") + message(b"S", b"session_authorization\0app\0")
    server = client.server()
    assert server is not None
    server.data_received(status + message(b"S", b"TimeZone\0Asia/Tokyo\0"))
    assert kinds(client.take()) == "S:TimeZone=Asia/Tokyo"


def test_a_flush_ended_reset_all_is_answered(world: World) -> None:
    client = world.client()
    assert kinds(client.ask(parse("", "RESET ALL"), bind(), execute(), FLUSH)) == "1 2 C"
    assert kinds(client.ask(SYNC)) == "ZI"
    assert kinds(client.ask(query(READ))) == "T D C ZI"


@pytest.mark.parametrize("sql", ["RESET ALL", "DISCARD ALL"])
@pytest.mark.parametrize("flush", [b"", FLUSH])
def test_what_follows_a_reset_in_one_transaction_runs_as_its_user(
    world: World, sql: str, flush: bytes
) -> None:
    client = world.client(settings={"timezone": "Europe/Berlin"})
    client.ask(query("SET TimeZone = 'Asia/Tokyo'"))
    answer = client.ask(
        parse("", sql) + bind() + execute() + flush + parse("s", INSERT) + bind("s") + execute() + SYNC
    )
    assert kinds(answer).replace("S:TimeZone=Europe/Berlin ", "") == "1 2 C 1 2 C ZI"
    (backend,) = world.of("primary")
    assert [ran.owner for ran in backend.ran if ran.sql == INSERT] == ["alice"]
    assert backend.settings["timezone"] == "Europe/Berlin"
    assert kinds(client.ask(use("s"))) == "2 C ZI"


def test_what_follows_a_reset_that_fails_is_skipped(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), parse("kept", READ), SYNC)
    pipeline = parse("", "DISCARD ALL") + bind() + execute() + parse("s", INSERT) + bind("s") + execute()
    assert kinds(client.ask(pipeline, SYNC)) == "1 2 E:25001 ZE"
    assert kinds(client.ask(query("ROLLBACK"), use("s"), use("kept"))) == "C ZI E:26000 ZI 2 D C ZI"


@pytest.mark.parametrize("sql", ["RESET ALL", "DISCARD ALL"])
def test_a_reset_behind_a_flush_is_waited_for(world: World, sql: str) -> None:
    client = world.client()
    unfinished = parse("", INSERT) + bind() + execute() + FLUSH
    client.send(unfinished, query(sql), query(INSERT))
    world.settle()
    assert kinds(client.take()).startswith("1 2 C ")
    assert {ran.owner for ran in world.of("primary")[0].ran if ran.sql == INSERT} == {"alice"}


@pytest.mark.parametrize("sql", ["RESET ALL", "DISCARD ALL"])
def test_a_reset_that_is_skipped_is_not_waited_for(world: World, sql: str) -> None:
    client = world.client()
    client.send(parse("", "SELECT 1/0"), bind(), execute(), FLUSH, query(sql), SYNC, query(INSERT))
    world.settle()
    assert kinds(client.take()) == "1 2 E:22012 ZI C ZI"
