"""What clients see of each fault that a host can have: python -m tests.drills.faults --help.

A primary and a replica, each reached by the proxy through a relay that can drop packets or refuse connections. Nobody
promotes anything where the drill doesn't say so: writes then wait, and are refused when they have waited enough.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.drills.journal import Act, Journal, failures, longest_wait, reckon
from tests.drills.load import LOGIN, OWN_READ, READ, TABLES, WRITE, Load, Mix
from tests.drills.stage import Promotion, Stage, kill, pause_replay, promote, resume_replay, staged
from tests.drills.verdicts import Verdict, below, count, span, told, write_json

MAX_LAG: Final = 2.0
CHANGES: Final[dict[str, Any]] = {"databases": {"app": {"health": {"max_lag": f"{MAX_LAG:g}s"}}}}
MIX: Final = Mix(writers=4, readers=4, keepers=2, transactors=0, lookers=0, sleepers=0, pause=0.03)
STEADY: Final = 2.0
STRIKES: Final = 0.1
"""Seconds that it takes until a fault that ends connections has ended them all."""

OBSERVED: Final = 8.0
"""Seconds after the end of a fault."""

NORMAL_WAIT: Final = 0.5
"""What takes longer, in seconds, isn't back to normal."""

NORMAL_WITHIN: Final = 7.0
"""After the fault ended: a host that failed is asked again after `retry_after`, 5 s, and has to answer."""

_NOTICED: Final = 5.0
"""Seconds until a silent host counts as down: `failures_to_open` times `interval`, and two rounds more."""

_NO_HOST: Final = frozenset({"57P03", "08006"})
_SILENCE: Final = frozenset({"57P03", "08006", "cut off"})


@dataclass(frozen=True)
class Fault:
    """A fault, how it begins and ends, and what may come of it for clients that held nothing when it began."""

    name: str
    title: str
    begin: Callable[[Stage], object]
    end: Callable[[Stage], object]
    lasts: float
    reads_may_fail: frozenset[str] = frozenset()
    writes_may_fail: frozenset[str] = frozenset()
    logins_may_fail: bool = False
    longest_read: float = 1.0
    longest_write: float = 1.0


@dataclass
class Outcome:
    """What clients saw of a fault; monotonic seconds."""

    fault: Fault
    journal: Journal
    began: float
    ended: float
    names: dict[int, str]
    rows: dict[str, list[tuple[int, int]]]

    def of(self, *kinds: str) -> list[Act]:
        """Return the acts of these kinds that ended after the fault had begun."""
        return [act for act in self.journal.of(*kinds) if act.ended >= self.began]

    @property
    def normal_after(self) -> float | None:
        """Return how long after the end of the fault nothing failed or waited any more, None if that didn't come.

        What served reads before has to serve them again, too.
        """
        last = self.journal.acts[-1].ended
        times = [act.ended for act in self.journal.acts if act.failed or act.wait > NORMAL_WAIT]
        times += [self._serves_again(port) for port in self._served_before()]
        worst = max([self.ended, *(time for time in times if time >= self.ended)])
        return None if worst > last - 0.5 else worst - self.ended

    def _served_before(self) -> set[int]:
        ports = Counter(act.port for act in self.journal.of(READ) if act.ended < self.began)
        # The first reads may all go to the primary, before the monitor knows what the replica has.
        return {port for port, number in ports.items() if number > 0.2 * ports.total()}

    def _serves_again(self, port: int) -> float:
        times = [act.ended for act in self.journal.of(READ) if act.port == port and act.ended >= self.ended]
        return min(times, default=float("inf"))


# -- the faults


def _silence(name: str) -> Callable[[Stage], None]:
    return lambda stage: stage.relays[name].silence()


def _refuse(name: str) -> Callable[[Stage], None]:
    return lambda stage: stage.relays[name].refuse()


def _heal(name: str) -> Callable[[Stage], None]:
    return lambda stage: stage.relays[name].heal()


def _kill_all(stage: Stage) -> None:
    for server in stage.cluster.servers:
        kill(server)


def _start_all(stage: Stage) -> None:
    for server in stage.cluster.servers:
        server.start()


def _promote(stage: Stage) -> Promotion:
    return promote(stage.installation, stage.cluster.replicas[0])


def _make_former_primary_a_replica(stage: Stage) -> None:
    former = stage.cluster.replicas[0]
    former.stop()
    stage.cluster.rebuild(former)


