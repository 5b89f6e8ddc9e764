"""Random reads and writes of many users with results kept, against a model: python -m tests.integration.cached.

Each user has rows of his own behind row-level security, and some sessions, which all send the same texts. They write,
through the proxy and past it, alone and in transactions, and read; a trigger writes a second table, of which the
proxy can't know. Each write has a number, and writes of one user follow one another, so that the model knows which
numbers a read may show:

    no row of another user, in no read
    nothing that was overwritten longer ago than a result's time to live
    nothing that was overwritten before the session's own last write
    nothing that was overwritten through the proxy, as far as statements tell which relation they write
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from tests.integration.support import DATABASE, Installation, Login, Proxy

USERS: Final = 20
SESSIONS: Final = 2
OPERATIONS: Final = 100_000
TTL: Final = 1.0
STALE: Final = 0.5
ROWS: Final = 3
PHASE: Final = 2.5
"""Seconds in which many write through the proxy, and seconds in which nobody does, in turns; less in a short run."""

SLACK: Final = 0.02
"""Seconds by which proxy and test may differ on when something was: their clocks are read before and after."""

LAG: Final = 0.5
"""Seconds that the tests' replica may be behind."""

TABLES: Final = (
    "CREATE TABLE public.kept_notes (owner text, id int, value bigint NOT NULL, PRIMARY KEY (owner, id))",
    "CREATE TABLE public.kept_totals (owner text PRIMARY KEY, value bigint NOT NULL)",
    *(
        statement.format(table)
        for table in ("kept_notes", "kept_totals")
        for statement in (
            "ALTER TABLE public.{0} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "CREATE POLICY own ON public.{0} TO sluice_readwrite, sluice_readonly"
            " USING (owner = (SELECT sluice.current_user_id()))"
            " WITH CHECK (owner = (SELECT sluice.current_user_id()))",
            "GRANT SELECT, INSERT, UPDATE ON public.{0} TO sluice_readwrite",
            "GRANT SELECT ON public.{0} TO sluice_readonly",
        )
    ),
    "CREATE FUNCTION public.kept_total() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
    " UPDATE public.kept_totals SET value = NEW.value WHERE owner = NEW.owner; RETURN NULL; END$$",
    "CREATE TRIGGER total AFTER UPDATE ON public.kept_notes FOR EACH ROW EXECUTE FUNCTION public.kept_total()",
    "CREATE TRIGGER told AFTER UPDATE ON public.kept_totals"
    " FOR EACH STATEMENT EXECUTE FUNCTION sluice.invalidate_cache('kept_notes')",
)
READ_NOTES: Final = "SELECT owner, id, value FROM kept_notes ORDER BY id"
READ_ONE: Final = "SELECT owner, id, value FROM kept_notes WHERE id = $1"
READ_TOTAL: Final = "SELECT owner, 0, value FROM kept_totals"
WRITE: Final = "UPDATE kept_notes SET value = $2 WHERE id = $1"


@dataclass
class Version:
    """One write of a row: its number, and when its successor was acknowledged; 0.0 for never."""

    number: int
    overwritten_at: float = 0.0
    # The statement that overwrote it passed the proxy, and named the relation.
    seen: bool = False


@dataclass
class Row:
    """All that a row was, by number."""

    versions: dict[int, Version] = field(default_factory=dict)
    last: int = 0
    # Written, and not acknowledged: the next one may show already.
    pending: set[int] = field(default_factory=set)

    def overwrite(self, number: int, at: float, seen: bool) -> None:
        """Note that the write of `number` was acknowledged at `at`."""
        before = self.versions[self.last]
        before.overwritten_at, before.seen = at, seen
        self.versions[number] = Version(number)
        self.last = number
        self.pending.discard(number)


