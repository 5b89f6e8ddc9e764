"""Clients at work: each a session of its own, that pauses between its statements and keeps a journal."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from tests.drills.clients import Client, Failed, Row, connect
from tests.drills.journal import Act, Journal
from tests.integration.support import Login

READ: Final = "read"
OWN_READ: Final = "read of own writes"
WRITE: Final = "write"
TRANSACTION: Final = "transaction"
LOOK: Final = "read only transaction"
ROLLBACK: Final = "rollback"
LOGIN: Final = "login"

ROWS: Final = 1000
TABLES: Final = (
    # No constraint keeps a row from being written twice: that is what is looked for.
    "CREATE TABLE public.drill_writes (session int NOT NULL, number int NOT NULL)",
    "CREATE TABLE public.drill_reads (id int PRIMARY KEY, name text NOT NULL)",
    f"INSERT INTO public.drill_reads SELECT i, 'row ' || i FROM generate_series(0, {ROWS - 1}) AS i",
    "GRANT SELECT, INSERT ON public.drill_writes TO sluice_readwrite",
    "GRANT SELECT ON public.drill_writes, public.drill_reads TO sluice_readwrite, sluice_readonly",
)
_INSERT: Final = "INSERT INTO public.drill_writes VALUES ({0}, {1}) RETURNING inet_server_port()"
_SELECT: Final = "SELECT inet_server_port(), name FROM public.drill_reads WHERE id = {0}"
_COUNT: Final = "SELECT inet_server_port(), count(*) FROM public.drill_writes WHERE session = {0}"
_LOGIN_AGAIN: Final = 0.1
_VISIT_EVERY: Final = 0.25


@dataclass(frozen=True)
class Mix:
    """How many sessions of each kind; `pause` is the mean time between two statements of one, in seconds."""

    writers: int = 8
    readers: int = 8
    keepers: int = 2
    transactors: int = 3
    lookers: int = 2
    sleepers: int = 4
    visitors: int = 1
    pause: float = 0.03


class Session:
    """One client, which logs in anew when its connection was lost."""

    kind = ""

    def __init__(self, number: int, login: Login, load: Load) -> None:
        self.number = number
        self.name = f"{self.kind} {number}"
        self._login = login
        self._load = load
        self._client: Client | None = None
        # The second value of the last row.
        self._seen: Any = 0
        self._dice = random.Random(f"{load.seed}:{self.name}")
        # Half of them in the simple protocol.
        self._simple = number % 2 == 0

    async def live(self) -> None:
        """Work until the load stops."""
        while not self._load.stopping:
            if await self._ready():
                await self._turn()
                await self._pause()
        if self._client is not None:
            await self._client.close()

    async def _turn(self) -> None:
        """Do once what such a session does again and again."""
        raise AssertionError

    async def _pause(self) -> None:
        await asyncio.sleep(self._load.mix.pause * self._dice.uniform(0.5, 1.5))

    async def _ready(self) -> Client | None:
        """Return the connection, after a login where there is none; None if that fails."""
        if self._client is None or self._client.closed:
            self._client = None
            failure = await self._note(LOGIN, self._log_in)
            if failure is not None:
                await asyncio.sleep(_LOGIN_AGAIN)
        return self._client

    async def _log_in(self) -> Row:
        self._client = await connect(self._login, self._simple)
        return ()

    async def _ask(self, kind: str, statement: str, *numbers: int) -> Failed | None:
        client = self._client
        assert client is not None
        return await self._note(kind, lambda: client.ask(statement, *numbers))

    async def _note(self, kind: str, doing: Callable[[], Awaitable[Row]]) -> Failed | None:
        """Do something, and put it into the journal; returns how it failed."""
        began = time.monotonic()
        failure: Failed | None = None
        row: Row = ()
        try:
            row = await doing()
        except Failed as error:
            failure = error
        port = int(row[0]) if row else 0
        self._seen = row[1] if len(row) > 1 else 0
        sqlstate, told = (failure.sqlstate, failure.told) if failure else ("", "")
        act = Act(self.name, kind, began, time.monotonic(), sqlstate, told, port)
        self._load.journal.acts.append(act)
        self._noted(act, failure)
        return failure

    def _noted(self, act: Act, failure: Failed | None) -> None:
        """Learn what became of an act."""


class Reader(Session):
    kind = "reader"

    async def _turn(self) -> None:
        await self._ask(READ, _SELECT, self._dice.randrange(ROWS))


class Writer(Session):
    """Writes rows with numbers of its own, each once: what is in doubt is not repeated."""

    kind = "writer"
    _wrote = WRITE

    def __init__(self, number: int, login: Login, load: Load) -> None:
        super().__init__(number, login, load)
        self._row = 0

    async def _turn(self) -> None:
        self._row += 1
        await self._ask(WRITE, _INSERT, self.number, self._row)

    def _noted(self, act: Act, failure: Failed | None) -> None:
        if act.kind != self._wrote:
            return
        journal = self._load.journal
        if failure is None:
            journal.acknowledged[self.number, self._row] = act
        elif failure.broken:
            journal.in_doubt[self.number, self._row] = act
        else:
            journal.refused[self.number, self._row] = act


class Keeper(Writer):
    """Writes a row, and then counts its own: those that were acknowledged must be there."""

    kind = "keeper"

    def __init__(self, number: int, login: Login, load: Load) -> None:
        super().__init__(number, login, load)
        self._acknowledged = 0

    async def _turn(self) -> None:
        self._row += 1
        if await self._ask(WRITE, _INSERT, self.number, self._row) is None:
            self._acknowledged += 1
        await self._pause()
        if await self._ready():
            await self._ask(OWN_READ, _COUNT, self.number)

    def _noted(self, act: Act, failure: Failed | None) -> None:
        super()._noted(act, failure)
        if act.kind == OWN_READ and failure is None and self._seen < self._acknowledged:
            self._load.journal.stale.append(act)


class Transactor(Writer):
    """Opens a transaction now and then, and holds it for a moment."""

    kind = "transactor"
    _wrote = TRANSACTION

    async def _turn(self) -> None:
        self._row += 1
        await self._note(TRANSACTION, self._transaction)
        await asyncio.sleep(self._dice.uniform(0.1, 0.5))

    async def _transaction(self) -> Row:
        client = self._client
        assert client is not None
        try:
            await client.ask("BEGIN")
            row = await client.ask(_INSERT, self.number, self._row)
            await asyncio.sleep(self._dice.uniform(0.02, 0.3))
            await client.ask("COMMIT")
        except Failed as failure:
            if not failure.broken:
                await self._ask(ROLLBACK, "ROLLBACK")
            raise
        return row


class Looker(Session):
    """Reads in transactions that are READ ONLY."""

    kind = "looker"

    async def _turn(self) -> None:
        await self._note(LOOK, self._transaction)
        await asyncio.sleep(self._dice.uniform(0.1, 0.5))

    async def _transaction(self) -> Row:
        client = self._client
        assert client is not None
        try:
            await client.ask("BEGIN READ ONLY")
            await client.ask(_SELECT, 1)
            await asyncio.sleep(self._dice.uniform(0.02, 0.3))
            row = await client.ask(_SELECT, 2)
            await client.ask("COMMIT")
        except Failed as failure:
            if not failure.broken:
                await self._ask(ROLLBACK, "ROLLBACK")
            raise
        return row


class Sleeper(Writer):
    """Logs in and does nothing, until it is woken: then it reads and writes as if nothing had been."""

    kind = "sleeper"

    async def live(self) -> None:
        if await self._ready():
            await self._ask(READ, _SELECT, 0)
            await self._load.woken.wait()
            # Not by way of a new login: whether the old connection still serves is the question.
            self._row += 1
            await self._ask(READ, _SELECT, 1)
            await self._ask(WRITE, _INSERT, self.number, self._row)
            assert self._client is not None
            await self._client.close()


class Visitor(Session):
    """Logs in anew each time, in every second turn with a key that was never used before."""

    kind = "visitor"

    async def live(self) -> None:
        turns = 0
        while not self._load.stopping:
            turns += 1
            if turns % 2 and self._load.unused:
                self._login = self._load.unused.pop()
            self._simple = turns % 4 < 2
            await self._note(LOGIN, self._log_in)
            if self._client is not None:
                await self._client.close()
                self._client = None
            await asyncio.sleep(_VISIT_EVERY)


class Load:
    """All sessions of a drill; a context, which ends when they have ended.

    `logins` are shared out among them; those of `unused` are for visitors, each for one login.
    """

    def __init__(
        self, logins: Sequence[Login], mix: Mix, unused: Sequence[Login] = (), seed: int = 1
    ) -> None:
        self.mix = mix
        self.seed = seed
        self.journal = Journal()
        self.unused = list(unused)
        self.stopping = False
        self.woken = asyncio.Event()
        kinds: list[tuple[type[Session], int]] = [
            (Writer, mix.writers),
            (Reader, mix.readers),
            (Keeper, mix.keepers),
            (Transactor, mix.transactors),
            (Looker, mix.lookers),
            (Sleeper, mix.sleepers),
            (Visitor, mix.visitors),
        ]
        self._sessions: list[Session] = []
        for kind, count in kinds:
            for _ in range(count):
                number = len(self._sessions)
                self._sessions.append(kind(number, logins[number % len(logins)], self))
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.ensure_future(session.live()) for session in self._sessions]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping = True
        self.woken.set()
        await asyncio.gather(*self._tasks)
