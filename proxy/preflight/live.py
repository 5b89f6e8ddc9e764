"""Look at every host of a configuration, as the control login, and judge what is found.

A check of identity needs nothing but what any login may read of the catalogues, and the kids of the signing keys;
only each pool's login is tried by itself, for its password.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import asyncpg

from proxy.config import Config, Database, Host, Login, Pool
from proxy.preflight import functions, grants, hosts, rls, roles, schema, settings
from proxy.preflight.facts import Connection, Facts, read_all, read_host
from proxy.preflight.finding import ERROR, Finding
from proxy.preflight.hosts import Looked
from proxy.preflight.wanted import Logins, logins_of
from proxy.tunnel import way_to
from proxy.upstream.control import connect, describe

# The catalogue of a large database takes a while.
_COMMAND_TIMEOUT: Final = 60.0
_PATH: Final = {"search_path": "pg_catalog", "application_name": "pgsluice check"}
_REFUSED: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


@dataclass(frozen=True)
class Told:
    """A finding, and the hosts on which it holds."""

    database: str
    hosts: Sequence[str]
    finding: Finding


@dataclass(frozen=True)
class Report:
    """All that was looked at and found, errors first."""

    looked: Mapping[str, Sequence[Looked]]
    found: Sequence[Told] = field(default=())

    @property
    def sound(self) -> bool:
        """Tell whether nothing is an error."""
        return all(told.finding.severity != ERROR for told in self.found)


async def look(config: Config, migrations: Mapping[str, str]) -> Report:
    """Look at every host; `migrations` has the SHA-256 of each bundled file by its revision."""
    looked: dict[str, Sequence[Looked]] = {}
    found: list[Told] = []
    for name, database in config.databases.items():
        looked[name] = await _look_at(database)
        found += _judge(config, name, database, looked[name], migrations)
    return Report(looked, sorted(found, key=lambda told: told.finding.severity != ERROR))


async def _look_at(database: Database) -> list[Looked]:
    """Look at the hosts, the primary first: what replicas say then is of the same moment or later."""
    found = [Looked(host) for host in database.hosts]
    await asyncio.gather(*(_reach(database, each) for each in found))
    logins = logins_of(database)
    for each in sorted(found, key=lambda each: each.role != "primary"):
        if each.facts is not None:
            try:
                await _read(database, each, logins)
            except _REFUSED as error:
                each.error, each.facts = f"looking at it failed: {describe(error)}", None
    return found


async def _reach(database: Database, looked: Looked) -> None:
    try:
        connection = await _connect(database, looked.host, _reader(database))
    except _REFUSED as error:
        looked.error = f"{looked.host.host}:{looked.host.port} as {_reader(database).user}: {describe(error)}"
        return
    try:
        looked.facts = await read_host(connection)
    except _REFUSED as error:
        looked.error = f"looking at it failed: {describe(error)}"
    finally:
        connection.terminate()


async def _read(database: Database, looked: Looked, logins: Logins) -> None:
    connection = await _connect(database, looked.host, _reader(database))
    try:
        looked.facts = await read_all(connection, logins)
    finally:
        connection.terminate()
    # One after the other: what is wrong with a password must not use up a server's connections too.
    for pool in {pool.user: pool for pool in database.pools.values()}.values():
        try:
            tried = await _connect(database, looked.host, pool)
        except _REFUSED as error:
            looked.refused[pool.user] = describe(error)
        else:
            tried.terminate()


def _reader(database: Database) -> Login:
    """Return who looks: the control login, without one the primary pool's."""
    pool = database.pools["primary"]
    return database.control or Login(user=pool.user, password=pool.password)


async def _connect(database: Database, host: Host, login: Login | Pool) -> Connection:
    return await connect(
        way_to(host),
        user=login.user,
        password=login.password.get_secret_value(),
        database=database.database or None,
        timeout=database.pool_defaults.connect_timeout,
        command_timeout=_COMMAND_TIMEOUT,
        server_settings=_PATH,
    )


def _judge(
    config: Config, name: str, database: Database, looked: Sequence[Looked], migrations: Mapping[str, str]
) -> Iterator[Told]:
    for each in looked:
        for finding in hosts.check(each, database):
            yield Told(name, [each.host.name], finding)
    for each, finding in hosts.compare(looked, database):
        yield Told(name, [each.host.name], finding)
    logins = logins_of(database)
    # Replicas have the primary's catalogue, so most is found on each of them.
    places: dict[Finding, list[str]] = {}
    for each in sorted(looked, key=lambda each: each.role != "primary"):
        if each.facts is not None:
            for finding in _catalogue(config, each.facts, logins, migrations):
                at = places.setdefault(finding, [])
                if each.host.name not in at:
                    at.append(each.host.name)
    for finding, at in places.items():
        yield Told(name, at, finding)


def _catalogue(
    config: Config, facts: Facts, logins: Logins, migrations: Mapping[str, str]
) -> Iterator[Finding]:
    signed = config.identity.mode == "signed"
    needed = signed or config.auth.keys == "database" or "table" in config.access_log.sinks
    if needed and not facts.installed:
        advice = f"pgsluice setup --database {facts.host['database']}"
        yield Finding(ERROR, schema.TOPIC, "the bundled SQL is not in this database", advice=advice)
    if facts.installed and needed:
        yield from schema.check(facts, migrations)
    if signed:
        yield from judge_identity(facts, logins)


def judge_identity(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield all that a signed identity's protection lacks."""
    yield from chain(
        roles.check(facts, logins),
        grants.check(facts, logins),
        rls.check(facts, logins),
        functions.check(facts),
        settings.check(facts, logins),
    )
