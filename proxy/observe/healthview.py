"""What GET /health tells: the state of the proxy in a word, then each host, each pool and the access log.

ready         every host answers
degraded      clients are served, but a host doesn't answer, or gets no statements after failures
unavailable   no client can be served
draining      the proxy is shutting down
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict

from proxy.observe.snapshot import HostSnapshot, PoolSnapshot, Snapshot


def health(snapshot: Snapshot) -> dict[str, object]:
    """Return the answer, of plain values; times are in seconds, and null where nobody has measured."""
    return {
        "status": status(snapshot),
        "versions": {
            "pgsluice": snapshot.version,
            "compiled": snapshot.compiled,
            "python": platform.python_version(),
        },
        "clients": snapshot.clients,
        "max_clients": snapshot.max_clients,
        "hosts": [_host(host) for host in snapshot.hosts],
        "pools": [_pool(pool) for pool in snapshot.pools],
        "tunnel": _tunnel(snapshot.hosts),
        "access_log": [
            {
                "sink": sink.name,
                "waiting": sink.waiting,
                "dropped": sink.dropped,
                "error": sink.last_error,
            }
            for sink in snapshot.access_log
        ],
        "spool": asdict(snapshot.spool),
    }


def _tunnel(hosts: Sequence[HostSnapshot]) -> dict[str, object] | None:
    """Return how the hosts behind tunnels are, all of them together; None where there are none."""
    behind = [host for host in hosts if host.tunnelled]
    if not behind:
        return None
    return {
        "hosts": [host.host for host in behind],
        "connected": all(host.connected for host in behind),
        "error": "; ".join(f"{host.host}: {host.error}" for host in behind if host.error),
    }


def status(snapshot: Snapshot) -> str:
    """Return the state in a word."""
    if snapshot.draining:
        return "draining"
    if not snapshot.ready:
        return "unavailable"
    well = all(host.connected and host.breaker == "closed" for host in snapshot.hosts)
    return "ready" if well else "degraded"


def _host(host: HostSnapshot) -> dict[str, object]:
    return {
        "database": host.database,
        "host": host.host,
        "role": host.role,
        "connected": host.connected,
        "breaker": host.breaker,
        "response_time": host.response_time,
        "lag": host.lag,
        "error": host.error,
    }


def _pool(pool: PoolSnapshot) -> dict[str, object]:
    return {
        "database": pool.database,
        "pool": pool.pool,
        "host": pool.host,
        "max": pool.maximum,
        "total": pool.active + pool.idle + pool.busy,
        "idle": pool.idle,
        "active": pool.active,
        "pinned": pool.pinned,
        "waiting": pool.waiting,
    }
