"""Parses of the unnamed statement that aren't sent, as its server connection has just done that: no client can tell."""

from __future__ import annotations

import pytest

from proxy.upstream.server import MAX_UNNAMED_SPARED, UNNAMED_LASTS
from tests.session.backend import Backend
from tests.session.conftest import Clock
from tests.session.fakes import Client, World
from tests.session.frontend import SYNC, bind, close, describe, execute, kinds, parse, query, run

READ = "SELECT 1"
OTHER = "SELECT 2"
ANSWER = "1 2 D C ZI"


@pytest.fixture
def world(clock: Clock) -> World:
    return World(maximum=1, now=clock)


@pytest.fixture
def client(world: World) -> Client:
    return world.client()


def backend(world: World) -> Backend:
    (found,) = world.of("readonly")
    return found


def parses(world: World, sql: str = READ) -> int:
    return backend(world).parsed.count(sql)


def test_one_parse_for_as_many_executions_as_are_planned_with_their_values(
    world: World, client: Client
) -> None:
    for number in range(3 * (1 + MAX_UNNAMED_SPARED)):
        assert kinds(client.ask(run(READ))) == ANSWER
        assert parses(world) == 1 + number // (1 + MAX_UNNAMED_SPARED)
    assert world.pool("readonly").spared() == 3 * MAX_UNNAMED_SPARED
    assert len(backend(world).sql) == 3 * (1 + MAX_UNNAMED_SPARED)


def test_for_others_of_the_same_user_too(world: World) -> None:
    for _ in range(3):
        assert kinds(world.client().ask(run(READ))) == ANSWER
    assert parses(world) == 1


def test_never_for_another_user(world: World) -> None:
    for number in range(4):
        assert kinds(world.client("bob" if number % 2 else "alice").ask(run(READ))) == ANSWER
    assert parses(world) == 4


def test_only_for_a_moment(world: World, client: Client, clock: Clock) -> None:
    client.ask(run(READ))
    clock.now += 0.9 * UNNAMED_LASTS
    client.ask(run(READ))
    assert parses(world) == 1
    clock.now += 0.1 * UNNAMED_LASTS
    client.ask(run(READ))
    assert parses(world) == 2


@pytest.mark.parametrize(
    "between",
    [
        run(OTHER),
        query(OTHER),
        parse("", OTHER) + SYNC,
        close("") + SYNC,
        parse("", READ) + describe() + bind() + execute() + SYNC,
        bind() + execute() + SYNC,
    ],
)
def test_not_behind_what_changes_or_uses_the_unnamed_statement(
    world: World, client: Client, between: bytes
) -> None:
    client.ask(run(READ))
    client.ask(between)
    before = parses(world)
    assert kinds(client.ask(run(READ))) == ANSWER
    assert parses(world) == before + 1


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'now'::timestamptz",
        "SELECT E'a'",
        "SELECT $$now$$::timestamptz",
        "SELECT $q$now$q$::timestamptz",
        "SELECT 1 AS a$b",
    ],
)
def test_not_where_a_constant_may_mean_something_else_by_now(world: World, client: Client, sql: str) -> None:
    for _ in range(3):
        assert kinds(client.ask(run(sql))) == ANSWER
    assert parses(world, sql) == 3


def test_a_parameter_is_no_constant(world: World, client: Client) -> None:
    sql = "SELECT $1"
    for _ in range(3):
        client.ask(parse("", sql) + bind(values=(b"now",)) + execute() + SYNC)
    assert parses(world, sql) == 1


@pytest.mark.parametrize("sql", ["INSERT INTO t VALUES (1)", "SET work_mem = 1", "SELECT nextval(1)"])
def test_not_for_what_may_write(world: World, client: Client, sql: str) -> None:
    for _ in range(3):
        client.ask(run(sql))
    assert sum(each.parsed.count(sql) for each in world.backends) == 3


def test_not_within_a_transaction(world: World, client: Client) -> None:
    client.ask(run(READ))
    client.ask(query("BEGIN"))
    for _ in range(3):
        client.ask(run(READ))
    assert sum(each.parsed.count(READ) for each in world.backends) == 4


def test_not_where_more_comes_behind_it(world: World, client: Client) -> None:
    for _ in range(3):
        assert kinds(client.ask(run(READ), run(READ))) == f"{ANSWER} {ANSWER}"
    assert parses(world) == 6


def test_not_behind_a_change_of_tables_through_the_proxy(world: World, client: Client) -> None:
    client.ask(run(READ))
    admin = world.client("root", ("admin",))
    assert kinds(admin.ask(query("CREATE TABLE nearer (id int)"))) == "C ZI"
    client.ask(run(READ))
    assert parses(world) == 2


def test_a_table_that_has_changed_past_the_proxy_is_looked_at_again(world: World, client: Client) -> None:
    client.ask(run(READ))
    for state in ("0A000", "42883", "22P02"):
        backend(world).fresh.clear()
        backend(world).stale[READ] = state
        before = parses(world)
        assert kinds(client.ask(run(READ))) == ANSWER
        assert parses(world) == before + 1
    world.check()


def test_an_error_is_told_as_a_parse_would_have_it(world: World, client: Client) -> None:
    client.ask(run(READ))
    world.access.take()
    backend(world).stale[READ] = "42P01"
    world.failing[READ] = "42P01"
    assert kinds(client.ask(run(READ))) == "E:42P01 ZI"
    assert world.access.rows == 1
    del world.failing[READ]
    assert kinds(client.ask(bind() + execute() + SYNC)) == "E:26000 ZI"


def test_an_error_while_it_runs_is_told_at_once(world: World, client: Client) -> None:
    client.ask(run("SELECT 1/0"))
    assert kinds(client.ask(run("SELECT 1/0"))) == "1 2 E:22012 ZI"
    assert backend(world).sql == ["SELECT 1/0"] * 2
    assert parses(world, "SELECT 1/0") == 1


def test_a_server_that_dies_is_not_the_last_that_is_asked(world: World, client: Client) -> None:
    client.ask(run(READ))
    client.send(run(READ))
    backend(world).die()
    world.settle()
    assert kinds(client.take()) == ANSWER
    assert [each.parsed.count(READ) for each in world.of("readonly")] == [1, 1]
