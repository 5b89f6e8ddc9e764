"""Logins of clients: limits, and what the session starts with."""

from __future__ import annotations

import asyncio
import struct
import time

import pytest

from proxy.errors import UpstreamUnavailable
from proxy.session.sessions import Sessions, worker_of
from proxy.upstream.pool import RESET_TIMEOUT
from tests.session.door import (
    Door,
    key_id,
    packed,
    startup,
    whole,
)
from tests.session.fakes import World
from tests.session.frontend import error, kinds, message, query, split


@pytest.fixture
def door() -> Door:
    return Door()


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


async def test_a_server_that_never_answers_a_login_is_closed(door: Door) -> None:
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
    now = time.monotonic()
    pool.maintain(now)
    assert pool.size == 1
    pool.maintain(now + RESET_TIMEOUT + 1.0)
    assert pool.size == 0
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
        ({"replication": "TR"}, "0A000"),
        ({"replication": "perhaps"}, "22023"),
        ({"replication": "o"}, "22023"),
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


@pytest.mark.parametrize("word", ["false", "OFF", "n", "0", "fal"])
async def test_replication_may_be_said_to_be_off(door: Door, word: str) -> None:
    caller = door.knock()
    came = await caller.scram(key_id("alice"), whole("alice"), replication=word)
    assert kinds(came).endswith("ZI")


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


# -- cancel keys


@pytest.mark.parametrize(("minor", "length"), [(0, 4), (1, 4), (2, 32), (9999, 32)])
async def test_the_secret_is_as_long_as_the_protocol_allows(door: Door, minor: int, length: int) -> None:
    caller = door.knock()
    await caller.say(packed(b"user\0anyone\0database\0app\0", 3 << 16 | minor))
    came = await caller.say(message(b"p", whole("alice").encode() + b"\0"))
    key = next(each for each in split(came) if each[:1] == b"K")
    session = caller.session()
    assert key[5:] == struct.pack("!i", session.pid) + session.secret
    assert len(session.secret) == length


def test_a_process_id_tells_the_worker_and_nothing_else() -> None:
    world = World()
    pids = set()
    for worker in (0, 1, 255):
        sessions = Sessions(world.abandoned.append, worker)
        for _ in range(100):
            session = world.client().session
            sessions.add(session)
            assert 0 < session.pid < 2**31 and worker_of(session.pid) == worker
            pids.add(session.pid >> 8)
    assert len(pids) > 290, "they are drawn at random"
