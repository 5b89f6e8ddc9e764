"""What the console works on: the objects that app wires together, and what only app can do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy.admin.commands import Command
from proxy.admin.facts import Facts, Figures
from proxy.config import Config
from proxy.errors import UnknownDatabase
from proxy.observe.record import AccessBuffer
from proxy.session.gate import Gate
from proxy.session.served import Served


class Others(Protocol):
    """The other workers of this proxy, whose clients and pools the console shows and commands too."""

    async def facts(self, subject: str) -> list[Facts]:
        """Return what the others' SHOW `subject` is made of."""

    async def figures(self) -> list[dict[str, Figures]]:
        """Return what the others have done for each database."""

    async def carry_out(self, command: Command) -> str:
        """Do what `command` says, here and there; raises ClientError."""


@dataclass
class Site:
    """One process. `reload` returns what needs a restart, and raises SluiceError where nothing was taken over.

    `shutdown(True)` waits for all clients to leave, however long; `shutdown(False)` drains as SIGTERM does.
    """

    served: Mapping[str, Served]
    gate: Gate
    access: AccessBuffer
    # The configuration in force.
    config: Callable[[], Config]
    reload: Callable[[], Awaitable[list[str]]]
    shutdown: Callable[[bool], None]
    # Where there are several workers.
    others: Others | None = None
    # All databases were paused at once.
    paused: bool = False
    # Commands that the console has answered, those of drivers too, and the µs that they took.
    commands: int = 0
    command_us: int = 0
    received: int = 0
    sent: int = 0

    def databases(self, name: str) -> list[Served]:
        """Return the database `name`, or all of them for ""; raises UnknownDatabase."""
        if not name:
            return list(self.served.values())
        served = self.served.get(name)
        if served is None:
            known = ", ".join(sorted(self.served))
            raise UnknownDatabase(f'there is no database "{name}"', hint=f"Known: {known}")
        return [served]
