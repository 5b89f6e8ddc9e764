"""What the pools' logins of one database may do, with signed identity: none may pass by row-level security."""

from __future__ import annotations

import logging
from typing import Any

import asyncpg

from proxy import config as model
from proxy.preflight.finding import Finding
from proxy.preflight.gate import BYPASSED, BypassError, alarms, bypasses, remedy
from proxy.upstream.controls import Controls

log = logging.getLogger(__name__)


class Rights:
    """Vets hosts before they are used, and watches them later; `settings` are those in force."""

    def __init__(self, name: str, settings: model.Database, controls: Controls) -> None:
        self._name = name
        self.settings = settings
        self._controls = controls
        # Hosts that must not be used, and why.
        self._bypassed: dict[str, list[Finding]] = {}
        self._started = False
        self._alarmed: set[Finding] = set()

    def start(self) -> None:
        """Begin to tell the log of what is found; raises BypassError where there is something already."""
        if self._bypassed:
            raise BypassError(self._bypassed)
        self._started = True

    async def vet(self, host: str, connection: asyncpg.Connection[Any]) -> str:
        """Return why `host` must not be used, "" if it may: asked each time before it counts as up."""
        found = await bypasses(connection, self.settings)
        if not found:
            self._bypassed.pop(host, None)
            return ""
        if self._started and self._bypassed.get(host) != found:
            log.error("database %s: %s", self._name, BypassError({host: found}))
        self._bypassed[host] = found
        # Clients are told this, and need to know no more.
        return f"{BYPASSED}: see `pgsluice check`"

    def forget(self, host: str) -> None:
        """Know nothing any more of `host`, which goes."""
        self._bypassed.pop(host, None)

    async def watch(self) -> None:
        """Tell the log, once, of rights and presets that weren't there when the hosts were vetted.

        A pool at work isn't stopped: whoever may grant such rights may also mean to. Raises ClientError where no host
        answers.
        """
        async with self._controls.any().connection() as connection:
            found = set(await alarms(connection, self.settings))
        for finding in found - self._alarmed:
            log.error("database %s: %s; %s", self._name, finding.what, remedy(finding))
        self._alarmed = found
