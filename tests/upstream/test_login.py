"""Logging in to a server: every way to authenticate, and what a hostile one may say."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from proxy.config import HostTls
from proxy.errors import UpstreamUnavailable
from proxy.transport.tls import ServerTls
from proxy.transport.way import Way
from proxy.upstream.login import Login, connect
from proxy.upstream.server import Server
from proxy.wire.scram import ServerExchange, Verifier, read_initial_response
from tests.session.frontend import message, split

PASSWORD = "secret"
NO_TLS = ServerTls(HostTls(mode="disable"))
OK = message(b"R", b"\0\0\0\0")
KEY = message(b"K", struct.pack("!i", 4711) + b"abcd")
READY = message(b"Z", b"I")
ZONE = message(b"S", b"TimeZone\0UTC\0")
NOTICE = message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")
DONE = OK + ZONE + KEY + READY

Answer = Callable[[bytes], bytes]


def login(port: int, timeout: float = 5.0, read_only: bool = False) -> Login:
    return Login(Way("127.0.0.1", port, NO_TLS), "app", "app rw", PASSWORD, read_only, timeout)


class Script(asyncio.Protocol):
    """A server that answers each thing it hears by the next of its functions."""

    def __init__(self, answers: list[Answer], heard: list[bytes]) -> None:
        self._answers = list(answers)
        self._heard = heard
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def end(self) -> None:
        """Break the connection off, if it is still there."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._heard.append(data)
        if self._answers:
            said = self._answers.pop(0)(data)
            if said == b"close":
                self._transport.close()
            else:
                self._transport.write(said)


@asynccontextmanager
async def serving(*answers: Answer | bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Give the port of such a server, and what it hears."""
    heard: list[bytes] = []
    fixed = [answer if callable(answer) else _always(answer) for answer in answers]
    loop = asyncio.get_running_loop()
    scripts: list[Script] = []

    def script() -> Script:
        scripts.append(Script(fixed, heard))
        return scripts[-1]

    server = await loop.create_server(script, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        server.close()
        for each in scripts:
            each.end()
        await server.wait_closed()
        # A transport closes its socket in the loop's next round.
        await asyncio.sleep(0)


def _always(answer: bytes) -> Answer:
    return lambda _: answer


async def enter(*answers: Answer | bytes) -> tuple[Server, list[bytes]]:
    async with serving(*answers) as (port, heard):
        server = await connect(login(port), lambda _: None)
        server.transport.abort()
        await asyncio.sleep(0)
        return server, heard


async def refused(*answers: Answer | bytes) -> str:
    """Return why the login failed."""
    async with serving(*answers) as (port, _):
        with pytest.raises(UpstreamUnavailable) as caught:
            await connect(login(port), lambda _: None)
    assert caught.value.message == f"cannot connect to 127.0.0.1:{port}"
    prefix = f"host=127.0.0.1:{port}: "
    assert caught.value.extra.startswith(prefix)
    return caught.value.extra.removeprefix(prefix)


async def test_a_trusted_login_knows_its_server() -> None:
    server, heard = await enter(NOTICE + DONE)
    assert (server.pid, server.secret, server.login) == (4711, b"abcd", "app rw")
    assert server.defaults == {b"TimeZone": b"UTC"}
    assert heard[0][4:8] == struct.pack("!i", 196608)


@pytest.mark.parametrize("read_only", [False, True])
async def test_what_policies_rest_on_is_fixed_by_startup_options(read_only: bool) -> None:
    async with serving(DONE) as (port, heard):
        server = await connect(login(port, read_only=read_only), lambda _: None)
        server.transport.abort()
    parameters = heard[0][8:].split(b"\0")
    options = parameters[parameters.index(b"options") + 1].decode()
    assert options == (
        '-c search_path="$user",\\ public -c row_security=on -c role=none -c local_preload_libraries='
        f" -c default_transaction_read_only={'on' if read_only else 'off'}"
    )
    assert parameters[parameters.index(b"user") + 1] == b"app rw"
    assert parameters[parameters.index(b"client_encoding") + 1] == b"UTF8"


async def test_a_password_in_clear() -> None:
    _, heard = await enter(message(b"R", b"\0\0\0\3"), DONE)
    assert heard[1] == message(b"p", b"secret\0")


async def test_a_password_by_md5() -> None:
    _, heard = await enter(message(b"R", b"\0\0\0\5salt"), DONE)
    inner = hashlib.md5(b"secretapp rw").hexdigest().encode()
    assert heard[1] == message(b"p", b"md5" + hashlib.md5(inner + b"salt").hexdigest().encode() + b"\0")


class Scram:
    """A server's side of SCRAM, that goes wrong where asked to."""

    def __init__(self, password: str = PASSWORD) -> None:
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt of 16 bytes", 4096)
        client_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        self.exchange = ServerExchange(
            Verifier(b"salt of 16 bytes", 4096, client_key, hmac.digest(salted, b"Server Key", "sha256")),
            "nonce",
        )

    def first(self, data: bytes) -> bytes:
        _, client_first = read_initial_response(data)
        return message(b"R", b"\0\0\0\x0b" + self.exchange.first(client_first).encode())

    def final(self, data: bytes) -> bytes:
        return message(b"R", b"\0\0\0\x0c" + self.exchange.final(data[5:]).encode()) + DONE


OFFER = message(b"R", b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")


async def test_a_password_by_scram() -> None:
    scram = Scram()
    server, heard = await enter(OFFER, scram.first, scram.final)
    assert server.pid == 4711
    assert all(PASSWORD.encode() not in each for each in heard)


async def test_a_server_that_does_not_know_the_password_is_not_believed() -> None:
    scram = Scram()
    lie = message(b"R", b"\0\0\0\x0cv=" + base64.b64encode(b"x" * 32)) + DONE
    assert "could not prove" in await refused(OFFER, scram.first, lie)
    scram = Scram()
    assert "without a proof" in await refused(OFFER, scram.first, DONE)
    assert "without a proof" in await refused(OFFER, DONE)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([message(b"E", b"SFATAL\0C28P01\0Mwrong password\0\0")], "wrong password (28P01)"),
        ([message(b"E", b"\0")], "None (None)"),
        ([b"close"], "connection closed during login"),
        ([OK, b"close"], "no answer"),
        ([message(b"R", b"\0\0\0\x07")], "do not know (7)"),
        ([message(b"R", b"\0\0\0\x0b")], "do not know (11)"),
        ([message(b"R", b"\0\0")], "malformed authentication request"),
        ([message(b"R", b"\0\0\0\x0aSCRAM-SHA-1\0\0")], "no SASL mechanism that we know"),
        ([OFFER, message(b"R", b"\0\0\0\x0br=x,s=!,i=1")], "malformed"),
        ([OFFER, message(b"R", b"\0\0\0\x0br=x,s=c2FsdA==,i=1000001")], "more than 1000000"),
        ([OFFER, message(b"R", b"\0\0\0\x0br=x,s=c2FsdA==,i=x")], "malformed"),
        ([message(b"K", b"\0\0\0\1")], "malformed BackendKeyData"),
        ([message(b"S", b"no terminator")], "invalid string"),
        ([message(b"D", b"\0\0")], "unexpected message"),
        ([b"R\0\0\0\3"], "impossible length"),
        ([b"R\xff\xff\xff\xff"], "impossible length"),
        ([b"S\0\2\0\0"], "impossible length"),
    ],
)
async def test_a_login_that_goes_wrong_tells_why(answers: list[bytes], reason: str) -> None:
    if reason == "no answer":
        async with serving(answers[0]) as (port, _):
            with pytest.raises(UpstreamUnavailable, match="cannot connect") as caught:
                await connect(login(port, 0.05), lambda _: None)
        assert "no answer within 0.05 s" in caught.value.extra
    else:
        told = await refused(*answers)
        assert reason in told


