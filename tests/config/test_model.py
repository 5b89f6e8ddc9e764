from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from proxy.config.model import POOLS, Config, Pool


def config(**sections: Any) -> Config:
    return Config.model_validate({"databases": {"app": {}}, **sections})


def reach(root: object, path: str) -> object:
    value: Any = root
    for part in path.split("."):
        if isinstance(value, dict):
            value = value[part]
        elif isinstance(value, list):
            value = value[int(part)]
        else:
            value = getattr(value, part)
    return value


# Key by key as in the interface; a change here is a change of the interface.
DEFAULTS = {
    "listen.host": "127.0.0.1",
    "listen.port": 6432,
    "listen.unix_socket_dir": None,
    "listen.max_clients": 5000,
    "listen.auth_timeout": 15.0,
    "listen.drain_timeout": 30.0,
    "listen.tls.mode": "off",
    "listen.tls.cert_file": Path("server.crt"),
    "listen.tls.key_file": Path("server.key"),
    "listen.tls.min_version": "1.2",
    "http.host": "127.0.0.1",
    "http.port": 9432,
    "http.api": True,
    "http.cors_origins": [],
    "workers": 1,
    "auth.methods": ["scram-sha-256", "password"],
    "auth.keys": "database",
    "auth.keys_file": Path("keys.yaml"),
    "auth.cache_ttl": 30.0,
    "auth.rate_limit_store": None,
    "identity.mode": "signed",
    "identity.isolation": "shared",
    "identity.token_ttl": 120.0,
    "databases.app.database": "app",
    "databases.app.control": None,
    "databases.app.hosts.0.name": "127.0.0.1:5432",
    "databases.app.hosts.0.host": "127.0.0.1",
    "databases.app.hosts.0.port": 5432,
    "databases.app.hosts.0.role": "auto",
    "databases.app.hosts.0.transport": "tcp",
    "databases.app.hosts.0.service_token": None,
    "databases.app.hosts.0.tls.mode": "prefer",
    "databases.app.hosts.0.tls.ca_file": None,
    "databases.app.hosts.0.tls.cert_file": None,
    "databases.app.hosts.0.tls.key_file": None,
    "databases.app.pool_mode": "transaction",
    "databases.app.pools.primary.user": "app_rw",
    "databases.app.pools.primary.min": 2,
    "databases.app.pools.primary.max": 10,
    "databases.app.pools.primary.balance": "least_connections",
    "databases.app.pools.readonly.user": "app_ro",
    "databases.app.pools.readonly.min": 1,
    "databases.app.pools.readonly.max": 5,
    "databases.app.pools.priority.user": "app_rw",
    "databases.app.pools.priority.min": 1,
    "databases.app.pools.priority.max": 3,
    "databases.app.pools.background.user": "app_rw",
    "databases.app.pools.background.min": 1,
    "databases.app.pools.background.max": 2,
    "databases.app.pools.admin.user": "app_admin",
    "databases.app.pools.admin.min": 0,
    "databases.app.pools.admin.max": 2,
    "databases.app.pool_defaults.acquire_timeout": 30.0,
    "databases.app.pool_defaults.connect_timeout": 5.0,
    "databases.app.pool_defaults.idle_timeout": 600.0,
    "databases.app.pool_defaults.max_lifetime": 3600.0,
    "databases.app.pool_defaults.max_uses": 0,
    "databases.app.routing.enabled": True,
    "databases.app.routing.read_your_writes": True,
    "databases.app.routing.lazy_begin": True,
    "databases.app.routing.retry_readonly_errors": True,
    "databases.app.routing.max_parse_bytes": 16384,
    "databases.app.routing.safe_functions": [],
    "databases.app.timeouts.query": 0.0,
    "databases.app.timeouts.idle_in_transaction": 60.0,
    "databases.app.timeouts.client_idle": 0.0,
    "databases.app.health.interval": 1.0,
    "databases.app.health.failures_to_open": 3,
    "databases.app.health.retry_after": 5.0,
    "databases.app.health.max_lag": 10.0,
    "databases.app.health.failover_wait": 5.0,
    "databases.app.health.failover_attempts": 3,
    "databases.app.cache.mode": "off",
    "databases.app.cache.ttl": 30.0,
    "databases.app.cache.stale_while_revalidate": 0.0,
    "databases.app.cache.max_ttl": 300.0,
    "databases.app.cache.max_bytes": 67108864,
    "databases.app.cache.max_entry": 262144,
    "access_log.sinks": ["table", "stdout"],
    "access_log.statements": "normalized",
    "access_log.slow_query": 1.0,
    "access_log.flush_interval": 0.5,
    "access_log.spool_dir": Path("/var/lib/pgsluice/spool"),
    "logging.level": "info",
    "logging.format": "text",
}


