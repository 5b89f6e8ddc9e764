from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Config, ConfigError, Database, from_environment

LEAST = {"DB_NAME": "app", "DB_USER": "web"}


def database(**variables: str) -> Database:
    return from_environment({**LEAST, **variables}).databases["*"]


def test_a_name_and_a_user_are_enough() -> None:
    config = from_environment(LEAST)
    (found,) = config.databases.values()
    assert (found.database, found.hosts[0].host, found.hosts[0].port) == ("app", "127.0.0.1", 5432)
    assert {pool.user for pool in found.pools.values()} == {"web"}
    assert found.control is not None and found.control.user == "web"
    assert (config.auth.keys, config.identity.mode) == ("database", "signed")


def test_every_variable_reaches_its_key() -> None:
    config = from_environment(
        {
            "DB_HOST": "db.internal",
            "DB_PORT": "5433",
            "DB_NAME": "app",
            "DB_USER": "web",
            "DB_PASSWORD": "secret",
            "DB_SSL_MODE": "verify-full",
            "DB_POOL_MIN": "3",
            "DB_POOL_MAX": "30",
            "DB_POOL_IDLE_TIMEOUT": "30000",
            "DB_POOL_ACQUIRE_TIMEOUT": "2500",
            "DB_POOL_LOAD_BALANCING": "round-robin",
            "DB_QUERY_TIMEOUT": "1500",
            "DB_SLOW_QUERY_THRESHOLD": "250",
            "DB_HEALTH_CHECK_ENABLED": "true",
            "DB_HEALTH_CHECK_INTERVAL": "500",
        }
    )
    found = config.databases["*"]
    host, primary = found.hosts[0], found.pools["primary"]
    assert (host.host, host.port, host.tls.mode) == ("db.internal", 5433, "verify-full")
    assert primary.password.get_secret_value() == "secret"
    assert (primary.min, primary.max, primary.balance) == (3, 30, "round_robin")
    assert (primary.idle_timeout, primary.acquire_timeout) == (30.0, 2.5)
    assert found.pools["background"].max == 2
    assert found.timeouts.query == 1.5
    assert found.health.interval == 0.5
    assert config.access_log.slow_query == 0.25


def test_the_largest_pool_bounds_the_others() -> None:
    pools = database(DB_POOL_MAX="1").pools
    assert {name: (pool.min, pool.max) for name, pool in pools.items()} == {
        "primary": (1, 1), "readonly": (1, 1), "priority": (1, 1), "background": (1, 1), "admin": (0, 1),
    }  # fmt: skip


@pytest.mark.parametrize("no", ["false", "0", "no", "OFF"])
def test_health_checks_can_be_off(no: str) -> None:
    assert database(DB_HEALTH_CHECK_ENABLED=no, DB_HEALTH_CHECK_INTERVAL="500").health.interval == 0


def test_ssl_mode_allow_is_prefer() -> None:
    assert database(DB_SSL_MODE="allow").hosts[0].tls.mode == "prefer"


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://db.example.com", "db.example.com", 443),
        ("https://db.example.com/", "db.example.com", 443),
        ("https://db.example.com:8443", "db.example.com", 8443),
        ("db.example.com", "db.example.com", 443),
    ],
)
def test_a_tunnel_takes_the_place_of_the_host(url: str, host: str, port: int) -> None:
    found = database(
        CLOUDFLARE_TUNNEL_URL=url,
        DB_HOST="ignored",
        CF_ACCESS_CLIENT_ID="id",
        CF_ACCESS_CLIENT_SECRET="secret",
    ).hosts[0]
    assert (found.host, found.port, found.transport) == (host, port, "cloudflare")
    assert found.service_token is not None
    assert (found.service_token.id, found.service_token.secret.get_secret_value()) == ("id", "secret")
    assert database(CLOUDFLARE_TUNNEL_URL=url).hosts[0].service_token is None


def test_a_control_login_of_its_own() -> None:
    found = database(PGSLUICE_CONTROL_PASSWORD="secret", DB_PASSWORD="other").control
    assert found is not None
    assert (found.user, found.password.get_secret_value()) == ("sluice_control", "secret")
    named = database(PGSLUICE_CONTROL_USER="keeper").control
    assert named is not None and named.user == "keeper"


def keys_from_file(tmp_path: Path, **variables: str) -> Config:
    file = tmp_path / "keys.yaml"
    file.touch()
    return from_environment({**LEAST, "KEYS_FILE": str(file), **variables})


def test_a_file_of_keys_needs_no_sql_of_ours(tmp_path: Path) -> None:
    config = keys_from_file(tmp_path)
    assert (config.auth.keys, config.auth.keys_file) == ("file", tmp_path / "keys.yaml")
    assert (config.identity.mode, config.access_log.sinks) == ("off", ["stdout"])
    assert config.databases["*"].control is None


def test_a_file_of_keys_with_a_control_login(tmp_path: Path) -> None:
    config = keys_from_file(tmp_path, PGSLUICE_CONTROL_PASSWORD="secret", PGSLUICE_IDENTITY="signed")
    assert (config.identity.mode, config.access_log.sinks) == ("signed", ["table", "stdout"])


def test_the_identity_is_off_only_where_the_environment_says_so() -> None:
    assert from_environment({**LEAST, "PGSLUICE_IDENTITY": "off"}).identity.mode == "off"


def test_each_problem_names_its_variable() -> None:
    with pytest.raises(ConfigError) as caught:
        from_environment(
            {
                "DB_PORT": "x",
                "DB_POOL_MIN": "4",
                "DB_POOL_MAX": "2",
                "DB_SSL_MODE": "yes",
                "DB_QUERY_TIMEOUT": "soon",
                "DB_POOL_LOAD_BALANCING": "fastest",
                "KEYS_FILE": "/nowhere/keys.yaml",
                "PGSLUICE_IDENTITY": "maybe",
            }
        )
    assert sorted(problem.path for problem in caught.value.problems) == [
        "DB_NAME",
        "DB_POOL_LOAD_BALANCING",
        "DB_POOL_MAX",
        "DB_PORT",
        "DB_QUERY_TIMEOUT",
        "DB_SSL_MODE",
        "DB_USER",
        "KEYS_FILE",
        "PGSLUICE_IDENTITY",
    ]


def test_an_empty_variable_is_an_unset_one() -> None:
    assert database(DB_HOST="", DB_PORT="", DB_POOL_MAX="").hosts[0].port == 5432
