"""Reads that a replica refuses: they are sent to the primary, and the client sees one answer."""

from __future__ import annotations

import pytest

from tests.session.conftest import Clock
from tests.session.fakes import World
from tests.session.frontend import SYNC, bind, describe, error, execute, kinds, message, parse, query, run

VIEW = "SELECT * FROM hides_nextval"
READS = {
    "query": (query(VIEW), "T D C ZI"),
    "unnamed": (run(VIEW), "1 2 D C ZI"),
    "described": (parse("", VIEW) + bind() + describe(kind=b"P") + execute() + SYNC, "1 2 n D C ZI"),
    "named": (parse("s", VIEW) + bind("s") + describe("s") + execute() + SYNC, "1 2 t n D C ZI"),
    "prepared": (bind("p") + execute() + SYNC, "2 D C ZI"),
}
STATES = ["25006", "55000", "0A000", "42501", "40001"]


@pytest.fixture
def world(clock: Clock) -> World:
    return World(replica=True)


def refusing(world: World, state: str = "25006", part: str = VIEW, host: str = "two") -> None:
    """Have the replica refuse what has `part` in it, each time."""
    client = world.client("bob")
    client.ask(query("SELECT 0"))
    for backend in world.of("readonly", host):
        backend.refuses[part] = state


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("state", STATES)
def test_a_refused_read_is_answered_by_the_primary(world: World, how: str, state: str) -> None:
    unit, expected = READS[how]
    client = world.client("bob")
    client.ask(parse("p", VIEW), SYNC)
    refusing(world, state)
    assert kinds(client.ask(unit)) == expected
    (primary,) = world.of("primary")
    assert primary.sql == [VIEW]
    assert world.pool("readonly", "two").stats.retries.counts == {state: 1}
    assert client.server() is None
    world.check()
    # From now on it goes there at once, of whatever session.
    tried = len(world.of("readonly", "two")[0].ran)
    other = world.client("ann")
    assert kinds(other.ask(run(VIEW))) == "1 2 D C ZI"
    assert len(world.of("readonly", "two")[0].ran) == tried


@pytest.mark.parametrize("how", READS)
def test_a_refused_read_is_one_record_and_one_use(world: World, how: str) -> None:
    refusing(world)
    client = world.client("bob")
    client.ask(parse("p", VIEW), SYNC)
    world.access.take()
    uses = client.session.uses
    client.ask(READS[how][0])
    assert world.access.rows == 1 and client.session.uses == uses + 1
    record = world.access.take()
    assert b"refused as a read before (25006)" in record and b"primary" in record


@pytest.mark.parametrize("how", READS)
def test_the_answer_is_the_same_byte_by_byte(world: World, how: str) -> None:
    unit, expected = READS[how]
    client = world.client("bob")
    client.ask(parse("p", VIEW), SYNC)
    refusing(world)
    client.send(unit)
    (replica,) = world.of("readonly", "two")
    world.open()
    replica.answer_in_single_bytes()
    world.settle()
    assert kinds(client.take()) == expected


def test_a_key_that_may_not_write_keeps_its_login(world: World) -> None:
    client = world.client("bob", permissions=("read:tasks",))
    refusing(world, "55000")
    assert kinds(client.ask(query(VIEW))) == "T D C ZI"
    assert [each.sql for each in world.of("readonly", "one")] == [[VIEW]]
    assert world.of("primary") == []


@pytest.mark.parametrize("state", ["25006", "42501"])
def test_a_key_that_may_not_write_is_told_that_it_would(world: World, state: str) -> None:
    client = world.client("bob", permissions=("read:tasks",))
    refusing(world, state)
    assert kinds(client.ask(query(VIEW))) == f"E:{state} ZI"
    assert world.of("readonly", "one") == [] and world.of("primary") == []


def test_without_a_replica_the_login_that_writes_is_tried(clock: Clock) -> None:
    world = World()
    refusing(world, host="one")
    assert kinds(world.client("bob").ask(query(VIEW))) == "T D C ZI"
    assert [each.sql for each in world.of("primary")] == [[VIEW]]


def test_a_reader_without_a_replica_is_told_the_error(clock: Clock) -> None:
    world = World()
    refusing(world, "55000", host="one")
    client = world.client("bob", permissions=("read:tasks",))
    assert kinds(client.ask(query(VIEW))) == "E:55000 ZI"


