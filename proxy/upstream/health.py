"""The health monitor: who is up, who is primary, and what each replica has replayed.

"Read your writes" needs no query of its own. Each round the monitor notes the time T, then asks the primary for
its WAL insert position; a replica that has replayed that position is fresh as of T. The insert position, because
after an asynchronous commit pg_current_wal_lsn() is behind.

A round comes each interval; more often while there is no primary, and at once when the path of the queries finds
that a host doesn't take connections (`alarm`). Hosts don't wait for each other: one whose answer doesn't come is
counted as failing while the others are asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from proxy.errors import UpstreamUnavailable
from proxy.tasks import spawn
from proxy.upstream.cluster import Cluster, Host
from proxy.upstream.control import Control
from proxy.upstream.names import Names

log = logging.getLogger(__name__)

# From a host's name and a control connection to it, to why it must not be used, or "".
Vet: TypeAlias = "Callable[[str, asyncpg.Connection[Any]], Awaitable[str]]"

# A primary's timeline is that of the WAL it writes: its control file has a new one only after the checkpoint that
# follows a promotion. A standby's is that of the WAL it receives; only members of pg_read_all_stats see that, others
# see the control file's, which is older at times but never newer.
_PROBE = """
SELECT r.in_recovery,
       CASE WHEN r.in_recovery THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_insert_lsn() END - '0/0'::pg_lsn AS position,
       extract(epoch FROM pg_catalog.clock_timestamp())::float8 AS clock,
       CASE WHEN r.in_recovery
            THEN coalesce((SELECT w.received_tli FROM pg_catalog.pg_stat_wal_receiver w),
                          (pg_catalog.pg_control_checkpoint()).timeline_id)
            ELSE ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))
                 ::bit(32)::integer END AS timeline,
       (pg_catalog.pg_control_system()).system_identifier AS system
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS in_recovery) r
"""

_MAX_SAMPLES = 600
"""Samples of the primary's position that are kept: ten minutes at one a second, more than any tolerated lag."""

_HURRY = 0.2
"""Seconds between rounds while there is no primary: writes wait for what they find."""

_HURRY_FAR = 1.0
"""The same where opening a connection is a request that somebody on the way counts: Cloudflare limits their rate."""

_LEAST_PAUSE = 0.05
"""Seconds between rounds at least, however many alarms come."""

_PATIENCE = 1.0
"""Seconds after which an answer that has not come counts as a failure; a longer interval stands in for it."""

_FIRST_PATIENCE = 0.25
"""Seconds that the primary's answer is waited for before the replicas are asked: they are compared with it."""


@dataclass(frozen=True)
class Thresholds:
    """When a host is asked, in seconds; when it counts as down, its breaker says."""

    interval: float
    retry_after: float


@dataclass(frozen=True)
class _Answer:
    host: Host
    position: int


class _Probe:
    """A question that is under way."""

    def __init__(self, task: asyncio.Task[None], since: float) -> None:
        self.task = task
        self.since = since
        # How many failures its silence has counted as.
        self.counted = 0
        # It has a connection, and was sent.
        self.asked = False


