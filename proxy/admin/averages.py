"""Averages over the last minute or two, as PgBouncer has them: with stats_period 60."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy.admin.facts import Figures

STATS_PERIOD: Final = 60.0
"""Seconds after which a new window begins."""


class Averages:
    """Figures by database at the last two turns of the clock; an average goes from the older one to now."""

    def __init__(self, now: float) -> None:
        # As PgBouncer begins: until the second turn an average is one since the start, of a second at least.
        self._older: Mapping[str, Figures] = {}
        self._newer: Mapping[str, Figures] = {}
        self._older_at = now - 1.0
        self._newer_at = now

    def due(self, now: float) -> bool:
        """Tell whether a window has passed."""
        return now - self._newer_at >= STATS_PERIOD

    def turn(self, now: float, figures: Mapping[str, Figures]) -> None:
        """Begin a new window with these figures."""
        self._older, self._older_at = self._newer, self._newer_at
        self._newer, self._newer_at = figures, now

    def of(self, database: str, figures: Figures, now: float) -> Figures:
        """Return averages: counts and bytes for a second, times in µs for a transaction, query or assignment."""
        return self._over(figures - self._older.get(database, Figures()), now)

    def of_all(self, figures: Mapping[str, Figures], now: float) -> Figures:
        """Return the averages of all databases together."""
        done = sum((each - self._older.get(name, Figures()) for name, each in figures.items()), Figures())
        return self._over(done, now)

    def _over(self, done: Figures, now: float) -> Figures:
        seconds = now - self._older_at
        if seconds <= 0.0:
            return Figures()

        def rate(count: int) -> int:
            return int(count / seconds)

        def mean(us: int, count: int) -> int:
            return us // count if count > 0 else 0

        return Figures(
            server_assignment_count=rate(done.server_assignment_count),
            xact_count=rate(done.xact_count),
            query_count=rate(done.query_count),
            received=rate(done.received),
            sent=rate(done.sent),
            xact_time=mean(done.xact_time, done.xact_count),
            query_time=mean(done.query_time, done.query_count),
            wait_time=mean(done.wait_time, done.server_assignment_count),
            client_parse_count=rate(done.client_parse_count),
            server_parse_count=rate(done.server_parse_count),
            bind_count=rate(done.bind_count),
        )
