from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.access_log import Sink
from proxy.observe.batches import Batch, MemoryBacklog
from proxy.observe.metrics import Metrics
from proxy.observe.snapshot import HostSnapshot, ParseCacheSnapshot, PoolSnapshot, Snapshot
from proxy.observe.stats import BOUNDS_US, PoolStats, ProxyStats


def snapshot() -> Snapshot:
    proxy = ProxyStats()
    proxy.connections = 7
    proxy.logins = 5
    proxy.logins_refused.add("expired")
    proxy.denials.add("RATE_LIMIT_EXCEEDED")
    proxy.loop_delay.observe(300)
    pool = PoolStats()
    pool.statement("read", 50, 400, 100, 2000, b"")
    pool.statement("read", 50, 1_500_000, 100, 0, b"57014")
    pool.connect_time.observe(9_000)
    pool.pins.add("listen")

    async def deliver(batch: Batch) -> None:
        raise AssertionError("never delivered")

    sink = Sink("table", deliver, MemoryBacklog(100))
    sink.written, sink.dropped = 41, 1
    return Snapshot(
        version="1.2.3",
        compiled=True,
        ready=True,
        draining=False,
        clients=3,
        max_clients=5000,
        proxy=proxy,
        pools=[
            PoolSnapshot("app", "readonly", "replica1", 1, 5, 2, 1, 4, pool, pinned=1),
            PoolSnapshot("app", "primary", 'ma"in\n', 2, 10, 0, 2, 0, PoolStats()),
        ],
        hosts=[
            HostSnapshot("app", "main", "primary", True, response_time=0.001),
            HostSnapshot("app", "replica1", "replica", False, "open", lag=2.5, error="refused"),
        ],
        parse_cache=ParseCacheSnapshot(
            hits=90, shape_hits=5, fingerprint_hits=3, misses=2, entries=9, bytes=4096
        ),
        access_log=[sink],
    )


@pytest.fixture
async def families() -> dict[str, Metric]:
    body, content_type = await Metrics(snapshot).render()
    assert content_type.startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def values(family: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in family.samples}


def sample(family: Metric, name: str, **labels: str) -> float:
    (found,) = [s.value for s in family.samples if s.name == name and labels.items() <= s.labels.items()]
    return found


def test_simple_numbers(families: dict[str, Metric]) -> None:
    for name, number in (
        ("pgsluice_ready", 1),
        ("pgsluice_draining", 0),
        ("pgsluice_clients", 3),
        ("pgsluice_clients_limit", 5000),
        ("pgsluice_client_connections", 7),
        ("pgsluice_logins", 5),
        ("pgsluice_parse_cache_entries", 9),
        ("pgsluice_parse_cache_bytes", 4096),
    ):
        assert [s.value for s in families[name].samples] == [number], name


def test_the_build_is_told(families: dict[str, Metric]) -> None:
    (built,) = families["pgsluice_build_info"].samples
    assert (built.labels["version"], built.labels["compiled"], built.value) == ("1.2.3", "yes", 1)


def test_counts_by_name(families: dict[str, Metric]) -> None:
    assert values(families["pgsluice_logins_refused"], "reason") == {("expired",): 1}
    assert values(families["pgsluice_statements_denied"], "code") == {("RATE_LIMIT_EXCEEDED",): 1}
    assert values(families["pgsluice_errors"], "pool", "host", "class") == {("readonly", "replica1", "57"): 1}
    assert values(families["pgsluice_pins"], "pool", "reason") == {("readonly", "listen"): 1}
    assert values(families["pgsluice_parse_cache_lookups"], "result") == {
        ("text",): 90,
        ("shape",): 5,
        ("fingerprint",): 3,
        ("miss",): 2,
    }


def test_pools(families: dict[str, Metric]) -> None:
    assert values(families["pgsluice_pool_connections"], "pool", "state") == {
        ("readonly", "active"): 2,
        ("readonly", "idle"): 1,
        ("readonly", "busy"): 0,
        ("primary", "active"): 0,
        ("primary", "idle"): 2,
        ("primary", "busy"): 0,
    }
    assert values(families["pgsluice_pool_waiting"], "pool") == {("readonly",): 4, ("primary",): 0}
    assert values(families["pgsluice_pool_connections_limit"], "pool") == {("readonly",): 5, ("primary",): 10}
    assert values(families["pgsluice_pool_connections_pinned"], "pool") == {("readonly",): 1, ("primary",): 0}
    assert values(families["pgsluice_received_bytes"], "pool") == {("readonly",): 200, ("primary",): 0}
    assert values(families["pgsluice_sent_bytes"], "pool") == {("readonly",): 2000, ("primary",): 0}


