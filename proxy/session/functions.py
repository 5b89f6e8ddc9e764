"""Keeps current which functions of one database may write (proxy.query.functions)."""

from __future__ import annotations

from proxy import config as model
from proxy.query.cache import IntentCache
from proxy.query.functions import SNAPSHOT_QUERY, FunctionCatalog
from proxy.upstream.controls import Controls


class Functions:
    """Has the statements of `intents` classified by the functions that are there, and by `routing`."""

    def __init__(self, intents: IntentCache, controls: Controls, routing: model.Routing) -> None:
        self._intents = intents
        self._controls = controls
        self._safe = routing.safe_functions
        self._found: frozenset[tuple[str, str, str]] = frozenset()

    async def refresh(self) -> None:
        """Read which functions may write; statements that were classified with other knowledge are forgotten.

        Raises ClientError where no host answers.
        """
        async with self._controls.any().connection() as connection:
            rows = await connection.fetch(SNAPSHOT_QUERY)
        found = frozenset((row[0], row[1], row[2]) for row in rows)
        if found != self._found:
            self._found = found
            self._classify_anew()

    def take_over(self, routing: model.Routing) -> None:
        """Go by these settings from now on: every statement is classified anew."""
        self._safe = routing.safe_functions
        self._intents.max_parse_bytes = routing.max_parse_bytes
        self._classify_anew()

    def _classify_anew(self) -> None:
        safe = self._safe
        catalog = (
            FunctionCatalog.from_rows(self._found, safe) if self._found else FunctionCatalog.builtin(safe)
        )
        self._intents.set_catalog(catalog)
