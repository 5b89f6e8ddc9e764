"""What one server says of itself and its catalogue: asked once, judged elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import asyncpg

from proxy.preflight import queries
from proxy.preflight.finding import Row
from proxy.preflight.wanted import CONTROL, EVERYONE, ROLES, Logins

Connection: TypeAlias = "asyncpg.Connection[Any]"

IDENTITY_FUNCTIONS: Final = (
    "sluice.current_user_id()",
    "sluice.current_user_id(text)",
    "sluice.current_key_id()",
    "sluice.has_permission(text)",
)
CONTROL_FUNCTIONS: Final = ("sluice.ensure_partitions(integer,integer)",)


@dataclass
class Facts:
    """Rows of each query of `queries`, and how the host was reached.

    `offset` is how many seconds the host's clock is ahead of ours; `uncertain` half of the round trip.
    """

    host: Row = field(default_factory=dict)
    offset: float = 0.0
    uncertain: float = 0.0
    roles: Sequence[Row] = ()
    memberships: Sequence[Row] = ()
    owned: Sequence[Row] = ()
    relations: Sequence[Row] = ()
    open_policies: Sequence[Row] = ()
    relation_grants: Sequence[Row] = ()
    key_columns: Sequence[Row] = ()
    space_grants: Sequence[Row] = ()
    default_grants: Sequence[Row] = ()
    functions: Sequence[Row] = ()
    callable: Sequence[Row] = ()
    statistics: Sequence[Row] = ()
    settings: Sequence[Row] = ()
    control_may: Row = field(default_factory=dict)
    signing_keys: Sequence[str] | None = None
    checksums: Sequence[Row] | None = None
    partitions: Sequence[Row] = ()
    extensions: Sequence[Row] = ()

    @property
    def installed(self) -> bool:
        """Tell whether the database holds the bundled SQL."""
        return bool(self.host.get("installed"))


def asked_roles(logins: Logins) -> list[str]:
    """Return the names of all roles that matter: the configuration's and the bundled SQL's."""
    return sorted({*logins.pools, *ROLES, *([logins.control] if logins.control else [])})


async def read_host(connection: Connection) -> Facts:
    """Return what the server says of itself alone."""
    before = time.time()
    row = await connection.fetchrow(queries.HOST)
    after = time.time()
    assert row is not None
    return Facts(dict(row), row["clock"] - (before + after) / 2, (after - before) / 2)


async def read_rights(connection: Connection, logins: Logins) -> Facts:
    """Return what is needed to tell whether a pool's login could pass by row-level security."""
    facts = await read_host(connection)
    asked = asked_roles(logins)
    facts.roles = await _rows(connection, queries.ROLES, asked)
    facts.memberships = await _rows(connection, queries.MEMBERSHIPS, asked)
    facts.owned = await _rows(connection, queries.OWNED, asked)
    facts.relation_grants = await _rows(connection, queries.RELATION_GRANTS, asked)
    if facts.installed:
        facts.key_columns = await _rows(connection, queries.KEY_COLUMNS)
    return facts


async def read_all(connection: Connection, logins: Logins) -> Facts:
    """Return everything that is looked at."""
    facts = await read_rights(connection, logins)
    asked, pools = asked_roles(logins), list(logins.pools)
    facts.relations = await _rows(connection, queries.RELATIONS, pools)
    facts.functions = await _rows(connection, queries.FUNCTIONS, pools)
    watched = [role for role in asked if role in logins.pools or role in _POOL_ROLES]
    facts.open_policies = await _rows(connection, queries.OPEN_POLICIES, watched)
    facts.space_grants = await _rows(connection, queries.SPACE_GRANTS, asked)
    facts.default_grants = await _rows(connection, queries.DEFAULT_GRANTS, asked)
    facts.statistics = await _rows(connection, queries.STATISTICS)
    await read_settings(connection, logins, facts)
    facts.extensions = await _rows(connection, queries.EXTENSIONS)
    if facts.installed:
        await _read_sluice(connection, facts)
    return facts


async def read_settings(connection: Connection, logins: Logins, facts: Facts) -> None:
    """Add what roles and the database preset for sessions."""
    facts.settings = await _rows(connection, queries.SETTINGS, asked_roles(logins))


async def _read_sluice(connection: Connection, facts: Facts) -> None:
    needed = [(EVERYONE, each) for each in IDENTITY_FUNCTIONS]
    needed += [(CONTROL, each) for each in CONTROL_FUNCTIONS]
    facts.callable = await _rows(
        connection, queries.CALLABLE, [role for role, _ in needed], [function for _, function in needed]
    )
    may = await connection.fetchrow(queries.CONTROL_MAY)
    assert may is not None
    facts.control_may = dict(may)
    facts.partitions = await _rows(connection, queries.PARTITIONS)
    if may["schema"] and may["signing_keys"]:
        facts.signing_keys = [row["kid"] for row in await connection.fetch(queries.SIGNING_KEYS)]
    if may["schema"] and may["schema_checksums"]:
        facts.checksums = await _rows(connection, queries.CHECKSUMS)


async def _rows(connection: Connection, query: str, *arguments: object) -> list[Row]:
    return [dict(row) for row in await connection.fetch(query, *arguments)]


_POOL_ROLES: Final = frozenset(("sluice_readwrite", "sluice_readonly", EVERYONE))
