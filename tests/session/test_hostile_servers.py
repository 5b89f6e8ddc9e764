"""Servers that break the protocol, in the middle of a client's work: its end, and nothing of it for anybody else."""

from __future__ import annotations

import struct

import pytest

from proxy.errors import KeyRevoked
from proxy.upstream.server import CLOSED
from proxy.wire.replies import MAX_PARAMETERS
from tests.session.backend import Backend
from tests.session.fakes import Client, World
from tests.session.frontend import error, kinds, message, query, rows, run, split

READY = message(b"Z", b"I")
ROW = message(b"D", struct.pack("!Hi", 1, 3) + b"lie")


def under_way(world: World, sent: bytes = query("SELECT 1")) -> tuple[Client, Backend]:
    """Return a client that waits for an answer, and the server that owes it; the identity is set already."""
    client = world.client()
    client.ask(query("SELECT 'before'"))
    client.send(sent)
    (backend,) = world.of("readonly")
    return client, backend


@pytest.mark.parametrize(
    "said",
    [
        b"D\0\0\0\3",
        b"D\xff\xff\xff\xff",
        b"D\x80\0\0\0",
        b"D\x40\0\0\0",
        b"T\0\x10\0\1",
        b"S\0\1\0\1",
        b"Z\0\0\0\4",
        b"Z\0\0\0\6II",
        message(b"Z", b"?"),
        b"\0\0\0\0\4",
        message(b"1"),
        message(b"2"),
        message(b"3"),
        message(b"s"),
        message(b"t", b"\0\0"),
        message(b"R", b"\0\0\0\3"),
        message(b"K", b"\0\0\0\1abcd"),
        message(b"v", b"\0\3\0\0\0\0\0\0"),
        message(b"S", b"TimeZone\0no end"),
        message(b"S", b"x" * 1_000_000 + b"\0y\0")[:200_000],
    ],
)
def test_what_no_postgresql_answers_ends_the_client_with_08006(world: World, said: bytes) -> None:
    client, backend = under_way(world)
    backend.server.data_received(said)
    assert error(client.take())["C"] == "08006"
    assert client.closed() and backend.transport.aborted and backend.server.state == CLOSED
    innocent = world.client("bob")
    assert rows(innocent.ask(query("SELECT 'innocent'"))) == ["'innocent'"]
    world.check()


@pytest.mark.parametrize(
    "said", [READY, ROW, READY + ROW, message(b"C", b"SELECT 1\0"), message(b"T", b"\0\0")]
)
def test_what_nobody_asked_for_closes_the_connection_and_reaches_nobody(world: World, said: bytes) -> None:
    client = world.client()
    client.ask(query("SELECT 'before'"))
    (backend,) = world.of("readonly")
    backend.server.data_received(said)
    assert backend.transport.aborted and not client.closed() and client.take() == b""
    assert rows(client.ask(query("SELECT 'after'"))) == ["'after'"]
    world.check()


def test_what_comes_behind_the_last_answer_in_one_piece_is_the_next_clients_never(world: World) -> None:
    client, backend = under_way(world)
    answer = message(b"T", b"\0\0") + message(b"C", b"SELECT 0\0") + READY
    backend.server.data_received(answer + ROW)
    assert backend.transport.aborted
    assert ROW not in client.take()
    assert rows(world.client("bob").ask(query("SELECT 'innocent'"))) == ["'innocent'"]
    world.check()


def test_half_a_message_and_the_end_of_it_later_never_change_hands(world: World) -> None:
    client, backend = under_way(world)
    answer = message(b"T", b"\0\0") + message(b"C", b"SELECT 0\0") + READY
    backend.server.data_received(answer + ROW[:7])
    assert backend.transport.aborted or not backend.server.replies.empty
    assert rows(world.client("alice").ask(query("SELECT 'innocent'"))) == ["'innocent'"]
    assert ROW[7:] not in client.take()


