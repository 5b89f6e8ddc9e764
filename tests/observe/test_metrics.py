from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.metrics import Metrics
from proxy.observe.stats import BOUNDS_US
from tests.observe.snapshots import snapshot


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


def test_waiting_is_told_by_intent(families: dict[str, Metric]) -> None:
    family = families["pgsluice_queue_duration_seconds"]
    assert sample(family, f"{family.name}_count", pool="readonly", intent="read") == 2
    assert sample(family, f"{family.name}_sum", pool="readonly", intent="read") == pytest.approx(0.0001)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("assignments", 20),
        ("preludes", 8),
        ("identity_claims", 6),
        ("server_parses", 3),
        ("server_parses_spared", 9),
    ],
)
def test_what_a_connection_found_set_or_parsed(families: dict[str, Metric], name: str, number: int) -> None:
    assert values(families[f"pgsluice_{name}"], "pool") == {("readonly",): number, ("primary",): 0}


def test_caches(families: dict[str, Metric]) -> None:
    prepared, keys = families["pgsluice_prepared_cache_lookups"], families["pgsluice_key_cache_lookups"]
    assert values(prepared, "database", "result") == {("app", "hit"): 30, ("app", "miss"): 4}
    assert values(keys, "database", "result") == {("app", "hit"): 11, ("app", "miss"): 2}
    assert values(families["pgsluice_prepared_cache_entries"], "database") == {("app",): 3}
    assert values(families["pgsluice_key_cache_entries"], "database") == {("app",): 1}


def test_kept_results(families: dict[str, Metric]) -> None:
    lookups = values(families["pgsluice_result_cache_lookups"], "result")
    assert lookups == {("hit",): 45, ("stale_hit",): 5, ("miss",): 20}
    numbers = {
        "waits": 3,
        "stores": 17,
        "refusals": 2,
        "evictions": 1,
        "invalidations": 4,
        "entries": 12,
        "bytes": 9000,
    }
    for name, number in numbers.items():
        assert values(families[f"pgsluice_result_cache_{name}"], "database") == {("app",): number}, name
    assert values(families["pgsluice_result_cache_limit_bytes"], "database") == {("app",): 67108864}


def test_the_spool(families: dict[str, Metric]) -> None:
    for name, number in (("records", 1000), ("bytes", 250_000), ("segments", 2), ("dropped_records", 7)):
        assert [s.value for s in families[f"pgsluice_access_log_spool_{name}"].samples] == [number], name


def test_every_family_has_a_sample(families: dict[str, Metric]) -> None:
    assert [name for name, family in families.items() if not family.samples] == []


def test_hosts(families: dict[str, Metric]) -> None:
    assert values(families["pgsluice_host_up"], "host") == {("main",): 1, ("replica1",): 0}
    assert values(families["pgsluice_host_primary"], "host") == {("main",): 1, ("replica1",): 0}
    roles = values(families["pgsluice_host_role"], "host", "role")
    assert {labels for labels, number in roles.items() if number} == {
        ("main", "primary"),
        ("replica1", "replica"),
    }
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
        "role",
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
