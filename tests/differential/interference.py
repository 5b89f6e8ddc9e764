"""Other clients, between the steps of a case: they take server connections, and leave there what isn't the case's."""

from __future__ import annotations

import random

from tests.differential.client import PLAINLY, Client, Manner
from tests.differential.script import Step, build
from tests.integration.support import Login

_SETTINGS = (
    "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German, DMY'; SET search_path = differential, pg_catalog",
    "SET TimeZone = 'America/New_York'; SET statement_timeout = '7654s'; SET extra_float_digits = -10",
    "SET bytea_output = 'escape'; SET IntervalStyle = 'iso_8601'; SET application_name = 'somebody else'",
    "RESET ALL",
)
_PREPARES = (
    ("Parse s1 SELECT 'somebody else''s s1'", "Parse p SELECT $1::text", "Sync"),
    ("Parse - SELECT 'somebody else''s unnamed'", "Describe S -", "Sync"),
    ("Close S s1", "Close S p", "Sync"),
)


class Interference:
    """A client that holds transactions, one that sets and prepares, and one who does so as another user.

    At most one server connection is taken at a time, so that of two one is left for the case.
    """

    def __init__(self, same: Login, other: Login, manner: Manner = PLAINLY) -> None:
        self._same, self._other = same, other
        self._manner = manner
        self._dice = random.Random(0)
        self._casualties: list[str] = []

    async def start(self) -> None:
        """Log in as the user of the cases, twice, and as another."""
        self._holder = await Client.connect(self._same, manner=self._manner)
        self._setter = await Client.connect(self._same, manner=self._manner)
        self._stranger = await Client.connect(self._other, manner=self._manner)

    def begin(self, phase: int) -> None:
        """Start anew with the dice of `phase`, so that a case meets the same ones each time that it runs."""
        self._dice.seed(phase)

    async def between(self, status: str) -> None:
        """Do the next thing; `status` is the transaction status of the case's own client."""
        if self._holder.status == "T":
            if status == "I":
                await self._quietly(self._holder, "Query COMMIT")
            return
        match self._dice.randrange(5):
            case 0 | 1 if status == "I":
                await self._quietly(self._holder, "Query BEGIN; SET LOCAL application_name = 'holder'")
            case 2:
                await self._quietly(self._setter, *self._dice.choice(_PREPARES))
            case 3:
                await self._quietly(self._stranger, f"Query {self._dice.choice(_SETTINGS)}")
            case _:
                await self._quietly(self._setter, f"Query {self._dice.choice(_SETTINGS)}")

    async def rest(self) -> None:
        """Hold nothing."""
        if self._holder.status == "T":
            await self._quietly(self._holder, "Query COMMIT")

    async def stop(self) -> None:
        """Log out."""
        for client in (self._holder, self._setter, self._stranger):
            await client.close()

    def casualties(self) -> list[str]:
        """Return what these clients were told as their connections were closed, and forget it."""
        told, self._casualties = self._casualties, []
        return told

    async def _quietly(self, client: Client, *lines: str) -> None:
        await client.perform(Step("a", [build(line) for line in lines], list(lines)))
        told = client.transcript.take()
        if not client.status:
            self._casualties += [f"(another client, at {lines[0]}) {line}" for line in told]
            await self.start()