@pytest.mark.parametrize("path", DEFAULTS)
def test_default(path: str) -> None:
    assert reach(config(), path) == DEFAULTS[path]


def leaves(value: object, path: str = "") -> Iterator[str]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{index}")
    else:
        yield path


def test_every_key_has_a_tested_default() -> None:
    inherited = {"password", "acquire_timeout", "connect_timeout", "idle_timeout", "max_lifetime", "max_uses"}
    found = {
        path
        for path in leaves(config())
        if not (".pools." in path and path.rsplit(".", 1)[1] in inherited)
        and not (".pools." in path and path.endswith(("balance", ".cache")))
    }
    assert found | {path for path in DEFAULTS if path.endswith("balance")} == set(DEFAULTS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("listen.port", "65536"),
        ("listen.port", "-1"),
        ("listen.port", "http"),
        ("listen.host", ""),
        ("listen.max_clients", "0"),
        ("listen.auth_timeout", "0"),
        ("listen.drain_timeout", "30"),
        ("listen.tls.mode", "on"),
        ("listen.tls.min_version", "1.1"),
        ("http.port", "99999"),
        ("http", "on"),
        ("workers", "0"),
        ("workers", "many"),
        ("auth.methods", []),
        ("auth.methods", ["md5"]),
        ("auth.methods", "password"),
        ("auth.keys", "ldap"),
        ("auth.cache_ttl", "0"),
        ("identity.mode", "on"),
        ("identity.isolation", "none"),
        ("identity.token_ttl", "500ms"),
        ("identity.token_ttl", "2d"),
        ("databases", {}),
        ("databases", []),
        ("databases.app.hosts", []),
        ("databases.app.hosts", [{"port": "0"}]),
        ("databases.app.hosts", [{"role": "standby"}]),
        ("databases.app.hosts", [{"transport": "udp"}]),
        ("databases.app.hosts", [{"tls": {"mode": "verify"}}]),
        ("databases.app.hosts", [{"service_token": {"id": "x"}}]),
        ("databases.app.pool_mode", "statement"),
        ("databases.app.pools.primary.max", "0"),
        ("databases.app.pools.primary.min", "-1"),
        ("databases.app.pools.primary.min", "11"),
        ("databases.app.pools.primary.balance", "fastest"),
        ("databases.app.pools.primary.user", ""),
        ("databases.app.pools.Primary", {}),
        ("databases.app.pool_defaults.max_uses", "-1"),
        ("databases.app.pool_defaults.acquire_timeout", "0"),
        ("databases.app.routing.enabled", "perhaps"),
        ("databases.app.routing.max_parse_bytes", "32769"),
        ("databases.app.routing.max_parse_bytes", "33KiB"),
        ("databases.app.timeouts.query", "-1s"),
        ("databases.app.health.failures_to_open", "0"),
        ("access_log.sinks", ["file"]),
        ("access_log.statements", "all"),
        ("access_log.flush_interval", "0"),
        ("logging.level", "trace"),
        ("logging.format", "xml"),
        ("databases.app.control", {"password": "x"}),
    ],
)
def test_rejects(path: str, value: object) -> None:
    tree: dict[str, Any] = {"databases": {"app": {"pools": {}}}}
    at = tree
    *parents, last = path.split(".")
    for part in parents:
        at = at.setdefault(part, {})
    at[last] = value
    with pytest.raises(ValidationError) as caught:
        config(**tree)
    assert ".".join(map(str, caught.value.errors()[0]["loc"])).startswith(path.removesuffix(".min"))


