"""Kill the primary under load, promote a replica, bring the old one back: python -m tests.drills.failover --help.

Two replicas, of which one has to confirm each commit, so that what was acknowledged survives. As a failover manager
would, the drill promotes the replica that received most. Who was told what is held against what is in the table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from proxy.embedded import Server
from tests.drills.chart import write_chart
from tests.drills.journal import (
    Act,
    Journal,
    Reckoning,
    failures,
    first,
    longest_gap,
    longest_wait,
    rates,
    reckon,
)
from tests.drills.load import LOGIN, LOOK, OWN_READ, READ, TABLES, TRANSACTION, WRITE, Load, Mix
from tests.drills.stage import (
    ANY_STANDBY,
    Promotion,
    Stage,
    configure,
    kill,
    most_advanced,
    pause_replay,
    promote,
    resume_replay,
    staged,
)
from tests.drills.verdicts import Verdict, below, count, print_verdicts, span, told, write_json
from tests.integration.support import DATABASE

SETTINGS: Final = {"synchronous_standby_names": ANY_STANDBY}
# The first replica may lag: what is acknowledged is on another.
LAST_REPLICA_FIRST: Final = 'FIRST 1 (replica3, replica2, "primary", replica1)'
MAX_LAG: Final = 2.0
WRITES_RESUME: Final = 2.0
LONGEST_READ_GAP: Final = 1.0


@dataclass(frozen=True)
class Script:
    """How long each part lasts, in seconds."""

    steady: float = 3.0
    without_primary: float = 2.0
    promoted: float = 4.0
    together: float = 7.0
    split_brain: bool = False
    # A replica stops replaying, for longer than max_lag, before clients' keys are made and the primary dies.
    lagging: bool = False


@dataclass
class Story:
    """What happened, when, in monotonic seconds, and what clients saw of it."""

    journal: Journal
    old: Server
    names: dict[int, str]
    began: float = 0.0
    killed: float = 0.0
    gone: float = 0.0
    promotion: Promotion | None = None
    resumed: float = 0.0  # when the replica that stood still was told to go on
    back: float = 0.0
    ended: float = 0.0
    rows: list[tuple[int, int]] = field(default_factory=list)
    # Rows that came to the old primary after it was killed; only where it was started again as it was.
    strayed: int | None = None
    # The replica that stood still from before the primary's death until another was promoted.
    lagging: Server | None = None

    @property
    def promoted(self) -> Promotion:
        """Return the promotion, which has happened."""
        assert self.promotion is not None
        return self.promotion

    def held(self, act: Act) -> bool:
        """Tell whether an act was under way while the primary died."""
        return act.during(self.killed, self.gone)

    @property
    def reckoning(self) -> Reckoning:
        """Return what is in the table, held against what clients were told."""
        return reckon(self.journal, self.rows)


async def play(stage: Stage, script: Script, mix: Mix, seed: int = 1) -> Story:
    """Run the script with the load on it."""
    installation, cluster = stage.installation, stage.cluster
    old = cluster.primary
    names = {server.port: server.name for server in cluster.servers}
    lagging = cluster.replicas[0] if script.lagging else None
    if lagging is not None:
        await asyncio.to_thread(pause_replay, installation, lagging)
    logins, unused = stage.logins(3), stage.logins(60, "visitor")
    if lagging is not None:
        await asyncio.sleep(MAX_LAG + 1.0)
    async with Load(logins, mix, unused, seed) as load:
        story = Story(load.journal, old, names, began=time.monotonic(), lagging=lagging)
        await asyncio.sleep(script.steady)
        story.killed, story.gone = await asyncio.to_thread(kill, old)
        await asyncio.sleep(script.without_primary)
        replicas = cluster.replicas
        candidates = [server for server in replicas if server is not lagging]
        chosen = await asyncio.to_thread(most_advanced, installation, candidates)
        others = [server for server in replicas if server is not chosen]
        if lagging is not None:
            # One that stands still can't follow another primary.
            story.resumed = time.monotonic()
            await asyncio.to_thread(resume_replay, installation, lagging)
        story.promotion = await asyncio.to_thread(promote, installation, chosen, others)
        await asyncio.sleep(script.promoted)
        load.woken.set()
        if script.split_brain:
            await asyncio.to_thread(old.start)
        else:
            await asyncio.to_thread(cluster.rebuild, old)
        story.back = time.monotonic()
        await asyncio.sleep(script.together)
        story.ended = time.monotonic()
    story.rows = stage.rows()
    if script.split_brain:
        story.strayed = await asyncio.to_thread(_strayed, stage, story)
    return story


def _strayed(stage: Stage, story: Story) -> int:
    """Count the rows on the old primary that clients began to write only after it was killed."""
    # What waits there for a standby that won't come shows only when it needn't wait any more.
    configure(stage.installation, story.old, synchronous_standby_names="")
    time.sleep(0.2)
    journal = story.journal
    acts = {**journal.acknowledged, **journal.in_doubt, **journal.refused}
    return sum(each not in acts or acts[each].began > story.gone for each in stage.rows(story.old))


def judge(story: Story, slack: float = 1.0) -> list[Verdict]:
    """Return what the drill is held to, and what is only told; `slack` stretches the times that are allowed."""
    journal, promotion, reckoning = story.journal, story.promoted, story.reckoning
    reads, writes = journal.of(READ), journal.of(WRITE)
    whole = journal.of(TRANSACTION, LOOK)
    resumed = first(writes, promotion.done)
    after = [act for act in journal.acts if not story.held(act)]
    held = [act for act in journal.acts if story.held(act)]
    since = [act for act in after if act.began >= story.killed]
    verdicts = [
        below("first write after the promotion", resumed and resumed - promotion.done, WRITES_RESUME * slack),
        Verdict("  of which until a standby followed", span(promotion.followed - promotion.done)),
        Verdict("longest gap between writes", span(longest_gap(writes, story.began, story.ended))),
        Verdict("longest wait of a write", span(longest_wait(writes))),
        below(
            "longest gap between reads",
            longest_gap(reads, story.killed, story.ended),
            LONGEST_READ_GAP * slack,
        ),
        Verdict("longest wait of a read", span(longest_wait(act for act in reads if not act.failed))),
        count("errors of who held nothing at the kill", sum(failures(after).values())),
        Verdict("  what they were", told(failures(after))),
        Verdict("statements and transactions begun since the kill", f"{len(since):,}"),
        Verdict("under way at the kill; failed of them", f"{len(held)}; {told(failures(held))}"),
        Verdict("reads that failed", told(failures(reads))),
        Verdict(
            "longest wait of a read of a session's own writes",
            span(longest_wait(act for act in journal.of(OWN_READ) if not act.failed)),
        ),
        Verdict("transactions; failed of them", f"{len(whole)}; {told(failures(whole))}"),
        Verdict("logins; failed of them", f"{len(journal.of(LOGIN))}; {told(failures(journal.of(LOGIN)))}"),
        Verdict("acknowledged writes", f"{len(journal.acknowledged):,}"),
        count("acknowledged writes that are lost", reckoning.lost),
        count("reads that missed their session's writes", len(journal.stale)),
        count("writes executed twice", reckoning.twice),
        count("refused writes that were executed", reckoning.refused_but_there),
        count("rows that nobody wrote", reckoning.unknown),
        Verdict("writes in doubt; executed of them", f"{reckoning.in_doubt}; {reckoning.in_doubt_there}"),
    ]
    if story.lagging is not None:
        late_reads = [
            act
            for act in journal.of(READ, OWN_READ, LOOK)
            if act.port == story.lagging.port and act.ended < story.resumed
        ]
        verdicts.append(count("reads that the replica served which stands still", len(late_reads)))
    on_old = [act for act in journal.of(READ, LOOK) if act.port == story.old.port and act.ended >= story.back]
    if story.strayed is not None:
        since_gone = [act for act in journal.acts if act.port == story.old.port and act.began > story.gone]
        verdicts += [
            count("writes that reached the old primary", story.strayed),
            count("reads and writes that it answered", len(since_gone)),
        ]
    else:
        again = min((act.ended for act in on_old), default=None)
        verdicts.append(
            Verdict(
                "the old primary, back as a replica, serves reads after", span(again and again - story.back)
            )
        )
    return verdicts


def as_data(story: Story) -> dict[str, Any]:
    """Return times since the beginning, and what was done in each 100 ms, for JSON."""
    promotion = story.promoted
    reads = story.journal.of(READ)
    moments = {
        "killed": story.killed,
        "gone": story.gone,
        "promotion_asked": promotion.asked,
        "promoted": promotion.done,
        "followed": promotion.followed,
        "old_one_back": story.back,
        "ended": story.ended,
    }
    return {
        "promoted": promotion.server.name,
        "moments": {name: round(moment - story.began, 3) for name, moment in moments.items()},
        "reads_per_second": rates(reads, story.began, story.ended),
        "reads_per_second_by_server": {
            name: rates([act for act in reads if act.port == port], story.began, story.ended)
            for port, name in story.names.items()
        },
        "writes_per_second": rates(story.journal.of(WRITE), story.began, story.ended),
        "failures": [
            {
                "session": act.session,
                "kind": act.kind,
                "began": round(act.began - story.began, 3),
                "ended": round(act.ended - story.began, 3),
                "failed": act.failed,
                "told": act.told,
                "held": story.held(act),
            }
            for act in story.journal.acts
            if act.failed
        ],
    }


def main() -> int:
    """Run the drill; returns 1 where a verdict is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.failover", description=__doc__)
    parser.add_argument("--split-brain", action="store_true", help="start the old primary again as it was")
    parser.add_argument(
        "--lagging-replica", action="store_true", help="one replica stands still when it happens"
    )
    parser.add_argument("--replicas", type=int, default=2, choices=(2, 3))
    parser.add_argument("--without-primary", type=float, default=2.0, help="seconds before the promotion (2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--png", type=Path, metavar="FILE", help="a chart of what was done in each 100 ms")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    script = Script(
        without_primary=options.without_primary,
        split_brain=options.split_brain,
        lagging=options.lagging_replica,
    )
    # With the default of 10 s it takes longer until a replica lags too much.
    changes = {"databases": {DATABASE: {"health": {"max_lag": f"{MAX_LAG:g}s"}}}} if script.lagging else {}
    settings = {"synchronous_standby_names": LAST_REPLICA_FIRST} if script.lagging else SETTINGS
    with staged(options.replicas, TABLES, settings, changes) as stage:
        story = asyncio.run(play(stage, script, Mix(), options.seed))
        said = stage.proxy.errors.read_text()
        tracebacks = stage.tracebacks()
    verdicts = [*judge(story), count("tracebacks in the proxy's log", len(tracebacks))]
    title = "the primary dies" + (" while a replica stands still" if options.lagging_replica else "")
    title += ", and comes back as if nothing had been" if options.split_brain else ""
    print_verdicts(title, verdicts, console)
    if options.json:
        write_json(options.json, "failover", verdicts, **as_data(story))
    if options.png:
        write_chart(as_data(story), options.png)
    good = all(each.good for each in verdicts)
    if not good:
        console.print(said[-4000:], markup=False, highlight=False)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
