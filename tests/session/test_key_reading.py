"""Which host is believed about a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from proxy.auth.key import Key
from proxy.errors import UpstreamUnavailable
from proxy.session.key_reading import KeyReading
from proxy.upstream.cluster import ROUND_ROBIN, Cluster, Host
from proxy.upstream.control import Control

KEY = "ctm_abcdefghijkl"


class FakeControl:
    """A host's control connection: it has the key or not, or doesn't answer."""

    def __init__(self) -> None:
        self.has: str | None = None
        self.down = False
        self.asked = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[FakeControl]:
        self.asked += 1
        if self.down:
            raise UpstreamUnavailable(extra="refused")
        yield self

    async def fetchrow(self, sql: str, key_id: str) -> Any:
        return {"name": self.has} if self.has else None


class Rig:
    """A primary and two replicas, of which the second has replayed more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Key, "from_row", lambda row: row["name"])
        self.hosts = [Host(name, name, 5432, "auto") for name in ("one", "two", "three")]
        for number, host in enumerate(self.hosts):
            host.probed(number > 0, 0.001)
            host.timeline, host.fresh_as_of = 1, float(number)
        self.cluster = Cluster("app", self.hosts, ROUND_ROBIN, 10.0)
        self.cluster.roles_changed()
        self.controls = {host.name: FakeControl() for host in self.hosts}
        self.alarms = 0
        self.reading = KeyReading(self.cluster, cast(dict[str, Control], self.controls), self._alarm)
        self.known = False
        self.reading.knows = lambda _: self.known

    def _alarm(self) -> None:
        self.alarms += 1

    async def fetch(self) -> object:
        return await self.reading.fetch(KEY)

    def asked(self) -> list[int]:
        return [control.asked for control in self.controls.values()]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


async def test_the_primary_alone_says_that_there_is_no_such_key(rig: Rig) -> None:
    rig.controls["two"].has = "as it was"
    assert await rig.fetch() is None
    assert rig.asked() == [1, 0, 0]


@pytest.mark.parametrize("dead", ["connection", "host"])
async def test_a_replica_that_lacks_a_key_says_nothing(rig: Rig, dead: str) -> None:
    rig.controls["one"].down = True
    if dead == "host":
        rig.hosts[0].up = False
        rig.cluster.roles_changed()
    with pytest.raises(UpstreamUnavailable):
        await rig.fetch()
    assert rig.alarms == (1 if dead == "connection" else 0)


async def test_a_key_that_is_known_is_not_read_from_a_replica(rig: Rig) -> None:
    """It may have been revoked since what that has replayed."""
    rig.controls["one"].down = True
    rig.controls["two"].has = rig.controls["three"].has = "as it was"
    rig.known = True
    with pytest.raises(UpstreamUnavailable):
        await rig.fetch()
    assert rig.asked() == [1, 0, 0]


async def test_an_unknown_key_is_read_from_the_replica_that_has_replayed_most(rig: Rig) -> None:
    rig.controls["one"].down = True
    rig.controls["two"].has, rig.controls["three"].has = "older", "newer"
    assert await rig.fetch() == "newer"
    rig.controls["three"].down = True
    assert await rig.fetch() == "older"


async def test_where_there_never_was_a_primary_replicas_count(rig: Rig) -> None:
    rig.hosts[0].up = False
    only = Cluster("app", rig.hosts, ROUND_ROBIN, 10.0)
    only.roles_changed()
    reading = KeyReading(only, cast(dict[str, Control], rig.controls), lambda: None)
    reading.knows = lambda _: True
    assert await reading.fetch(KEY) is None
    rig.controls["three"].has = "there"
    found: object = await reading.fetch(KEY)
    assert found == "there"
