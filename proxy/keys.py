"""Make, list, revoke and rotate API keys over a connection of the control login, or of a key with `admin`.

The control login may exchange the signing keys too.

The functions of sql/core/0003_api_keys.sql do the work and check who calls; here they get types. Each of them
raises asyncpg.InsufficientPrivilegeError (42501) for a caller that may not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import asyncpg

# What a list of keys shows: every column that says nothing of the secret.
_COLUMNS = """
    id, name, user_id, permissions::text AS permissions, default_pool,
    allowed_addresses::text[] AS allowed_addresses, rate_limit_per_minute, expires_at, revoked_at, created_at,
    last_used_at, use_count, rotated_from,
    (SELECT newer.id FROM sluice.api_keys newer WHERE newer.rotated_from = api_keys.id
      ORDER BY newer.created_at DESC LIMIT 1) AS replaced_by
"""


@dataclass(frozen=True)
class KeyInfo:
    """A row of sluice.api_keys without what proves the secret; None where there is no limit."""

    id: str
    name: str
    user_id: str
    permissions: tuple[str, ...]
    default_pool: str | None
    allowed_addresses: tuple[str, ...]
    rate_limit_per_minute: int | None
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime
    last_used_at: datetime | None
    use_count: int
    rotated_from: str | None
    replaced_by: str | None


@dataclass(frozen=True)
class NewKey:
    """A key that was just made. `api_key` is the client's password; it can't be shown again."""

    id: str
    api_key: str = field(repr=False)
    name: str
    user_id: str
    permissions: tuple[str, ...]
    default_pool: str | None
    allowed_addresses: tuple[str, ...]
    rate_limit_per_minute: int | None
    expires_at: datetime | None
    rotated_from: str | None = None
    old_key_expires_at: datetime | None = None


async def create(
    connection: asyncpg.Connection[Any],
    name: str,
    user_id: str,
    permissions: Sequence[str],
    *,
    default_pool: str | None = None,
    allowed_addresses: Sequence[str] = (),
    rate_limit_per_minute: int | None = None,
    expires_at: datetime | None = None,
) -> NewKey:
    """Make a key for `user_id` and return it. Addresses are networks, such as 10.0.0.0/8.

    Raises asyncpg.PostgresError for what the table's checks refuse.
    """
    made = await connection.fetchval(
        "SELECT sluice.generate_api_key($1, $2, $3::text::jsonb, $4, $5::text[]::cidr[], $6, $7)::text",
        name,
        user_id,
        json.dumps(list(permissions)),
        default_pool,
        list(allowed_addresses) or None,
        rate_limit_per_minute,
        expires_at,
    )
    return _new_key(made)


async def list_keys(
    connection: asyncpg.Connection[Any], user_id: str | None = None, key_id: str | None = None
) -> list[KeyInfo]:
    """Return the keys of `user_id`, the one called `key_id`, or all that the caller may see, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM sluice.api_keys WHERE ($1::text IS NULL OR user_id = $1)"
        " AND ($2::text IS NULL OR id = $2) ORDER BY created_at, id",
        user_id,
        key_id,
    )
    return [
        KeyInfo(
            **{
                **row,
                "permissions": tuple(json.loads(row["permissions"])),
                "allowed_addresses": tuple(row["allowed_addresses"] or ()),
            }
        )
        for row in rows
    ]


async def revoke(connection: asyncpg.Connection[Any], key_id: str) -> bool:
    """End a key and its sessions at once; False if there is no such key or it was revoked before."""
    return bool(await connection.fetchval("SELECT sluice.revoke_api_key($1)", key_id))


async def rotate(
    connection: asyncpg.Connection[Any], key_id: str, grace: timedelta = timedelta(days=1)
) -> NewKey:
    """Make a key like `key_id` and return it; the old one stays valid for `grace`.

    Raises asyncpg.NoDataFoundError for a key that is unknown, revoked or expired.
    """
    made = await connection.fetchval("SELECT sluice.rotate_api_key($1, $2)::text", key_id, grace)
    return _new_key(made)


async def rotate_signing(connection: asyncpg.Connection[Any], at_once: bool = False) -> str:
    """Add a signing key, which the proxies change to, and return its kid; `at_once` deletes all others.

    Raises asyncpg.ObjectNotInPrerequisiteStateError where the last exchange is not over.
    """
    return str(await connection.fetchval("SELECT sluice.rotate_signing_key($1)", at_once))


def _new_key(made: str) -> NewKey:
    facts: dict[str, Any] = json.loads(made)
    for column in ("expires_at", "old_key_expires_at"):
        facts[column] = datetime.fromisoformat(facts[column]) if facts.get(column) else None
    for column in ("permissions", "allowed_addresses"):
        facts[column] = tuple(facts[column] or ())
    return NewKey(**facts)
