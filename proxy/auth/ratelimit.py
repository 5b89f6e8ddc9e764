"""Rate limits: token buckets that are told the time, of one process or shared by several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from mypy_extensions import i64

_MINUTE: Final = 60.0

LEASE_SECONDS: Final = 1.0
"""For which leased permits are good: what isn't used by then is lost, so that it can't add to a later burst."""

RETRY_SECONDS: Final = 1.0
"""For which a bucket goes by its own tokens when the store hasn't answered."""


class TokenBucket:
    """Allows `per_minute` takes at once, and as many again, evenly, in each minute after.

    Who takes several at once may, as long as there is one, and then waits until what is owed has come in: a text of
    many statements passes whole, and the rate is kept all the same.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._tokens: float = float(per_minute)
        self._filled = now

    def lacks(self, now: float) -> bool:
        """Tell whether nobody here knows if one may be taken: `wait` calls back when that is known."""
        return False

    def wait(self, resume: Callable[[float], None], now: float) -> None:
        """Have `resume` called, with the time, when something can be said; only where `lacks` is true."""
        raise AssertionError

    def take(self, now: float, count: int = 1) -> float:
        """Take `count` tokens; returns 0.0, or the seconds until there will be one, and then takes nothing.

        `now` is in seconds of a monotonic clock; a step back counts as no time.
        """
        self._fill(now)
        if self._tokens >= 1.0:
            self._tokens -= float(count)
            return 0.0
        rate = self.per_minute / _MINUTE
        return (1.0 - self._tokens) / rate if self.per_minute > 0 else _MINUTE

    def _fill(self, now: float) -> None:
        if now > self._filled:
            come = (now - self._filled) * (self.per_minute / _MINUTE)
            self._tokens = min(float(self.per_minute), self._tokens + come)
            self._filled = now


@final
class LeasedBucket(TokenBucket):
    """A key's limit that several proxies share: permits are leased from where they are counted, some at a time.

    A lease is one permit at first, and twice the last one where that was used up within LEASE_SECONDS, at most a
    second's worth of the limit: so who asks rarely leaves none unused, and who asks much doesn't wait for each.
    `lease(bucket, count)` asks for permits in the background; `granted`, `refused` or `failed` answers it. While the
    store fails, the limit is held here alone.
    """

    def __init__(self, per_minute: int, now: float, lease: Callable[[LeasedBucket, int], None]) -> None:
        super().__init__(per_minute, now)
        self._lease = lease
        self._most: i64 = max(1, per_minute // 60)
        self._size: i64 = 1
        # Permits at hand, negative where more was used than was there; until when they are good.
        self._permits: i64 = 0
        self._good_until: float = 0.0
        self._refused_until: float = 0.0
        self._alone_until: float = 0.0
        self._is_asking = False
        self._waiters: list[Callable[[float], None]] = []

    def lacks(self, now: float) -> bool:
        """Tell whether the store has to be asked first."""
        if self._permits >= 1 and now < self._good_until:
            return False
        return now >= self._refused_until and now >= self._alone_until

    def wait(self, resume: Callable[[float], None], now: float) -> None:
        """Have `resume` called, with the time, when the store has answered or failed to."""
        self._waiters.append(resume)
        if self._is_asking:
            return
        if self._permits > 0:
            # Too old: they are lost.
            self._permits = 0
            self._size = 1
        elif now < self._good_until:
            self._size = min(self._size * 2, self._most)
        else:
            self._size = 1
        self._is_asking = True
        self._lease(self, min(self._size - self._permits, self.per_minute))

    def granted(self, count: int, now: float) -> None:
        """Take in `count` permits."""
        self._permits += count
        self._good_until = now + LEASE_SECONDS
        self._answered(now)

    def refused(self, seconds: float, now: float) -> None:
        """Learn that there is no permit for so many seconds."""
        owed: i64 = -self._permits if self._permits < 0 else 0
        self._refused_until = now + max(seconds, float(owed) * _MINUTE / self.per_minute)
        self._answered(now)

    def failed(self, now: float) -> None:
        """Learn that the store doesn't answer: for a while this bucket's own tokens count."""
        self._alone_until = now + RETRY_SECONDS
        self._answered(now)

    def take(self, now: float, count: int = 1) -> float:
        """Take `count` permits; returns 0.0, or the seconds until there will be one, and then takes nothing."""
        if self._permits >= 1 and now < self._good_until:
            self._permits -= count
            # For the time when the store doesn't answer.
            self._fill(now)
            self._tokens = max(self._tokens - float(count), 0.0)
            return 0.0
        if now < self._refused_until and now >= self._alone_until:
            return self._refused_until - now
        return TokenBucket.take(self, now, count)

    def _answered(self, now: float) -> None:
        self._is_asking = False
        waiters = self._waiters
        self._waiters = []
        for resume in waiters:
            resume(now)
