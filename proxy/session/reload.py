"""What can fail when one database's configuration changes, done before anything is switched.

Certificates are read; hosts that come are asked what they are, and vetted; each login that is new is tried. A host
that doesn't answer now stands in nobody's way: it serves once it has answered, and was vetted. One that answers and
refuses is a mistake in the configuration, or in what was done before it: nothing changes then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import asyncpg

from proxy import config as model
from proxy.config.changes import DatabaseChanges
from proxy.errors import ClientError, HostUnavailable, SluiceError, UpstreamUnavailable
from proxy.preflight.gate import BypassError, bypasses
from proxy.transport.tls import TlsError
from proxy.transport.way import Contexts, Way
from proxy.tunnel import way_to
from proxy.upstream.cluster import Cluster, Host
from proxy.upstream.control import Control
from proxy.upstream.health import introduce
from proxy.upstream.login import Login, connect, is_passing

log = logging.getLogger(__name__)

_TRY_FOR: Final = 5.0
"""Seconds for which a login that a standby refuses is tried again: it may not have replayed the ALTER ROLE yet."""

_AGAIN: Final = 0.25

_T = TypeVar("_T")

LogIn: TypeAlias = "Callable[[str, Way], Login]"
Reach: TypeAlias = "Callable[[Way], Control]"


class ReloadError(SluiceError):
    """A configuration that is valid by itself but can't be taken over; the message says which part."""


@dataclass(frozen=True)
class Newcomer:
    """A host that is to join, with what it is reached by; it is up if it has answered."""

    host: Host
    way: Way
    control: Control


@dataclass
class Ready:
    """All that a database needs to change; none of it can fail any more."""

    settings: model.Database
    changes: DatabaseChanges
    # Of the hosts that stay: what new connections are encrypted with; control connections under another login.
    contexts: dict[str, Contexts] = field(default_factory=dict)
    controls: dict[str, Control] = field(default_factory=dict)
    newcomers: dict[str, Newcomer] = field(default_factory=dict)

    def drop(self) -> None:
        """Let go of what was opened: nothing will come of it."""
        for control in [*self.controls.values(), *(each.control for each in self.newcomers.values())]:
            control.retire()


class Preparation:
    """Prepares one database at work for other settings."""

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        controls: Mapping[str, Control],
        ways: Mapping[str, Way],
        signed: bool,
    ) -> None:
        self._name = name
        self._cluster = cluster
        self._controls = controls
        self._ways = ways
        self._signed = signed

    async def prepare(
        self,
        ready: Ready,
        make: Callable[[model.Host], Host],
        reach: Reach,
        log_in: LogIn,
    ) -> None:
        """Do for `ready` what can fail.

        `make`, `reach` and `log_in` build a host, its control connections and its pools' logins as the new settings
        have them. Raises TlsError, BypassError or ReloadError.
        """
        settings, changes = ready.settings, ready.changes
        places = {host.name: host for host in settings.hosts}
        stay = {host.name: host for host in self._cluster.hosts if host.name not in changes.hosts_removed}
        for name in stay:
            ready.contexts[name] = self._read(name, self._ways[name].read)
            if changes.control:
                ready.controls[name] = reach(self._ways[name])
        for name in changes.hosts_added:
            way = self._read(name, partial(way_to, places[name]))
            ready.newcomers[name] = Newcomer(make(places[name]), way, reach(way))
        try:
            async with asyncio.TaskGroup() as group:
                for newcomer in ready.newcomers.values():
                    group.create_task(self._meet(newcomer, ready, log_in))
                for host in stay.values():
                    if host.up:
                        group.create_task(self._ask_again(host, ready, log_in))
        except* SluiceError as failed:
            # The first one ended the others.
            raise failed.exceptions[0] from None

    def _read(self, host: str, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except TlsError as error:
            raise TlsError(f"host {host}: {error}") from None

    async def _meet(self, newcomer: Newcomer, ready: Ready, log_in: LogIn) -> None:
        """Ask a host that comes what it is, and whether its rights are as they have to be."""
        host = newcomer.host
        if not await self._answers(host, newcomer.control, lambda each: introduce(host, each)):
            return
        others = [each for each in self._cluster.hosts if each.name in ready.contexts and each.system]
        if others and host.system != others[0].system:
            raise ReloadError(
                f"host {host.name} belongs to another cluster than {others[0].name}: their system identifiers differ"
            )
        await self._vet(host.name, newcomer.control, ready.settings)
        await self._try_logins(host, [log_in(pool, newcomer.way) for pool in ready.settings.pools])

    async def _ask_again(self, host: Host, ready: Ready, log_in: LogIn) -> None:
        """Ask a host that stays what has to be known of the logins that are new."""
        changes = ready.changes
        control = ready.controls.get(host.name) or self._controls[host.name]
        if changes.control and not await self._answers(host, control, _nothing):
            return
        if changes.pools_added:
            await self._vet(host.name, control, ready.settings)
        pools = [*changes.pools_added, *changes.passwords]
        await self._try_logins(host, [log_in(pool, self._ways[host.name]) for pool in pools])

    async def _answers(
        self, host: Host, control: Control, ask: Callable[[asyncpg.Connection[Any]], Awaitable[None]]
    ) -> bool:
        """Tell whether the host answers under the control login; raises ReloadError where it refuses that."""
        deadline = _deadline(host)
        while True:
            try:
                async with control.connection() as connection:
                    await ask(connection)
                    return True
            except UpstreamUnavailable as error:
                if not _is_refusal(error):
                    log.warning(
                        "database %s: host %s doesn't answer yet (%s)", self._name, host.name, error.extra
                    )
                    return False
                if time.monotonic() >= deadline:
                    raise ReloadError(f"host {host.name} refuses the control login: {error.extra}") from None
            await asyncio.sleep(_AGAIN)

    async def _vet(self, name: str, control: Control, settings: model.Database) -> None:
        if not self._signed:
            return
        try:
            async with control.connection() as connection:
                found = await bypasses(connection, settings)
        except UpstreamUnavailable as error:
            raise ReloadError(f"host {name} can't be asked for its logins' rights: {error.extra}") from None
        if found:
            raise BypassError({name: found})

    async def _try_logins(self, host: Host, logins: list[Login]) -> None:
        """Log in once as each user; raises ReloadError where the host refuses one."""
        for login in {(each.user, each.password): each for each in logins}.values():
            await self._try(host, login)

    async def _try(self, host: Host, login: Login) -> None:
        deadline = _deadline(host)
        while True:
            try:
                server = await connect(login, lambda _: None)
            except HostUnavailable as error:
                log.warning(
                    "database %s: host %s doesn't answer now (%s)", self._name, host.name, error.extra
                )
                return
            except ClientError as error:
                if time.monotonic() >= deadline:
                    why = error.extra or error.message
                    raise ReloadError(f"host {host.name} refuses the login {login.user}: {why}") from None
                await asyncio.sleep(_AGAIN)
            else:
                server.close()
                return


def _deadline(host: Host) -> float:
    is_primary = host.up and not host.in_recovery
    return time.monotonic() + (0.0 if is_primary else _TRY_FOR)


async def _nothing(connection: asyncpg.Connection[Any]) -> None:
    """Ask nothing: that there is a connection says enough."""


def _is_refusal(error: UpstreamUnavailable) -> bool:
    """Tell whether a server answered, and it is nothing that passes by itself."""
    cause = error.__cause__
    return isinstance(cause, asyncpg.PostgresError) and not is_passing(cause.sqlstate or "")