class Health:
    """Probes the hosts of one cluster and keeps what is known of them."""

    def __init__(
        self,
        cluster: Cluster,
        controls: dict[str, Control],
        thresholds: Thresholds,
        vet: Vet | None = None,
        names: Names | None = None,
    ) -> None:
        """Watch `cluster`; `vet` is asked about a host before it counts as up, and says why it must not, or "".

        `names` follows host names to new addresses.
        """
        self._vet = vet
        self._names = names
        self._cluster = cluster
        self._controls = controls
        self._thresholds = thresholds
        self._samples: deque[tuple[float, int]] = deque(maxlen=_MAX_SAMPLES)
        self._sampled: Host | None = None
        self._under_way: dict[str, _Probe] = {}
        # When each host was asked last.
        self._asked_at: dict[str, float] = {}
        # What each standby answered last.
        self._answers: dict[str, _Answer] = {}
        self._alarmed = asyncio.Event()
        # How much the servers' clock is ahead of ours, in seconds.
        self.server_offset = 0.0

    @property
    def thresholds(self) -> Thresholds:
        """Return when hosts are asked; others may be set, and hold from the next round on."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self.alarm()

    def alarm(self) -> None:
        """Probe now: a host doesn't take connections, or has closed some."""
        self._alarmed.set()

    async def run(self) -> None:
        """Probe all hosts each interval, for ever; with an interval of 0 only when alarmed, or until all are up."""
        while True:
            interval = self._thresholds.interval
            if interval or self._alarmed.is_set() or not all(host.up for host in self._cluster.hosts):
                self._alarmed.clear()
                await self.probe()
            pause = interval or self._thresholds.retry_after
            if self._cluster.primary is None or self._cluster.stranded.length or self._under_way:
                pause = min(pause, _HURRY)
            await asyncio.sleep(_LEAST_PAUSE)
            try:
                async with asyncio.timeout(pause - _LEAST_PAUSE):
                    await self._alarmed.wait()
            except TimeoutError:
                pass

    async def probe(self, patience: float = 0.0) -> None:
        """Probe all hosts once, the primary's position before the replicas'; waits for no host for long.

        With `patience` it waits that many seconds, if it takes them: at the start nobody is kept waiting.
        """
        first = self._cluster.primary
        if first is not None:
            await self._ask_all([first], _FIRST_PATIENCE)
        others = [host for host in self._cluster.hosts if host is not first]
        await self._ask_all(others, max(self._patience, patience))
        self._cluster.roles_changed()
        for answer in self._answers.values():
            self._note_replica(answer)
        self._cluster.resume(time.monotonic())

    def forget(self, host: Host) -> None:
        """Have nothing to do any more with a host that has left the cluster; another may come under its name."""
        probe = self._under_way.pop(host.name, None)
        if probe is not None:
            probe.task.cancel()
        self._answers.pop(host.name, None)
        if self._names is not None:
            self._names.forget(host.name)

    def stop(self) -> None:
        """End the questions that are under way."""
        for probe in list(self._under_way.values()):
            probe.task.cancel()

    @property
    def _patience(self) -> float:
        return max(_PATIENCE, self._thresholds.interval)

    async def _ask_all(self, hosts: Sequence[Host], patience: float) -> None:
        now = time.monotonic()
        hurry = self._cluster.primary is None
        for host in hosts:
            probe = self._under_way.get(host.name)
            if probe is None and host.breaker.allows(now, hurry and self._may_hurry(host, now)):
                self._asked_at[host.name] = now
                task = spawn(self._ask(host), f"probe {host.name}")
                self._under_way[host.name] = _Probe(task, now)
        waiting = [self._under_way[host.name].task for host in hosts if host.name in self._under_way]
        if waiting:
            await asyncio.wait(waiting, timeout=patience)
        for host in hosts:
            self._note_silence(host)

    def _may_hurry(self, host: Host, now: float) -> bool:
        """Tell whether the host may be asked before its breaker would have it."""
        pause = _HURRY_FAR if self._controls[host.name].way.slow_to_open else 0.0
        return not host.is_unfit and now - self._asked_at.get(host.name, -pause) >= pause

    def _note_silence(self, host: Host) -> None:
        """Count the silence of a host whose answer has not come: as one failure for each `patience` of it."""
        probe = self._under_way.get(host.name)
        if probe is None:
            return
        now = time.monotonic()
        due = int((now - probe.since) / self._patience)
        if due > probe.counted:
            for _ in range(due - probe.counted):
                host.failed(f"no answer for {now - probe.since:.1f} s", now, silent=True)
            probe.counted = due
            if not host.up and (probe.asked or not self._controls[host.name].way.slow_to_open):
                # What comes of it would be old; and where it is asked next, it is on a connection of its own.
                probe.task.cancel()

    async def _ask(self, host: Host) -> None:
        try:
            await self._question(host)
        finally:
            probe = self._under_way.get(host.name)
            if probe is not None and probe.task is asyncio.current_task():
                del self._under_way[host.name]

    async def _question(self, host: Host) -> None:
        control = self._controls[host.name]
        if self._names is not None:
            await self._names.follow(host, control)
        try:
            async with control.connection() as connection:
                asked_at = time.monotonic()
                self._under_way[host.name].asked = True
                row = await connection.fetchrow(_PROBE)
                answered_at = time.monotonic()
                unfit = await self._vet(host.name, connection) if self._vet and not host.up else ""
        except UpstreamUnavailable as error:
            host.failed(error.extra, time.monotonic())
            self._cluster.roles_changed()
            return
        if unfit:
            host.unfit(unfit, time.monotonic())
            self._cluster.roles_changed()
            return
        assert row is not None
        if host not in self._cluster.hosts:
            # It has left meanwhile.
            return
        was = (host.up, host.in_recovery)
        _take_in(host, row, answered_at - asked_at)
        if was != (True, host.in_recovery):
            self._cluster.roles_changed()
        position = int(row["position"] or 0)
        if host.in_recovery:
            self._answers[host.name] = _Answer(host, position)
        elif host is self._cluster.primary:
            self.server_offset = float(row["clock"]) - (time.time() - (answered_at - asked_at) / 2)
            self._note_primary(host, asked_at, position)

    def _note_primary(self, host: Host, asked_at: float, position: int) -> None:
        if self._sampled is not host:
            self._samples.clear()
            self._sampled = host
        self._samples.append((asked_at, position))

    def _note_replica(self, answer: _Answer) -> None:
        """Compare what a standby has replayed with the positions of the primary, or of the last one.

        Which of the two was asked first doesn't matter: a position that the primary had after T covers what was
        written before T, whenever it is reached.
        """
        primary = self._cluster.primary or self._sampled
        host = answer.host
        if not host.in_recovery or primary is None:
            # It was promoted since; or nobody knows what there is to replay.
            return
        if host.timeline != primary.timeline or host.system != primary.system:
            # It has another history, or is not known to have this one: its positions tell nothing.
            host.fresh_as_of = 0.0
            return
        fresh = [asked_at for asked_at, position in self._samples if position <= answer.position]
        if fresh:
            host.fresh_as_of = max(fresh)
        behind = [asked_at for asked_at, position in self._samples if position > answer.position]
        host.lag = time.monotonic() - min(behind) if behind else 0.0


async def introduce(host: Host, connection: asyncpg.Connection[Any]) -> None:
    """Ask a host that is no member of its cluster yet what it is: it is up, then, from its first moment there."""
    asked_at = time.monotonic()
    row = await connection.fetchrow(_PROBE)
    assert row is not None
    _take_in(host, row, time.monotonic() - asked_at)


def _take_in(host: Host, row: asyncpg.Record, response_time: float) -> None:
    host.timeline = int(row["timeline"])
    host.system = int(row["system"])
    host.probed(bool(row["in_recovery"]), response_time)
