"""Statements that no host can serve at the moment: they wait for one, and go where it is."""

from __future__ import annotations

import pytest

from proxy.errors import HostUnavailable, UpstreamUnavailable
from proxy.upstream.cluster import Host
from tests.session.conftest import Clock
from tests.session.fakes import Client, World
from tests.session.frontend import SYNC, bind, error, execute, kinds, parse, query, run

INSERT = "INSERT INTO t VALUES ('alice')"
REFUSED = HostUnavailable(extra="host=one:5432: Connection refused")


def fail_over(world: World) -> None:
    """Make the second host the primary, the first being gone."""
    one, two = world.cluster.hosts
    one.up = False
    two.role, two.in_recovery, two.timeline = "auto", False, 2
    world.cluster.roles_changed()


@pytest.fixture
def world(clock: Clock) -> World:
    world = World(replica=True)
    for host in world.cluster.hosts:
        host.timeline = 1
    world.cluster.roles_changed()
    return world


def hosts_of(world: World) -> list[str]:
    return [each.pool.host for each in world.backends]


@pytest.mark.parametrize(
    "unit", [query(INSERT), run(INSERT), parse("s", INSERT) + bind("s") + execute() + SYNC]
)
def test_a_write_waits_for_the_new_primary_and_goes_there(world: World, clock: Clock, unit: bytes) -> None:
    client = world.client()
    client.send(unit)
    world.fail_to_open(REFUSED)
    assert client.take() == b"" and world.cluster.stranded.length == 1
    clock.now += 2.0
    fail_over(world)
    world.cluster.resume(clock.now)
    world.settle()
    assert kinds(client.take()).endswith("C ZI") and hosts_of(world) == ["two"]
    assert world.cluster.stranded.length == 0
    world.check()


def test_a_write_that_waited_too_long_is_told_what_is_known_of_the_hosts(world: World, clock: Clock) -> None:
    client = world.client()
    client.send(query(INSERT))
    world.fail_to_open(REFUSED)
    clock.now += 4.9
    world.cluster.resume(clock.now)
    assert client.take() == b""
    clock.now += 0.2
    world.cluster.resume(clock.now)
    answer = client.take()
    assert kinds(answer) == "E:57P03 ZI"
    assert error(answer)["D"].startswith("NO_PRIMARY: one: host=one:5432: Connection refused; two: ")
    # The next one waits anew.
    client.send(query(INSERT))
    assert client.take() == b"" and world.cluster.stranded.length == 1


def test_a_write_is_tried_on_so_many_hosts_and_no_more(world: World, clock: Clock) -> None:
    client = world.client()
    client.send(query(INSERT))
    for attempt in range(1, 4):
        assert client.take() == b""
        world.fail_to_open(REFUSED)
        if attempt < 3:
            assert world.cluster.stranded.length == 1
            world.pool("primary").hope()
            world.cluster.resume(clock.now)
    assert kinds(client.take()) == "E:57P03 ZI"


def test_without_failover_wait_nobody_waits(world: World) -> None:
    world.database.failover_wait = 0.0
    client = world.client()
    client.send(query(INSERT))
    world.fail_to_open(REFUSED)
    assert kinds(client.take()) == "E:57P03 ZI"


def test_what_a_server_refuses_for_good_is_told_at_once(world: World) -> None:
    client = world.client()
    client.send(query(INSERT))
    world.fail_to_open(UpstreamUnavailable(extra="password authentication failed"))
    assert "password authentication failed" in error(client.take())["D"]


def test_a_read_goes_to_the_primary_host_where_its_replica_takes_no_connection(world: World) -> None:
    client = world.client()
    client.send(query("SELECT 1"))
    world.fail_to_open(REFUSED)
    world.settle()
    assert kinds(client.take()) == "T D C ZI"
    assert [(each.pool.host, each.pool.name) for each in world.backends] == [("one", "readonly")]


