"""Hosts: who is primary, which replica serves a read, what is said where none can."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from proxy.errors import ClientError, HostUnavailable, NoPrimary, UpstreamUnavailable
from proxy.upstream.breaker import Breaker
from proxy.upstream.cluster import LEAST_CONNECTIONS, RANDOM, ROUND_ROBIN, Cluster, Host
from proxy.upstream.pool import Pool
from proxy.upstream.server import Borrower
from tests.session.fakes import limits


def host(name: str, in_recovery: bool = False, role: str = "auto", timeline: int = 1) -> Host:
    made = Host(name, name, 5432, role)
    made.probed(in_recovery, 0.001)
    made.timeline = timeline
    made.fresh_as_of = 100.0
    for pool in ("primary", "readonly"):
        made.pools[pool] = Pool(pool, name, limits(5), b"")
        made.pools[pool].open = lambda _: None
    return made


def cluster(*hosts: Host, balance: int = ROUND_ROBIN) -> Cluster:
    made = Cluster("app", list(hosts), balance, 10.0)
    made.roles_changed()
    return made


def test_writes_go_to_the_primary_and_reads_to_a_replica() -> None:
    one, two = host("one"), host("two", True)
    found = cluster(one, two)
    assert found.pool_for("primary", False, 0.0) is one.pools["primary"]
    assert found.pool_for("readonly", True, 0.0) is two.pools["readonly"]
    assert found.pool_for("readonly", False, 0.0) is one.pools["readonly"]


def test_a_configured_role_comes_before_what_the_host_says() -> None:
    one, two = host("one"), host("two", role="replica")
    found = cluster(one, two)
    assert found.primary is one and found.replicas == [two]
    assert cluster(host("three", True, role="primary")).primary is None, "a standby takes no writes"


def test_the_newer_timeline_is_the_primary() -> None:
    old, new = host("old", timeline=1), host("new", timeline=2)
    assert cluster(old, new).primary is new


def test_of_two_primaries_on_one_timeline_neither_gets_writes(caplog: pytest.LogCaptureFixture) -> None:
    found = cluster(host("one"), host("two"))
    assert found.primary is None
    assert "two primaries" in caplog.text
    with pytest.raises(NoPrimary):
        found.pool_for("primary", False, 0.0)


def test_a_read_after_a_write_goes_where_the_write_has_arrived() -> None:
    one, behind, fresh = host("one"), host("behind", True), host("fresh", True)
    fresh.fresh_as_of = 200.0
    found = cluster(one, behind, fresh)
    assert {found.pool_for("readonly", True, 150.0).host for _ in range(4)} == {"fresh"}
    assert found.pool_for("readonly", True, 250.0).host == "one"
    assert found.pool_for("readonly", True, 200.0).host == "one", "strictly after the write"


def test_a_replica_that_lags_too_much_serves_nothing() -> None:
    one, two = host("one"), host("two", True)
    found = cluster(one, two)
    two.lag = 10.0
    assert found.pool_for("readonly", True, 0.0).host == "two"
    two.lag = 10.1
    assert found.pool_for("readonly", True, 0.0).host == "one"


def test_without_a_primary_a_replica_that_lags_serves_if_no_other_does() -> None:
    late, in_time = host("late", True), host("in time", True)
    late.lag = 50.0
    found = cluster(late, in_time)
    assert {found.pool_for("readonly", True, 0.0).host for _ in range(4)} == {"in time"}
    in_time.up = False
    found.roles_changed()
    assert found.pool_for("readonly", True, 0.0).host == "late"
    with pytest.raises(UpstreamUnavailable):
        found.pool_for("readonly", True, 150.0)


def test_a_host_whose_pool_gets_no_connection_is_passed_over() -> None:
    one, two = host("one"), host("two", True)
    found = cluster(one, two)
    two.pools["readonly"].failing = True
    assert found.pool_for("readonly", True, 0.0).host == "one"
    one.pools["readonly"].failing = True
    with pytest.raises(HostUnavailable):
        found.pool_for("readonly", True, 0.0)
    two.probed(True, 0.001)
    assert found.pool_for("readonly", True, 0.0).host == "two"


def test_reads_take_turns() -> None:
    found = cluster(host("one"), host("two", True), host("three", True), host("four", True))
    taken = Counter(found.pool_for("readonly", True, 0.0).host for _ in range(9))
    assert taken == {"two": 3, "three": 3, "four": 3}


def test_reads_go_where_the_fewest_connections_work() -> None:
    two, three = host("two", True), host("three", True)
    found = cluster(host("one"), two, three, balance=LEAST_CONNECTIONS)

    class Waiter(Borrower):
        identity = "alice"

        def refused(self, error: ClientError) -> None:
            raise AssertionError

    assert found.pool_for("readonly", True, 0.0).host == "two"
    two.pools["readonly"].take(Waiter(), 0.0)
    assert found.pool_for("readonly", True, 0.0).host == "three"


def test_reads_at_random_reach_every_replica() -> None:
    found = cluster(host("one"), host("two", True), host("three", True), balance=RANDOM)
    assert {found.pool_for("readonly", True, 0.0).host for _ in range(100)} == {"two", "three"}


def test_a_replica_without_the_pool_is_passed_over() -> None:
    two = host("two", True)
    del two.pools["readonly"]
    assert cluster(host("one"), two).pool_for("readonly", True, 0.0).host == "one"


def test_a_pool_that_is_not_configured_is_an_error() -> None:
    with pytest.raises(UpstreamUnavailable, match='no pool "batch"'):
        cluster(host("one")).pool_for("batch", False, 0.0)


def test_without_any_host_it_is_told_what_is_known_of_each() -> None:
    one = Host("one", "one", 5432, "auto")
    one.failed("refused", 0.0)
    found = cluster(one, Host("two", "two", 5432, "auto"))
    with pytest.raises(UpstreamUnavailable) as read:
        found.pool_for("readonly", True, 0.0)
    assert read.value.detail == "UPSTREAM_UNAVAILABLE: one: refused; two: not probed yet"
    with pytest.raises(NoPrimary):
        found.pool_for("primary", False, 0.0)


def test_a_host_counts_as_down_after_some_failures_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    one = host("one")
    one.breaker = Breaker(2, 5.0)
    told: list[ClientError] = []

    class Waiter(Borrower):
        identity = "alice"

        def refused(self, error: ClientError) -> None:
            told.append(error)

    one.pools["primary"].take(Waiter(), 0.0)
    up = []
    for at in (1.0, 2.0, 3.0):
        one.failed("refused", at)
        up.append(one.up)
        if at == 1.0:
            one.probed(False, 0.001)
    assert up == [True, True, False], "two in a row"
    assert one.breaker.retry_at == 8.0
    assert [error.extra for error in told] == ["host=one: refused"]
    assert "host one is down" in caplog.text


def test_a_change_of_role_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = host("one", True)
    one.probed(False, 0.001)
    assert "host one is up as replica" in caplog.text and "host one is now the primary" in caplog.text
