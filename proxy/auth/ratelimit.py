"""Rate limits: a token bucket that is told the time."""

from __future__ import annotations

from typing import Final

_MINUTE: Final = 60.0


class TokenBucket:
    """Allows `per_minute` takes at once, and as many again, evenly, in each minute after.

    Who takes several at once may, as long as there is one, and then waits until what is owed has come in: a text of
    many statements passes whole, and the rate is kept all the same.
    """

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self.tokens: float = float(per_minute)
        self.filled = now

    def take(self, now: float, count: int = 1) -> float:
        """Take `count` tokens; returns 0.0, or the seconds until there will be one, and then takes nothing.

        `now` is in seconds of a monotonic clock; a step back counts as no time.
        """
        rate = self.per_minute / _MINUTE
        if now > self.filled:
            self.tokens = min(float(self.per_minute), self.tokens + (now - self.filled) * rate)
            self.filled = now
        if self.tokens >= 1.0:
            self.tokens -= float(count)
            return 0.0
        return (1.0 - self.tokens) / rate if self.per_minute > 0 else _MINUTE
