"""What is wrong with a key before it is made, in words for whoever types it; and what state a key is in."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime

from proxy.query.route import POOLS

# As in sql/core/0003_api_keys.sql, which takes single words too: those are almost always a slip of the fingers.
_PERMISSION = re.compile(r"[0-9A-Za-z_.*-]+:[0-9A-Za-z_.*-]+")
_ADMIN = "admin"
_MOST_OF_NAME = 200
_MOST_OF_USER = 320
_MOST_A_MINUTE = 2**31 - 1


def problems(
    name: str,
    user: str,
    permissions: Sequence[str],
    pool: str | None,
    addresses: Sequence[str],
    rate_limit: int | None,
    expires_at: datetime | None,
    now: datetime,
) -> list[str]:
    """Return what keeps such a key from being made, all at once, each with the option that it is about."""
    found: list[str] = []
    if not 1 <= len(name) <= _MOST_OF_NAME:
        found.append(f"--name: 1 to {_MOST_OF_NAME} characters")
    if not 1 <= len(user) <= _MOST_OF_USER or "|" in user or "\0" in user:
        found.append(f'--user: 1 to {_MOST_OF_USER} characters, without "|"')
    found += [
        f"--permission {each}: {_ADMIN}, or verb:area such as read:tasks, of letters, digits and _ . * -"
        for each in permissions
        if each != _ADMIN and _PERMISSION.fullmatch(each) is None
    ]
    if pool is not None and pool not in POOLS:
        found.append(f"--pool {pool}: there are {', '.join(POOLS)}")
    elif pool == _ADMIN and _ADMIN not in permissions:
        found.append("--pool admin: needs the permission admin")
    found += [problem for each in addresses if (problem := _address_problem(each))]
    if rate_limit is not None and not 1 <= rate_limit <= _MOST_A_MINUTE:
        found.append(f"--rate-limit: 1 to {_MOST_A_MINUTE} statements a minute")
    if expires_at is not None and expires_at <= now:
        found.append("--expires: lies in the past")
    return found


def state(
    expires_at: datetime | None, revoked_at: datetime | None, replaced_by: str | None, now: datetime
) -> str:
    """Return `active`, `revoked`, `expired`, or `rotating`: replaced, and still valid until it expires."""
    if revoked_at is not None and revoked_at <= now:
        return "revoked"
    if expires_at is not None and expires_at <= now:
        return "expired"
    return "rotating" if replaced_by and expires_at is not None else "active"


def _address_problem(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            return f"--address {text}: a network such as 10.0.0.0/8 or 2001:db8::/32, or an address"
        return f"--address {text}: has bits behind its mask; {meant} is that network"
    return ""
