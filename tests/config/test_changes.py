"""What a reload changes: tables of two configurations, and what is made of them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from proxy.config import Config, ConfigError
from proxy.config.changes import DatabaseChanges, needs_restart, plan

POOLS = {
    "primary": {"user": "app_rw", "password": "one", "max": 10},
    "readonly": {"user": "app_ro", "password": "two"},
    "background": {"user": "app_rw", "password": "one"},
}
APP = {
    "control": {"user": "sluice_control", "password": "three"},
    "hosts": [{"name": "main", "host": "10.0.0.1"}, {"name": "replica", "host": "10.0.0.2"}],
    "pools": POOLS,
}
GIVEN: dict[str, Any] = {"databases": {"app": APP}}
HOSTS = ("databases", "app", "hosts")


def changed(*changes: tuple[str, Any]) -> Config:
    """Return GIVEN with values at paths; None takes away what is there."""
    tree = deepcopy(GIVEN)
    for path, value in changes:
        *way, last = path.split(".")
        at: Any = tree
        for part in way:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        if value is None:
            del at[int(last) if isinstance(at, list) else last]
        elif isinstance(at, list):
            at[int(last) :] = [value]
        else:
            at[last] = value
    return Config.model_validate(tree)


BEFORE = changed()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("listen.host", "127.0.0.2"),
        ("listen.port", 7000),
        ("listen.unix_socket_dir", "/tmp"),
        ("http.port", 7001),
        ("http.host", "127.0.0.2"),
        ("workers", 2),
        ("auth.keys", "file"),
        ("auth.keys_file", "/tmp/keys"),
        ("auth.rate_limit_store", "redis://127.0.0.1"),
        ("identity.mode", "off"),
        ("access_log.sinks", ["stdout"]),
        ("access_log.statements", "none"),
        ("access_log.spool_dir", "/tmp/spool"),
        ("databases.app.database", "other"),
        ("databases.app.pool_mode", "session"),
    ],
)
def test_what_needs_a_restart_stays_and_is_named(path: str, value: object) -> None:
    wanted = changed((path, value), ("logging.level", "debug"), ("databases.app.pools.primary.max", 20))
    made = plan(BEFORE, wanted)
    assert made.restart == (path,)
    assert made.config == changed(("logging.level", "debug"), ("databases.app.pools.primary.max", 20))
    assert needs_restart(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("listen.max_clients", 7),
        ("listen.auth_timeout", "3s"),
        ("listen.drain_timeout", "3s"),
        ("listen.tls.min_version", "1.3"),
        ("auth.methods", ["scram-sha-256"]),
        ("auth.cache_ttl", "3s"),
        ("identity.isolation", "strict"),
        ("identity.token_ttl", "60s"),
        ("access_log.slow_query", "3s"),
        ("access_log.flush_interval", "3s"),
        ("logging.level", "debug"),
        ("logging.format", "json"),
        ("databases.app.pools.primary.max", 3),
        ("databases.app.pools.primary.max_uses", 3),
        ("databases.app.pools.readonly.balance", "random"),
        ("databases.app.pool_defaults.acquire_timeout", "3s"),
        ("databases.app.routing.enabled", False),
        ("databases.app.routing.max_parse_bytes", "8KiB"),
        ("databases.app.routing.safe_functions", ["looks"]),
        ("databases.app.timeouts.query", "3s"),
        ("databases.app.health.interval", "3s"),
        ("databases.app.health.max_lag", "3s"),
        ("databases.app.health.failover_wait", "3s"),
    ],
)
def test_numbers_and_switches_are_taken_over(path: str, value: object) -> None:
    wanted = changed((path, value))
    made = plan(BEFORE, wanted)
    assert wanted != BEFORE
    assert (made.config, made.restart) == (wanted, ())
    assert made.changed == {"app": DatabaseChanges()}
    assert not made.changed["app"]
    assert not needs_restart(path)


HOST = "databases.app.hosts"
POOL = "databases.app.pools"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(f"{HOST}.2", {"name": "third", "host": "c"})], DatabaseChanges(hosts_added=("third",))),
        ([(f"{HOST}.1", None)], DatabaseChanges(hosts_removed=("replica",))),
        *(
            ([(f"{HOST}.1.{key}", value)], DatabaseChanges(("replica",), ("replica",)))
            for key, value in {
                "host": "10.0.0.9",
                "port": 5433,
                "role": "replica",
                "tls": {"mode": "require"},
                "service_token": {"id": "a", "secret": "b"},
            }.items()
        ),
        ([(f"{HOST}.1.name", "other")], DatabaseChanges(("other",), ("replica",))),
        ([(f"{POOL}.reports", {"user": "app_ro"})], DatabaseChanges(pools_added=("reports",))),
        ([(f"{POOL}.background", None)], DatabaseChanges(pools_removed=("background",))),
        ([(f"{POOL}.background.password", "new")], DatabaseChanges(passwords=("background",))),
        (
            [(f"{POOL}.background.user", "app_bg")],
            DatabaseChanges(pools_added=("background",), pools_removed=("background",)),
        ),
        ([(f"{POOL}.primary.connect_timeout", "1s")], DatabaseChanges(logins=("primary",))),
        (
            [("databases.app.pool_defaults.connect_timeout", "1s")],
            DatabaseChanges(logins=("primary", "readonly", "background"), control=True),
        ),
        ([("databases.app.control.password", "new")], DatabaseChanges(control=True)),
        ([("databases.app.control.user", "new")], DatabaseChanges(control=True)),
        (
            [(f"{HOST}.1", {"name": "third"}), (f"{POOL}.primary.password", "new")],
            DatabaseChanges(("third",), ("replica",), passwords=("primary",)),
        ),
    ],
)
def test_what_changes_in_a_database(changes: list[tuple[str, Any]], expected: DatabaseChanges) -> None:
    wanted = changed(*changes)
    made = plan(BEFORE, wanted)
    assert made.changed == {"app": expected}
    assert (made.config, made.restart, made.added, made.removed) == (wanted, (), (), ())


def test_hosts_may_change_places() -> None:
    hosts = deepcopy(GIVEN["databases"]["app"]["hosts"])
    made = plan(BEFORE, changed(("databases.app.hosts", hosts[::-1])))
    assert not made.changed["app"]


def test_databases_come_and_go() -> None:
    made = plan(BEFORE, changed(("databases.other", APP), ("databases.app", None)))
    assert (made.added, made.removed, dict(made.changed)) == (("other",), ("app",), {})
    assert list(made.config.databases) == ["other"]


def test_a_database_that_comes_has_what_others_need_a_restart_for() -> None:
    made = plan(BEFORE, changed(("databases.other", {**APP, "pool_mode": "session"})))
    assert made.restart == ()
    assert made.config.databases["other"].pool_mode == "session"


def test_turning_http_off_needs_a_restart() -> None:
    made = plan(BEFORE, changed(("http", "off")))
    assert made.restart == ("http",)
    assert made.config == BEFORE


def test_what_does_not_go_together_with_what_stays_is_refused() -> None:
    # Without a control login keys would have to be in a file; they are in the database until a restart.
    wanted = changed(("databases.app.control", None), ("auth.keys", "file"), ("identity.mode", "off"))
    with pytest.raises(ConfigError) as refused:
        plan(BEFORE, wanted)
    assert "databases.app.control" in str(refused.value)
    assert "auth.keys, identity.mode" in str(refused.value)


def test_the_same_changes_nothing() -> None:
    made = plan(BEFORE, changed())
    assert (made.config, made.restart, made.added, made.removed) == (BEFORE, (), (), ())
    assert not made.changed["app"]