def test_a_read_whose_replica_dies_goes_elsewhere(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 1"))
    client.send(query("SELECT 2"))
    world.backends[0].die()
    world.fail_to_open(REFUSED)
    world.settle()
    assert kinds(client.take()) == "T D C ZI" and hosts_of(world) == ["two", "one"]


def test_those_who_wait_go_on_in_the_order_in_which_they_came(world: World, clock: Clock) -> None:
    clients = [world.client(user) for user in ("ann", "bob", "cid")]
    for number, client in enumerate(clients):
        client.send(query(f"INSERT INTO t VALUES ({number})"))
    world.fail_to_open(REFUSED)
    assert world.cluster.stranded.length == 3
    # Looking again in vain changes nothing of it.
    world.cluster.resume(clock.now)
    fail_over(world)
    world.pool("primary", "two").limits.maximum = 1
    world.cluster.resume(clock.now)
    world.settle()
    (backend,) = world.of("primary", "two")
    assert backend.sql == [f"INSERT INTO t VALUES ({number})" for number in range(3)]


def test_who_waits_for_a_host_can_be_cancelled(world: World) -> None:
    client = world.client()
    client.send(query(INSERT))
    world.fail_to_open(REFUSED)
    assert client.session.cancel() is None
    assert kinds(client.take()) == "E:57014 ZI"
    assert world.cluster.stranded.length == 0


@pytest.mark.parametrize("leave", [Client.vanish, lambda client: client.session.fatal(REFUSED)])
def test_who_leaves_waits_no_longer(world: World, clock: Clock, leave: object) -> None:
    client = world.client()
    client.send(query(INSERT))
    world.fail_to_open(REFUSED)
    assert callable(leave)
    leave(client)
    assert world.cluster.stranded.length == 0
    fail_over(world)
    world.cluster.resume(clock.now)
    world.settle()
    assert world.backends == []


def test_a_transaction_whose_begin_was_held_back_waits_as_a_whole(clock: Clock) -> None:
    world = World(replica=True, lazy_begin=True)
    client = world.client()
    assert kinds(client.ask(query("BEGIN"))) == "C ZT"
    client.send(query(INSERT))
    world.fail_to_open(REFUSED)
    assert client.take() == b""
    fail_over(world)
    world.cluster.resume(clock.now)
    world.settle()
    assert kinds(client.take()) == "C ZT"
    assert kinds(client.ask(query("COMMIT"))) == "C ZI"
    (backend,) = world.of("primary", "two")
    assert INSERT in backend.committed


def test_what_is_pipelined_behind_a_statement_that_waits_comes_behind_it(world: World, clock: Clock) -> None:
    client = world.client()
    client.send(query(INSERT), query("UPDATE t SET a = 1"), query("SELECT 3"))
    world.fail_to_open(REFUSED)
    fail_over(world)
    world.cluster.resume(clock.now)
    world.settle()
    assert kinds(client.take()) == "C ZI C ZI T D C ZI"


def test_an_open_transaction_on_a_primary_that_was_replaced_is_lost(world: World) -> None:
    client = world.client()
    client.ask(query("BEGIN"), query(INSERT))
    two = world.cluster.hosts[1]
    two.role, two.in_recovery, two.timeline = "auto", False, 2
    # Both say that they are: the first is the old one.
    world.cluster.roles_changed()
    assert kinds(client.take()) == "FATAL:08006" and client.closed()
    assert INSERT not in world.of("primary")[0].committed
    assert world.cluster.hosts[0].is_outdated and world.pool("primary").servers == []


def test_an_old_primary_that_comes_back_gets_no_statement(world: World, clock: Clock) -> None:
    fail_over(world)
    one, two = world.cluster.hosts
    one.up, two.up = True, False
    world.cluster.roles_changed()
    assert world.cluster.primary is None
    client = world.client()
    client.send(query(INSERT), query("SELECT 1"))
    assert client.take() == b"" and not world.open()
    clock.now += 6.0
    world.cluster.resume(clock.now)
    answer = client.take()
    assert kinds(answer) == "E:57P03 ZI"
    assert "one is a primary on timeline 1, behind 2" in error(answer)["D"]


def test_a_new_cluster_behind_the_same_names_is_taken(world: World) -> None:
    fail_over(world)
    one, two = world.cluster.hosts
    one.up, one.timeline, one.system, two.up = True, 1, 99, False
    world.cluster.roles_changed()
    assert world.cluster.primary is one


def test_a_session_that_reads_after_its_write_waits_for_who_has_it(world: World, clock: Clock) -> None:
    """No primary, and the replica isn't known to have what the session wrote."""
    client = world.client()
    client.ask(query(INSERT))
    one, two = world.cluster.hosts
    two.fresh_as_of = clock.now - 1.0
    one.up = False
    world.cluster.roles_changed()
    client.send(query("SELECT 1"))
    assert client.take() == b"" and world.cluster.stranded.length == 1
    two.fresh_as_of = clock.now + 1.0
    world.cluster.resume(clock.now)
    world.settle()
    assert kinds(client.take()) == "T D C ZI"


def test_a_host_that_answers_is_tried_again(world: World, clock: Clock) -> None:
    client = world.client()
    client.send(query(INSERT))
    world.fail_to_open(REFUSED)
    one: Host = world.cluster.hosts[0]
    assert world.pool("primary").failing
    one.probed(False, 0.001)
    assert not world.pool("primary").failing
    world.cluster.resume(clock.now)
    world.settle()
    assert kinds(client.take()) == "C ZI"


@pytest.mark.parametrize(
    "units",
    [
        [query("BEGIN READ ONLY"), query("SELECT 1"), query("COMMIT")],
        [query("SET timezone = 'Asia/Tokyo'")],
    ],
)
def test_what_a_replica_served_is_no_write(world: World, clock: Clock, units: list[bytes]) -> None:
    client = world.client()
    for unit in units:
        client.ask(unit)
    assert {each.pool.host for each in world.backends} == {"two"}
    world.cluster.hosts[1].fresh_as_of = clock.now - 1.0
    assert client.session.last_write == 0.0
    client.ask(query("SELECT 2"))
    assert {each.pool.host for each in world.backends} == {"two"}
