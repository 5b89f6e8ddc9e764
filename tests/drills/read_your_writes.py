"""Write and then read it, 10,000 times, with a replica that lags: python -m tests.drills.read_your_writes --help.

Each session has a row of its own. It changes that in autocommit mode, thinks for a while, and reads it: what it reads
must be what it wrote. The replica has no delay, then applies everything two seconds late, then stands still and goes on
in turns; and each time other sessions, which only read, may be shown what is old.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tests.drills.clients import Client, Failed, connect
from tests.drills.stage import Stage, configure, staged
from tests.drills.verdicts import Verdict, count, write_json
from tests.integration.support import Login

SESSIONS: Final = 50
READERS: Final = 4
PAIRS: Final = 10_000
DELAY: Final = 2.0
PAUSED: Final = 3.0
"""Seconds that the replica stands still, and then that it doesn't, in turns."""

TABLES: Final = (
    "CREATE TABLE public.drill_own (session int PRIMARY KEY, value int NOT NULL)",
    "INSERT INTO public.drill_own SELECT i, 0 FROM generate_series(0, 999) AS i",
    "GRANT SELECT, UPDATE ON public.drill_own TO sluice_readwrite",
    "GRANT SELECT ON public.drill_own TO sluice_readonly",
)
_CHANGE: Final = "UPDATE public.drill_own SET value = {1} WHERE session = {0}"
_READ: Final = "SELECT value, pg_is_in_recovery() FROM public.drill_own WHERE session = {0}"
_READER_PAUSE: Final = 0.05

# How long a session thinks between its write and its read: the shares, and seconds from and to.
THINKS: Final = ((0.4, 0.0, 0.0), (0.2, 0.0, 0.05), (0.2, 0.05, 0.5), (0.2, 0.5, 1.5))
# Long enough for a replica that applies what is DELAY old.
THINKS_LONG: Final = ((0.5, 0.0, 0.0), (0.2, 0.0, 0.1), (0.2, 0.1, 1.0), (0.1, 2.0, 4.5))


@dataclass
class Seen:
    """What came of one setting."""

    pairs: int = 0
    from_replica: int = 0
    stale: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    readers: int = 0
    readers_from_replica: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """Return the share of the sessions' reads that the replica served."""
        return self.from_replica / max(self.pairs, 1)

    @property
    def readers_share(self) -> float:
        """Return the share that the replica served of the reads of sessions that write nothing."""
        return self.readers_from_replica / max(self.readers, 1)


