"""When a prepared statement is parsed again, under which settings, and with whom it is shared."""

from __future__ import annotations

import pytest

from tests.session.fakes import World, moved
from tests.session.frontend import (
    FLUSH,
    SYNC,
    bind,
    close,
    describe,
    execute,
    kinds,
    parse,
    query,
    use,
)

READ = "SELECT 'alice'"
INSERT = "INSERT INTO t VALUES ('alice')"


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
