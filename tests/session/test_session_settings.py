"""Settings that follow a client from one server connection to the next, and what takes them back."""

from __future__ import annotations

import pytest

from tests.session.backend import DEFAULTS
from tests.session.fakes import World
from tests.session.frontend import (
    FLUSH,
    SYNC,
    bind,
    execute,
    kinds,
    message,
    parse,
    query,
    use,
)

READ = "SELECT 'alice'"
INSERT = "INSERT INTO t VALUES ('alice')"


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