async def test_a_host_that_does_not_listen_tells_why() -> None:
    async with serving() as (port, _):
        pass
    with pytest.raises(UpstreamUnavailable) as caught:
        await connect(login(port), lambda _: None)
    assert "host=127.0.0.1:" in caught.value.extra


async def test_a_login_in_single_bytes_goes_as_in_one_piece() -> None:
    assert b"".join(split(DONE)) == DONE

    class Trickle(Script):
        def data_received(self, data: bytes) -> None:
            assert self._transport is not None
            for at in range(len(DONE)):
                self._transport.write(DONE[at : at + 1])

    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Trickle([], []), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    server = await connect(login(port), lambda _: None)
    assert server.pid == 4711
    server.transport.abort()
    listener.close()
    await listener.wait_closed()


async def test_what_comes_behind_the_first_ready_reaches_the_server_connection() -> None:
    server, _ = await enter(DONE + message(b"S", b"TimeZone\0Asia/Tokyo\0"))
    assert server.replies.parameters[b"TimeZone"] == b"Asia/Tokyo"


async def test_a_server_that_never_stops_asking_is_given_up() -> None:
    endless = message(b"R", struct.pack("!i", 3)) * 1000
    assert await refused(endless) == "the server does not stop asking for authentication"


async def test_a_server_that_makes_up_parameters_is_given_up() -> None:
    many = b"".join(message(b"S", b"made_up_%d\0x\0" % number) for number in range(1000))
    assert await refused(OK + many) == "a server reports more parameters than there are"


async def test_a_flood_of_notices_before_the_first_ready_is_dropped() -> None:
    server, _ = await enter(OK + NOTICE * 20_000 + DONE)
    assert server.pid == 4711


@pytest.mark.parametrize("iterations", ["1000001", "99999999999999999999", "-1", "0", "x", ""])
async def test_an_absurd_count_of_iterations_is_not_worked_off(iterations: str) -> None:
    asks = message(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0")

    def first(data: bytes) -> bytes:
        nonce = data[data.index(b",r=") + 3 :].decode()
        text = f"r={nonce}more,s=c2FsdA==,i={iterations}"
        return message(b"R", struct.pack("!i", 11) + text.encode())

    assert "SCRAM" in await refused(asks, first)
