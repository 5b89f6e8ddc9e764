"""The access log while its table is away and the proxy is restarted: one record for each statement, no more, no less.

Two clusters: one holds the log, the other what clients ask. The first is stopped for a while, and within that time the
proxy is ended with SIGTERM and started again. In the end what the log has is compared with what clients were answered.
With --kill the proxy is killed instead, and what is missing has to be of the last flush_interval.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
from rich.console import Console

from proxy.embedded import Cluster, scratch_directory
from proxy.setup import setup
from tests.drills.verdicts import Verdict, count, print_verdicts, write_json
from tests.integration.support import DATABASE, Installation, Login, Proxy, wait_until

WORK: Final = "work"
FLUSH_INTERVAL: Final = 0.5
# What a record needs beside the interval to be on disk: the loop's turn, and the write.
_SLACK: Final = 0.25
_AGAIN: Final = 0.05
_ENDED: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


@dataclass(frozen=True)
class Script:
    """What happens when, in seconds from the beginning; `statements` are asked at least, however long that takes."""

    statements: int = 100_000
    clients: int = 32
    stopped_at: float = 2.0
    restarted_at: float = 10.0
    back_at: float = 22.0


@dataclass
class Asked:
    """What one client asked: when it was answered, and how many statements it doesn't know the end of."""

    name: str
    answered: list[float] = field(default_factory=list)
    in_doubt: int = 0


@dataclass
class Rig:
    """The log's cluster, the other one, and the proxy in front of both."""

    log: Installation
    proxy: Proxy
    login: Login

    def records(self) -> dict[str, int]:
        """Return the number of records of statements, by application_name."""
        with self.log.superuser().connect() as connection:
            return dict(
                connection.execute(
                    "SELECT application_name, count(*) FROM sluice.api_access_logs"
                    " WHERE event = 'statement' AND database = %s GROUP BY 1",
                    (WORK,),
                ).fetchall()
            )


@contextmanager
def rig() -> Iterator[Rig]:
    """Start both clusters and the proxy; stop them in the end."""
    directory = scratch_directory("pgsluice-drill-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        installed = []
        for name in ("log", WORK):
            cluster = stack.enter_context(Cluster(directory / name, replicas=0))
            installed.append(Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords))
        log, work = installed
        proxy = Proxy(log, directory, {"databases": {WORK: _database(work)}, "access_log": _ACCESS_LOG})
        proxy.start()
        stack.callback(lambda: proxy.stop() if proxy.process.poll() is None else None)
        key_id, key = work.generate_key("drill@example.com", ["read:tasks"])
        yield Rig(log, proxy, Login("127.0.0.1", proxy.port, key_id, key, WORK))


_ACCESS_LOG: Final = {"sinks": ["table"], "flush_interval": f"{FLUSH_INTERVAL}s"}


def _database(installation: Installation) -> dict[str, Any]:
    def pool(user: str, **sizes: int) -> dict[str, Any]:
        return {"user": user, "password": installation.passwords[user], **sizes}

    port = installation.cluster.primary.port
    return {
        "database": DATABASE,
        "control": pool("sluice_control"),
        "hosts": [{"name": "work", "host": "127.0.0.1", "port": port}],
        "pools": {"primary": pool("app_rw", min=1, max=4), "readonly": pool("app_ro", min=4, max=16)},
    }


async def play(rig: Rig, script: Script) -> list[Asked]:
    """Play it; returns what each client asked."""
    asked = [Asked(f"client {number}") for number in range(script.clients)]
    began = time.monotonic()
    done = asyncio.Event()
    clients = [asyncio.create_task(_ask(rig.login, each, done)) for each in asked]
    for at, step in (
        (script.stopped_at, rig.log.cluster.primary.stop),
        (script.restarted_at, lambda: _restart(rig.proxy)),
        (script.back_at, rig.log.cluster.primary.start),
    ):
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        await asyncio.to_thread(step)
    while sum(len(each.answered) for each in asked) < script.statements:
        await asyncio.sleep(0.1)
    done.set()
    await asyncio.gather(*clients)
    return asked