FAULTS: Final = (
    Fault(
        "replica-killed",
        "a replica is killed, and starts again",
        lambda stage: kill(stage.cluster.replicas[0]),
        lambda stage: stage.cluster.replicas[0].start(),
        4.0,
    ),
    Fault(
        "replica-lags",
        f"a replica stops replaying, max_lag is {MAX_LAG:g} s",
        lambda stage: pause_replay(stage.installation, stage.cluster.replicas[0]),
        lambda stage: resume_replay(stage.installation, stage.cluster.replicas[0]),
        MAX_LAG + 4.0,
    ),
    Fault(
        "replica-silent",
        "the network drops what goes to and from a replica",
        _silence("replica1"),
        _heal("replica1"),
        8.0,
        longest_read=_NOTICED,
    ),
    Fault(
        "primary-silent",
        "the network drops what goes to and from the primary",
        _silence("primary"),
        _heal("primary"),
        12.0,
        writes_may_fail=_SILENCE,
        longest_read=_NOTICED,
        longest_write=6.5,
    ),
    Fault(
        "primary-refuses",
        "the primary resets and refuses connections",
        _refuse("primary"),
        _heal("primary"),
        8.0,
        writes_may_fail=_NO_HOST,
        longest_write=6.5,
    ),
    Fault(
        "primary-restarted",
        "the primary is restarted (pg_ctl restart -m fast)",
        lambda stage: stage.cluster.primary.stop(),
        lambda stage: stage.cluster.primary.start(),
        0.0,
        longest_write=3.0,
    ),
    Fault(
        "all-gone",
        "all hosts are killed, and start again",
        _kill_all,
        _start_all,
        8.0,
        reads_may_fail=_NO_HOST,
        writes_may_fail=_NO_HOST,
        logins_may_fail=True,
        longest_read=6.5,
        longest_write=6.5,
    ),
    Fault(
        "split-brain",
        "a replica is promoted while the primary lives; the former primary becomes its replica",
        _promote,
        _make_former_primary_a_replica,
        6.0,
        # A write that is under way on the former primary when that is dismissed.
        writes_may_fail=frozenset({"08006", "cut off"}),
        longest_write=2.0,
    ),
)


async def play(
    stage: Stage, fault: Fault, mix: Mix = MIX, steady: float = STEADY, observed: float = OBSERVED
) -> Outcome:
    """Let a fault come and go with the load on it, `steady` seconds before and `observed` after; returns what came."""
    stage.installation.execute("TRUNCATE public.drill_writes")
    names = {server.port: server.name for server in stage.cluster.servers}
    everything = steady + fault.lasts + observed + 10.0
    logins, unused = stage.logins(2), stage.logins(int(everything * 2) + 1, "visitor")
    async with Load(logins, mix, unused) as load:
        await asyncio.sleep(steady)
        began = time.monotonic()
        await asyncio.to_thread(fault.begin, stage)
        await asyncio.sleep(fault.lasts)
        await asyncio.to_thread(fault.end, stage)
        ended = time.monotonic()
        await asyncio.sleep(observed)
    rows = {server.name: stage.rows(server) for server in stage.cluster.servers[:1]}
    return Outcome(fault, load.journal, began, ended, names, rows)


def judge(outcome: Outcome, slack: float = 1.0) -> list[Verdict]:
    """Return what a fault is held to; `slack` stretches the times that are allowed."""
    fault, journal = outcome.fault, outcome.journal
    writes, logins = outcome.of(WRITE), outcome.of(LOGIN)
    # While the primary is away nobody knows whether a replica has what a session wrote a moment ago.
    own = outcome.of(OWN_READ)
    # Who waited for an answer when the fault began may be told that it won't come; a read is asked again.
    held_nothing = [act for act in writes if act.began > outcome.began + STRIKES]
    (rows,) = outcome.rows.values()
    reckoning = reckon(journal, rows)
    verdicts = [
        count("reads that failed", _beyond(outcome.of(READ), fault.reads_may_fail)),
        count("reads of own writes that failed without a reason", _beyond(own, fault.writes_may_fail)),
        below("longest wait of a read", longest_wait(outcome.of(READ)), fault.longest_read * slack),
        count("writes that failed without a reason", _beyond(held_nothing, fault.writes_may_fail)),
        below("longest wait of a write", longest_wait(writes), fault.longest_write * slack),
        below("back to normal after", outcome.normal_after, NORMAL_WITHIN * slack),
        count("writes executed twice", reckoning.twice),
        count("refused writes that were executed", reckoning.refused_but_there),
    ]
    if fault.name == "split-brain":
        # What was written to the former primary is gone with it, but there is no way back and forth.
        verdicts.append(count("writes to the former primary behind one to the new", _back_and_forth(outcome)))
    else:
        verdicts.append(count("acknowledged writes that are lost", reckoning.lost))
        verdicts.append(count("reads that missed their session's writes", len(journal.stale)))
    if not fault.logins_may_fail:
        verdicts.append(count("logins that failed", sum(failures(logins).values())))
    if fault.name == "replica-lags":
        verdicts.append(count("reads of the replica while it lagged", _lagging_reads(outcome)))
    return verdicts


