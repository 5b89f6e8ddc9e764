from __future__ import annotations

import asyncio
from typing import cast

import pytest

from proxy.api.entrance import columns_of, completed, fields_of
from proxy.api.inner import HIGH, MOST, InnerClient, MessageTooLong
from proxy.auth.key import Key
from proxy.errors import ClientKilled, UpstreamUnavailable
from proxy.observe.record import session_part
from proxy.session.session import Session
from proxy.wire.codes import BE_COMMAND_COMPLETE, BE_DATA_ROW, BE_ERROR, BE_READY
from proxy.wire.messages import message
from tests.session.fakes import SECRET_SHA256, World


def client(world: World, *permissions: str) -> InnerClient:
    """Return a client in memory, as Entrance makes one."""
    world.users.add("alice")
    key = Key("ctm_alice0000000", "alice", "alice", permissions or ("write:tasks",), SECRET_SHA256, "")
    opened = InnerClient("192.0.2.7", 4711)
    session = Session(
        world.database,
        cast(asyncio.Transport, opened),
        key,
        "alice",
        world.database.profiles.of({}),
        "",
        session_part(key.id, "alice", "192.0.2.7", "http", "app"),
        None,
    )
    session.on_abandon = world.abandoned.append
    opened.attach(session)
    return opened


async def messages(opened: InnerClient) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while not found or found[-1][0] != BE_READY:
        found.append(await opened.take())
    return found


@pytest.fixture
def world() -> World:
    return World()


async def test_a_statement_is_answered(world: World) -> None:
    opened = client(world)
    opened.send("SELECT $1", ["x"])
    world.settle()
    found = await messages(opened)
    assert BE_DATA_ROW in dict(found)
    assert completed(*next(each for each in found if each[0] == BE_COMMAND_COMPLETE)).startswith("SELECT")
    assert opened.session.server is None


async def test_an_error_is_told_and_the_next_statement_runs(world: World) -> None:
    world.failing["broken"] = "42P01"
    opened = client(world)
    opened.send("SELECT broken")
    world.settle()
    assert fields_of(dict(await messages(opened))[BE_ERROR])["C"] == "42P01"
    opened.send("SELECT 1")
    world.settle()
    assert BE_ERROR not in dict(await messages(opened))


async def test_permissions_hold_as_for_any_client(world: World) -> None:
    opened = client(world, "read:tasks")
    opened.send("DELETE FROM t")
    fields = fields_of(dict(await messages(opened))[BE_ERROR])
    assert (fields["C"], fields["D"]) == ("42501", "INSUFFICIENT_PERMISSIONS")
    assert world.backends == []


async def test_who_waits_for_an_answer_is_woken(world: World) -> None:
    opened = client(world)
    opened.send("SELECT 1")
    waiting = asyncio.create_task(messages(opened))
    await asyncio.sleep(0)
    assert not waiting.done()
    world.settle()
    assert (await waiting)[-1][0] == BE_READY


async def test_leaving_cancels_what_runs(world: World) -> None:
    opened = client(world)
    opened.send("SELECT 1")
    world.open()
    server = opened.session.server
    assert server is not None
    opened.leave()
    assert opened.session.ended
    assert world.abandoned == [server]
    with pytest.raises(UpstreamUnavailable):
        await messages(opened)


async def test_leaving_gives_an_idle_connection_back(world: World) -> None:
    opened = client(world)
    opened.send("BEGIN")
    opened.send("SELECT 1")
    world.settle()
    opened.leave()
    world.settle()
    world.check()
    assert world.abandoned == []


async def test_last_words_are_taken_before_the_end(world: World) -> None:
    opened = client(world)
    opened.session.fatal(ClientKilled())
    kind, body = await opened.take()
    assert (kind, fields_of(body)["C"]) == (BE_ERROR, "57P01")
    with pytest.raises(UpstreamUnavailable):
        await opened.take()


async def test_what_nobody_takes_stops_the_reading(world: World) -> None:
    opened = client(world)
    opened.send("SELECT 1")
    world.open()
    server = opened.session.server
    assert server is not None
    row = message(BE_DATA_ROW, b"\0\1\0\0\x40\0" + b"x" * 16_384)
    for _ in range(HIGH // len(row) + 1):
        opened.write(row)
    held = [server.paused]
    for _ in range(HIGH // len(row) + 8):
        waiting = asyncio.create_task(opened.take())
        await asyncio.sleep(0)
        waiting.cancel()
        held.append(server.paused)
    assert (held[0], held[-1]) == (True, False)


async def test_a_long_message_comes_whole(world: World) -> None:
    opened = client(world)
    row = message(BE_DATA_ROW, b"\0\1" + (5 * HIGH).to_bytes(4, "big") + b"x" * 5 * HIGH)
    waiting = asyncio.create_task(opened.take())
    for start in range(0, len(row), HIGH):
        opened.write(row[start : start + HIGH])
        await asyncio.sleep(0)
    _, body = await waiting
    assert columns_of(body) == [b"x" * 5 * HIGH]


async def test_a_message_without_end_is_refused(world: World) -> None:
    opened = client(world)
    opened.write(b"D" + (MOST + 1).to_bytes(4, "big"))
    with pytest.raises(MessageTooLong):
        await opened.take()


def test_more_parameters_than_the_protocol_has_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="too many"):
        client(world).send("SELECT 1", ["x"] * 65_536)


def test_its_address_is_that_of_the_http_client(world: World) -> None:
    assert client(world).get_extra_info("peername") == ("192.0.2.7", 4711)
    assert client(world).get_extra_info("cipher") is None
