"""What HTTP has of the proxy: samples, the last minutes, who may look, and the API; kept while HTTP is on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from proxy.auth.key import Key
from proxy.config import Http
from proxy.errors import ClientError, InvalidApiKey
from proxy.http.access import Access
from proxy.observe.access_log import AccessLog, unseen
from proxy.observe.history import INTERVAL, History
from proxy.observe.recent import Recent
from proxy.observe.record import session_part
from proxy.observe.snapshot import Snapshot
from proxy.observe.stats import ProxyStats
from proxy.observe.status import Status
from proxy.session.gate import Gate
from proxy.session.served import Served
from proxy.tasks import spawn, stop

if TYPE_CHECKING:
    from starlette.types import ASGIApp

log = logging.getLogger(__name__)

_NO_HISTORY: Final = 10**15
"""A number that no sample has yet."""


class Board:
    """Samples `snapshot`, reads the access log's batches, and tells those with a key of `served`."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        served: Mapping[str, Served],
        access_log: AccessLog,
        stats: ProxyStats,
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._refresh = refresh
        self._snapshot = snapshot
        self._served = served
        self._buffer = access_log.buffer
        self._stats = stats
        self._history = History()
        self._sampler: asyncio.Task[None] | None = None
        self._log = access_log
        self._recent: Recent | None = None
        if access_log.sinks:
            self._recent = Recent(list(served), access_log.buffer.statements)
            access_log.on_batch = self.read
        self._keys = {name: each.keys for name, each in served.items()}
        self.access = Access(self._keys, self._refused, self._seen)
        self.tell = Status(snapshot, self._history, self._recent, time.time).tell

    def serve(self, served: Mapping[str, Served]) -> None:
        """Go on with these databases."""
        self._served = served
        self._keys.clear()
        self._keys.update({name: each.keys for name, each in served.items()})
        if self._recent is not None:
            self._recent.serve(list(served))

    def start(self) -> None:
        """Start sampling."""
        self._sampler = spawn(self._sample(), "sample for the dashboard")

    async def stop(self) -> None:
        """Stop sampling."""
        await stop(self._sampler)

    def api(self, gate: Gate, settings: Http) -> Callable[[ASGIApp], ASGIApp]:
        """Return what puts the HTTP API beside an application; its clients are let in by `gate`."""

        def add(app: ASGIApp) -> ASGIApp:
            # FastAPI is loaded by now, and only where HTTP is on.
            from proxy.api.app import make_api, serves
            from proxy.http.app import beside

            seen = partial(self._seen, event="login", by="http")
            access = self.access.anybody(partial(self._refused, by="http"), seen)
            return beside(app, make_api(gate, access, self._state, settings.cors_origins), serves)

        return add

    def _state(self, database: str) -> dict[str, object]:
        """Return a database's pools and hosts, without what only the operator is to know of these."""
        told = self.tell(database, [database], _NO_HISTORY)
        hosts = cast("list[dict[str, object]]", told["hosts"])
        return {
            "pools": told["pools"],
            "hosts": [{name: host[name] for name in host if name != "error"} for host in hosts],
        }

    async def _sample(self) -> None:
        while True:
            if self._refresh is not None:
                await self._refresh()
            self._history.add(self._snapshot(), time.monotonic(), time.time())
            await asyncio.sleep(INTERVAL)

    def read(self, rows: bytes, number: int, events: list[int]) -> None:
        """Take a batch of the access log in; the log must go on whatever becomes of that."""
        if self._recent is None:
            return
        try:
            self._recent.add(rows, number, events, time.time())
        except Exception:
            log.exception("the dashboard can't read the access log, and stops doing so")
            self._log.on_batch = unseen

    def _refused(self, key_id: str, address: str, error: ClientError, by: str = "dashboard") -> None:
        why = error.why if isinstance(error, InvalidApiKey) else error.code.lower()
        self._stats.logins_refused.add(why)
        log.info("%s refused to %s from %s: %s", by, key_id or "an unknown key", address, why)
        part = session_part(key_id, "", address, by, "")
        self._buffer.event(
            "login_failed", time.time(), part, reason=why, sqlstate=error.sqlstate, code=error.code
        )

    def _seen(
        self, key: Key, address: str, database: str, event: str = "admin", by: str = "dashboard"
    ) -> None:
        if (served := self._served.get(database)) is not None:
            served.database.usage.add(key.id, 0, time.time())
        part = session_part(key.id, key.user_id, address, by, database)
        self._buffer.event(event, time.time(), part, reason="status" if event == "admin" else "")
