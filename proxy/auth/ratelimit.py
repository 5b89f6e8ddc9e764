"""Rate limits: a token bucket that is told the time."""

from __future__ import annotations

from typing import Final, final

_MINUTE: Final = 60.0


@final
class TokenBucket:
    """Allows `per_minute` takes at once, and as many again, evenly, in each minute after."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._tokens: float = float(per_minute)
        self._filled = now

    def take(self, now: float) -> float:
        """Take one token; returns 0.0, or the seconds until there will be one, and then takes nothing.

        `now` is in seconds of a monotonic clock; a step back counts as no time.
        """
        rate = self.per_minute / _MINUTE
        if now > self._filled:
            self._tokens = min(float(self.per_minute), self._tokens + (now - self._filled) * rate)
            self._filled = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / rate if self.per_minute > 0 else _MINUTE
