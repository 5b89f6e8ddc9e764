"""20 users over 4 server connections, at random: does anybody ever see a row of somebody else, or miss one?

`python -m tests.integration.strangers` sends 100,000 queries. Each row is tagged with its user. In between, queries are
cancelled, connections are cut in the middle of a result, and identities are forged where the proxy can't see it. A
seed makes the same choices again, though not the same timing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final, TypeAlias

import asyncpg

from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from tests.integration.support import DATABASE, Installation, Login, Proxy

USERS: Final = 20
SESSIONS: Final = 2
"""Of each user."""

ROWS: Final = 30
"""Of each user, that stay as they are; others come and go."""

TABLE: Final = "public.strangers"
_TWO: Final = {"min": 0, "max": 2}
PROXY: Final[dict[str, Any]] = {
    "access_log": {"sinks": []},
    "databases": {
        DATABASE: {
            "pool_defaults": {"acquire_timeout": "60s"},
            "pools": {"primary": _TWO, "readonly": _TWO, "priority": {"min": 0}, "background": {"min": 0}},
        }
    },
}
"""Two server connections on the primary, two on the replica."""

_COLUMNS: Final = "owner, tag"
_MINE: Final = f"SELECT {_COLUMNS} FROM {TABLE} WHERE fixed"
_SLOW: Final = f"SELECT {_COLUMNS}, pg_sleep(0.002) FROM {TABLE} WHERE fixed"

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def user(number: int) -> str:
    """Return the name of a user, which is also what their rows are tagged with."""
    return f"stranger-{number}@example.com"


def statements() -> list[str]:
    """Return what makes the table with everybody's rows."""
    return [
        f"CREATE TABLE {TABLE} (owner text NOT NULL DEFAULT sluice.current_user_id(), tag text NOT NULL,"
        " fixed boolean NOT NULL DEFAULT false, touched int NOT NULL DEFAULT 0)",
        f"CREATE INDEX ON {TABLE} (owner)",
        f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY own ON {TABLE} USING (owner = (SELECT sluice.current_user_id()))",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO sluice_readwrite",
        f"GRANT SELECT ON {TABLE} TO sluice_readonly",
        f"INSERT INTO {TABLE} (owner, tag, fixed) SELECT 'stranger-' || u || '@example.com',"
        f" 'stranger-' || u || '@example.com', true FROM generate_series(0, {USERS - 1}) u, generate_series(1, {ROWS})",
        "CREATE FUNCTION public.run_strangely(statement text) RETURNS void LANGUAGE plpgsql"
        " AS 'BEGIN EXECUTE statement; END'",
        "GRANT EXECUTE ON FUNCTION public.run_strangely TO PUBLIC",
    ]


class Report:
    """What was done, and what was seen that shouldn't have been."""

    def __init__(self, queries: int) -> None:
        self.left = queries
        self.queries = 0
        self.rows = 0
        self.foreign: list[str] = []
        self.missing: list[str] = []
        self.broken: list[str] = []
        self.done: Counter[str] = Counter()

    @property
    def sound(self) -> bool:
        """Tell whether nothing was seen that shouldn't, nothing was missing, and nothing failed by itself."""
        return not self.foreign and not self.missing and not self.broken


