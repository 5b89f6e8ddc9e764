"""Host names that come to mean other addresses: a failover by DNS, a rolling replacement.

New connections look the name up by themselves. What is open stays at the old address, where there may be an old
primary that nobody writes to any more: it is let go of.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time

from proxy.upstream.cluster import Host
from proxy.upstream.control import Control

log = logging.getLogger(__name__)

LOOK_UP_AFTER = 5.0
"""Seconds between two lookups of one name: as short as the shortest time to live that DNS providers use."""

ROTATES_WITHIN = 60.0
"""Seconds within which an address that went comes back, where a name gives its addresses in turns (reader endpoints of
cloud databases do). There a change tells nothing, and nothing is let go of."""


class Names:
    """The addresses of hosts that are configured by name."""

    def __init__(self) -> None:
        self._known: dict[str, frozenset[str]] = {}
        self._looked_up: dict[str, float] = {}
        # Addresses that a host's name no longer gave, and when that was; and hosts whose addresses take turns.
        self._gone: dict[str, dict[str, float]] = {}
        self._rotating: set[str] = set()

    async def follow(self, host: Host, control: Control) -> None:
        """Look the host's name up, where it is due, and let go of connections to what it does not mean any more.

        A name that can't be looked up keeps its addresses: the name server may be what is down.
        """
        now = time.monotonic()
        due = self._looked_up.get(host.name, -LOOK_UP_AFTER) + LOOK_UP_AFTER
        if now < due or not control.way.follows_names or not _is_name(host.address):
            return
        self._looked_up[host.name] = now
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host.address, host.port, type=socket.SOCK_STREAM
            )
        except OSError as error:
            log.debug("host %s: %s can't be looked up: %s", host.name, host.address, error)
            return
        addresses = frozenset(str(address[0]) for _, _, _, _, address in found)
        before = self._known.get(host.name)
        self._known[host.name] = addresses
        if before is None or before <= addresses or self._rotates(host.name, before, addresses, now):
            return
        retired = sum(pool.retire_all(addresses) for pool in host.pools.values())
        control.forget()
        log.warning(
            "host %s: %s is now %s; %d connections to other addresses end as they come back",
            host.name,
            host.address,
            ", ".join(sorted(addresses)),
            retired,
        )

    def forget(self, name: str) -> None:
        """Know nothing any more of the host `name`: another may come under it."""
        self._known.pop(name, None)
        self._looked_up.pop(name, None)
        self._gone.pop(name, None)
        self._rotating.discard(name)

    def _rotates(self, name: str, before: frozenset[str], addresses: frozenset[str], now: float) -> bool:
        """Tell whether the host's addresses take turns, of which this change is one."""
        gone = self._gone.setdefault(name, {})
        if name not in self._rotating and any(
            now - gone.get(address, -ROTATES_WITHIN) < ROTATES_WITHIN for address in addresses
        ):
            log.info("host %s: its name gives several addresses in turns; changes are not followed", name)
            self._rotating.add(name)
        gone.update(dict.fromkeys(before - addresses, now))
        return name in self._rotating


def _is_name(address: str) -> bool:
    """Tell whether `address` has to be looked up: no IP address, no directory of a Unix socket."""
    if address.startswith("/"):
        return False
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return True
    return False
