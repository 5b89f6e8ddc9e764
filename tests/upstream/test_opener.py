"""Opening connections for a pool: what it learns, and what counts for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from proxy.errors import ClientError
from proxy.upstream.opener import Opener
from proxy.upstream.pool import Pool
from tests.session.fakes import limits
from tests.session.frontend import message
from tests.upstream.pools import User
from tests.upstream.test_login import DONE, login, serving

PATIENCE = 5.0
REFUSED = message(b"E", b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0")


class Rig:
    """A pool of one connection, and what opens it at `port`."""

    def __init__(self, port: int) -> None:
        self.alarms = 0
        self.opener = Opener(login(port), self._alarm)
        self.pool = Pool("primary", "one", limits(1), b"")
        self.pool.open = self.opener.start
        self.user = User("alice")
        self.pool.take(self.user, 0.0)

    def _alarm(self) -> None:
        self.alarms += 1

    async def end(self) -> None:
        """Close what is open."""
        self.pool.drain()
        for server in list(self.pool.servers):
            server.close()
        await until(lambda: self.pool.is_empty)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def free_port() -> int:
    async with serving() as (port, _):
        return port


async def test_who_waits_gets_the_connection() -> None:
    async with serving(DONE) as (port, _):
        rig = Rig(port)
        await until(lambda: rig.user.server)
        assert (rig.pool.size, rig.pool.opening, rig.alarms) == (1, 0, 0)
        assert rig.pool.stats.connect_time.total() == 1
        await rig.end()
    # We ended it ourselves: its host is well.
    assert rig.alarms == 0


async def test_a_connection_that_its_host_ends_alarms() -> None:
    async with serving(DONE, b"close") as (port, _):
        rig = Rig(port)
        await until(lambda: rig.user.server)
        assert rig.user.server is not None
        rig.user.server.transport.write(b"S\0\0\0\4")
        await until(lambda: rig.pool.is_empty)
    assert rig.alarms == 1


async def test_a_host_that_refuses_alarms_and_is_left_alone_until_it_answers() -> None:
    rig = Rig(await free_port())
    await until(lambda: rig.user.error)
    assert isinstance(rig.user.error, ClientError)
    assert (rig.alarms, rig.pool.failing, rig.pool.failures_in_a_row) == (1, True, 1)
    rig.pool.take(User("bob"), 0.0)
    await asyncio.sleep(0.3)
    assert rig.pool.stats.connect_failures == 1
    rig.pool.hope()
    await until(lambda: rig.pool.stats.connect_failures == 2)


@pytest.mark.parametrize("answer", [DONE, REFUSED], ids=["opened", "refused"])
async def test_what_is_under_way_as_the_login_changes_counts_for_nothing(answer: bytes) -> None:
    rigs: list[Rig] = []

    def change(_: bytes) -> bytes:
        rigs[0].opener.login = other
        return answer

    async with serving(change) as (port, _), serving(DONE) as (other_port, asked):
        other = login(other_port)
        rigs.append(rig := Rig(port))
        await until(lambda: rig.user.server)
        assert asked
        assert rig.user.errors == []
        assert (rig.pool.size, rig.pool.stats.connect_failures, rig.alarms) == (1, 0, 0)
        await rig.end()