class Stranger:
    """One session of one user, who looks at every row that comes."""

    def __init__(self, number: int, login: Login, seed: int, report: Report) -> None:
        self._user = user(number % USERS)
        self._other = user((number + 1) % USERS)
        self._login = login
        self._dice = random.Random(f"{seed}:{number}")
        self._report = report
        self._connection: Connection | None = None

    async def live(self) -> None:
        """Act until all queries are done."""
        acts: list[Callable[[Connection], Awaitable[None]]] = [
            self._look,
            self._look_simply,
            self._find,
            self._who,
            self._write,
            self._transaction,
            self._scroll,
            self._fail,
            self._forge,
            self._cancel,
            self._vanish,
        ]
        weights = (30, 15, 20, 10, 8, 5, 4, 3, 2, 2, 1)
        while self._report.left > 0:
            act = self._dice.choices(acts, weights)[0]
            connection = self._connection or await self._arrive()
            self._report.done[act.__name__.strip("_")] += 1
            try:
                await act(connection)
            except (asyncpg.InterfaceError, asyncpg.PostgresError, OSError) as error:
                self._report.broken.append(f"{self._user}, {act.__name__.strip('_')}: {error!r}")
                connection.terminate()
                self._connection = None
        if self._connection is not None:
            await self._connection.close()

    async def _arrive(self) -> Connection:
        self._connection = await asyncpg.connect(**self._login.for_asyncpg(), timeout=60)
        return self._connection

    # -- what a stranger does

    async def _look(self, connection: Connection) -> None:
        self._all(await self._ask(connection.fetch(_MINE)))

    async def _look_simply(self, connection: Connection) -> None:
        """Send a simple query, whose rows asyncpg doesn't show: an error tells that there was another's."""
        try:
            status = await self._ask(
                connection.execute(
                    f"SELECT 1 / (owner = '{self._user}')::int FROM {TABLE} WHERE fixed;"
                    f" SELECT FROM {TABLE} WHERE fixed"
                )
            )
        except asyncpg.DivisionByZeroError:
            self._report.foreign.append(f"{self._user} saw somebody's in a simple query")
            return
        if status != f"SELECT {ROWS}":
            self._report.missing.append(f"{self._user}: {status}")

    async def _find(self, connection: Connection) -> None:
        """Ask for somebody's rows by name."""
        name = user(self._dice.randrange(USERS))
        rows = await self._ask(connection.fetch(f"{_MINE} AND tag = $1", name))
        if name == self._user:
            self._all(rows)
        else:
            self._own(rows)

    async def _who(self, connection: Connection) -> None:
        row = await self._ask(
            connection.fetchrow("SELECT sluice.current_user_id() AS owner, sluice.current_key_id() AS key")
        )
        if (row["owner"], row["key"]) != (self._user, self._login.user):
            self._report.foreign.append(f"{self._user} was told {row['owner']}, {row['key']}")

    async def _write(self, connection: Connection) -> None:
        self._own(
            await self._ask(
                connection.fetch(f"INSERT INTO {TABLE} (tag) VALUES ($1) RETURNING {_COLUMNS}", self._user)
            )
        )
        changes = (
            f"UPDATE {TABLE} SET touched = touched + 1 WHERE NOT fixed RETURNING {_COLUMNS}",
            f"DELETE FROM {TABLE} WHERE NOT fixed RETURNING {_COLUMNS}",
        )
        self._own(await self._ask(connection.fetch(self._dice.choice(changes))))

    async def _transaction(self, connection: Connection) -> None:
        transaction = connection.transaction()
        await self._ask(transaction.start())
        self._all(await self._ask(connection.fetch(_MINE)))
        self._own(
            await self._ask(
                connection.fetch(f"INSERT INTO {TABLE} (tag) VALUES ($1) RETURNING {_COLUMNS}", self._user)
            )
        )
        await asyncio.sleep(self._dice.random() * 0.005)
        self._all(await self._ask(connection.fetch(_MINE)))
        await self._ask(self._dice.choice((transaction.commit, transaction.rollback))())

    async def _scroll(self, connection: Connection) -> None:
        """Fetch by a cursor, a few rows at a time."""
        async with connection.transaction():
            rows = [row async for row in connection.cursor(_MINE, prefetch=7)]
        self._report.queries += 1
        self._report.left -= 1
        self._all(rows)

    async def _fail(self, connection: Connection) -> None:
        try:
            await self._ask(connection.fetch(f"SELECT tag::int FROM {TABLE}"))
        except asyncpg.InvalidTextRepresentationError as error:
            if self._user not in str(error):
                self._report.foreign.append(f"{self._user} was told {error}")

    async def _forge(self, connection: Connection) -> None:
        """Write another's name into the own claim, where the proxy can't see it."""
        forged = (
            "SELECT public.run_strangely(format('SET sluice.identity = %L',"
            " replace(current_setting('sluice.identity', true), $1, $2)))"
        )
        await self._ask(connection.fetch(forged, self._user, self._other))
        self._own(await self._ask(connection.fetch(_MINE)))

    async def _cancel(self, connection: Connection) -> None:
        """Lose patience within a result; asyncpg sends a cancel request then."""
        try:
            self._all(await self._ask(connection.fetch(_SLOW, timeout=self._dice.random() * 0.12 + 0.001)))
        except TimeoutError:
            self._report.done["cancelled"] += 1
        # Without a timeout: asyncpg closes a connection whose cancel isn't answered within that of the next query.
        await self._who(connection)

    async def _vanish(self, connection: Connection) -> None:
        """Cut the connection within a result, or within a transaction."""
        if self._dice.random() < 0.5:
            await self._ask(connection.execute("BEGIN"))
            await self._ask(connection.execute(f"INSERT INTO {TABLE} (tag) VALUES ('never committed')"))
        asking = asyncio.ensure_future(self._ask(connection.fetch(_SLOW)))
        await asyncio.sleep(self._dice.random() * 0.05)
        connection.terminate()
        self._connection = None
        await asyncio.gather(asking, return_exceptions=True)

    # -- what is looked at

    async def _ask(self, answer: Awaitable[Any]) -> Any:
        self._report.left -= 1
        self._report.queries += 1
        return await answer

    def _own(self, rows: Iterable[asyncpg.Record]) -> int:
        """Look whose rows they are; returns how many."""
        count = 0
        for row in rows:
            count += 1
            if row["owner"] != self._user or row["tag"] != self._user:
                self._report.foreign.append(f"{self._user} saw {row['owner']}: {row['tag']}")
        self._report.rows += count
        return count

    def _all(self, rows: Iterable[asyncpg.Record]) -> None:
        """Look also whether all of the user's own rows are there."""
        if (count := self._own(rows)) != ROWS:
            self._report.missing.append(f"{self._user} saw {count} rows of {ROWS}")


