"""What a reload takes over of a new configuration, and what needs a restart: from two configurations, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from proxy.config import checks
from proxy.config.model import Config, Database, Host
from proxy.config.problems import ConfigError, Path, Problem, dotted

_ANY: Final = "*"

# Sockets, processes, files and what sessions were begun with; `*` stands for any name.
_FIXED: Final[tuple[Path, ...]] = (
    ("listen", "host"),
    ("listen", "port"),
    ("listen", "unix_socket_dir"),
    ("http",),
    ("workers",),
    ("auth", "keys"),
    ("auth", "keys_file"),
    ("auth", "rate_limit_store"),
    ("identity", "mode"),
    ("access_log", "sinks"),
    ("access_log", "statements"),
    ("access_log", "spool_dir"),
    ("databases", _ANY, "database"),
    ("databases", _ANY, "pool_mode"),
)


@dataclass(frozen=True)
class Plan:
    """What is in force after a reload, and the keys that differ in the file but need a restart."""

    config: Config
    restart: tuple[str, ...]
    # Databases that come and go; what changes in those that stay.
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Mapping[str, DatabaseChanges]


@dataclass(frozen=True)
class DatabaseChanges:
    """What changes in one database beyond numbers: hosts by name, pools by name.

    A host that is reached or judged otherwise goes and comes, under one name: so does a pool of another user.
    """

    hosts_added: tuple[str, ...] = ()
    hosts_removed: tuple[str, ...] = ()
    pools_added: tuple[str, ...] = ()
    pools_removed: tuple[str, ...] = ()
    # Pools that stay, whose passwords are others now; and those whose connections are only opened otherwise.
    passwords: tuple[str, ...] = ()
    logins: tuple[str, ...] = ()
    # Another control login, or another time for it to connect in.
    control: bool = False

    def __bool__(self) -> bool:
        return self != DatabaseChanges()


def plan(now: Config, wanted: Config) -> Plan:
    """Return what a reload from `now` to `wanted` does.

    Raises ConfigError where what changes doesn't go together with what has to stay until a restart.
    """
    config, restart = wanted, list[str]()
    for path in _paths(_FIXED, now, wanted):
        before, after = _value(now, path), _value(wanted, path)
        if before != after:
            restart += _differing(before, after, dotted(path))
            config = _with(config, path, before)
    if restart:
        _check(config, restart)
    kept = [name for name in config.databases if name in now.databases]
    return Plan(
        config,
        tuple(restart),
        tuple(name for name in config.databases if name not in now.databases),
        tuple(name for name in now.databases if name not in config.databases),
        {name: compare(now.databases[name], config.databases[name]) for name in kept},
    )


def compare(now: Database, wanted: Database) -> DatabaseChanges:
    """Return what changes from `now` to `wanted` beyond numbers."""
    hosts, wanted_hosts = _by_name(now), _by_name(wanted)
    pools, wanted_pools = now.pools, wanted.pools
    moved = {name for name in hosts if name in wanted_hosts and hosts[name] != wanted_hosts[name]}
    others = {name for name in pools if name in wanted_pools and pools[name].user != wanted_pools[name].user}
    stay = [name for name in wanted_pools if name in pools and name not in others]
    return DatabaseChanges(
        hosts_added=tuple(name for name in wanted_hosts if name not in hosts or name in moved),
        hosts_removed=tuple(name for name in hosts if name not in wanted_hosts or name in moved),
        pools_added=tuple(name for name in wanted_pools if name not in pools or name in others),
        pools_removed=tuple(name for name in pools if name not in wanted_pools or name in others),
        passwords=tuple(name for name in stay if pools[name].password != wanted_pools[name].password),
        logins=tuple(
            name
            for name in stay
            if pools[name].password == wanted_pools[name].password
            and pools[name].connect_timeout != wanted_pools[name].connect_timeout
        ),
        control=_control(now) != _control(wanted),
    )


def needs_restart(path: str) -> bool:
    """Tell whether the setting at `path`, with dots between its parts, is read once."""
    parts = tuple(path.split("."))
    return any(
        all(part in (_ANY, given) for part, given in zip(fixed, parts, strict=False))
        for fixed in _FIXED
        if len(fixed) <= len(parts)
    )


def _by_name(database: Database) -> dict[str, Host]:
    return {host.name: host for host in database.hosts}


def _control(database: Database) -> tuple[object, ...]:
    login = database.control or database.pools["primary"]
    return login.user, login.password, database.pool_defaults.connect_timeout


def _check(config: Config, restart: list[str]) -> None:
    problems = [Problem(dotted(path), 0, message) for path, message, _ in checks.findings(config)]
    if problems:
        because = f"while these wait for a restart: {', '.join(restart)}"
        raise ConfigError([*problems, Problem("", 0, because)])


def _paths(patterns: tuple[Path, ...], now: Config, wanted: Config) -> Iterator[Path]:
    """Yield the paths of `patterns`; for any name, those that are in both."""
    for pattern in patterns:
        if _ANY not in pattern:
            yield pattern
            continue
        at = pattern.index(_ANY)
        both = _value(now, pattern[:at]).keys() & _value(wanted, pattern[:at]).keys()
        yield from ((*pattern[:at], name, *pattern[at + 1 :]) for name in sorted(both))


def _value(section: Any, path: Path) -> Any:
    for part in path:
        section = section[part] if isinstance(section, dict) else getattr(section, str(part))
    return section


def _with(section: Any, path: Path, value: Any) -> Any:
    """Return a copy of `section` with `value` at `path`."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    below = _with(_value(section, (part,)), rest, value)
    if isinstance(section, dict):
        return {**section, part: below}
    return section.model_copy(update={str(part): below})


def _differing(before: Any, after: Any, path: str) -> list[str]:
    """Return the paths of the settings that differ below `path`."""
    if not (isinstance(before, BaseModel) and isinstance(after, BaseModel)):
        return [path]
    return [
        each
        for name in type(before).model_fields
        if getattr(before, name) != getattr(after, name)
        for each in _differing(getattr(before, name), getattr(after, name), f"{path}.{name}")
    ]