@pytest.mark.parametrize(
    ("settings", "units", "expected"),
    [
        ({}, [query("BEGIN READ ONLY"), query(VIEW)], "C ZT E:25006 ZE"),
        ({"sluice.pool": "readonly"}, [query(VIEW)], "E:25006 ZI"),
        ({"default_transaction_read_only": "on"}, [query(VIEW)], "E:25006 ZI"),
        ({}, [query(f"/* sluice: pool=readonly */ {VIEW}")], "E:25006 ZI"),
    ],
)
def test_what_a_client_chose_to_be_read_only_is_not_tried_again(
    world: World, settings: dict[str, str], units: list[bytes], expected: str
) -> None:
    refusing(world)
    client = world.client("bob", settings=settings, pool=settings.get("sluice.pool", ""))
    assert kinds(b"".join(client.ask(unit) for unit in units)) == expected
    assert not any(VIEW in sql for each in world.of("primary") for sql in each.sql)


@pytest.mark.parametrize(
    "unit",
    [
        query(f"SELECT 1; {VIEW}"),
        parse("", "SELECT 1") + bind() + execute() + parse("", VIEW) + bind() + execute() + SYNC,
        query(VIEW) + query("SELECT 2"),
    ],
)
def test_what_is_more_than_one_statement_is_told_the_error(world: World, unit: bytes) -> None:
    refusing(world)
    client = world.client("bob")
    assert "E:25006" in kinds(client.ask(unit))
    assert not any(VIEW in sql for each in world.of("primary") for sql in each.sql)


def test_a_read_of_a_pipeline_that_was_refused_goes_to_the_primary_the_next_time(world: World) -> None:
    refusing(world)
    client = world.client("bob")
    assert kinds(client.ask(query(VIEW), query("SELECT 2"))) == "E:25006 ZI T D C ZI"
    assert kinds(client.ask(query(VIEW), query("SELECT 2"))) == "T D C ZI T D C ZI"


def test_an_error_of_another_kind_is_told(world: World) -> None:
    refusing(world, "42P01")
    assert kinds(world.client("bob").ask(run(VIEW))) == "1 2 E:42P01 ZI"


def test_an_error_behind_rows_that_were_told_is_told(world: World) -> None:
    client = world.client("bob")
    client.ask(query("SELECT 0"))
    client.send(query(VIEW))
    (replica,) = world.of("readonly", "two")
    replica.server.data_received(message(b"T", b"\0\0") + message(b"D", b"\0\0"))
    assert kinds(client.take()) == "T D"
    replica.server.data_received(
        message(b"E", b"SERROR\0VERROR\0Mconflict with recovery\0C40001\0\0") + message(b"Z", b"I")
    )
    assert kinds(client.take()) == "E:40001 ZI"


def test_with_the_retry_switched_off_the_error_is_told(world: World) -> None:
    world.database.retries_refused_reads = False
    refusing(world)
    client = world.client("bob")
    assert error(client.ask(query(VIEW)))["C"] == "25006"
    # It is known now what it is.
    assert kinds(client.ask(query(VIEW))) == "T D C ZI"


def test_a_refusal_on_the_primary_too_is_told_once(world: World) -> None:
    refusing(world)
    world.failing[VIEW] = "25006"
    client = world.client("bob")
    assert kinds(client.ask(run(VIEW))) in ("1 2 E:25006 ZI", "E:25006 ZI")


def test_a_replica_that_dies_behind_its_refusal_changes_nothing(world: World) -> None:
    client = world.client("bob")
    client.ask(query("SELECT 0"))
    client.send(query(VIEW))
    (replica,) = world.of("readonly", "two")
    replica.server.data_received(message(b"E", b"SERROR\0VERROR\0Mrefused\0C25006\0\0"))
    assert client.take() == b""
    replica.die()
    world.settle()
    assert kinds(client.take()) == "T D C ZI"
    assert [each.sql for each in world.of("primary")] == [[VIEW]]


def test_a_refused_read_that_came_with_the_identity_has_it_set_again(world: World) -> None:
    client = world.client("bob")
    client.send(query(VIEW))
    world.open()
    (replica,) = world.of("readonly", "two")
    replica.refuses[VIEW] = "25006"
    world.settle()
    assert kinds(client.take()) == "T D C ZI"
    assert replica.server.renew_at == 0.0
    assert kinds(client.ask(query("SELECT 'bob'"))) == "T D C ZI"
    assert replica.owner == "bob"


def test_who_is_gone_is_not_served_by_the_primary(world: World) -> None:
    client = world.client("bob")
    client.ask(query("SELECT 0"))
    (replica,) = world.of("readonly", "two")
    replica.refuses[VIEW] = "25006"
    client.send(query(VIEW))
    client.vanish()
    world.settle()
    assert world.of("primary") == []
