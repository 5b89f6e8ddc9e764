"""The health monitor: who is up, who is primary, and what each replica has replayed.

"Read your writes" needs no query of its own. Each round the monitor notes the time T, then asks the primary for
its WAL insert position; a replica that has replayed that position is fresh as of T. The insert position, because
after an asynchronous commit pg_current_wal_lsn() is behind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from proxy.errors import UpstreamUnavailable
from proxy.upstream.cluster import Cluster, Host
from proxy.upstream.control import Control

log = logging.getLogger(__name__)

# From a host's name and a control connection to it, to why it must not be used, or "".
Vet: TypeAlias = "Callable[[str, asyncpg.Connection[Any]], Awaitable[str]]"

_PROBE = """
SELECT pg_catalog.pg_is_in_recovery() AS in_recovery,
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_insert_lsn() END - '0/0'::pg_lsn AS position,
       extract(epoch FROM pg_catalog.clock_timestamp())::float8 AS clock,
       (pg_catalog.pg_control_checkpoint()).timeline_id AS timeline
"""

_MAX_SAMPLES = 600
"""Samples of the primary's position that are kept: ten minutes at one a second, more than any tolerated lag."""


@dataclass(frozen=True)
class Thresholds:
    """When a host counts as down; times in seconds."""

    interval: float
    failures_to_open: int
    retry_after: float


@dataclass(frozen=True)
class _Answer:
    host: Host
    asked_at: float
    in_recovery: bool
    position: int
    timeline: int


class Health:
    """Probes the hosts of one cluster and keeps what is known of them."""

    def __init__(
        self,
        cluster: Cluster,
        controls: dict[str, Control],
        thresholds: Thresholds,
        vet: Vet | None = None,
    ) -> None:
        """Watch `cluster`; `vet` is asked about a host before it counts as up, and says why it must not, or ""."""
        self._vet = vet
        self._cluster = cluster
        self._controls = controls
        self._thresholds = thresholds
        self._samples: deque[tuple[float, int]] = deque(maxlen=_MAX_SAMPLES)
        self._sampled: Host | None = None
        # How much the servers' clock is ahead of ours, in seconds.
        self.server_offset = 0.0

    async def run(self) -> None:
        """Probe all hosts each interval, for ever; with an interval of 0 only until all are up, again and again."""
        thresholds = self._thresholds
        while True:
            if thresholds.interval or not all(host.up for host in self._cluster.hosts):
                await self.probe()
            await asyncio.sleep(thresholds.interval or thresholds.retry_after)

    async def probe(self) -> None:
        """Probe all hosts once, the primary's position before the replicas'."""
        hosts = self._cluster.hosts
        first = self._cluster.primary
        if first is not None:
            await self._ask(first)
        answers = await asyncio.gather(*(self._ask(host) for host in hosts if host is not first))
        self._cluster.roles_changed()
        self._note_replicas([answer for answer in answers if answer is not None])

    async def _ask(self, host: Host) -> _Answer | None:
        now = time.monotonic()
        if not host.up and now < host.retry_at:
            return None
        thresholds = self._thresholds
        try:
            async with self._controls[host.name].connection() as connection:
                asked_at = time.monotonic()
                row = await connection.fetchrow(_PROBE)
                answered_at = time.monotonic()
                unfit = await self._vet(host.name, connection) if self._vet and not host.up else ""
        except UpstreamUnavailable as error:
            host.failed(error.extra, time.monotonic(), thresholds.failures_to_open, thresholds.retry_after)
            return None
        if unfit:
            host.failed(unfit, time.monotonic(), 1, thresholds.retry_after)
            return None
        assert row is not None
        host.timeline = int(row["timeline"])
        host.probed(bool(row["in_recovery"]), answered_at - asked_at)
        answer = _Answer(host, asked_at, bool(row["in_recovery"]), int(row["position"] or 0), host.timeline)
        if not answer.in_recovery:
            self.server_offset = float(row["clock"]) - (time.time() - (answered_at - asked_at) / 2)
            self._note_primary(answer)
        return answer

    def _note_primary(self, answer: _Answer) -> None:
        if self._sampled is not answer.host:
            self._samples.clear()
            self._sampled = answer.host
        self._samples.append((answer.asked_at, answer.position))

    def _note_replicas(self, answers: list[_Answer]) -> None:
        primary = self._cluster.primary
        now = time.monotonic()
        for answer in answers:
            if not answer.in_recovery:
                continue
            host = answer.host
            if primary is None:
                # Nobody writes: what the replica has is all there is to read.
                host.lag = 0.0
                continue
            if answer.timeline != primary.timeline:
                host.fresh_as_of = 0.0
                continue
            fresh = [asked_at for asked_at, position in self._samples if position <= answer.position]
            if fresh:
                host.fresh_as_of = max(fresh)
            behind = [asked_at for asked_at, position in self._samples if position > answer.position]
            host.lag = now - min(behind) if behind else 0.0
