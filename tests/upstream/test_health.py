"""The health monitor: roles, failures, and how fresh each replica is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from proxy.errors import UpstreamUnavailable
from proxy.transport.asking import Security
from proxy.transport.way import Way
from proxy.upstream.breaker import Breaker
from proxy.upstream.cluster import ROUND_ROBIN, Cluster, Host
from proxy.upstream.control import Control
from proxy.upstream.health import Health, Thresholds, introduce
from proxy.upstream.pool import Pool
from proxy.upstream.server import CLOSED, Server
from tests.session.backend import FakeTransport
from tests.session.fakes import limits


class FakeHost:
    """What one server would answer; a control connection to it."""

    def __init__(self, in_recovery: bool = False, position: int = 0, timeline: int = 1) -> None:
        self.in_recovery = in_recovery
        self.position: int | None = position
        self.timeline = timeline
        self.ahead = 0.0
        self.down = False
        self.asked = 0
        self.system = 77
        self.way = Way("one", 5432, Security("disable", None))
        # Called before each answer.
        self.before: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[FakeHost]:
        self.asked += 1
        if self.down:
            raise UpstreamUnavailable(extra="refused")
        if self.before is not None:
            await self.before()
        yield self

    async def fetchrow(self, sql: str) -> dict[str, Any]:
        return {
            "in_recovery": self.in_recovery,
            "position": self.position,
            "clock": time.time() + self.ahead,
            "timeline": self.timeline,
            "system": self.system,
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


async def test_without_a_primary_a_replica_is_judged_by_the_last_ones_positions(rig: Rig) -> None:
    one, two = rig.fakes["one"], rig.fakes["two"]
    one.position = 200
    await rig.probe()
    one.down = True
    while rig.cluster.primary is not None:
        await rig.probe()
    await rig.probe(20.0)
    assert rig.hosts["two"].lag > 20.0, "it has not replayed all that the dead primary had"
    two.position = 200
    await rig.probe()
    assert rig.hosts["two"].lag == 0.0


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


# -- silence


class Silence:
    """A host that doesn't answer: the clock goes on, the answer doesn't come until it is let through."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig = rig
        self.over = asyncio.Event()
        rig.fakes[name].before = self

    async def __call__(self) -> None:
        # As long as the monitor waits for it, the real time of this test is none.
        while not self.over.is_set():
            self.rig.now += 0.05
            await asyncio.sleep(0)


async def test_a_silent_primary_does_not_keep_the_replicas_from_being_asked(rig: Rig) -> None:
    await rig.probe()
    silence = Silence(rig, "one")
    asked = rig.fakes["two"].asked
    before = rig.now
    await rig.health.probe()
    assert rig.fakes["two"].asked == asked + 1
    assert rig.now - before < 2.0
    silence.over.set()
    await asyncio.sleep(0)


async def test_silence_counts_as_a_failure_each_second_and_opens_the_breaker(rig: Rig) -> None:
    await rig.probe()
    Silence(rig, "one")
    ups = []
    for _ in range(6):
        await rig.health.probe()
        ups.append(rig.hosts["one"].up)
        rig.now += 0.3
    assert ups[0] and not ups[-1]
    assert "no answer for" in rig.hosts["one"].last_error
    assert rig.cluster.primary is None and rig.cluster.replicas == [rig.hosts["two"]]


async def test_a_tunnel_that_leads_nowhere_is_not_asked_for_in_a_hurry(rig: Rig) -> None:
    for fake in rig.fakes.values():
        fake.down = True
    rig.fakes["one"].way.slow_to_open = True
    for _ in range(20):
        await rig.probe(0.2)
    one, two = rig.fakes["one"].asked, rig.fakes["two"].asked
    assert two == 20, "nobody else could serve"
    assert one <= 7, "a few until the breaker opens, then one a second"


@pytest.mark.parametrize("slow", [True, False])
async def test_a_way_that_is_slow_to_open_gets_the_time_that_it_needs(rig: Rig, slow: bool) -> None:
    # Eight round trips of 0.3 s, where an answer is waited for no longer than one second.
    one = rig.fakes["one"]
    one.way.slow_to_open = slow
    silence = Silence(rig, "one")
    await rig.health.probe()
    await rig.health.probe()
    assert not rig.hosts["one"].up
    silence.over.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert rig.hosts["one"].up == slow


async def test_connections_to_a_host_that_fell_silent_are_given_up_and_others_are_not(rig: Rig) -> None:
    await rig.probe()
    for host in rig.hosts.values():
        host.pools["primary"] = Pool("primary", host.name, limits(2), b"")
    servers = {}
    for name, host in rig.hosts.items():
        pool = host.pools["primary"]
        pool.opening = 1
        servers[name] = Server(FakeTransport(), name, 1, b"", {}, "app", pool.closed, rig.now)
        pool.opened(servers[name], rig.now)
    Silence(rig, "one")
    while rig.hosts["one"].up:
        await rig.health.probe()
    assert servers["one"].state == CLOSED and servers["two"].state != CLOSED


