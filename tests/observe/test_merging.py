from __future__ import annotations

import json
from dataclasses import replace

import pytest

from proxy.observe.merging import (
    POOL_COUNTERS,
    POOL_TALLIES,
    PROXY_COUNTERS,
    PROXY_TALLIES,
    ended,
    from_plain,
    merged,
    to_plain,
)
from proxy.observe.metrics import Metrics
from proxy.observe.snapshot import HostSnapshot, SinkSnapshot
from proxy.observe.stats import Histogram, PoolStats, ProxyStats, Tally
from tests.observe.snapshots import snapshot

SAME = ("host", "build", "ready", "draining", "rate_limit_store_up")


async def shown(made: object) -> list[str]:
    body, _ = await Metrics(lambda: made).render()  # type: ignore[arg-type, return-value]
    return [
        line for line in body.decode().splitlines() if line.startswith("pgsluice_") and "_created" not in line
    ]


async def test_a_snapshot_arrives_as_it_was_sent() -> None:
    arrived = from_plain(json.loads(json.dumps(to_plain(snapshot()))))
    assert await shown(arrived) == await shown(snapshot())


@pytest.mark.parametrize(
    ("stats", "counters", "tallies"),
    [(PoolStats(), POOL_COUNTERS, POOL_TALLIES), (ProxyStats(), PROXY_COUNTERS, PROXY_TALLIES)],
)
def test_every_counter_is_among_those_that_are_added(
    stats: object, counters: tuple[str, ...], tallies: tuple[str, ...]
) -> None:
    public = [name for name in dir(stats) if not name.startswith("_") and name != "queue_time"]
    assert {name for name in public if isinstance(getattr(stats, name), int)} == set(counters)
    assert {name for name in public if isinstance(getattr(stats, name), Tally)} == set(tallies)
    histograms = {name for name in public if isinstance(getattr(stats, name), Histogram)}
    assert histograms in ({"connect_time"}, {"loop_delay"})


async def test_numbers_are_added_up_and_what_stays_is_one() -> None:
    once = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in await shown(snapshot())}
    twice = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in await shown(merged([snapshot()] * 2))
    }
    assert once.keys() == twice.keys()
    for name, value in once.items():
        same = name.startswith(
            (
                "pgsluice_host",
                "pgsluice_build",
                "pgsluice_ready",
                "pgsluice_draining",
                "pgsluice_rate_limit_store_up",
            )
        )
        assert twice[name] == (value if same else 2 * value), name


def test_of_a_host_the_worst_counts() -> None:
    well = HostSnapshot("app", "a", "replica", True, lag=0.1, response_time=0.2)
    away = HostSnapshot("app", "a", "unknown", False, "open", error="refused")
    (host,) = merged([replace(snapshot(), hosts=[well]), replace(snapshot(), hosts=[away])]).hosts
    assert host == HostSnapshot("app", "a", "replica", False, "open", 0.2, 0.1, "refused")


def test_the_whole_is_ready_where_each_process_is() -> None:
    assert merged([snapshot(), snapshot()]).ready
    assert not merged([snapshot(), replace(snapshot(), ready=False)]).ready


def test_of_a_process_that_has_ended_its_counts_stay() -> None:
    both = merged([snapshot(), ended(replace(snapshot(), ready=False))])
    assert both.ready
    assert (both.clients, both.max_clients) == (3, 5000)
    assert both.proxy.logins == 10
    assert both.pools[0].active == 2
    assert both.pools[0].stats.assignments == 40
    assert both.access_log == [SinkSnapshot("table", written=82, dropped=2)]