@pytest.mark.parametrize("off", ["off", "OFF", "false", "no"])
def test_http_can_be_off(off: str) -> None:
    assert config(http=off).http is None


def test_the_listening_port_can_be_any_free_one() -> None:
    assert config(listen={"port": "0"}).listen.port == 0


def test_workers_auto_is_one_for_each_core() -> None:
    assert config(workers="auto").workers == len(os.sched_getaffinity(0))


def test_max_parse_bytes_may_reach_32_kib() -> None:
    tree = {"app": {"routing": {"max_parse_bytes": "32KiB"}}}
    assert config(databases=tree).databases["app"].routing.max_parse_bytes == 32768


def test_a_key_without_a_value_has_its_default() -> None:
    empty = {
        "listen": None,
        "http": None,
        "databases": {"app": {"pools": {"primary": None}, "timeouts": None}},
    }
    assert config(**empty).listen == config().listen
    assert config(**empty).http == config().http
    assert config(**empty).databases["app"].pools == {"primary": config().databases["app"].pools["primary"]}
    with pytest.raises(ValidationError):
        config(listen={"prt": None})
    with pytest.raises(ValidationError):
        config(databases={"app": {"pools": {"primary": {"usr": None}}}})


def test_a_pool_takes_pool_defaults_over_unless_it_says_otherwise() -> None:
    database = {
        "pool_defaults": {"acquire_timeout": "3s", "idle_timeout": "4s"},
        "pools": {"primary": {"idle_timeout": "9s", "max": "20"}, "reports": {"user": "reporter"}},
    }
    pools = config(databases={"app": database}).databases["app"].pools
    assert (pools["primary"].acquire_timeout, pools["primary"].idle_timeout) == (3.0, 9.0)
    assert (pools["primary"].user, pools["primary"].min, pools["primary"].max) == ("app_rw", 2, 20)
    assert pools["reports"] == Pool(user="reporter", acquire_timeout=3.0, idle_timeout=4.0)


def test_the_pools_known_by_name_are_the_default() -> None:
    assert list(config().databases["app"].pools) == list(POOLS)


def test_a_database_is_called_on_the_servers_what_the_client_calls_it() -> None:
    found = config(databases={"a": {}, "b": {"database": "other"}, "*": {}}).databases
    assert {name: database.database for name, database in found.items()} == {"a": "a", "b": "other", "*": ""}


def test_relative_files_start_at_the_directory() -> None:
    tree = {
        "databases": {"app": {"hosts": [{"tls": {"ca_file": "ca.crt"}}]}},
        "auth": {"keys_file": "/k.yaml"},
    }
    found = Config.model_validate(tree, context={"directory": Path("/etc/pgsluice")})
    assert found.listen.tls.cert_file == Path("/etc/pgsluice/server.crt")
    assert found.auth.keys_file == Path("/k.yaml")
    assert found.databases["app"].hosts[0].tls.ca_file == Path("/etc/pgsluice/ca.crt")


def test_secrets_show_nowhere() -> None:
    secret = "s3cr3t-value"
    database = {
        "control": {"user": "c", "password": secret},
        "hosts": [{"service_token": {"id": "i", "secret": secret}}],
        "pools": {"primary": {"password": secret}},
    }
    found = config(databases={"app": database})
    for shown in (repr(found), str(found), found.model_dump_json(), repr(found.model_dump())):
        assert secret not in shown
    assert found.databases["app"].control is not None
    assert found.databases["app"].control.password == SecretStr(secret)
    with pytest.raises(ValidationError) as caught:
        config(databases={"app": {"control": {"user": "c", "password": [secret]}}})
    assert secret not in str(caught.value)


def test_nothing_changes_later() -> None:
    found = config()
    with pytest.raises(ValidationError, match="frozen"):
        found.listen.port = 1


def test_equal_configurations_are_equal() -> None:
    assert config() == config()
    assert config() != config(workers="2")
