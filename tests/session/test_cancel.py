"""Cancel requests: whom they reach, and what becomes of the server connection meanwhile."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from proxy.session.cancel import cancel_held, cancel_server, cancel_session
from proxy.session.sessions import Sessions
from proxy.transport.asking import Security
from proxy.transport.way import Way
from proxy.upstream.server import IDLE, LENT
from tests.session.fakes import Client, World
from tests.session.frontend import error, kinds, query

Heard = Callable[[bytes], Awaitable[None]]


async def _nothing(_: bytes) -> None:
    return


@asynccontextmanager
async def postmaster(heard: list[bytes], before_close: Heard = _nothing) -> AsyncIterator[str]:
    """Give the address of a server that takes cancel requests."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readexactly(16)
        heard.append(request)
        await before_close(request)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()
        await server.wait_closed()


class Rig:
    """Clients with process ids, whose server connections are at an address of ours."""

    def __init__(self, maximum: int = 2) -> None:
        self.world = World(maximum=maximum)
        self.sessions = Sessions(self.world.abandoned.append)

    def client(self, user: str = "alice") -> Client:
        client = self.world.client(user)
        self.sessions.add(client.session)
        return client

    def working(self, address: str) -> Client:
        """Return a client with a query under way."""
        client = self.client()
        client.ask(query("SELECT 0"))
        client.send(query("SELECT 1"))
        server = self.world.backends[0].server
        host, _, port = address.rpartition(":")
        server.address = address
        server.way = Way(host, int(port), Security("disable", None))
        return client

    async def cancel(self, client: Client) -> bool:
        return await cancel_session(self.sessions, client.session.pid, client.session.secret)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_cancel_reaches_the_connection_that_the_session_holds(rig: Rig) -> None:
    heard: list[bytes] = []
    async with postmaster(heard) as address:
        client = rig.working(address)
        assert await rig.cancel(client)
    assert heard == [struct.pack("!iii", 16, 80877102, 100) + b"secr"]
    backend = rig.world.backends[0]
    assert backend.server.cancels == 0 and backend.server.state == LENT
    assert rig.world.pool("readonly").stats.cancels == 1
    backend.fails["SELECT 1"] = "57014"
    rig.world.settle()
    assert kinds(client.take()) == "E:57014 ZI"


@pytest.mark.parametrize("secret", [b"", b"1234", b"12345678"])
async def test_a_wrong_secret_touches_no_server(rig: Rig, secret: bytes) -> None:
    client = rig.working("127.0.0.1:1")
    assert not await cancel_session(rig.sessions, client.session.pid, secret)
    assert rig.world.pool("readonly").stats.cancels == 0


async def test_an_unknown_process_is_not_cancelled(rig: Rig) -> None:
    assert not await cancel_session(rig.sessions, 4711, b"\0\0\0\0")


async def test_a_session_that_does_nothing_has_nothing_to_cancel(rig: Rig) -> None:
    client = rig.client()
    client.ask(query("SELECT 1"))
    assert await rig.cancel(client)
    assert client.take() == b""


async def test_a_session_that_waits_for_a_server_is_told_at_once() -> None:
    rig = Rig(maximum=1)
    rig.client("bob").ask(query("BEGIN"))
    client = rig.client()
    client.send(query("INSERT INTO t VALUES (1)"))
    assert await rig.cancel(client)
    answer = client.take()
    assert kinds(answer) == "E:57014 ZI"
    assert error(answer)["D"] == "QUERY_CANCELED"
    assert rig.world.pool("primary").waiters.length == 0
    assert kinds(client.ask(query("SELECT 1"))) == "T D C ZI"


async def test_the_connection_is_lent_to_nobody_before_the_cancel_is_done() -> None:
    rig = Rig(maximum=1)
    heard: list[bytes] = []
    states: list[object] = []

    async def meanwhile(_: bytes) -> None:
        # The query has ended by itself: a late cancel would hit whoever came next.
        rig.world.settle()
        other.send(query("SELECT 2"))
        rig.world.settle()
        server = rig.world.backends[0].server
        states.extend([server.state, rig.world.pool("readonly").idle_count, other.take()])

    async with postmaster(heard, meanwhile) as address:
        client = rig.working(address)
        other = rig.client()
        assert await rig.cancel(client)
    assert states == [IDLE, 0, b""]
    rig.world.settle()
    assert kinds(other.take()) == "T D C ZI"
    rig.world.check()


async def test_two_cancels_return_the_connection_once(rig: Rig) -> None:
    heard: list[bytes] = []
    async with postmaster(heard) as address:
        client = rig.working(address)
        server, pool = rig.world.backends[0].server, rig.world.pool("readonly")
        both = asyncio.gather(cancel_held(server, pool), cancel_held(server, pool))
        await asyncio.sleep(0)
        rig.world.settle()
        assert kinds(client.take()) == "T D C ZI" and pool.idle_count == 0
        await both
    assert len(heard) == 2 and pool.idle_count == 1
    rig.world.check()


async def test_a_cancel_that_does_not_get_through_is_logged(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with postmaster([]) as address:
        pass
    client = rig.working(address)
    assert await rig.cancel(client)
    assert f"cancel request to {address} failed" in caplog.text
    assert rig.world.backends[0].server.cancels == 0


async def test_a_connection_whose_cancel_may_still_arrive_is_not_used_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.session.cancel._TIMEOUT", 0.05)
    hangs = asyncio.Event()

    async def hang(_: bytes) -> None:
        rig.world.settle()
        await hangs.wait()

    async with postmaster([], hang) as address:
        client = rig.working(address)
        assert await rig.cancel(client)
        hangs.set()
    rig.world.settle()
    assert kinds(client.take()) == "T D C ZI"
    assert rig.world.backends[0].terminated
    assert rig.world.pool("readonly").size == 0


async def test_a_cancel_goes_to_a_unix_socket(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("s")
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readexactly(16))
        writer.close()

    server = await asyncio.start_unix_server(serve, str(directory / ".s.PGSQL.5432"))
    rig.working(f"{directory}:5432")
    await cancel_server(rig.world.backends[0].server)
    server.close()
    await server.wait_closed()
    assert len(heard) == 1
