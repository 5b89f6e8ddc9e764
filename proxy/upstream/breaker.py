"""Whether a host is asked at all: after some failures in a row it is left alone for a while.

closed ── failures_to_open in a row ──> open ── retry_after ──> half-open ── an answer ──> closed
^                          │
└──────── a failure ───────┘
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half-open"


@final
class Breaker:
    """Counts failures of one host. Pure: it is told the time, in seconds of the monotonic clock."""

    def __init__(self, failures_to_open: i64 = 3, retry_after: float = 5.0) -> None:
        self.failures_to_open: i64 = failures_to_open
        self.retry_after = retry_after
        self.state: str = CLOSED
        # Failures since the last success.
        self.failures: i64 = 0
        self.retry_at: float = 0.0

    def allows(self, now: float, hurry: bool = False) -> bool:
        """Tell whether the host may be asked; an open breaker is half-open from then on.

        In a `hurry` it may be asked without waiting for retry_after: nothing else could serve.
        """
        if self.state == OPEN:
            if now < self.retry_at and not hurry:
                return False
            self.state = HALF_OPEN
        return True

    def succeeded(self) -> None:
        """Note an answer."""
        self.state = CLOSED
        self.failures = 0

    def failed(self, now: float) -> bool:
        """Note a failure; returns True if the breaker is open because of it, and was closed before."""
        self.failures += 1
        was_closed = self.state == CLOSED
        if was_closed and self.failures < self.failures_to_open:
            return False
        self.state = OPEN
        self.retry_at = now + self.retry_after
        return was_closed

    def trip(self, now: float) -> bool:
        """Open at once, however few failures there were; returns what `failed` does."""
        self.failures = self.failures_to_open
        return self.failed(now)
