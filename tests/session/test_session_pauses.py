"""PAUSE and RESUME as sessions see them, and the figures that the console shows of sessions."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import ClientKilled, ShuttingDown
from proxy.session.trial import try_on_server
from tests.session.conftest import Clock
from tests.session.fakes import World
from tests.session.frontend import SYNC, bind, error, execute, kinds, parse, query, run, tags

INSERT = "INSERT INTO t VALUES ('alice')"


@pytest.fixture
def world(clock: Clock) -> World:
    return World(replica=True)


@pytest.mark.parametrize(
    "unit",
    [query(INSERT), query("SELECT 1"), run("SELECT 1"), parse("s", INSERT) + bind("s") + execute() + SYNC],
)
def test_a_statement_waits_for_the_end_of_a_pause_however_long(
    world: World, clock: Clock, unit: bytes
) -> None:
    client = world.client()
    world.cluster.pause(clock.now)
    client.send(unit)
    world.settle()
    clock.now += 1000.0
    world.cluster.resume(clock.now)
    for host in world.cluster.hosts:
        for pool in host.pools.values():
            pool.maintain(clock.now)
    assert client.take() == b""
    assert world.cluster.parked.length == 1
    assert world.backends == []
    world.cluster.unpause(clock.now)
    world.settle()
    assert kinds(client.take()).endswith("C ZI")
    assert world.cluster.parked.length == 0
    world.check()


def test_a_transaction_goes_on_and_its_connection_is_closed_behind_it(world: World, clock: Clock) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query(INSERT))
    world.cluster.pause(clock.now)
    assert tags(client.ask(query("SELECT 1"))) == ["SELECT 1"]
    assert tags(client.ask(query("COMMIT"))) == ["COMMIT"]
    assert world.pool("primary").servers == []
    client.send(query("SELECT 1"))
    world.settle()
    assert client.take() == b""
    world.cluster.unpause(clock.now)
    world.settle()
    assert tags(client.take()) == ["SELECT 1"]
    world.check()


def test_whoever_waits_for_a_connection_already_waits_for_the_end_of_the_pause(
    world: World, clock: Clock
) -> None:
    busy, waiting = world.client(), world.client("bob")
    world.pool("primary").limits.maximum = 1
    busy.ask(query("BEGIN"), query(INSERT))
    waiting.send(query("INSERT INTO t VALUES ('bob')"))
    assert world.pool("primary").waiters.length == 1
    world.cluster.pause(clock.now)
    assert (world.pool("primary").waiters.length, world.cluster.parked.length) == (0, 1)
    clock.now += 100.0
    busy.ask(query("COMMIT"))
    world.pool("primary").maintain(clock.now)
    assert waiting.take() == b""
    world.cluster.unpause(clock.now)
    world.settle()
    assert kinds(waiting.take()) == "C ZI"
    world.check()


def test_whoever_is_stranded_waits_for_the_end_of_the_pause(world: World, clock: Clock) -> None:
    client = world.client()
    world.cluster.hosts[0].up = False
    world.cluster.roles_changed()
    client.send(query(INSERT))
    assert world.cluster.stranded.length == 1
    world.cluster.pause(clock.now)
    assert (world.cluster.stranded.length, world.cluster.parked.length) == (0, 1)
    world.cluster.hosts[0].up = True
    world.cluster.roles_changed()
    world.cluster.unpause(clock.now)
    world.settle()
    assert kinds(client.take()) == "C ZI"


def test_a_cancel_reaches_a_statement_that_waits_for_the_end_of_a_pause(world: World, clock: Clock) -> None:
    client = world.client()
    world.cluster.pause(clock.now)
    client.send(query("SELECT 1"))
    assert client.session.cancel() is None
    came = client.take()
    assert error(came)["C"] == "57014"
    assert kinds(came).endswith("ZI")
    assert world.cluster.parked.length == 0


def test_a_client_that_leaves_waits_no_longer(world: World, clock: Clock) -> None:
    client = world.client()
    world.cluster.pause(clock.now)
    client.send(query("SELECT 1"))
    client.vanish()
    assert world.cluster.parked.length == 0
    world.cluster.unpause(clock.now)
    world.settle()
    assert world.backends == []


def test_where_the_pause_will_not_end_whoever_waits_is_told(world: World, clock: Clock) -> None:
    client = world.client()
    world.cluster.pause(clock.now)
    client.send(query("SELECT 1"))
    world.cluster.refuse_parked(ShuttingDown())
    assert error(client.take())["C"] == "57P01"
    assert client.session.idle()
    assert world.cluster.parked.length == 0


def test_those_who_waited_are_served_in_their_order(world: World, clock: Clock) -> None:
    world.cluster.pause(clock.now)
    world.pool("primary").limits.maximum = 1
    clients = [world.client(name) for name in ("alice", "bob", "carol")]
    for client in clients:
        client.send(query(INSERT))
        clock.now += 1.0
    world.cluster.unpause(clock.now)
    world.settle()
    assert [kinds(client.take()) for client in clients] == ["C ZI"] * 3
    assert [ran.owner for ran in world.backends[0].ran if ran.sql == INSERT] == ["alice", "bob", "carol"]


def test_a_killed_client_is_told_so(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    client.session.fatal(ClientKilled())
    assert error(client.take())["M"] == "terminating connection due to administrator command"
    assert client.closed()


# -- figures


def test_a_transaction_counts_once_with_its_whole_time(world: World, clock: Clock) -> None:
    client = world.client()
    stats = world.pool("primary").stats
    client.ask(query("BEGIN"), query(INSERT))
    clock.now += 2.0
    client.ask(query(INSERT))
    clock.now += 1.0
    assert stats.transactions == 0
    client.ask(query("COMMIT"))
    assert (stats.transactions, stats.transaction_us) == (1, 3_000_000)
    client.ask(query(INSERT))
    assert (stats.transactions, stats.transaction_us) == (2, 3_000_000)
    assert stats.assignments == 2


def test_a_session_that_keeps_its_connection_counts_each_transaction(world: World) -> None:
    client = world.client()
    client.ask(query("LISTEN news"))
    client.ask(query(INSERT))
    client.ask(query(INSERT))
    stats = world.pool("primary").stats
    assert (stats.assignments, stats.transactions) == (1, 3)


@pytest.mark.parametrize("apart", [False, True], ids=["in one piece", "message by message"])
def test_named_statements_are_counted_where_they_are_parsed_and_bound(world: World, apart: bool) -> None:
    client = world.client()
    statements = world.database.statements
    client.ask(parse("s", "SELECT 1") + SYNC)
    pieces = [bind("s"), execute(), SYNC]
    for _ in range(3):
        client.ask(*([] if apart else [b"".join(pieces)]))
        for piece in pieces if apart else []:
            client.ask(piece)
    client.ask(run("SELECT 2"))
    assert (statements.client_parses, statements.binds) == (1, 3)


def test_what_was_prepared_on_servers_is_counted_beyond_their_end(world: World, clock: Clock) -> None:
    client = world.client()
    client.ask(parse("s", INSERT) + bind("s") + execute() + SYNC)
    (backend,) = world.of("primary")
    assert backend.server.parses == 1
    world.cluster.pause(clock.now)
    assert world.pool("primary").stats.server_parses == 1


# -- logins


async def test_a_login_that_needs_a_server_waits_for_the_end_of_a_pause() -> None:
    world = World()
    world.cluster.pause(world.now)
    tried = asyncio.create_task(
        try_on_server(world.database, world.database.profiles.of({"work_mem": "5MB"}))
    )
    await asyncio.sleep(0)
    world.settle()
    assert not tried.done()
    assert world.backends == []
    world.cluster.unpause(world.now)
    while not tried.done():
        await asyncio.sleep(0)
        world.settle()
    assert tried.result()
