"""The trace that a statement's comment names stands in its access record."""

from __future__ import annotations

import pytest

from tests.observe.decoder import decode
from tests.session.fakes import World
from tests.session.frontend import SYNC, bind, execute, parse, query

ONE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def traced(sql: str, trace: str) -> str:
    return f"{sql} /*traceparent='{trace}'*/"


def recorded(world: World) -> list[tuple[str, str | None]]:
    return [(row["statement"].rstrip(" ;"), row["traceparent"]) for row in decode(world.access.take())]


def test_a_query_is_of_the_trace_that_its_text_names(world: World) -> None:
    client = world.client()
    for text in (traced("SELECT 1", ONE), traced("SELECT 2", OTHER) + ";", "SELECT 3;", "SELECT 4"):
        client.ask(query(text))
    # They share one intent, which knows nothing of traces.
    assert recorded(world) == [
        ("SELECT $1", ONE),
        ("SELECT $1", OTHER),
        ("SELECT $1", None),
        ("SELECT $1", None),
    ]


@pytest.mark.parametrize("name", ["", "s"])
def test_a_prepared_statement_is_of_the_trace_that_its_parse_named(world: World, name: str) -> None:
    client = world.client()
    client.ask(parse(name, traced("INSERT INTO t VALUES ($1)", ONE)), bind(name), execute(), SYNC)
    client.ask(parse("other", traced("INSERT INTO t VALUES ($1)", OTHER)), bind("other"), execute(), SYNC)
    if name:
        client.ask(bind(name), execute(), SYNC)
    traces = [trace for _, trace in recorded(world)]
    assert traces == ([ONE, OTHER, ONE] if name else [ONE, OTHER])


def test_a_read_in_one_message_is_of_the_trace_that_its_text_names(world: World) -> None:
    client = world.client()
    client.ask(parse("", traced("SELECT 1", ONE)) + bind() + execute() + SYNC)
    client.ask(parse("", "SELECT 1") + bind() + execute() + SYNC)
    assert [trace for _, trace in recorded(world)] == [ONE, None]


def test_a_begin_that_was_held_back_is_of_its_own_trace() -> None:
    world = World(lazy_begin=True)
    client = world.client()
    client.ask(query(traced("BEGIN", ONE)))
    client.ask(query("INSERT INTO t VALUES (1)"))
    client.ask(query("COMMIT"))
    assert [trace for _, trace in recorded(world)] == [ONE, None, None]


def test_an_execute_in_sql_is_of_the_trace_that_it_names(world: World) -> None:
    client = world.client()
    client.ask(query("PREPARE p AS SELECT 1"))
    client.ask(query(traced("EXECUTE p", ONE)))
    assert [trace for _, trace in recorded(world)] == [None, ONE]
