"""A statement that comes in one piece is read as one message; its client, the log and the servers can't tell."""

from __future__ import annotations

import pytest

from proxy.wire.reply import SINGLE
from tests.observe.decoder import decode
from tests.session.fakes import Client, World, moved
from tests.session.frontend import FLUSH, SYNC, bind, close, describe, execute, kinds, message, parse, query

READ = "SELECT 'alice'"
PORTAL = describe("", b"P")
LIMITED = message(b"E", b"\0\0\0\0\1")


def unnamed(sql: str) -> bytes:
    return parse("", sql) + bind() + PORTAL + execute() + SYNC


def named(name: str) -> bytes:
    return bind(name) + PORTAL + execute() + SYNC


# What a client sends, step by step: each is answered before the next, and comes in one piece or in single bytes.
SCRIPTS = {
    "unnamed": [unnamed(READ), unnamed(READ), unnamed("SELECT 'bob'")],
    "without Describe": [parse("", READ) + bind() + execute() + SYNC, bind() + execute() + SYNC],
    "bound again": [unnamed(READ), bind() + PORTAL + execute() + SYNC, query("SELECT 1"), bind() + execute() + SYNC],
    "named": [parse("s", READ) + SYNC, named("s"), named("s"), close("s") + SYNC, named("s")],
    "values": [parse("", READ) + bind(values=(b"a", b"b" * 300)) + PORTAL + execute() + SYNC],
    "types": [message(b"P", b"\0SELECT 1\0\0\1\0\0\0\x17") + bind(values=(b"1",)) + execute() + SYNC],
    "two in one piece": [unnamed(READ) + unnamed("SELECT 'bob'"), named("none") + unnamed(READ)],
    "behind a Sync": [SYNC + unnamed(READ), FLUSH + unnamed(READ)],
    "a query behind it": [unnamed(READ) + query("SELECT 2")],
    "no statement": [named("none"), bind() + execute() + SYNC],
    "the Parse fails": [unnamed("SELECT broken"), bind() + execute() + SYNC, unnamed(READ)],
    "the Parse fails, with one before": [unnamed(READ), unnamed("SELECT broken"), unnamed(READ)],
    "the Execute fails": [unnamed("SELECT 1/0"), bind() + PORTAL + execute() + SYNC, unnamed(READ)],
    "a named one fails": [parse("s", "SELECT 1/0") + SYNC, named("s"), named("s")],
    "in a transaction": [query("BEGIN"), unnamed(READ), unnamed("SELECT 1/0"), unnamed(READ), query("ROLLBACK"),
                         unnamed(READ)],
    "a write": [unnamed("INSERT INTO t VALUES ('alice')"), unnamed(READ)],
    "a setting": [unnamed("SET timezone = 'Europe/Paris'"), unnamed(READ), named("none")],
    "a text with names": [unnamed("PREPARE p AS SELECT 1"), unnamed("EXECUTE p")],
    "a row limit": [parse("", READ) + bind() + LIMITED + SYNC],
    "another portal": [parse("", READ) + bind("", "p") + describe("p", b"P") + execute("p") + SYNC],
    "a Flush": [parse("", READ) + bind() + PORTAL + execute() + FLUSH, SYNC],
    "a statement described": [parse("", READ) + describe() + bind() + execute() + SYNC],
    "an empty text": [unnamed("")],
    "a malformed Parse": [message(b"P", b"\0SELECT 1\0\0\2\0\0\0\x17") + bind() + execute() + SYNC],
    "a malformed Bind": [parse("s", READ) + SYNC, message(b"B", b"\0no end of a name") + execute() + SYNC],
    "a Bind of no length": [b"B\0\0\0\0" + bytes(40)],
}  # fmt: skip


class Side:
    """A client in a world of its own, who sends whole steps or single bytes."""

    def __init__(self, whole: bool, lazy_begin: bool) -> None:
        self.world = World(lazy_begin=lazy_begin)
        self.world.failing["broken"] = "42601"
        self.client = self.world.client()
        self.whole = whole

    def step(self, data: bytes) -> list[object]:
        """Return what the client got for `data`, what is left with client and servers, and what was recorded."""
        pieces = [data] if self.whole else [data[at : at + 1] for at in range(len(data))]
        for piece in pieces:
            self.client.send(piece)
        self.world.settle()
        statement = self.client.session.statements.unnamed
        return [
            kinds(self.client.take()),
            self.client.closed(),
            None if statement is None else statement.sql,
            [
                None if each.server.unnamed is None else each.server.unnamed.sql
                for each in self.world.backends
            ],
            [each.sql for each in self.world.backends],
            [
                (
                    row["event"],
                    row["statement"],
                    row["rows"],
                    row["bytes_in"],
                    row["bytes_out"],
                    row["sqlstate"],
                )
                for row in decode(self.world.access.take())
            ],
        ]


@pytest.mark.parametrize("lazy_begin", [False, True])
@pytest.mark.parametrize("name", SCRIPTS)
def test_no_difference_to_its_messages_one_by_one(name: str, lazy_begin: bool) -> None:
    whole, bytewise = Side(True, lazy_begin), Side(False, lazy_begin)
    for step in SCRIPTS[name]:
        assert whole.step(step) == bytewise.step(step)
    whole.world.check()


def owed(client: Client) -> list[int]:
    """Return the kinds of what the client's server still owes."""
    server = client.server()
    assert server is not None
    found = []
    reply = server.replies.head
    while reply is not None:
        found.append(reply.kind)
        reply = reply.next
    return found


def test_one_answer_is_owed(world: World) -> None:
    client = world.client()
    client.ask(unnamed(READ))
    client.ask(parse("s", READ), SYNC)
    client.ask(named("s"))
    for step in (unnamed(READ), named("s")):
        client.send(step)
        assert owed(client) == [SINGLE]
        world.settle()
        assert kinds(client.take()).split()[-2:] == ["C", "ZI"]


def test_a_statement_that_another_connection_lacks_is_parsed_there(world: World) -> None:
    client, other = world.client(), world.client()
    client.ask(parse("s", "INSERT INTO t VALUES ('alice')"), SYNC)
    client.ask(parse("r", READ), SYNC)
    assert kinds(client.ask(named("r"))) == "2 n D C ZI"
    moved(world, client, other)
    client.ask(query("COMMIT"))
    assert kinds(client.ask(named("r"))) == "2 n D C ZI"


def test_its_parse_elsewhere_fails(world: World) -> None:
    client = world.client()
    client.ask(parse("s", READ), SYNC)
    (backend,) = world.backends
    backend.server.forget_session()
    backend.statements.clear()
    backend.fails[READ] = "42P01"
    assert kinds(client.ask(named("s"))) == "E:42P01 ZI"
    (row,) = [each for each in decode(world.access.take()) if each["sqlstate"]]
    assert (row["sqlstate"], row["bytes_out"]) == ("42P01", 0)
    assert kinds(client.ask(named("s"))) == "2 n D C ZI"


def test_it_waits_for_a_connection(world: World) -> None:
    world = World(maximum=1)
    client, other = world.client(), world.client()
    other.ask(query("BEGIN READ ONLY"))
    client.send(unnamed(READ))
    world.settle()
    assert client.take() == b""
    other.ask(query("COMMIT"))
    assert kinds(client.take()) == "1 2 n D C ZI"


def test_it_is_tried_again_where_its_server_dies(world: World) -> None:
    client = world.client()
    client.ask(unnamed(READ))
    client.send(unnamed(READ))
    world.backends[0].die()
    world.settle()
    assert kinds(client.take()) == "1 2 n D C ZI"
