"""The drills in a small form: servers die and come back under load. `make drill` is the full size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.drills import failover, faults, read_your_writes
from tests.drills.load import TABLES, Mix
from tests.drills.stage import ANY_STANDBY, Stage, staged
from tests.drills.verdicts import Verdict
from tests.integration.support import DATABASE, Proxy

pytestmark = pytest.mark.long

# Hosts that failed are asked again soon, so that the tests needn't wait for it.
_HEALTH: Final[dict[str, Any]] = {"health": {"retry_after": "1s", "max_lag": "2s"}}
# Other tests run beside these, so their times say less than the drills'.
_SLACK: Final = 3.0
_MIX: Final = Mix(writers=4, readers=4, keepers=2, transactors=2, lookers=1, sleepers=2)
_THINKS: Final = ((0.5, 0.0, 0.0), (0.4, 0.0, 0.1), (0.1, 0.2, 0.8))


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Give a primary and two replicas of these tests' own, of which one has to confirm each commit."""
    tables = (*TABLES, *read_your_writes.TABLES)
    settings = {"synchronous_standby_names": ANY_STANDBY}
    with staged(2, tables, settings, {"databases": {DATABASE: _HEALTH}}) as ready:
        yield ready
        assert ready.tracebacks() == []


def missed(verdicts: list[Verdict]) -> list[str]:
    return [f"{each.what}: {each.figure}, must be {each.wanted}" for each in verdicts if not each.good]


async def test_sessions_read_what_they_wrote_while_replicas_stand_still_in_turns(stage: Stage) -> None:
    seen = await read_your_writes.play(stage, read_your_writes.with_pauses, _THINKS, 400, sessions=20)
    assert missed(read_your_writes.judge("paused", seen, 400)) == []


async def test_the_drill_finds_stale_reads_where_they_are_allowed(stage: Stage, tmp_path: Path) -> None:
    changes = {"databases": {DATABASE: {"routing": {"read_your_writes": False}}}}
    careless = Proxy(stage.installation, tmp_path, changes)
    careless.start()
    try:
        allowed = Stage(stage.installation, careless)
        seen = await read_your_writes.play(allowed, read_your_writes.with_pauses, _THINKS, 200, sessions=20)
    finally:
        careless.stop()
    assert seen.stale


async def test_nobody_sees_an_error_when_a_replica_is_killed(stage: Stage) -> None:
    (fault,) = (each for each in faults.FAULTS if each.name == "replica-killed")
    outcome = await faults.play(stage, replace(fault, lasts=1.0), steady=1.5, observed=3.0)
    assert missed(faults.judge(outcome, _SLACK)) == []


async def test_who_holds_nothing_sees_no_error_when_the_primary_is_restarted(stage: Stage) -> None:
    (fault,) = (each for each in faults.FAULTS if each.name == "primary-restarted")
    outcome = await faults.play(stage, fault, steady=1.5, observed=2.5)
    assert missed(faults.judge(outcome, _SLACK)) == []


@pytest.mark.parametrize("split_brain", [False, True], ids=["rebuilt", "split brain"])
async def test_a_failover_loses_no_write_and_repeats_none(stage: Stage, split_brain: bool) -> None:
    stage.installation.execute("TRUNCATE public.drill_writes")
    script = failover.Script(1.0, without_primary=1.0, promoted=1.0, together=2.0, split_brain=split_brain)
    story = await failover.play(stage, script, _MIX)
    try:
        assert missed(failover.judge(story, _SLACK)) == [], failover.as_data(story)["failures"]
        assert len(story.journal.acknowledged) > 100
    finally:
        if split_brain:
            story.old.stop()
            stage.cluster.rebuild(story.old)
