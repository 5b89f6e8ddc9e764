"""What the console shows: tables by subject, explained routes, help, and what any server could be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

import proxy
from proxy.admin.averages import Averages
from proxy.admin.columns import INT4, ROUTE, SHOWN, TEXT, VERSION, Column, Table
from proxy.admin.commands import ROUTE as ROUTE_VERB
from proxy.admin.commands import SHOW, VALUE, Command
from proxy.admin.merging import added, merged
from proxy.admin.observing import facts, figures
from proxy.admin.settings import settings
from proxy.admin.site import Others, Site
from proxy.admin.tables import table
from proxy.query.explain import explain
from proxy.tasks import spawn

SERVER_VERSION: Final = "1.25.2/bouncer"
"""What drivers are told; tools for PgBouncer tell by it what they talk to, and which columns there are."""

HELP: Final = "\n\t".join(
    [
        "",
        "SHOW HELP|VERSION|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|SOCKETS|ACTIVE_SOCKETS|LISTS|USERS|STATE",
        "SHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS",
        "SHOW HOSTS|KEYS|CACHE|PINS",
        "SHOW PEERS|PEER_POOLS|MEM|DNS_HOSTS|DNS_ZONES (there are none)",
        "SHOW ROUTE [<database>] '<sql>'",
        "PAUSE [<database>]",
        "RESUME [<database>]",
        "RECONNECT [<database>]",
        "WAIT_CLOSE [<database>]",
        "KILL [<database>]",
        "KILL_CLIENT <id>",
        "FLUSH CACHE [<database>]",
        "ENABLE <database>",
        "DISABLE <database>",
        "RELOAD",
        "SHUTDOWN [WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]",
    ]
)


class Showing:
    """Answers of the console, which are the same whoever asks."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.averages = Averages(time.monotonic())
        self._turning: asyncio.Task[None] | None = None

    def tick(self, now: float) -> None:
        """Begin a new window of averages where one is over; to be called now and then."""
        if not self.averages.due(now):
            return
        if self.site.others is None:
            self.averages.turn(now, figures(self.site))
        elif self._turning is None or self._turning.done():
            self._turning = spawn(self._turn(self.site.others, now), "average over all workers")

    async def _turn(self, others: Others, now: float) -> None:
        self.averages.turn(now, added([figures(self.site), *await others.figures()]))

    async def shown(self, command: Command) -> Table:
        """Return what a SHOW or ROUTE answers."""
        now = time.monotonic()
        if command.verb == ROUTE_VERB:
            return self._route(command)
        if command.subject == "version":
            return Table(VERSION, [(_version(),)])
        if command.subject == "config":
            return settings(self.site.config())
        found = await facts(self.site, now, command.subject)
        if self.site.others is not None:
            found = merged([found, *await self.site.others.facts(command.subject)])
        return table(command.subject, found, self.averages, now)

    def _route(self, command: Command) -> Table:
        served = self.site.databases(command.subject)[0]
        intents = served.database.intents
        limit = int(intents.max_parse_bytes)
        # The parser can crash the process on a longer text, even where it only looks for its statements.
        short = len(command.argument.encode("utf-8", "surrogateescape")) <= limit
        lines = explain(command.argument, intents.catalog, limit, each=short)
        names = [column.name for column in ROUTE]
        return Table(ROUTE, [[_plain(line.get(name)) for name in names] for line in lines])

    def value(self, command: Command, place: Mapping[str, str | int]) -> Table:
        """Return what any server could be asked; `place` is what depends on who asks."""
        known: dict[str, str | int] = {
            "server_version": SERVER_VERSION,
            "server_version_num": "12502",
            "version()": _version(),
            "current_schema()": "",
            "pg_is_in_recovery()": "f",
            "pg_advisory_unlock_all()": "",
            **place,
        }
        value = known.get(command.subject, command.argument)
        column = _value_column(command)
        return Table([column], [[int(value) if column.type == INT4 else value]])


def columns_of(command: Command) -> Sequence[Column] | None:
    """Return the columns of what `command` answers, None where that has no rows."""
    if command.verb == VALUE:
        return [_value_column(command)]
    if command.verb == ROUTE_VERB:
        return ROUTE
    return SHOWN.get(command.subject) if command.verb == SHOW else None


def _value_column(command: Command) -> Column:
    number = command.subject == "?column?" or command.subject == "pg_backend_pid()"
    return Column(command.subject.removesuffix("()"), INT4 if number else TEXT)


def _version() -> str:
    # Tools look for the first number of three parts.
    return f"PgBouncer 1.25.2 compatible, pgsluice {proxy.__version__}"


def _plain(value: object) -> str | int | None:
    return value if value is None or isinstance(value, int) else str(value)
