"""Takes a configuration over while clients are connected: all of it that needs no restart, or nothing.

First the plan, from the two configurations alone (proxy.config.changes). Then what can fail is done: certificates,
logins, hosts' rights, databases that come. Then all is switched in one go, without waiting for anything. Sessions of
databases that go have their transaction, and listen.drain_timeout at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from proxy import config as model
from proxy.config import Config
from proxy.config.changes import Plan, plan
from proxy.errors import ConfigurationChanged
from proxy.logs import configure
from proxy.observe.access_log import AccessLog
from proxy.session.gate import Gate
from proxy.session.reload import Ready, ReloadError
from proxy.session.served import Served
from proxy.session.session import Session
from proxy.session.sessions import Sessions
from proxy.tasks import spawn, stop
from proxy.transport.tls import ListenerTls

log = logging.getLogger(__name__)

_STEP = 0.05

_T = TypeVar("_T")


@dataclass
class Prepared:
    """What a reload is about to switch to; nothing of it can fail any more."""

    plan: Plan
    tls: ListenerTls | None
    changed: dict[str, Ready] = field(default_factory=dict)
    added: dict[str, Served] = field(default_factory=dict)

    async def drop(self) -> None:
        """Undo what was begun."""
        for ready in self.changed.values():
            ready.drop()
        for served in self.added.values():
            await served.stop()
            await served.close_control()


class Reloading:
    """Reloads, one at a time, of the databases in `served`; `serve` makes one that is new."""

    def __init__(
        self,
        served: dict[str, Served],
        gate: Gate,
        access_log: AccessLog,
        serve: Callable[[str, model.Database, Config], Served],
        mock_secret: Callable[[Config], bytes],
        share: Callable[[Config], Config],
    ) -> None:
        self._served = served
        self._gate = gate
        self._access_log = access_log
        self._serve = serve
        self._mock_secret = mock_secret
        # What a configuration of the whole is for this process.
        self._share = share
        # Held by a reload from the reading of its configuration on.
        self.turn = asyncio.Lock()
        self._leaving: dict[Served, asyncio.Task[None]] = {}

    async def take_over(
        self, now: Config, wanted: Config, switched: Callable[[Config, ListenerTls | None], None]
    ) -> list[str]:
        """Change from `now` to `wanted`, and tell `switched` at that moment; returns the keys that need a restart.

        Raises SluiceError, and nothing has changed then.
        """
        planned = plan(now, wanted)
        prepared = await self._prepare(replace(planned, config=self._share(planned.config)))
        if self._gate.draining:
            await prepared.drop()
            raise ReloadError("the proxy is shutting down")
        self._switch(prepared)
        switched(planned.config, prepared.tls)
        restart = list(prepared.plan.restart)
        if restart:
            log.warning("reload: a restart is needed for: %s", ", ".join(restart))
        log.info("configuration read again")
        return restart

    async def stop(self) -> None:
        """Let go of databases that were about to leave; their sessions have ended."""
        for served, task in list(self._leaving.items()):
            await stop(task)
            await served.stop()
            await served.close_control()

    async def _prepare(self, plan: Plan) -> Prepared:
        config = plan.config
        tls = config.listen.tls
        prepared = Prepared(plan, ListenerTls(tls) if tls.mode != "off" else None)
        try:
            for name, changes in plan.changed.items():
                served = self._served[name]
                prepared.changed[name] = await served.prepare(config.databases[name], changes)
            for name in plan.added:
                prepared.added[name] = served = self._serve(name, config.databases[name], config)
                await served.start()
                if not served.ready():
                    raise ReloadError(f"database {name} can't be served: {_why_not(served)}")
        except BaseException:
            await prepared.drop()
            raise
        return prepared

    def _switch(self, prepared: Prepared) -> None:
        """Put everything in force; nothing here fails or waits."""
        plan, gate = prepared.plan, self._gate
        config = plan.config
        for name, ready in prepared.changed.items():
            self._served[name].switch(ready, config)
        gone = [self._served[name] for name in plan.removed]
        _become(self._served, {**self._served, **prepared.added}, config.databases)
        _become(
            gate.databases, {name: each.database for name, each in self._served.items()}, config.databases
        )
        _become(gate.keys, {name: each.keys for name, each in self._served.items()}, config.databases)
        gate.disabled -= set(plan.removed)
        gate.methods = list(config.auth.methods)
        gate.auth_timeout = config.listen.auth_timeout
        gate.max_clients = config.listen.max_clients
        gate.mock_secret = self._mock_secret(config)
        configure(config.logging)
        self._access_log.reopen()
        self._access_log.flush_interval = config.access_log.flush_interval
        for served in gone:
            leaving = self._leave(served, config.listen.drain_timeout)
            self._leaving[served] = spawn(leaving, f"{served.name}: leaves")

    async def _leave(self, served: Served, patience: float) -> None:
        """End the sessions of a database that is served no more, each behind its transaction."""
        log.info("database %s is served no more; its sessions end", served.name)
        deadline = time.monotonic() + patience
        sessions = self._gate.sessions
        served.cluster.refuse_parked(ConfigurationChanged())
        while here := _sessions_of(sessions, served):
            late = time.monotonic() >= deadline
            for session in here:
                if late or session.idle():
                    session.fatal(ConfigurationChanged())
            await asyncio.sleep(_STEP)
        await served.stop()
        await served.close_control()
        del self._leaving[served]
        log.info("database %s: its last session has ended", served.name)


def _sessions_of(sessions: Sessions, served: Served) -> list[Session]:
    return [each for each in sessions.by_pid.values() if each.database is served.database]


def _become(shared: dict[str, _T], content: Mapping[str, _T], order: Mapping[str, object]) -> None:
    """Give a dict that others hold too another content, in the order of the configuration: the first one counts."""
    wanted = {name: content[name] for name in order}
    shared.clear()
    shared.update(wanted)


def _why_not(served: Served) -> str:
    errors = [f"{host.name}: {host.last_error}" for host in served.cluster.hosts if host.last_error]
    return "; ".join(errors) or "no host serves it"
