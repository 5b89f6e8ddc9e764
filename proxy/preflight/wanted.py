"""What setup makes and the checks expect: roles, their groups, and the settings that logins start with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxy.config import Database

CONTROL: Final = "sluice_control"
OWNER: Final = "sluice_owner"
DEFINER: Final = "sluice_definer"
EVERYONE: Final = "authenticated_users"
READWRITE: Final = "sluice_readwrite"
READONLY: Final = "sluice_readonly"
ADMIN: Final = "sluice_admin"
GROUPS: Final = (READWRITE, READONLY, ADMIN)
# Every role but the pools' logins that the bundled SQL makes.
ROLES: Final = (OWNER, DEFINER, CONTROL, EVERYONE, *GROUPS)
# Whoever is one of these, or may become one, decides what row-level security lets through.
TRUSTED: Final = (OWNER, DEFINER, CONTROL)
# The monitor's: whether a standby receives the primary's timeline is shown to nobody else.
STATISTICS: Final = "pg_read_all_stats"
CONTROL_PATH: Final = "pg_catalog, pg_temp"


@dataclass(frozen=True)
class Logins:
    """The logins of a configured database: `pools` has the group that each should be in; `control` may be ""."""

    pools: Mapping[str, str]
    control: str

    @property
    def administrators(self) -> frozenset[str]:
        """Return the pools' logins that may create tables, and see everybody's rows."""
        return frozenset(login for login, group in self.pools.items() if group == ADMIN)

    def settings(self) -> dict[str, dict[str, str]]:
        """Return what each login starts with: the value of each setting, by login."""
        found = {login: {"track_activities": "off", "search_path": "public"} for login in self.pools}
        for login, group in self.pools.items():
            if group == READONLY:
                found[login]["default_transaction_read_only"] = "on"
        if self.control and self.control not in found:
            found[self.control] = {"search_path": CONTROL_PATH}
        return found


def logins_of(database: Database) -> Logins:
    """Return the logins of `database`; the names of a login's pools tell its group."""
    pools: dict[str, set[str]] = {}
    for pool, settings in database.pools.items():
        pools.setdefault(settings.user, set()).add(pool)
    groups = {frozenset(("readonly",)): READONLY, frozenset(("admin",)): ADMIN}
    return Logins(
        {login: groups.get(frozenset(names), READWRITE) for login, names in pools.items()},
        database.control.user if database.control is not None else "",
    )