async def test_a_host_that_refuses_keeps_its_connections(rig: Rig) -> None:
    """The control login alone may be what it refuses."""
    await rig.probe()
    host = rig.hosts["one"]
    pool = host.pools["primary"] = Pool("primary", "one", limits(2), b"")
    pool.opening = 1
    server = Server(FakeTransport(), "one", 1, b"", {}, "app", pool.closed, rig.now)
    pool.opened(server, rig.now)
    rig.fakes["one"].down = True
    while host.up:
        await rig.probe()
    assert server.state != CLOSED


# -- pace


async def test_without_a_primary_a_host_that_is_down_is_asked_each_time(rig: Rig) -> None:
    await rig.probe()
    rig.fakes["one"].down = True
    while rig.hosts["one"].up:
        await rig.probe(0.2)
    asked = rig.fakes["one"].asked
    await rig.probe(0.2)
    await rig.probe(0.2)
    assert rig.fakes["one"].asked == asked + 2
    rig.fakes["one"].down = False
    await rig.probe(0.2)
    assert rig.cluster.primary is rig.hosts["one"]


async def test_an_unfit_host_is_left_alone_also_without_a_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, one=FakeHost())

    async def vet(host: str, _: object) -> str:
        return "a pool's login may bypass row-level security"

    rig.health = Health(rig.cluster, {"one": cast(Control, rig.fakes["one"])}, Thresholds(1.0, 5.0), vet)
    await rig.probe()
    asked = rig.fakes["one"].asked
    await rig.probe(0.2)
    assert rig.fakes["one"].asked == asked


async def test_an_alarm_has_the_hosts_asked_at_once() -> None:
    fake = FakeHost()
    cluster = Cluster("app", [Host("one", "one", 5432, "auto")], ROUND_ROBIN, 10.0)
    health = Health(cluster, {"one": cast(Control, fake)}, Thresholds(3600.0, 5.0))
    watching = asyncio.create_task(health.run())
    await asyncio.sleep(0.01)
    asked = fake.asked
    health.alarm()
    async with asyncio.timeout(2.0):
        while fake.asked == asked:
            await asyncio.sleep(0.01)
    watching.cancel()


# -- whose history it is


async def test_a_replica_of_another_cluster_is_not_fresh(rig: Rig) -> None:
    rig.fakes["two"].system = 78
    await rig.probe()
    await rig.probe()
    assert rig.hosts["two"].fresh_as_of == 0.0


async def test_a_replica_is_fresh_after_the_first_round(rig: Rig) -> None:
    await rig.probe()
    assert rig.hosts["two"].fresh_as_of == rig.now


async def test_a_primary_of_an_older_timeline_than_was_seen_is_none(rig: Rig) -> None:
    await rig.probe()
    rig.fakes["one"].down = True
    rig.fakes["two"].in_recovery, rig.fakes["two"].timeline = False, 2
    await rig.probe()
    rig.fakes["one"].down, rig.fakes["two"].down = False, True
    for _ in range(4):
        await rig.probe(6.0)
    assert rig.hosts["one"].up and rig.cluster.primary is None
    rig.fakes["two"].down = False
    await rig.probe(6.0)
    assert rig.cluster.primary is rig.hosts["two"]


# -- hosts that come and go


async def test_a_host_that_was_introduced_serves_from_its_first_moment(rig: Rig) -> None:
    await rig.probe()
    fake = FakeHost(True, 100)
    third = Host("three", "three", 5432, "auto", Breaker(2, 5.0))
    await introduce(third, cast(Any, fake))
    assert third.up and third.in_recovery and (third.system, third.timeline) == (77, 1)
    rig.cluster.hosts = [*rig.cluster.hosts, third]
    rig.cluster.roles_changed()
    assert rig.cluster.replicas == [rig.hosts["two"], third]


async def test_the_answer_of_a_host_that_has_left_counts_for_nothing(rig: Rig) -> None:
    await rig.probe()
    leaving, fake = rig.hosts["two"], rig.fakes["two"]
    come = Host("two", "elsewhere", 5432, "auto", Breaker(2, 5.0))

    async def leave() -> None:
        fake.before = None
        rig.cluster.hosts = [rig.hosts["one"], come]
        rig.health.forget(leaving)
        await asyncio.sleep(0)

    fake.before = leave
    await rig.probe()
    assert rig.cluster.replicas == []
    await rig.probe()
    assert rig.cluster.replicas == [come]


async def test_another_interval_holds_from_the_next_round_on(rig: Rig) -> None:
    rig.health.thresholds = Thresholds(7.0, 9.0)
    assert rig.health.thresholds == Thresholds(7.0, 9.0)
    await rig.probe()
    assert rig.cluster.primary is rig.hosts["one"]