@dataclass
class User:
    """A user: his rows, the total (id 0) too, and whoever writes them at the moment."""

    name: str
    login: Login
    rows: dict[int, Row]
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Outcome:
    """What came of it."""

    operations: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    oldest: float = 0.0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class Session:
    """One connection of a user, which does one thing after the other."""

    def __init__(
        self,
        user: User,
        connection: Any,
        numbers: Numbers,
        outcome: Outcome,
        chance: random.Random,
        one_host: bool,
    ) -> None:
        self._user = user
        self._connection = connection
        self._numbers = numbers
        self._outcome = outcome
        self._chance = chance
        self._one_host = one_host
        self._wrote_at = 0.0

    async def step(self) -> None:
        """Do something."""
        roll = self._chance.random()
        if roll < 0.96:
            await self._read()
        elif self._numbers.is_quiet():
            # Results grow old.
            await (self._write(self._unheard) if roll < 0.97 else self._read())
        elif roll < 0.98:
            await self._write(self._alone)
        elif roll < 0.99:
            await self._write(self._in_transaction)
        else:
            await self._write(self._elsewhere)

    async def _read(self) -> None:
        text, arguments = self._chance.choice(
            [(READ_NOTES, ()), (READ_ONE, (self._chance.randint(1, ROWS),)), (READ_TOTAL, ())]
        )
        asked_at = time.monotonic()
        rows = await self._connection.fetch(text, *arguments)
        self._outcome.operations["read"] += 1
        expected = 3 if text == READ_NOTES else 1
        if len(rows) != expected:
            self._wrong(f"{len(rows)} rows of {text}")
        for owner, number, value in rows:
            self._check(text, owner, number, value, asked_at)

    def _check(self, text: str, owner: str, number: int, value: int, asked_at: float) -> None:
        if owner != self._user.name:
            self._wrong(f"a row of {owner}")
            return
        row = self._user.rows[number]
        version = row.versions.get(value)
        if version is None:
            if value not in row.pending:
                self._wrong(f"{text}: {value}, which nobody wrote")
            return
        at = version.overwritten_at
        if at == 0.0:
            return
        age = asked_at - at
        self._outcome.oldest = max(self._outcome.oldest, age)
        # A replica that is asked itself may be late by its lag, whatever is kept.
        if age > TTL + STALE + (SLACK if self._one_host else LAG):
            self._wrong(f"{text}: overwritten {age:.3f} s before it was asked for")
        if at <= self._wrote_at and at < asked_at:
            self._wrong(
                f"{text}: overwritten {self._wrote_at - at:.6f} s before the session's own last write"
            )
        if version.seen and age > 0.0 and self._one_host:
            self._wrong(f"{text}: overwritten through the proxy {age:.6f} s before it was asked for")

    async def _write(self, how: Any) -> None:
        async with self._user.writing:
            await how(self._chance.randint(1, ROWS), self._numbers.next())

    async def _alone(self, row: int, number: int) -> None:
        rows = self._pending(row, number)
        await self._connection.execute(WRITE, row, number)
        self._acknowledged(rows, number, own=True)
        self._outcome.operations["write"] += 1

    async def _in_transaction(self, row: int, number: int) -> None:
        rows = self._pending(row, number)
        commits = self._chance.random() < 0.8
        transaction = self._connection.transaction()
        await transaction.start()
        await self._connection.execute(WRITE, row, number)
        shown = {each[1]: each[2] for each in await self._connection.fetch(READ_NOTES)}
        if shown.get(row) != number:
            self._wrong(f"its own transaction shows {shown.get(row)} for {number}")
        if commits:
            await transaction.commit()
            self._acknowledged(rows, number, own=True)
        else:
            await transaction.rollback()
            self._wrote_at = time.monotonic()
            for each in rows:
                each.pending.discard(number)
        self._outcome.operations["transaction"] += 1

    async def _elsewhere(self, row: int, number: int) -> None:
        rows = self._pending(row, number)
        await self._numbers.elsewhere(self._user.name, row, number, heard=True)
        self._acknowledged(rows, number, own=False)
        self._outcome.operations["elsewhere"] += 1

    async def _unheard(self, row: int, number: int) -> None:
        """Write past the proxy and past all triggers: only its time ends a result."""
        changed = self._user.rows[row]
        changed.pending.add(number)
        await self._numbers.elsewhere(self._user.name, row, number, heard=False)
        changed.overwrite(number, time.monotonic(), seen=False)
        self._outcome.operations["unheard"] += 1

    def _pending(self, row: int, number: int) -> list[Row]:
        rows = [self._user.rows[row], self._user.rows[0]]
        for each in rows:
            each.pending.add(number)
        return rows

    def _acknowledged(self, rows: Sequence[Row], number: int, own: bool) -> None:
        at = time.monotonic()
        rows[0].overwrite(number, at, seen=own)
        # The trigger's: hidden from the proxy, but told by NOTIFY, which comes when it comes.
        rows[1].overwrite(number, at, seen=False)
        if own:
            self._wrote_at = at

    def _wrong(self, what: str) -> None:
        self._outcome.wrong.append(f"{self._user.name}: {what}")


