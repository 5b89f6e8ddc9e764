"""The control connections to all hosts of one database, and which of them answer for it."""

from __future__ import annotations

from proxy.errors import NoPrimary
from proxy.upstream.cluster import Cluster
from proxy.upstream.control import Control


class Controls:
    """Control connections to the hosts of `cluster`; those in `by_host` are the ones at work."""

    def __init__(self, cluster: Cluster, by_host: dict[str, Control]) -> None:
        self._cluster = cluster
        self.by_host = by_host

    def primary(self) -> Control:
        """Return the primary's; raises NoPrimary."""
        primary = self._cluster.primary
        if primary is None:
            raise NoPrimary()
        return self.by_host[primary.name]

    def any(self) -> Control:
        """Return the primary's, a replica's where there is no primary; raises HostUnavailable."""
        primary = self._cluster.primary
        if primary is not None:
            return self.by_host[primary.name]
        for host in self._cluster.replicas:
            return self.by_host[host.name]
        raise self._cluster.unavailable(True)

    def put(self, host: str, control: Control) -> None:
        """Reach `host` by `control` from now on; what it was reached by ends as it comes back."""
        if host in self.by_host:
            self.drop(host)
        self.by_host[host] = control

    def drop(self, host: str) -> None:
        """Reach `host` no more."""
        self.by_host.pop(host).retire()

    async def close(self) -> None:
        """Close every idle connection."""
        for control in self.by_host.values():
            await control.close()
