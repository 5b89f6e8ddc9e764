"""Logins of clients: what they may send, which keys open the door, and what the session starts with."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import struct
import time

import pytest

from proxy.auth.key import Key
from proxy.auth.keystore import KeyStore
from proxy.errors import UpstreamUnavailable
from proxy.session.client import ClientLogin, Gate, Sessions
from proxy.session.session import Session
from proxy.upstream.server import HIGH_WATER
from proxy.wire.scram import ClientExchange
from tests.session.backend import FakeTransport
from tests.session.fakes import World
from tests.session.frontend import SYNC, error, kinds, message, query, split

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
        assert isinstance(protocol, ClientLogin | Session)
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


@pytest.fixture
def door() -> Door:
    return Door()


# -- keys


async def test_the_right_key_opens_a_session_by_scram(door: Door) -> None:
    caller = door.knock()
    came = kinds(await caller.scram(key_id("alice"), whole("alice")))
    assert came.startswith(LOGGED_IN + " S:") and came.endswith(" K ZI")
    assert caller.transport.high == HIGH_WATER
    session = caller.session()
    assert session.who == f"|alice|{key_id('alice')}|write:tasks"
    assert door.sessions.by_pid == {session.pid: session}
    assert not door.gate.logins
    assert kinds(await caller.say(query("SELECT 1"))) == "T D C ZI"


async def test_the_greeting_tells_of_the_session(door: Door) -> None:
    caller = door.knock()
    came = await caller.scram(key_id("alice"), whole("alice"), application_name="tést", timezone="Asia/Tokyo")
    told = kinds(came)
    assert "S:application_name=t?st" in told and "S:TimeZone=Asia/Tokyo" in told
    assert f"S:session_authorization={key_id('alice')}" in told and "S:in_hot_standby=off" in told
    (key_data,) = [each for each in split(came) if each[:1] == b"K"]
    session = caller.session()
    assert key_data[5:] == struct.pack("!i", session.pid) + session.secret
    assert session.profile.get("timezone") == "Asia/Tokyo"
    assert (await caller.say(SYNC)) == message(b"Z", b"I")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"user": "nobody"}, "unknown"),
        ({"password": "ctm_alice0000000_" + "x" * 32}, "wrong"),
        ({"expires_at": 1.0}, "expired"),
        ({"revoked_at": 1.0}, "revoked"),
        ({"user": "alice_is_no_id"}, "unknown"),
    ],
)
async def test_any_other_key_is_refused_in_the_same_words(
    door: Door, change: dict[str, object], why: str
) -> None:
    user = key_id(str(change.pop("user", "alice")))
    password = str(change.pop("password", whole("alice")))
    door.keys[key_id("alice")] = api_key("alice", **change)
    caller = door.knock()
    came = await caller.scram(user, password)
    assert kinds(came) == "R R FATAL:28P01", "the whole exchange comes first"
    assert error(came)["M"] == "API key rejected: it is unknown, wrong, expired or revoked"
    assert caller.closed() and not len(door.sessions)
    assert door.world.stats.logins_refused.counts == {why: 1}


async def test_an_unknown_key_is_asked_with_the_same_salt_each_time(door: Door) -> None:
    salts = set()
    for _ in range(2):
        caller = door.knock()
        await caller.say(startup(key_id("nobody")))
        came = await caller.say(ClientExchange("x", "y", "nonce").first())
        salts.add(came[came.index(b"s=") :])
    assert len(salts) == 1


async def test_a_key_that_is_revoked_while_it_logs_in_gets_no_session(door: Door) -> None:
    caller = door.knock()
    exchange = ClientExchange("x", whole("alice"), "nonce")
    await caller.say(startup(key_id("alice")))
    first = split(await caller.say(exchange.first()))[-1]
    store = door.gate.keys["app"]
    revoked = api_key("alice", revoked_at=1.0)
    store._known[key_id("alice")] = (revoked, time.monotonic())
    assert kinds(await caller.say(exchange.final(first[9:]))) == "R FATAL:28P01"
    assert not len(door.sessions)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", ""])
async def test_a_password_opens_a_session_from_this_machine(door: Door, address: str) -> None:
    caller = door.knock(address)
    assert await caller.say(startup("anyone")) == message(b"R", b"\0\0\0\3")
    came = await caller.say(message(b"p", whole("alice").encode() + b"\0"))
    assert kinds(came).startswith("R S:") and kinds(came).endswith("K ZI")


@pytest.mark.parametrize("password", ["wrong", whole("nobody"), whole("alice")[:-1] + "x"])
async def test_a_wrong_password_is_refused(door: Door, password: str) -> None:
    caller = door.knock()
    await caller.say(startup("anyone"))
    assert kinds(await caller.say(message(b"p", password.encode() + b"\0"))) == "FATAL:28P01"
    assert caller.closed()


async def test_an_empty_password_is_a_missing_key(door: Door) -> None:
    caller = door.knock()
    await caller.say(startup("anyone"))
    assert kinds(await caller.say(message(b"p", b"\0"))) == "FATAL:28000"


async def test_a_password_is_never_asked_from_afar(door: Door) -> None:
    caller = door.knock("10.0.0.1")
    came = await caller.scram("anyone", whole("alice"))
    assert came.startswith(b"R\0\0\0\x17") and kinds(came) == "R R FATAL:28P01"


async def test_a_method_that_is_off_is_not_offered(door: Door) -> None:
    door.gate.methods = ["password"]
    assert kinds(await door.knock("10.0.0.1").say(startup(key_id("alice")))) == "FATAL:28P01"
    assert await door.knock().say(startup(key_id("alice"))) == message(b"R", b"\0\0\0\3")


async def test_a_key_serves_its_addresses_alone(door: Door) -> None:
    key = door.keys[key_id("alice")]
    door.keys[key_id("alice")] = Key(
        key.id, "", "alice", [], key.secret_sha256, key.scram, "", ["10.0.0.0/8"]
    )
    came = await door.knock("192.168.0.1").scram(key_id("alice"), whole("alice"))
    assert kinds(came) == "R R R FATAL:28000"
    assert kinds(await door.knock("10.1.2.3").scram(key_id("alice"), whole("alice"))).endswith("ZI")


# -- packets


@pytest.mark.parametrize(
    "requests",
    [[SSL_REQUEST], [GSSENC_REQUEST], [SSL_REQUEST, GSSENC_REQUEST], [GSSENC_REQUEST, SSL_REQUEST]],
)
async def test_encryption_is_declined_once_each(door: Door, requests: list[bytes]) -> None:
    caller = door.knock()
    for request in requests:
        assert await caller.say(request) == b"N"
    assert kinds(await caller.say(startup(key_id("alice")))) == "R"


@pytest.mark.parametrize(
    "said",
    [
        [SSL_REQUEST, SSL_REQUEST],
        [SSL_REQUEST + startup("alice")],
        [SSL_REQUEST + b"x"],
        [GSSENC_REQUEST + SSL_REQUEST],
        [b"\x16\3\1\2\0"],
        *([struct.pack("!i", length)] for length in (-1, 0, 3, 7, 10_001, 2**31 - 1)),
        [struct.pack("!ii", 9, 196608) + b"x"],
        [packed(b"user\0alice\0user\0bob\0")],
        [packed(b"user\0")],
        [packed(b"user\0\xff\0")],
        [packed(b"user\0alice\0", 131072)],
        [struct.pack("!ii", 12, 80877102) + b"\0\0\0\0"],
    ],
)
async def test_rejects_what_no_client_sends_at_first(door: Door, said: list[bytes]) -> None:
    caller = door.knock()
    came = b""
    for data in said:
        came = await caller.say(data)
    assert kinds(came) == "FATAL:08P01"
    assert caller.closed()


@pytest.mark.parametrize(
    "said",
    [
        query("SELECT 1"),
        startup("alice"),
        b"p\0\0\0\3",
        b"p" + struct.pack("!i", 65_536),
        b"p\xff\xff\xff\xff",
        message(b"p", b"SCRAM-SHA-256"),
        message(b"p", b"SCRAM-SHA-256\0\0\0\0\x7fn,,n=,r=x"),
        message(b"p", b"SCRAM-SHA-1\0\0\0\0\1x"),
        message(b"p", b"SCRAM-SHA-256\0\0\0\0\1x"),
    ],
)
async def test_rejects_what_no_client_sends_to_authenticate(door: Door, said: bytes) -> None:
    caller = door.knock()
    await caller.say(startup(key_id("alice")))
    assert kinds(await caller.say(said)) == "FATAL:08P01"
    assert caller.closed()


async def test_a_login_in_single_bytes_goes_as_in_one_piece(door: Door) -> None:
    caller = door.knock()
    for byte in SSL_REQUEST:
        came = await caller.say(bytes([byte]))
    assert came == b"N"
    for byte in startup("anyone"):
        came = await caller.say(bytes([byte]))
    assert kinds(came) == "R"
    for byte in message(b"p", whole("alice").encode() + b"\0"):
        came = await caller.say(bytes([byte]))
    assert kinds(came).endswith("K ZI")


async def test_what_follows_the_password_in_one_packet_is_the_sessions(door: Door) -> None:
    caller = door.knock()
    came = await caller.say(
        startup("anyone") + message(b"p", whole("alice").encode() + b"\0") + query("SELECT 1")
    )
    assert kinds(came).endswith("K ZI T D C ZI")


async def test_a_flood_before_the_login_is_not_read(door: Door) -> None:
    caller = door.knock()
    await caller.say(startup("anyone") + b"p" + struct.pack("!i", 60_000) + b"x" * 100)
    caller.login.data_received(b"x" * 70_000)
    assert caller.transport.paused


async def test_a_newer_minor_version_and_unknown_options_are_negotiated(door: Door) -> None:
    caller = door.knock()
    came = await caller.say(packed(b"user\0anyone\0database\0app\0_pq_.new\0" + b"1\0", 196610))
    assert kinds(came) == "v R"
    assert split(came)[0][5:] == struct.pack("!ii", 0, 1) + b"_pq_.new\0"


async def test_a_cancel_request_is_passed_on_and_closed(door: Door) -> None:
    caller = door.knock()
    assert await caller.say(struct.pack("!iii", 16, 80877102, 4711) + b"abcd") == b""
    assert door.cancels == [(4711, b"abcd")]
    assert caller.closed()


# -- limits


async def test_a_login_that_takes_too_long_is_cut_off(door: Door) -> None:
    door.gate.auth_timeout = 0.001
    caller = door.knock()
    await caller.say(b"\0\0")
    await caller.closes()
    assert caller.transport.aborted and caller.transport.all == b""
    assert not door.gate.logins


async def test_a_login_that_gives_up_waiting_leaves_no_connection_lent(door: Door) -> None:
    world = door.world
    holders = [world.client() for _ in range(2)]
    for holder in holders:
        holder.ask(query("SET sluice.pool = 'readonly'"), query("BEGIN READ ONLY"))
    pool = world.pool("readonly")
    assert pool.size == 2 and pool.idle_count == 0
    door.gate.auth_timeout = 0.05
    caller = door.knock()
    await caller.say(startup("anyone"))
    caller.login.data_received(message(b"p", whole("alice").encode() + b"\0"))
    await caller.closes()
    assert pool.waiters.length == 0
    for holder in holders:
        holder.ask(query("ROLLBACK"))
    assert pool.idle_count == 2


async def test_a_login_that_gives_up_while_a_server_works_for_it_has_it_returned(door: Door) -> None:
    world = door.world
    pool = world.pool("readonly")
    door.gate.auth_timeout = 0.05
    caller = door.knock()
    await caller.say(startup("anyone"))
    caller.login.data_received(message(b"p", whole("alice").encode() + b"\0"))
    for _ in range(20):
        await asyncio.sleep(0)
        world.open()
    await caller.closes()
    assert pool.size == 1 and pool.idle_count == 0
    world.settle()
    assert pool.idle_count == 1
    world.check()


async def test_more_clients_than_the_limit_are_refused(door: Door) -> None:
    door.gate.max_clients = 1
    await door.knock().scram(key_id("alice"), whole("alice"))
    came = await door.knock().say(startup(key_id("alice")))
    assert kinds(came) == "FATAL:53300"
    assert error(came)["D"] == "POOL_EXHAUSTED: max_clients=1"
    assert door.world.stats.connections_refused == 1


async def test_a_draining_proxy_takes_nobody(door: Door) -> None:
    door.gate.draining = True
    assert kinds(await door.knock().say(startup(key_id("alice")))) == "FATAL:57P01"


async def test_a_client_that_vanishes_while_it_logs_in_is_forgotten(door: Door) -> None:
    caller = door.knock()
    await caller.say(startup(key_id("alice")))
    caller.login.connection_lost(None)
    await caller.hear()
    assert not door.gate.logins and not len(door.sessions)


async def test_sessions_leave_the_list_when_they_end(door: Door) -> None:
    caller = door.knock()
    await caller.scram(key_id("alice"), whole("alice"))
    session = caller.session()
    assert door.sessions.of_key(key_id("alice")) == [session]
    caller.transport.closed = True
    session.connection_lost(None)
    assert not len(door.sessions)


# -- what the session starts with


async def test_an_unknown_database_is_told_to_who_has_a_key(door: Door) -> None:
    came = await door.knock().scram(key_id("alice"), whole("alice"), database="other")
    assert kinds(came) == "R R R FATAL:3D000"
    assert error(came)["H"] == "Known: app"
    came = await door.knock().scram(key_id("nobody"), whole("alice"), database="other")
    assert kinds(came) == "R R FATAL:28P01"


async def test_a_missing_user_is_refused(door: Door) -> None:
    assert kinds(await door.knock().say(packed(b"database\0app\0"))) == "FATAL:28000"


@pytest.mark.parametrize("options", ["-c sluice.pool=background", "--sluice.pool=background"])
async def test_options_choose_a_pool(door: Door, options: str) -> None:
    caller = door.knock()
    await caller.scram(key_id("alice"), whole("alice"), options=options)
    assert caller.session().asked_pool == "background"
    await caller.say(query("SELECT 1"))
    assert door.world.of("background")[0].sql == ["SELECT 1"]


@pytest.mark.parametrize(
    ("parameters", "sqlstate"),
    [
        ({"options": "-c sluice.pool=none"}, "22023"),
        ({"options": "-c sluice.pool=admin"}, "22023"),
        ({"options": "-c sluice.identity=root"}, "42501"),
        ({"options": "-x"}, "08P01"),
        ({"options": "-c role=postgres"}, "0A000"),
        ({"role": "postgres"}, "0A000"),
        ({"replication": "true"}, "0A000"),
        ({"replication": "database"}, "0A000"),
        ({"timezone": "bogus"}, "22023"),
    ],
)
async def test_what_may_not_be_set_fails_the_login(
    door: Door, parameters: dict[str, str], sqlstate: str
) -> None:
    caller = door.knock()
    came = await caller.scram(key_id("alice"), whole("alice"), **parameters)
    assert kinds(came) == "R R R FATAL:" + sqlstate
    assert caller.closed() and not len(door.sessions)
    door.world.settle()
    assert door.world.pool("readonly").idle_count == door.world.pool("readonly").size
    door.world.check()


async def test_settings_are_tried_on_a_server_once(door: Door) -> None:
    for _ in range(2):
        caller = door.knock()
        came = await caller.scram(key_id("alice"), whole("alice"), timezone="Asia/Tokyo")
        assert "S:TimeZone=Asia/Tokyo" in kinds(came)
    tried = [ran.sql for backend in door.world.backends for ran in backend.ran]
    assert tried == ["SELECT pg_catalog.set_config('timezone', 'Asia/Tokyo', false)", "DISCARD ALL"]


async def test_without_a_server_the_login_tells_what_is_missing(door: Door) -> None:
    world = door.world
    caller = door.knock()
    await caller.say(startup("anyone"))
    caller.login.data_received(message(b"p", whole("alice").encode() + b"\0"))
    for _ in range(20):
        await asyncio.sleep(0)
    world.fail_to_open(UpstreamUnavailable(extra="refused"))
    came = await caller.hear()
    assert kinds(came) == "FATAL:08006"


async def test_sessions_of_one_key_share_its_rate(door: Door) -> None:
    door.keys[key_id("alice")].rate_limit_per_minute = 1
    callers = [door.knock(), door.knock()]
    for caller in callers:
        await caller.scram(key_id("alice"), whole("alice"))
    assert kinds(await callers[0].say(query("SELECT 1"))) == "T D C ZI"
    assert kinds(await callers[1].say(query("SELECT 1"))) == "E:53400 ZI"