class Numbers:
    """Hands out numbers of writes, and writes past the proxy."""

    def __init__(self, heard: Any, unheard: Any, phase: float) -> None:
        self._connections = {True: heard, False: unheard}
        self._one = asyncio.Lock()
        self._last = 0
        self._began = time.monotonic()
        self._phase = phase

    def is_quiet(self) -> bool:
        """Tell whether nobody writes through the proxy now."""
        return int((time.monotonic() - self._began) / self._phase) % 2 == 1

    def next(self) -> int:
        """Return the next number."""
        self._last += 1
        return self._last

    async def elsewhere(self, owner: str, row: int, number: int, heard: bool) -> None:
        """Write as somebody does whom the proxy doesn't see, with triggers that tell it or without."""
        async with self._one:
            await self._connections[heard].execute(
                "UPDATE public.kept_notes SET value = $3 WHERE owner = $1 AND id = $2", owner, row, number
            )


async def run(
    installation: Installation,
    proxy: Proxy,
    operations: int,
    seed: int,
    users: int = USERS,
    one_host: bool = True,
) -> Outcome:
    """Let `users` do `operations` things in all; returns what was wrong, and what the cache did.

    Where replicas are asked too, others than the writer may see a write a little later, as they do without results.
    """
    outcome = Outcome()
    people = [_user(installation, proxy, f"user{number}") for number in range(users)]
    async with contextlib.AsyncExitStack() as stack:
        heard = await stack.enter_async_context(installation.superuser().asyncpg())
        unheard = await stack.enter_async_context(installation.superuser().asyncpg())
        await unheard.execute("SET session_replication_role = replica")
        numbers = Numbers(heard, unheard, min(PHASE, operations / 4_000))
        sessions = [
            Session(
                user,
                await stack.enter_async_context(user.login.asyncpg()),
                numbers,
                outcome,
                random.Random(f"{seed} {user.name} {number}"),
                one_host,
            )
            for user in people
            for number in range(SESSIONS)
        ]
        left = operations

        async def work(session: Session) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await session.step()

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                group.create_task(work(session))
        outcome.seconds = time.monotonic() - began
    outcome.metrics = metrics(proxy)
    return outcome


def _user(installation: Installation, proxy: Proxy, name: str) -> User:
    installation.execute(
        f"INSERT INTO public.kept_totals VALUES ('{name}', 0)",
        f"INSERT INTO public.kept_notes SELECT '{name}', n, 0 FROM generate_series(1, {ROWS}) n",
    )
    login = proxy.login(*installation.generate_key(name, ["read:notes", "write:notes"]))
    return User(name, login, {number: Row({0: Version(0)}) for number in range(ROWS + 1)})


def changes(installation: Installation, with_replicas: bool = False) -> dict[str, Any]:
    """Return the configuration that is tried: one host, where everything is strict; or replicas beside it."""
    database: dict[str, Any] = {
        "cache": {"mode": "on", "ttl": f"{TTL}s", "stale_while_revalidate": f"{STALE}s"},
        "pools": {"primary": {"max": 25}, "readonly": {"max": 25}},
    }
    if not with_replicas:
        primary = installation.cluster.primary
        database["hosts"] = [{"name": primary.name, "host": "127.0.0.1", "port": primary.port}]
    return {"databases": {DATABASE: database}, "access_log": {"sinks": ["table"]}}


def metrics(proxy: Proxy) -> dict[str, float]:
    """Return what /metrics tells of kept results, by the rest of its name."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(proxy.url("/metrics"), timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("pgsluice_result_cache_"):
                name, _, value = line.removeprefix("pgsluice_result_cache_").rpartition(" ")
                found[name] = float(value)
    return found


def hits(told: dict[str, float]) -> float:
    """Return how many reads were given a kept result, fresh or stale."""
    return sum(value for name, value in told.items() if name.startswith("lookups_total") and "hit" in name)


def main(arguments: Sequence[str]) -> int:
    """Run it on a cluster of its own; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=OPERATIONS)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    given = parser.parse_args(arguments)
    data = scratch_directory("pgsluice-cached-")
    with tempfile.TemporaryDirectory() as directory, Cluster(data, replicas=0) as cluster:
        installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
        installation.execute(*TABLES)
        proxy = Proxy(installation, Path(directory), changes(installation))
        proxy.start()
        try:
            outcome = asyncio.run(run(installation, proxy, given.operations, given.seed))
        finally:
            proxy.stop()
    shutil.rmtree(data)
    rate = sum(outcome.operations.values()) / outcome.seconds
    print(f"seed {given.seed}: {dict(outcome.operations)} in {outcome.seconds:.1f} s ({rate:,.0f} a second)")
    print(f"kept results given: {hits(outcome.metrics):,.0f}; {outcome.metrics}")
    print(
        f"the oldest was overwritten {outcome.oldest * 1e3:.0f} ms before it was asked for (allowed: {TTL + STALE:g} s)"
    )
    for line in outcome.wrong[:20]:
        print("WRONG", line)
    print(f"wrong: {len(outcome.wrong)}")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