Setting = Callable[[Stage], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def without_delay(stage: Stage) -> AsyncIterator[None]:
    """Leave the replica as it is."""
    yield


@asynccontextmanager
async def with_delay(stage: Stage) -> AsyncIterator[None]:
    """Let the replica apply everything late."""
    replica = stage.cluster.replicas[0]
    await asyncio.to_thread(
        configure, stage.installation, replica, recovery_min_apply_delay=f"{DELAY * 1000:.0f}ms"
    )
    yield
    await asyncio.to_thread(configure, stage.installation, replica, recovery_min_apply_delay="0")


@asynccontextmanager
async def with_pauses(stage: Stage) -> AsyncIterator[None]:
    """Let the replica stand still and go on in turns."""
    with stage.installation.superuser(stage.cluster.replicas[0]).connect() as replica:

        async def pause_and_resume() -> None:
            while True:
                replica.execute("SELECT pg_wal_replay_pause()")
                await asyncio.sleep(PAUSED)
                replica.execute("SELECT pg_wal_replay_resume()")
                await asyncio.sleep(PAUSED)

        task = asyncio.ensure_future(pause_and_resume())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        replica.execute("SELECT pg_wal_replay_resume()")


SETTINGS: Final[dict[str, tuple[Setting, Sequence[tuple[float, float, float]]]]] = {
    "no delay": (without_delay, THINKS),
    f"recovery_min_apply_delay = {DELAY:g}s": (with_delay, THINKS_LONG),
    f"replay paused for {PAUSED:g} s, resumed for {PAUSED:g} s": (with_pauses, THINKS),
}


async def play(
    stage: Stage,
    setting: Setting,
    thinks: Sequence[tuple[float, float, float]],
    pairs: int,
    sessions: int = SESSIONS,
    seed: int = 1,
) -> Seen:
    """Let so many sessions write and read so many pairs in all; returns what they saw."""
    seen = Seen()
    logins = stage.logins(3)
    started = time.monotonic()
    async with setting(stage):
        # What the replica has is applied late from here on, also what was there before.
        readers = [
            asyncio.ensure_future(_read_only(logins[number % 3], number, seen)) for number in range(READERS)
        ]
        shares = [pairs // sessions + (number < pairs % sessions) for number in range(sessions)]
        await asyncio.gather(
            *(
                _write_and_read(logins[number % 3], number, share, thinks, seed, seen)
                for number, share in enumerate(shares)
            )
        )
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    seen.seconds = time.monotonic() - started
    return seen


async def _write_and_read(
    login: Login,
    number: int,
    pairs: int,
    thinks: Sequence[tuple[float, float, float]],
    seed: int,
    seen: Seen,
) -> None:
    dice = random.Random(f"{seed}:{number}")
    shares = [share for share, _, _ in thinks]
    client = await connect(login, simple=number % 2 == 0)
    (value, _) = await client.ask(_READ, number)
    try:
        for _ in range(pairs):
            value += 1
            ((_, shortest, longest),) = dice.choices(thinks, shares)
            await _change(client, number, value, explicitly=dice.random() < 0.2)
            await asyncio.sleep(dice.uniform(shortest, longest))
            (found, replica) = await client.ask(_READ, number)
            seen.pairs += 1
            seen.from_replica += replica
            if found != value:
                seen.stale.append(f"session {number} wrote {value} and read {found}, replica: {replica}")
    except Failed as failure:
        seen.failed.append(f"session {number}: {failure}")
    await client.close()


async def _change(client: Client, number: int, value: int, explicitly: bool) -> None:
    if explicitly:
        await client.ask("BEGIN")
    await client.ask(_CHANGE, number, value)
    if explicitly:
        await client.ask("COMMIT")


async def _read_only(login: Login, number: int, seen: Seen) -> None:
    client = await connect(login, simple=number % 2 == 0)
    try:
        while True:
            (_, replica) = await client.ask(_READ, number)
            seen.readers += 1
            seen.readers_from_replica += replica
            await asyncio.sleep(_READER_PAUSE)
    except Failed as failure:
        seen.failed.append(f"reader {number}: {failure}")
    finally:
        await client.close()


def judge(name: str, seen: Seen, pairs: int) -> list[Verdict]:
    """Return what a setting is held to."""
    return [
        count(f"{name}: reads that missed their session's write", len(seen.stale)),
        count(f"{name}: failures", len(seen.failed)),
        Verdict(f"{name}: pairs", f"{seen.pairs:,}", f"{pairs:,}", seen.pairs == pairs),
        Verdict(f"{name}: share of the reads that the replica served", f"{seen.share:.1%}"),
        # Without such reads there would have been nothing to miss a write.
        Verdict(
            f"{name}: share of the reads of sessions that don't write",
            f"{seen.readers_share:.1%}",
            "> 0",
            seen.readers_from_replica > 0,
        ),
    ]


COLUMNS: Final = (
    "replica",
    "pairs",
    "stale reads",
    "own reads from the replica",
    "others' reads from it",
    "s",
)


def cells(name: str, seen: Seen) -> list[str]:
    """Return a setting's row of the table."""
    return [
        name,
        f"{seen.pairs:,}",
        f"{len(seen.stale):,}",
        f"{seen.share:.1%}",
        f"{seen.readers_share:.1%}",
        f"{seen.seconds:.0f}",
    ]


def main() -> int:
    """Run all settings; returns 1 where a read was stale, or anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.read_your_writes", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"in all settings together ({PAIRS:,})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(*COLUMNS)
    verdicts: list[Verdict] = []
    share, rest = divmod(options.pairs, len(SETTINGS))
    with staged(1, TABLES) as stage:
        for place, (name, (setting, thinks)) in enumerate(SETTINGS.items()):
            pairs = share + (place < rest)
            with console.status(name):
                seen = asyncio.run(play(stage, setting, thinks, pairs, seed=options.seed))
            table.add_row(*cells(name, seen))
            verdicts += judge(name, seen, pairs)
            for line in [*seen.stale, *seen.failed][:10]:
                console.print(f"{name}: {line}", markup=False)
    console.print(table)
    for each in verdicts:
        if not each.good:
            console.print(f"[bold red]missed[/]: {each.what}: {each.figure}, must be {each.wanted}")
    if options.json:
        write_json(options.json, "read_your_writes", verdicts)
    return 0 if all(each.good for each in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