def test_histograms_are_in_seconds_and_cumulative(families: dict[str, Metric]) -> None:
    family = families["pgsluice_query_duration_seconds"]
    name = family.name
    buckets = {
        float(s.labels["le"]): s.value
        for s in family.samples
        if s.name == f"{name}_bucket" and s.labels["pool"] == "readonly" and s.labels["intent"] == "read"
    }
    assert sorted(buckets) == [*(bound / 1_000_000 for bound in BOUNDS_US), float("inf")]
    assert (buckets[0.00025], buckets[0.0005], buckets[1.0], buckets[2.5]) == (0, 1, 1, 2)
    assert buckets[float("inf")] == 2
    assert sample(family, f"{name}_sum", pool="readonly", intent="read") == pytest.approx(1.5004)
    assert sample(family, f"{name}_count", pool="readonly", intent="read") == 2


def test_intents_that_a_pool_has_not_seen_are_left_out(families: dict[str, Metric]) -> None:
    samples = families["pgsluice_query_duration_seconds"].samples
    assert {(s.labels["pool"], s.labels["intent"]) for s in samples} == {("readonly", "read")}


def test_hosts(families: dict[str, Metric]) -> None:
    assert values(families["pgsluice_host_up"], "host") == {("main",): 1, ("replica1",): 0}
    assert values(families["pgsluice_host_primary"], "host") == {("main",): 1, ("replica1",): 0}
    assert values(families["pgsluice_host_breaker_open"], "host") == {("main",): 0, ("replica1",): 1}
    assert values(families["pgsluice_host_lag_seconds"], "host") == {("replica1",): 2.5}
    assert values(families["pgsluice_host_response_time_seconds"], "host") == {("main",): 0.001}


def test_the_access_log(families: dict[str, Metric]) -> None:
    assert values(families["pgsluice_access_log_records"], "sink", "result") == {
        ("table", "written"): 41,
        ("table", "dropped"): 1,
        ("table", "refused"): 0,
    }
    assert values(families["pgsluice_access_log_backlog_records"], "sink") == {("table",): 0}


def test_the_process_and_the_collector_are_there(families: dict[str, Metric]) -> None:
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info"} <= set(families)
    assert any(name.startswith("python_gc_") for name in families)


def ours(families: Iterable[Metric]) -> list[Metric]:
    return [family for family in families if not family.name.startswith(("process_", "python_"))]


def test_names_and_labels_keep_the_conventions(families: dict[str, Metric]) -> None:
    allowed = {
        "database",
        "pool",
        "host",
        "state",
        "intent",
        "class",
        "reason",
        "code",
        "result",
        "sink",
        "le",
    }
    for family in ours(families.values()):
        assert family.name.startswith("pgsluice_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_us", "_total"))
        for found in family.samples:
            if family.type == "counter":
                assert found.name == f"{family.name}_total"
            if family.name != "pgsluice_build_info":
                assert set(found.labels) <= allowed


def test_labels_are_escaped(families: dict[str, Metric]) -> None:
    assert ('ma"in\n',) in values(families["pgsluice_pool_waiting"], "host")


async def test_openmetrics_where_it_is_asked_for() -> None:
    body, content_type = await Metrics(snapshot).render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
    assert "pgsluice_query_duration_seconds" in {family.name for family in families}


async def test_each_scrape_asks_anew() -> None:
    made = [snapshot(), snapshot()]
    made[1].proxy.logins = 6
    metrics = Metrics(lambda: made.pop(0))
    assert b"pgsluice_logins_total 5.0" in (await metrics.render())[0]
    assert b"pgsluice_logins_total 6.0" in (await metrics.render())[0]


async def test_a_scrape_shows_one_moment_and_lets_the_event_loop_go_on() -> None:
    shown = snapshot()
    scrape = asyncio.ensure_future(Metrics(lambda: shown).render())
    turns = 0
    while not scrape.done():
        turns += 1
        shown.proxy.logins += 1
        await asyncio.sleep(0)
    assert turns > 20
    assert b"pgsluice_logins_total 6.0" in scrape.result()[0]


def test_nothing_is_asked_before_the_first_scrape() -> None:
    Metrics(lambda: pytest.fail("asked"))