def test_a_flood_of_notices_passes_without_being_held(world: World) -> None:
    client, backend = under_way(world)
    notice = message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")
    for _ in range(200):
        backend.server.data_received(notice * 100)
    assert len(backend.server.replies._held) == 0
    assert client.take() == notice * 20_000
    world.settle()
    assert kinds(client.take()) == "T D C ZI"


def test_a_flood_of_notices_at_an_idle_connection_goes_nowhere(world: World) -> None:
    client = world.client()
    client.ask(query("SELECT 'before'"))
    (backend,) = world.of("readonly")
    for _ in range(50):
        backend.server.data_received(message(b"N", b"SNOTICE\0C00000\0Mhello\0\0") * 100)
    assert client.take() == b"" and len(backend.server.replies._held) == 0
    assert rows(client.ask(query("SELECT 'after'"))) == ["'after'"]


@pytest.mark.parametrize("body", [b"\0", b"Mno code\0\0", b"C\0\0", b"C4\0\0", b"", b"S", b"\xff" * 20])
def test_an_error_without_an_sqlstate_is_passed_on_as_it_is(world: World, body: bytes) -> None:
    client, backend = under_way(world)
    backend.server.data_received(message(b"E", body) + READY)
    assert client.take() == message(b"E", body) + READY
    assert not client.closed()
    world.check()


@pytest.mark.parametrize("length", [100, 60_000])
def test_parameters_that_a_server_makes_up_are_bounded(world: World, length: int) -> None:
    client, backend = under_way(world)
    for number in range(2_000):
        if backend.server.state == CLOSED:
            break
        name = b"made_up_%d" % number
        backend.server.data_received(message(b"S", name + b"\0" + b"x" * length + b"\0"))
    assert len(client.session.reported) <= MAX_PARAMETERS + 1
    assert backend.server.state == CLOSED and client.closed()


def test_a_server_that_dies_within_a_row_ends_its_client_without_a_word(world: World) -> None:
    # An ErrorResponse there would be the rest of the row.
    client, backend = under_way(world)
    cut = message(b"T", b"\0\0") + ROW[:9]
    backend.server.data_received(cut)
    backend.die()
    assert client.take() == cut and client.closed()


def test_a_violation_behind_the_end_of_a_row_is_not_told_within_it(world: World) -> None:
    client, backend = under_way(world)
    cut = message(b"T", b"\0\0") + ROW[:9]
    backend.server.data_received(cut)
    backend.server.data_received(ROW[9:] + message(b"1"))
    assert client.take() == cut and client.closed()


def test_a_client_that_is_ended_within_a_row_is_not_told_why(world: World) -> None:
    client, backend = under_way(world)
    cut = message(b"T", b"\0\0") + ROW[:9]
    backend.server.data_received(cut)
    client.session.fatal(KeyRevoked())
    assert client.take() == cut and client.closed()
    assert backend.transport.aborted


@pytest.mark.parametrize("sent", [query("SELECT 1"), run("SELECT 1")])
def test_an_end_at_each_byte_of_an_answer(sent: bytes) -> None:
    whole = World().client().ask(sent)
    starts = [0]
    for each in split(whole):
        starts.append(starts[-1] + len(each))
    for at in range(len(whole)):
        world = World()
        client, backend = under_way(world, sent)
        backend.server.data_received(whole[:at])
        backend.die()
        start = max(each for each in starts if each <= at)
        came = client.take()
        if not came:
            # Before the first row nothing is forwarded, so the read is tried once more.
            assert b"D" not in [each[:1] for each in split(whole[:start])] and not client.closed()
            world.settle()
            assert kinds(client.take()) == kinds(whole)
            continue
        assert client.closed() and came.startswith(whole[:start])
        rest = came[start:]
        assert rest == whole[start:at] != b"" or kinds(rest) == "FATAL:08006"
        assert rows(world.client("bob").ask(query("SELECT 'innocent'"))) == ["'innocent'"]
        world.check()
