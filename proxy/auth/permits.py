"""Where several proxies count what a key may do in a minute: Redis, through the library `limits`.

The count is a sliding window (two counters in Redis for a key, by Redis' own clock): a minute's whole at once, and as
many again as the minute before runs out. One question takes a round trip; a bucket asks for a lease of permits, never
for each statement of a busy key. Without an answer within TIMEOUT every bucket falls back to this process' own count,
and the store is asked in the background until it answers again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from proxy.auth.ratelimit import LeasedBucket
from proxy.tasks import spawn, stop

log = logging.getLogger(__name__)

TIMEOUT: Final = 0.5
"""Seconds that a statement waits for the store at most: hundreds of round trips in one data centre."""

_AGAIN: Final = 1.0
"""Seconds between two attempts to reach a store that failed."""

_MOST_CONNECTIONS: Final = 4
"""To Redis from one process: questions share them, and each takes one for a round trip."""


class PermitStore:
    """Leases permits from the Redis at `url`, whose password stays out of every text."""

    def __init__(self, url: str) -> None:
        self._storage = RedisStorage(
            url,
            implementation="redispy",
            key_prefix="pgsluice",
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            max_connections=_MOST_CONNECTIONS,
        )
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._room = asyncio.Semaphore(_MOST_CONNECTIONS)
        self.up = True
        # Leases that were granted or refused, and those that had no answer.
        self.leases = 0
        self.failures = 0
        self._recovery: asyncio.Task[None] | None = None

    def bucket(self, key_id: str, per_minute: int, now: float) -> LeasedBucket:
        """Return a bucket for the key, whose limit all proxies with this store hold together."""

        def lease(bucket: LeasedBucket, count: int) -> None:
            if self.up:
                spawn(self._ask(bucket, key_id, count), f"rate limit of {key_id}")
            else:
                # Not at once: whoever asks is in the middle of something.
                self.failures += 1
                asyncio.get_running_loop().call_soon(bucket.failed, time.monotonic())

        return LeasedBucket(per_minute, now, lease)

    async def close(self) -> None:
        """Close the connections."""
        await stop(self._recovery)
        await self._storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]

    async def _ask(self, bucket: LeasedBucket, key_id: str, count: int) -> None:
        item = RateLimitItemPerMinute(bucket.per_minute)
        try:
            async with asyncio.timeout(TIMEOUT), self._room:
                granted, seconds = await self._lease(item, key_id, count)
        except Exception as error:
            # Whatever is wrong with it: clients must not wait for a count.
            self.failures += 1
            self._is_down(error)
            bucket.failed(time.monotonic())
            return
        self.leases += 1
        now = time.monotonic()
        if granted:
            bucket.granted(granted, now)
        else:
            bucket.refused(seconds, now)

    async def _lease(self, item: RateLimitItemPerMinute, key_id: str, count: int) -> tuple[int, float]:
        """Return how many permits there are of `count`; where there is none, the seconds until there will be one."""
        if await self._limiter.hit(item, key_id, cost=count):
            return count, 0.0
        reset_at, remaining = await self._limiter.get_window_stats(item, key_id)
        if remaining and await self._limiter.hit(item, key_id, cost=min(remaining, count)):
            return min(remaining, count), 0.0
        return 0, max(reset_at - time.time(), 0.01)

    def _is_down(self, error: Exception) -> None:
        if not self.up:
            return
        self.up = False
        # The error's text may name the host, but never what logs in there.
        log.error(
            "the store of rate limits doesn't answer (%s): each process holds keys' limits alone until it does",
            type(error).__name__,
        )
        self._recovery = spawn(self._recover(), "reach the store of rate limits")

    async def _recover(self) -> None:
        while not self.up:
            await asyncio.sleep(_AGAIN)
            try:
                async with asyncio.timeout(TIMEOUT):
                    self.up = await self._storage.check()
            except Exception as error:
                log.debug("the store of rate limits still doesn't answer (%s)", type(error).__name__)
        log.warning("the store of rate limits answers again")
