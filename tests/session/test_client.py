"""Logins of clients: which keys open the door, and what a client may send before."""

from __future__ import annotations

import struct
import time

import pytest

from proxy.auth.key import Key
from proxy.upstream.server import HIGH_WATER
from proxy.wire.scram import ClientExchange
from tests.session.door import (
    GSSENC_REQUEST,
    LOGGED_IN,
    SSL_REQUEST,
    Door,
    api_key,
    key_id,
    packed,
    startup,
    whole,
)
from tests.session.frontend import SYNC, error, kinds, message, query, split


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
    assert session.identity == f"|alice|{key_id('alice')}|write:tasks"
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
    parameters = b"user\0anyone\0database\0app\0"
    for asked, options, spoken in (
        (3 << 16 | 9999, b"", 3 << 16 | 2),
        (3 << 16 | 2, b"_pq_.new\0", 3 << 16 | 2),
        (3 << 16, b"_pq_.new\0", 3 << 16),
    ):
        came = await door.knock().say(packed(parameters + (options + b"1\0" if options else b""), asked))
        assert kinds(came) == "v R"
        assert split(came)[0][5:] == struct.pack("!ii", spoken, bool(options)) + options


@pytest.mark.parametrize("minor", [0, 1, 2])
async def test_a_version_that_is_spoken_is_not_negotiated(door: Door, minor: int) -> None:
    came = await door.knock().say(packed(b"user\0anyone\0database\0app\0", 3 << 16 | minor))
    assert kinds(came) == "R"


async def test_a_cancel_request_is_passed_on_and_closed(door: Door) -> None:
    caller = door.knock()
    assert await caller.say(struct.pack("!iii", 16, 80877102, 4711) + b"abcd") == b""
    assert door.cancels == [(4711, b"abcd")]
    assert caller.closed()
