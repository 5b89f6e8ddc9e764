"""What `serve` refuses: pools whose logins could pass by row-level security, or sign for others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from proxy.config import Database
from proxy.errors import SluiceError
from proxy.preflight import grants, roles
from proxy.preflight.facts import Connection, read_rights
from proxy.preflight.finding import Finding
from proxy.preflight.wanted import logins_of


class BypassError(SluiceError):
    """A pool's login could pass by row-level security; the message has each finding with what mends it."""

    def __init__(self, host: str, findings: Sequence[Finding]) -> None:
        lines = [f"{each.what}; as a superuser: {' '.join(each.mend.split())}" for each in findings]
        super().__init__(f"host {host} can't be used with identity.mode: signed\n  " + "\n  ".join(lines))
        self.findings = findings


async def bypasses(connection: Connection, database: Database) -> list[Finding]:
    """Return how clients with arbitrary SQL could be held back by no policy on the server of `connection`."""
    logins = logins_of(database)
    facts = await read_rights(connection, logins)
    found = chain(roles.check(facts, logins), grants.on_tables(facts, logins))
    return [finding for finding in found if finding.bypass]
