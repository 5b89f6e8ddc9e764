"""Many clients over few server connections: nothing of one is seen by another.

`python -m tests.differential.thousand` lets 1,000 clients of four users share 5 server connections for a minute. Each
has an identity, parameters, a prepared statement and a channel of its own, all under the same names, looks again
and again whether what it sees is its own, and now and then pins a server connection for at most 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from tests.differential.client import Client
from tests.differential.script import Step, build
from tests.integration.support import DATABASE, Installation, Login, Proxy

SERVER_CONNECTIONS: Final = 5
USERS: Final = 4

PROXY: Final[dict[str, Any]] = {
    "access_log": {"sinks": []},
    "databases": {
        DATABASE: {
            "routing": {"enabled": False},
            "pool_defaults": {"acquire_timeout": "60s"},
            "pools": {"primary": {"min": SERVER_CONNECTIONS, "max": SERVER_CONNECTIONS}},
        }
    },
}
"""Changes to a test proxy's configuration."""

# At a time, so that the proxy's bound of connections that aren't logged in isn't reached.
_LOGINS: Final = 16
_PATIENCE: Final = 60.0
_LONGEST_PIN: Final = 0.1
_ZONES: Final = ("Asia/Tokyo", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Australia/Perth")
_TOO_MANY_PINS: Final = "53300"

_WHO_AM_I: Final = (
    "SELECT current_setting('app.mine', true), current_setting('TimeZone'), current_setting('application_name'),"
    " current_setting('work_mem'), sluice.current_user_id()"
)
_LEFT_BEHIND: Final = (
    "SELECT (SELECT count(*) FROM pg_listening_channels()), to_regclass('pg_temp.mine') IS NOT NULL,"
    " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
    " (SELECT count(*) FROM pg_cursors WHERE name <> '')"
)


@dataclass
class Report:
    """How often each thing was done, and what was seen that shouldn't have been."""

    done: Counter[str] = field(default_factory=Counter)
    seen: list[str] = field(default_factory=list)


class Visitor:
    """One of the clients: knows what is its own, and expects to see that alone."""

    def __init__(self, number: int, login: Login, report: Report) -> None:
        self._number = number
        self._login = login
        self._report = report
        self._dice = random.Random(number)
        self._mine = ("", "UTC", "", "4MB")
        self._user = _user(number)
        self._channel = f"channel_{number}"

    async def connect(self) -> None:
        """Log in."""
        self._client = await Client.connect(self._login, patience=_PATIENCE)
        self._client.transcript.take()

    async def visit(self, seconds: float) -> None:
        """Come back again and again, for so many seconds."""
        end = asyncio.get_running_loop().time() + seconds
        await self._begin_anew()
        acts = (self._look, self._execute, self._change, self._transaction, self._nothing_left, self._pin)
        while asyncio.get_running_loop().time() < end:
            act = self._dice.choices(acts, (4, 4, 2, 2, 2, 1))[0]
            self._report.done[act.__name__.strip("_")] += 1
            await act()
            await asyncio.sleep(self._dice.random() * 0.05)
        await self._client.close()

    async def _begin_anew(self) -> None:
        """Take parameters of our own, and a statement under the name that everybody uses."""
        self._mine = ("", "UTC", "", "4MB")
        await self._change()
        await self._steps(
            f"Parse s1 SELECT 'of {self._number}', $1::int, current_setting('app.mine')",
            "Parse p1 SELECT current_setting('TimeZone')",
            "Sync",
        )

    async def _change(self) -> None:
        value, zone = str(self._dice.randrange(10**9)), self._dice.choice(_ZONES)
        # An odd number of kB is told as it was said.
        memory = f"{2 * self._number + 101}kB"
        self._mine = (f"{self._number}:{value}", zone, f"visitor {self._number}", memory)
        mine, zone, name, _ = self._mine
        await self._run(
            f"SET app.mine = '{mine}'; SET TimeZone = '{zone}'; SET application_name = '{name}';"
            f" SET work_mem = '{memory}'"
        )

    async def _look(self) -> None:
        self._expect(await self._run(_WHO_AM_I), *self._mine, self._user)

    async def _execute(self) -> None:
        value = self._dice.randrange(1000)
        lines = await self._steps(f"Bind - s1 [{value}]", "Execute -", "Sync")
        self._expect(lines, f"of {self._number}", str(value), self._mine[0])
        self._expect(await self._steps("Bind - p1 []", "Execute -", "Sync"), self._mine[1])

    async def _transaction(self) -> None:
        await self._run("BEGIN")
        await self._run("SET LOCAL app.mine = 'for a moment'; SET TimeZone = 'Pacific/Fiji'")
        self._expect(await self._run(_WHO_AM_I), "for a moment", "Pacific/Fiji", *self._mine[2:], self._user)
        await self._run("ROLLBACK")
        await self._look()

    async def _nothing_left(self) -> None:
        self._expect(await self._run(_LEFT_BEHIND), "0", "f", "0", "0")

    async def _pin(self) -> None:
        """Keep a server connection for a moment, then give up all that is in it."""
        act = self._dice.choice((self._listen, self._temporary_table, self._advisory_lock))
        try:
            await act()
            self._report.done["pins"] += 1
        except _TooManyPins:
            self._report.done["pins refused (53300)"] += 1
        await self._run("DISCARD ALL")
        await self._begin_anew()

    async def _listen(self) -> None:
        await self._run(f"LISTEN {self._channel}")
        other = f"channel_{self._number + 1}"
        lines = await self._run(
            f"SELECT pg_notify('{self._channel}', 'mine'), pg_notify('{other}', 'of another')"
        )
        await self._linger()
        lines += await self._run("SELECT * FROM pg_listening_channels()")
        self._expect(lines[-3:], self._channel)

    async def _temporary_table(self) -> None:
        await self._run(f"CREATE TEMP TABLE mine AS SELECT {self._number} AS number")
        await self._linger()
        self._expect(await self._run("SELECT number FROM mine"), str(self._number))

    async def _advisory_lock(self) -> None:
        await self._run(f"SELECT pg_advisory_lock({self._number})")
        await self._linger()
        self._expect(
            await self._run(
                "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            ),
            str(self._number),
        )

    async def _linger(self) -> None:
        await asyncio.sleep(self._dice.random() * _LONGEST_PIN)

    async def _run(self, sql: str) -> list[str]:
        return self._checked(await self._client.run(sql), sql)

    async def _steps(self, *lines: str) -> list[str]:
        await self._client.perform(Step("a", [build(line) for line in lines], list(lines)))
        return self._checked(self._client.transcript.take(), lines[0])

    def _checked(self, lines: list[str], what: str) -> list[str]:
        for line in lines:
            if line.startswith(f"ErrorResponse ERROR {_TOO_MANY_PINS}"):
                raise _TooManyPins
            if line.startswith(("ErrorResponse", "(")):
                self._object(f"at {what}: {line}")
            if line.startswith("NotificationResponse") and line.split()[1] != self._channel:
                self._object(f"heard {line}")
        return lines

    def _expect(self, lines: list[str], *values: str) -> None:
        expected = f"DataRow {', '.join(map(repr, values))}"
        rows = [line for line in lines if line.startswith("DataRow")]
        if rows != [expected]:
            self._object(f"expected {expected}, got {rows}")

    def _object(self, text: str) -> None:
        self._report.seen.append(f"client {self._number}: {text}")


class _TooManyPins(Exception):
    """The pool's bound of pinned connections is reached."""


async def visits(logins: Sequence[Login], clients: int, seconds: float) -> Report:
    """Let so many clients come and go for so many seconds; `logins` are those of the users."""
    report = Report()
    visitors = [Visitor(number, logins[number % len(logins)], report) for number in range(clients)]
    turn = asyncio.Semaphore(_LOGINS)

    async def connect(visitor: Visitor) -> None:
        async with turn:
            await visitor.connect()

    await asyncio.gather(*map(connect, visitors))
    await asyncio.gather(*(visitor.visit(seconds) for visitor in visitors))
    return report


def _user(number: int) -> str:
    return f"visitor-{number % USERS}@example.com"


def keys(installation: Installation, proxy: Proxy) -> list[Login]:
    """Return a login for each of the users."""
    permissions = ["read:tasks", "write:tasks"]
    return [proxy.login(*installation.generate_key(_user(number), permissions)) for number in range(USERS)]


def main() -> int:
    """Run the full size; return 1 where something was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential.thousand", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 2 * arguments.clients + 1024), most))
    directory = scratch_directory("pgsluice-thousand-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        cluster = stack.enter_context(Cluster(directory / "postgresql", replicas=0))
        installation = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
        proxy = Proxy(installation, directory, PROXY)
        proxy.start()
        stack.callback(proxy.stop)
        report = asyncio.run(visits(keys(installation, proxy), arguments.clients, arguments.seconds))
    for line in report.seen[:50]:
        print(line)
    print(", ".join(f"{what}: {count}" for what, count in sorted(report.done.items())))
    print(
        f"{arguments.clients} clients, {arguments.seconds:.0f} s: {len(report.seen)} that should not be seen"
    )
    return bool(report.seen)


if __name__ == "__main__":
    sys.exit(main())
