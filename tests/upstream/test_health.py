"""The health monitor: roles, failures, and how fresh each replica is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from proxy.errors import UpstreamUnavailable
from proxy.upstream.breaker import Breaker
from proxy.upstream.cluster import ROUND_ROBIN, Cluster, Host
from proxy.upstream.control import Control
from proxy.upstream.health import Health, Thresholds


class FakeHost:
    """What one server would answer; a control connection to it."""

    def __init__(self, in_recovery: bool = False, position: int = 0, timeline: int = 1) -> None:
        self.in_recovery = in_recovery
        self.position: int | None = position
        self.timeline = timeline
        self.ahead = 0.0
        self.down = False
        self.asked = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[FakeHost]:
        self.asked += 1
        if self.down:
            raise UpstreamUnavailable(extra="refused")
        yield self

    async def fetchrow(self, sql: str) -> dict[str, Any]:
        return {
            "in_recovery": self.in_recovery,
            "position": self.position,
            "clock": time.time() + self.ahead,
            "timeline": self.timeline,
            "system": 77,
        }


class Rig:
    """Hosts under a monitor, and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **fakes: FakeHost) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.fakes = fakes
        self.hosts = {name: Host(name, name, 5432, "auto", Breaker(2, 5.0)) for name in fakes}
        self.cluster = Cluster("app", list(self.hosts.values()), ROUND_ROBIN, 10.0)
        controls = {name: cast(Control, fake) for name, fake in fakes.items()}
        self.health = Health(self.cluster, controls, Thresholds(1.0, 5.0))

    async def probe(self, seconds: float = 1.0) -> None:
        self.now += seconds
        await self.health.probe()


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch, one=FakeHost(position=100), two=FakeHost(True, 100))


async def test_a_probe_finds_the_roles(rig: Rig) -> None:
    await rig.probe()
    assert rig.cluster.primary is rig.hosts["one"]
    assert rig.cluster.replicas == [rig.hosts["two"]]


async def test_a_failover_is_found(rig: Rig) -> None:
    await rig.probe()
    rig.fakes["one"].down = True
    rig.fakes["two"].in_recovery, rig.fakes["two"].timeline = False, 2
    await rig.probe()
    assert rig.cluster.primary is rig.hosts["two"], "the newer timeline"
    await rig.probe()
    assert not rig.hosts["one"].up
    rig.fakes["one"].down = False
    await rig.probe(6.0)
    assert rig.cluster.primary is rig.hosts["two"], "the old primary came back on its old timeline"


async def test_a_replica_is_fresh_as_of_the_last_position_that_it_has_replayed(rig: Rig) -> None:
    one, two = rig.fakes["one"], rig.fakes["two"]
    await rig.probe()
    await rig.probe()
    assert rig.hosts["two"].fresh_as_of == 1002.0 and rig.hosts["two"].lag == 0.0
    one.position = 200
    await rig.probe()
    assert rig.hosts["two"].fresh_as_of == 1002.0 and rig.hosts["two"].lag == 0.0
    await rig.probe()
    assert rig.hosts["two"].lag == 1.0
    two.position = 200
    await rig.probe()
    assert rig.hosts["two"].fresh_as_of == 1005.0 and rig.hosts["two"].lag == 0.0


async def test_a_replica_on_another_timeline_is_not_fresh(rig: Rig) -> None:
    await rig.probe()
    await rig.probe()
    rig.fakes["one"].timeline = 2
    await rig.probe()
    assert rig.hosts["two"].fresh_as_of == 0.0


async def test_without_a_primary_what_a_replica_has_is_all_there_is(rig: Rig) -> None:
    rig.fakes["one"].down = True
    rig.hosts["two"].lag = 50.0
    await rig.probe()
    assert rig.cluster.primary is None and rig.hosts["two"].lag == 0.0


async def test_positions_of_an_old_primary_say_nothing_of_the_new_ones(rig: Rig) -> None:
    await rig.probe()
    await rig.probe()
    rig.fakes["one"].down = True
    rig.fakes["two"].in_recovery, rig.fakes["two"].timeline, rig.fakes["two"].position = False, 2, 500
    await rig.probe()
    await rig.probe()
    rig.fakes["one"].down, rig.fakes["one"].in_recovery, rig.fakes["one"].timeline = False, True, 2
    rig.fakes["one"].position = None
    await rig.probe(6.0)
    assert rig.hosts["one"].is_replica and rig.hosts["one"].fresh_as_of == 0.0
    assert rig.hosts["one"].lag > 0.0


async def test_a_host_that_is_down_is_left_alone_for_a_while(rig: Rig) -> None:
    await rig.probe()
    rig.fakes["two"].down = True
    await rig.probe()
    up = [rig.hosts["two"].up]
    await rig.probe()
    up.append(rig.hosts["two"].up)
    assert rig.cluster.replicas == []
    asked = rig.fakes["two"].asked
    await rig.probe(4.9)
    assert rig.fakes["two"].asked == asked
    rig.fakes["two"].down = False
    await rig.probe(0.2)
    assert [*up, rig.hosts["two"].up] == [True, False, True]


async def test_the_primarys_clock_is_compared_with_ours(rig: Rig) -> None:
    rig.fakes["one"].ahead, rig.fakes["two"].ahead = 30.0, -500.0
    await rig.probe()
    assert rig.health.server_offset == pytest.approx(30.0, abs=1.0)


async def test_a_host_is_vetted_each_time_before_it_counts_as_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, one=FakeHost())
    asked: list[str] = []
    unfit = "not now"

    async def vet(host: str, _: object) -> str:
        asked.append(host)
        return unfit

    rig.health = Health(rig.cluster, {"one": cast(Control, rig.fakes["one"])}, Thresholds(1.0, 5.0), vet)
    await rig.probe()
    assert (rig.hosts["one"].up, rig.hosts["one"].last_error, rig.cluster.primary) == (False, "not now", None)
    await rig.probe()  # it is left alone for a while
    assert asked == ["one"]
    unfit = ""
    await rig.probe(5.0)
    await rig.probe()
    assert (rig.hosts["one"].up, asked) == (True, ["one", "one"])
    rig.fakes["one"].down = True
    await rig.probe()
    await rig.probe()
    assert not rig.hosts["one"].up
    rig.fakes["one"].down, unfit = False, "not any more"
    await rig.probe(5.0)
    assert (rig.hosts["one"].up, len(asked)) == (False, 3)


async def test_an_interval_of_0_asks_nothing_of_hosts_that_are_up(rig: Rig) -> None:
    rig.health = Health(
        rig.cluster, {name: cast(Control, fake) for name, fake in rig.fakes.items()}, Thresholds(0.0, 5.0)
    )
    await rig.probe()
    watching = asyncio.create_task(rig.health.run())
    for _ in range(50):
        await asyncio.sleep(0)
    watching.cancel()
    assert [fake.asked for fake in rig.fakes.values()] == [1, 1]