async def mingle(
    logins: Sequence[Login], queries: int, seed: int, progress: Callable[[Report], None] | None = None
) -> Report:
    """Let all users, whose logins these are, ask at once until so many queries were sent."""
    report = Report(queries)
    strangers = [Stranger(number, logins[number % USERS], seed, report) for number in range(USERS * SESSIONS)]

    async def tell() -> None:
        while progress is not None:
            await asyncio.sleep(2.0)
            progress(report)

    telling = asyncio.ensure_future(tell())
    try:
        await asyncio.gather(*(stranger.live() for stranger in strangers))
    finally:
        telling.cancel()
    return report


def keys(installation: Installation, proxy: Proxy) -> list[Login]:
    """Return a login for each user."""
    permissions = ["read:tasks", "write:tasks"]
    return [proxy.login(*installation.generate_key(user(number), permissions)) for number in range(USERS)]


def main() -> int:
    """Run the full size; return 1 where a row was seen that shouldn't be, or one was missing."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.strangers", description=__doc__)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    directory = scratch_directory("pgsluice-strangers-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        cluster = stack.enter_context(Cluster(directory / "postgresql"))
        installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
        installation.execute(*statements())
        installation.replicated()
        proxy = Proxy(installation, directory, PROXY)
        proxy.start()
        stack.callback(proxy.stop)
        started = time.monotonic()

        def progress(report: Report) -> None:
            seconds = time.monotonic() - started
            print(
                f"{report.queries} queries, {report.rows} rows, {len(report.foreign)} foreign,"
                f" {len(report.missing)} missing, {len(report.broken)} broken, {report.queries / seconds:.0f} a second",
                flush=True,
            )

        report = asyncio.run(mingle(keys(installation, proxy), arguments.queries, arguments.seed, progress))
        progress(report)
        if not report.sound:
            print(proxy.errors.read_text()[-4000:])
    for line in [*report.foreign, *report.missing, *report.broken][:50]:
        print(line)
    print(", ".join(f"{what}: {count}" for what, count in sorted(report.done.items())))
    return not report.sound


if __name__ == "__main__":
    sys.exit(main())
