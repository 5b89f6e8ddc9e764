"""A configuration from environment variables alone, for `pgsluice serve` without a file.

    DB_HOST (127.0.0.1), DB_PORT (5432), DB_NAME, DB_USER, DB_PASSWORD, DB_SSL_MODE
                                 one host, one database, one login for every pool. Clients reach the database
                                 under any name ("*").
    DB_POOL_MIN, DB_POOL_MAX     of the pools primary and readonly; no other pool gets larger than DB_POOL_MAX
    DB_POOL_IDLE_TIMEOUT, DB_POOL_ACQUIRE_TIMEOUT, DB_QUERY_TIMEOUT, DB_SLOW_QUERY_THRESHOLD,
    DB_HEALTH_CHECK_INTERVAL     milliseconds
    DB_POOL_LOAD_BALANCING       round_robin, least_connections, random
    DB_HEALTH_CHECK_ENABLED      false: hosts are not watched
    CLOUDFLARE_TUNNEL_URL        https://db.example.com: the host is reached through that tunnel instead;
                                 CF_ACCESS_CLIENT_ID and CF_ACCESS_CLIENT_SECRET are its service token

Keys and identity are as in the file's defaults: keys from the table, a signed identity, the log into the
table. The login that this needs is PGSLUICE_CONTROL_USER (sluice_control) with PGSLUICE_CONTROL_PASSWORD;
without either it is DB_USER's. PGSLUICE_IDENTITY=off turns the identity off. KEYS_FILE names a file of keys
for a database that holds none of the bundled SQL: then the identity is off unless PGSLUICE_IDENTITY says
otherwise, and, without a control login, the log goes to standard output alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as File
from urllib.parse import urlsplit

from proxy.config.document import Tree
from proxy.config.loading import validate
from proxy.config.model import POOLS, Config
from proxy.config.problems import ConfigError, Path, Problem, dotted

_DATABASE: Path = ("databases", "*")
_HOST: Path = (*_DATABASE, "hosts", 0)

# Which variable a key came from, so that a problem names what the user wrote.
_SOURCES: dict[Path, str] = {
    (*_HOST, "host"): "DB_HOST",
    (*_HOST, "port"): "DB_PORT",
    (*_HOST, "tls", "mode"): "DB_SSL_MODE",
    (*_HOST, "service_token", "id"): "CF_ACCESS_CLIENT_ID",
    (*_HOST, "service_token", "secret"): "CF_ACCESS_CLIENT_SECRET",
    (*_DATABASE, "database"): "DB_NAME",
    (*_DATABASE, "pools", "primary", "min"): "DB_POOL_MIN",
    (*_DATABASE, "pools", "primary", "max"): "DB_POOL_MAX",
    (*_DATABASE, "pools", "primary", "balance"): "DB_POOL_LOAD_BALANCING",
    (*_DATABASE, "pool_defaults", "idle_timeout"): "DB_POOL_IDLE_TIMEOUT",
    (*_DATABASE, "pool_defaults", "acquire_timeout"): "DB_POOL_ACQUIRE_TIMEOUT",
    (*_DATABASE, "timeouts", "query"): "DB_QUERY_TIMEOUT",
    (*_DATABASE, "health", "interval"): "DB_HEALTH_CHECK_INTERVAL",
    ("access_log", "slow_query"): "DB_SLOW_QUERY_THRESHOLD",
    ("identity", "mode"): "PGSLUICE_IDENTITY",
    ("auth", "keys_file"): "KEYS_FILE",
}


def from_environment(environ: Mapping[str, str], *, new_keys_file: bool = False) -> Config:
    """Return the configuration that the variables above describe.

    Relative paths start at the current directory. With `new_keys_file` the file of keys need not exist yet.
    Raises ConfigError with every problem; each names its variable.
    """
    given = {name: value for name, value in environ.items() if value}
    problems = [
        Problem(name, 0, f"is needed where there is no configuration file ({what})")
        for name, what in (("DB_NAME", "the database"), ("DB_USER", "the login of its pools"))
        if name not in given
    ]
    config, found = validate(_tree(given), File(), new_keys_file=new_keys_file)
    named: dict[Problem, None] = {}
    for path, message in found:
        named.setdefault(Problem(_variable(path), 0, message))
    if config is None or problems:
        raise ConfigError([*problems, *named])
    return config


def _tree(given: Mapping[str, str]) -> Tree:
    keys_file = given.get("KEYS_FILE")
    control = _control(given, optional=keys_file is not None)
    return {
        "auth": {"keys": "file", "keys_file": keys_file} if keys_file is not None else {},
        "identity": {"mode": given.get("PGSLUICE_IDENTITY", "off" if keys_file is not None else "signed")},
        "databases": {
            "*": {
                "database": given.get("DB_NAME", "unknown"),
                "control": control,
                "hosts": [_host(given)],
                "pools": _pools(given),
                "pool_defaults": {
                    "idle_timeout": _milliseconds(given, "DB_POOL_IDLE_TIMEOUT"),
                    "acquire_timeout": _milliseconds(given, "DB_POOL_ACQUIRE_TIMEOUT"),
                },
                "timeouts": {"query": _milliseconds(given, "DB_QUERY_TIMEOUT")},
                "health": {"interval": _health_interval(given)},
            }
        },
        "access_log": {
            "sinks": ["stdout"] if control is None else ["table", "stdout"],
            "slow_query": _milliseconds(given, "DB_SLOW_QUERY_THRESHOLD"),
        },
    }


def _control(given: Mapping[str, str], *, optional: bool) -> Tree:
    if "PGSLUICE_CONTROL_PASSWORD" in given or "PGSLUICE_CONTROL_USER" in given:
        return {
            "user": given.get("PGSLUICE_CONTROL_USER", "sluice_control"),
            "password": given.get("PGSLUICE_CONTROL_PASSWORD"),
        }
    return None if optional else _login(given)


def _login(given: Mapping[str, str]) -> dict[str, Tree]:
    return {"user": given.get("DB_USER", "unknown"), "password": given.get("DB_PASSWORD")}


def _host(given: Mapping[str, str]) -> Tree:
    mode = given.get("DB_SSL_MODE")
    tls: Tree = {"mode": "prefer" if mode == "allow" else mode}
    if "CLOUDFLARE_TUNNEL_URL" not in given:
        return {"name": "main", "host": given.get("DB_HOST"), "port": given.get("DB_PORT"), "tls": tls}
    url = given["CLOUDFLARE_TUNNEL_URL"]
    parts = urlsplit(url if "//" in url else f"//{url}")
    token: Tree = None
    if "CF_ACCESS_CLIENT_ID" in given:
        token = {"id": given["CF_ACCESS_CLIENT_ID"], "secret": given.get("CF_ACCESS_CLIENT_SECRET", "")}
    return {
        "name": "tunnel",
        "host": parts.hostname or "",
        "port": str(parts.port or 443),
        "transport": "cloudflare",
        "service_token": token,
        "tls": tls,
    }


def _pools(given: Mapping[str, str]) -> Tree:
    pools: dict[str, Tree] = {}
    most = given.get("DB_POOL_MAX", "")
    for name, defaults in POOLS.items():
        pool: dict[str, Tree] = {**_login(given), "balance": _balance(given)}
        if name in ("primary", "readonly"):
            pool["min"], pool["max"] = given.get("DB_POOL_MIN"), most or None
            if most.isdecimal() and "DB_POOL_MIN" not in given:
                pool["min"] = str(min(int(most), defaults["min"]))
        elif most.isdecimal() and int(most) > 0:
            pool["max"] = str(min(int(most), defaults["max"]))
        pools[name] = pool
    return pools


def _balance(given: Mapping[str, str]) -> str | None:
    wanted = given.get("DB_POOL_LOAD_BALANCING")
    return wanted.lower().replace("-", "_") if wanted is not None else None


def _milliseconds(given: Mapping[str, str], name: str) -> str | None:
    value = given.get(name)
    return f"{value}ms" if value is not None and value.isdecimal() else value


def _health_interval(given: Mapping[str, str]) -> str | None:
    if given.get("DB_HEALTH_CHECK_ENABLED", "true").lower() in ("false", "0", "no", "off"):
        return "0"
    return _milliseconds(given, "DB_HEALTH_CHECK_INTERVAL")


def _variable(path: Path) -> str:
    if "pools" in path:  # the same variable fills all of them
        path = (*_DATABASE, "pools", "primary", *path[4:])
    return _SOURCES.get(path, dotted(path))
