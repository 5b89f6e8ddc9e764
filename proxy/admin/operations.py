"""The commands that change something: what each does to the databases, and what it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from proxy.admin.commands import FLUSH_CACHE, Command
from proxy.admin.site import Site
from proxy.errors import ClientKilled, InvalidParameter, ReloadRefused, SluiceError, WrongState
from proxy.session.served import Served

_STEP: Final = 0.02
"""Seconds between two looks whether what is waited for has happened."""


async def carry_out(command: Command, site: Site) -> str:
    """Do what `command` says, in all workers; returns what its client should know beside, "" for nothing.

    Raises ClientError where it can't be done. Cancelled, PAUSE takes itself back.
    """
    if site.others is not None:
        return await site.others.carry_out(command)
    return await carry_out_here(command, site)


async def carry_out_here(command: Command, site: Site) -> str:
    """Do the same in this process alone.

    Raises ClientError where it can't be done. Cancelled, PAUSE takes itself back.
    """
    verb, name = command.verb, command.argument
    if verb == "kill_client":
        _kill_client(int(name), site)
    elif verb == "reload":
        return await _reload(site)
    elif verb == "shutdown":
        site.shutdown(name == "wait_for_clients")
    else:
        databases = site.databases(name)
        if verb == "enable":
            site.gate.disabled.discard(name)
        elif verb == "disable":
            site.gate.disabled.add(name)
        elif verb == "reconnect":
            for served in databases:
                for pool in served.pools.of_hosts():
                    pool.reconnect()
        elif verb == "wait_close":
            await _closed(databases)
        elif verb == "pause":
            await _pause(databases, site, not name)
        elif verb == "resume":
            _resume(databases, site, not name)
        elif verb == "kill":
            _kill(databases, site, not name)
        elif verb == FLUSH_CACHE:
            for served in databases:
                served.keeping.flush()
    return ""


# -- PAUSE and RESUME


async def _pause(databases: Sequence[Served], site: Site, everything: bool) -> None:
    """Let nothing be sent any more, and wait until each connection has come back and is closed."""
    if site.paused or all(served.cluster.paused for served in databases):
        raise WrongState("already paused", hint="RESUME ends a pause.")
    fresh = [served for served in databases if not served.cluster.paused]
    now = time.monotonic()
    site.paused = everything
    for served in fresh:
        served.cluster.pause(now)
    try:
        await _until(lambda: all(_is_empty(served) for served in databases))
    except asyncio.CancelledError:
        if everything:
            site.paused = False
        for served in fresh:
            served.cluster.unpause(time.monotonic())
        raise


def _resume(databases: Sequence[Served], site: Site, everything: bool) -> None:
    paused = [served for served in databases if served.cluster.paused]
    if not paused:
        which = "nothing" if everything else f'database "{databases[0].name}"'
        raise WrongState(f"{which} is {'' if everything else 'not '}paused")
    site.paused = False
    for served in paused:
        served.cluster.unpause(time.monotonic())


def _is_empty(served: Served) -> bool:
    return all(pool.is_empty for pool in served.pools.all())


# -- KILL


def _kill_client(number: int, site: Site) -> None:
    sessions = site.gate.sessions
    client = sessions.by_pid.get(number) or sessions.visitors.get(number)
    if client is None:
        raise InvalidParameter(f"there is no client {number}", hint="SHOW CLIENTS shows their ids.")
    client.fatal(ClientKilled())


def _kill(databases: Sequence[Served], site: Site, everything: bool) -> None:
    """End all clients and server connections of these databases; new ones wait for RESUME."""
    now = time.monotonic()
    site.paused = site.paused or everything
    for served in databases:
        for session in list(site.gate.sessions.by_pid.values()):
            if session.database.name == served.name:
                session.fatal(ClientKilled())
        if not served.cluster.paused:
            served.cluster.pause(now)
        for pool in served.pools.all():
            pool.close_all(ClientKilled())


# -- the rest


async def _closed(databases: Sequence[Served]) -> None:
    """Wait for the end of the connections that are to close when they come back."""
    now = time.monotonic()
    due = {
        server
        for served in databases
        for pool in served.pools.all()
        for server in pool.servers
        if 0.0 < server.retire_at <= now
    }

    def gone() -> bool:
        alive = {server for served in databases for pool in served.pools.all() for server in pool.servers}
        return not due & alive

    await _until(gone)


async def _reload(site: Site) -> str:
    try:
        needing = await site.reload()
    except SluiceError as error:
        raise ReloadRefused(extra=str(error)) from None
    return f"a restart is needed for: {', '.join(needing)}" if needing else ""


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(_STEP)
