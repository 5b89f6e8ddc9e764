"""What `serve` refuses: pools whose logins could pass by row-level security, or sign for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from proxy.config import Database
from proxy.errors import SluiceError
from proxy.preflight import grants, roles, settings
from proxy.preflight.facts import Connection, Facts, read_rights, read_settings
from proxy.preflight.finding import Finding
from proxy.preflight.wanted import Logins, logins_of

BYPASSED: Final = "identity.mode is signed, and a pool's login could pass by row-level security"


class BypassError(SluiceError):
    """A pool's login could pass by row-level security: what `check` says of it, by host, with what mends it."""

    def __init__(self, refusals: Mapping[str, Sequence[Finding]]) -> None:
        hosts: dict[Finding, list[str]] = {}
        for host, findings in refusals.items():
            for finding in findings:
                hosts.setdefault(finding, []).append(host)
        lines = [f"{', '.join(at)}: {each.what}; {remedy(each)}" for each, at in hosts.items()]
        super().__init__(f"{BYPASSED}\n  " + "\n  ".join(lines))


def remedy(finding: Finding) -> str:
    """Return in one line what mends a finding."""
    mend = " ".join(finding.mend.split())
    return f"as a superuser: {mend}" if mend else finding.advice


async def bypasses(connection: Connection, database: Database) -> list[Finding]:
    """Return how clients with arbitrary SQL could be held back by no policy on the server of `connection`."""
    logins = logins_of(database)
    facts = await read_rights(connection, logins)
    return list(_bypasses(facts, logins))


async def alarms(connection: Connection, database: Database) -> list[Finding]:
    """Return what has come since `serve` began that its operator has to hear of: bypasses, and strange presets."""
    logins = logins_of(database)
    facts = await read_rights(connection, logins)
    await read_settings(connection, logins, facts)
    return [*_bypasses(facts, logins), *settings.check(facts, logins)]


def _bypasses(facts: Facts, logins: Logins) -> Iterator[Finding]:
    found = chain(roles.check(facts, logins), grants.on_tables(facts, logins))
    return (finding for finding in found if finding.bypass)
