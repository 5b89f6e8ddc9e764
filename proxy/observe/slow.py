"""Statements that took too long, told in the program's log as warnings."""

from __future__ import annotations

import logging
from typing import Final

log = logging.getLogger(__name__)

NEVER: Final = 1 << 62
"""Microseconds that nothing takes: the threshold where there is none."""

MOST_A_SECOND: Final = 20
"""Lines a second. When everything is slow, the rest are counted: the access log has each of them."""


class SlowLog:
    """Tells of slow statements of all sessions on one database."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._second = 0
        self._told = 0
        self._untold = 0

    def tell(
        self,
        now: float,
        duration_us: int,
        queued_us: int,
        who: str,
        where: str,
        rows: int,
        sqlstate: str,
        statement: str,
        fingerprint: str,
    ) -> None:
        """Log one statement that was answered at `now`, in seconds; `where` is its pool and host.

        The statement comes without its literals, or not at all, as in the access log.
        """
        second = int(now)
        if second != self._second:
            if self._untold:
                log.warning("%s: %d more slow statements within a second", self._database, self._untold)
            self._second, self._told, self._untold = second, 0, 0
        if self._told >= MOST_A_SECOND:
            self._untold += 1
            return
        self._told += 1
        log.warning(
            "%s: slow statement: %.3f s, of which %.3f s waiting; key %s; %s; %d rows%s; %s%s",
            self._database,
            duration_us / 1e6,
            queued_us / 1e6,
            who,
            where,
            rows,
            f"; failed with {sqlstate}" if sqlstate else "",
            f"{fingerprint} " if fingerprint else "",
            statement,
        )
