"""A gate with its keys, and who comes to it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import struct
import time

from proxy.admin.console import ConsoleClient
from proxy.auth.key import Key
from proxy.auth.keystore import KeyStore
from proxy.session.client import ClientLogin
from proxy.session.gate import Gate
from proxy.session.session import Session
from proxy.session.sessions import Sessions
from proxy.wire.scram import ClientExchange
from tests.session.backend import FakeTransport
from tests.session.fakes import World
from tests.session.frontend import split

SECRET = "s" * 32
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
GSSENC_REQUEST = struct.pack("!ii", 8, 80877104)
LOGGED_IN = "R R R R"


def key_id(user: str) -> str:
    return "ctm_" + user.ljust(12, "0")


def verifier(password: str) -> str:
    """Return what PostgreSQL would keep of `password` (RFC 5802, section 3)."""
    salt = b"salt of 16 bytes"
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 4096)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(each).decode() for each in (salt, stored, server)]
    return f"SCRAM-SHA-256$4096:{text[0]}${text[1]}:{text[2]}"


def api_key(user: str, **more: object) -> Key:
    secret = SECRET.encode()
    key = Key(
        key_id(user), user, user, ["write:tasks"], hashlib.sha256(secret).digest(), verifier(whole(user))
    )
    for name, value in more.items():
        setattr(key, name, value)
    return key


def whole(user: str) -> str:
    return f"{key_id(user)}_{SECRET}"


def startup(user: str, database: str = "app", **more: str) -> bytes:
    parameters = {"user": user, "database": database, **more}
    return packed(b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items() if value))


def packed(parameters: bytes, version: int = 196608) -> bytes:
    return struct.pack("!ii", len(parameters) + 9, version) + parameters + b"\0"


class Door:
    """A gate with its keys, in front of a world."""

    def __init__(self) -> None:
        self.world = World()
        self.keys = {key_id("alice"): api_key("alice")}
        self.cancels: list[tuple[int, bytes]] = []
        store = KeyStore(self._fetch, 1000.0, time.monotonic)
        self.sessions = Sessions(self.world.abandoned.append)
        self.gate = Gate(
            databases={"app": self.world.database},
            keys={"app": store},
            methods=["scram-sha-256", "password"],
            auth_timeout=0.0,
            max_clients=10,
            mock_secret=b"mock",
            sessions=self.sessions,
            cancel=self._cancel,
            stats=self.world.stats,
        )

    async def _fetch(self, asked: str) -> Key | None:
        return self.keys.get(asked)

    async def _cancel(self, pid: int, secret: bytes) -> None:
        self.cancels.append((pid, secret))

    def knock(self, address: str = "127.0.0.1") -> Caller:
        return Caller(self, address)


class Caller:
    """One connection that wants to log in."""

    def __init__(self, door: Door, address: str) -> None:
        self._door = door
        self.transport = FakeTransport(peer=(address, 1) if address else "")
        self.login = ClientLogin(door.gate)
        self.login.connection_made(self.transport)
        self._taken = 0

    async def say(self, data: bytes) -> bytes:
        """Send `data`, wait until the login stands still, and return what came."""
        protocol = self.transport.protocol or self.login
        assert isinstance(protocol, ClientLogin | Session | ConsoleClient)
        protocol.data_received(data)
        return await self.hear()

    async def hear(self) -> bytes:
        for _ in range(20):
            await asyncio.sleep(0)
            self._door.world.settle()
        data = self.transport.all
        new, self._taken = data[self._taken :], len(data)
        return new

    def closed(self) -> bool:
        return self.transport.closed

    async def closes(self) -> None:
        """Wait for the deadline of the login."""
        async with asyncio.timeout(5.0):
            while not self.closed():
                await asyncio.sleep(0)

    async def scram(self, user: str, password: str, **more: str) -> bytes:
        """Log in by SCRAM; returns everything that came."""
        exchange = ClientExchange(user, password, "nonceofaclient")
        came = await self.say(startup(user, **more))
        came += await self.say(exchange.first())
        if split(came)[-1][5:9] == struct.pack("!i", 11):
            came += await self.say(exchange.final(split(came)[-1][9:]))
        return came

    def session(self) -> Session:
        assert isinstance(self.transport.protocol, Session)
        return self.transport.protocol