async def play_kill(rig: Rig, seconds: float, table_is_away: bool, clients: int) -> tuple[list[Asked], float]:
    """Kill the proxy under load, start it again; returns what was asked, and when it was killed."""
    asked = [Asked(f"client {number}") for number in range(clients)]
    done = asyncio.Event()
    tasks = [asyncio.create_task(_ask(rig.login, each, done)) for each in asked]
    if table_is_away:
        await asyncio.to_thread(rig.log.cluster.primary.stop)
    await asyncio.sleep(seconds)
    killed = time.monotonic()
    rig.proxy.process.kill()
    done.set()
    await asyncio.gather(*tasks)
    await asyncio.to_thread(rig.proxy.process.wait)
    if table_is_away:
        await asyncio.to_thread(rig.log.cluster.primary.start)
    await asyncio.to_thread(rig.proxy.start)
    return asked, killed


def _restart(proxy: Proxy) -> None:
    proxy.stop()
    proxy.start()


async def _ask(login: Login, asked: Asked, done: asyncio.Event) -> None:
    """Ask one statement after another until it is done, half of them prepared; log in again where that is needed."""
    settings = {"application_name": asked.name}
    while not done.is_set():
        try:
            connection = await asyncpg.connect(
                **login.for_asyncpg(), server_settings=settings, timeout=5.0, command_timeout=20.0
            )
        except _ENDED:
            await asyncio.sleep(_AGAIN)
            continue
        try:
            while not done.is_set():
                if len(asked.answered) % 2:
                    await connection.fetchval("SELECT $1::int", 1)
                else:
                    await connection.execute("SELECT 1")
                asked.answered.append(time.monotonic())
        except _ENDED:
            # Perhaps while nothing was asked.
            asked.in_doubt += 1
        finally:
            connection.terminate()


def judge(rig: Rig, asked: Sequence[Asked]) -> list[Verdict]:
    """Compare the log with what clients know; waits until the log has what it is to have."""
    answered = sum(len(each.answered) for each in asked)
    wait_until(lambda: sum(rig.records().values()) >= answered, 60.0, "the records arrive")
    time.sleep(2 * FLUSH_INTERVAL)
    found = rig.records()
    missing = sum(max(0, len(each.answered) - found.get(each.name, 0)) for each in asked)
    extra = sum(max(0, found.get(each.name, 0) - len(each.answered) - each.in_doubt) for each in asked)
    return [
        Verdict("statements that were answered", f"{answered:,}"),
        Verdict("statements whose end clients don't know", f"{sum(each.in_doubt for each in asked):,}"),
        count("of those that were answered, without a record", missing),
        count("records too many", extra),
    ]


def judge_kill(rig: Rig, asked: Sequence[Asked], killed: float) -> list[Verdict]:
    """Look that what is missing was answered within the last flush_interval."""
    time.sleep(4 * FLUSH_INTERVAL)
    found = rig.records()
    answered = sum(len(each.answered) for each in asked)
    missing = sum(max(0, len(each.answered) - found.get(each.name, 0)) for each in asked)
    since = killed - FLUSH_INTERVAL - _SLACK
    early = sum(max(0, sum(at < since for at in each.answered) - found.get(each.name, 0)) for each in asked)
    extra = sum(max(0, found.get(each.name, 0) - len(each.answered) - each.in_doubt) for each in asked)
    return [
        Verdict("statements that were answered", f"{answered:,}"),
        Verdict("records that are missing", f"{missing:,}"),
        count(f"of these, answered more than {FLUSH_INTERVAL:g} s before", early),
        count("records too many", extra),
    ]


def main() -> int:
    """Run the drill; returns 1 where a verdict is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.access_log", description=__doc__)
    parser.add_argument("--kill", action="store_true", help="kill the proxy, with the table there and away")
    parser.add_argument("--statements", type=int, default=100_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    verdicts: list[Verdict] = []
    with rig() as ready:
        if options.kill:
            for away in (False, True):
                asked, killed = asyncio.run(play_kill(ready, 5.0, away, clients=32))
                found = judge_kill(ready, asked, killed)
                print_verdicts(f"killed, the table {'away' if away else 'there'}", found, console)
                verdicts += found
                ready.log.execute("TRUNCATE sluice.api_access_logs")
        else:
            asked = asyncio.run(play(ready, Script(statements=options.statements)))
            verdicts = judge(ready, asked)
            print_verdicts(
                "the log's table is away for 20 s, the proxy is restarted meanwhile", verdicts, console
            )
    if options.json:
        write_json(options.json, "access_log", verdicts)
    return 0 if all(each.good for each in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