def _beyond(acts: Sequence[Act], allowed: frozenset[str]) -> int:
    return sum(number for state, number in failures(acts).items() if state not in allowed)


def _lagging_reads(outcome: Outcome) -> int:
    """Count reads from the replica when it had long been behind by more than max_lag."""
    late = outcome.began + MAX_LAG + 2.0
    return sum(
        outcome.names.get(act.port) == "replica1" and act.began > late and act.ended < outcome.ended - 0.1
        for act in outcome.of(READ)
    )


def _back_and_forth(outcome: Outcome) -> int:
    """Count writes that the former primary took after the new one had acknowledged its first."""
    writes = [act for act in outcome.of(WRITE) if act.port]
    (new,) = outcome.rows
    first = min((act.ended for act in writes if outcome.names[act.port] == new), default=outcome.ended)
    return sum(outcome.names[act.port] != new and act.began > first for act in writes)


# -- telling

COLUMNS: Final = (
    "fault",
    "reads ok / failed",
    "longest wait of a read",
    "writes ok / failed",
    "longest wait of a write",
    "SQLSTATEs",
    "normal again after",
    "logins ok / failed",
)


def cells(outcome: Outcome) -> list[str]:
    """Return a fault's row of the table."""
    reads, writes, logins = outcome.of(READ, OWN_READ), outcome.of(WRITE), outcome.of(LOGIN)
    return [
        outcome.fault.title,
        _share(reads),
        span(longest_wait(outcome.of(READ))),
        _share(writes),
        span(longest_wait(writes)),
        told(failures([*reads, *writes, *logins])),
        span(outcome.normal_after),
        _share(logins),
    ]


def _share(acts: Sequence[Act]) -> str:
    failed = sum(failures(acts).values())
    return f"{len(acts) - failed:,} / {failed:,}"


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table as the README shows it."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(outcome) for outcome in outcomes)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run the faults; returns 1 where a verdict is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.faults", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS], metavar="FAULT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--readme", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    outcomes: list[Outcome] = []
    verdicts: dict[str, list[Verdict]] = {}
    with staged(1, TABLES, changes=CHANGES, relayed=True) as stage:
        for fault in FAULTS:
            if options.only and fault.name not in options.only:
                continue
            with console.status(fault.title):
                outcomes.append(asyncio.run(play(stage, fault)))
            verdicts[fault.name] = judge(outcomes[-1])
        tracebacks = stage.tracebacks()
        verdicts["the proxy"] = [count("tracebacks in its log", len(tracebacks))]
    table = Table(*COLUMNS)
    for outcome in outcomes:
        table.add_row(*cells(outcome))
    console.print(table)
    missed = [(name, each) for name, group in verdicts.items() for each in group if not each.good]
    for name, each in missed:
        console.print(f"[bold red]missed[/]: {name}: {each.what}: {each.figure}, must be {each.wanted}")
    for traceback in tracebacks:
        console.print(traceback, markup=False, highlight=False)
    if options.readme:
        print(as_markdown(outcomes))
    if options.json:
        table_rows = [dict(zip(COLUMNS, cells(outcome), strict=True)) for outcome in outcomes]
        every = [
            Verdict(f"{name}: {each.what}", each.figure, each.wanted, each.good)
            for name, group in verdicts.items()
            for each in group
        ]
        write_json(
            options.json, "faults", every, faults=table_rows, errors=[_errors(each) for each in outcomes]
        )
    return 1 if missed else 0


def _errors(outcome: Outcome) -> dict[str, Any]:
    """Return the first of a fault's errors of each kind, for who looks for reasons."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for act in outcome.journal.acts:
        if act.failed:
            seen.setdefault(
                (act.kind, act.failed),
                {
                    "session": act.session,
                    "kind": act.kind,
                    "failed": act.failed,
                    "told": act.told,
                    "began": round(act.began - outcome.began, 3),
                    "ended": round(act.ended - outcome.began, 3),
                },
            )
    lasted = round(outcome.ended - outcome.began, 3)
    return {"fault": outcome.fault.name, "lasted": lasted, "first_errors": list(seen.values())}


if __name__ == "__main__":
    sys.exit(main())
