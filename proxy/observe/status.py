"""What the dashboard and `pgsluice top` show of one database, as JSON can hold it. All texts in it are safe to print.

database, databases   which one, and those that could be asked for
version, state, uptime, clients, max_clients, stranded
hosts pools           as they are now
history               samples behind the number that was asked for
recent                statements, keys, denials of the last minutes
access_log            its sinks
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from proxy.observe.history import INTERVAL, Activity, History, Sample
from proxy.observe.recent import SLICE_SECONDS, SLICES, Recent, Total
from proxy.observe.snapshot import Snapshot
from proxy.observe.text import escape

# Of each order that a table can have.
_MOST: Final = 15


class Status:
    """Tells of a database what `snapshot`, the history and the last minutes know.

    `recent` is None where no access log is kept. `wall` gives Unix seconds; `started` is such a time.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        history: History,
        recent: Recent | None,
        wall: Callable[[], float],
    ) -> None:
        self._snapshot = snapshot
        self._history = history
        self._recent = recent
        self._wall = wall
        self._started = wall()

    def tell(self, database: str, known: Sequence[str], since: int = 0) -> dict[str, object]:
        """Return the status of `database`, one of `known`; of the history, what came behind sample `since`."""
        now = self._wall()
        snapshot = self._snapshot()
        samples = self._history.since(database, since)
        return {
            "database": database,
            "databases": list(known),
            "version": snapshot.version,
            "compiled": snapshot.compiled,
            "state": "draining" if snapshot.draining else "ready" if snapshot.ready else "degraded",
            "at": round(now, 3),
            "uptime": round(now - self._started, 1),
            "clients": snapshot.clients,
            "max_clients": snapshot.max_clients,
            "stranded": snapshot.stranded.get(database, 0),
            "hosts": [
                {
                    "host": host.host,
                    "role": host.role,
                    "connected": host.connected,
                    "breaker": host.breaker,
                    "response_ms": _ms(host.response_time),
                    "lag_s": None if host.lag is None else round(host.lag, 3),
                    "error": escape(host.error, 300),
                }
                for host in snapshot.hosts
                if host.database == database
            ],
            "pools": [
                {
                    "pool": pool.pool,
                    "host": pool.host,
                    "active": pool.active,
                    "idle": pool.idle,
                    "busy": pool.busy,
                    "pinned": pool.pinned,
                    "waiting": pool.waiting,
                    "maximum": pool.maximum,
                    **_activity(self._history.last.get((database, pool.pool, pool.host), Activity())),
                }
                for pool in snapshot.pools
                if pool.database == database
            ],
            "history": _history(samples, self._history.number(database)),
            "recent": self._last_minutes(database, now),
            "access_log": [
                {
                    "sink": sink.name,
                    "written": sink.written,
                    "waiting": sink.waiting,
                    "dropped": sink.dropped,
                    "error": escape(sink.last_error, 300),
                }
                for sink in snapshot.access_log
            ],
        }

    def _last_minutes(self, database: str, now: float) -> dict[str, object]:
        recent = self._recent
        if recent is None:
            return {"enabled": False, "seconds": 0, "share": 1.0, "statements": [], "keys": [], "denials": []}
        return {
            "enabled": True,
            "seconds": round(min(now - recent.since(database, now), SLICES * SLICE_SECONDS), 1),
            # How many of the last batch's statements were read.
            "share": round(1 / recent.weight, 3),
            "statements": [_statement(total) for total in _foremost(recent.statements(database, now))],
            "keys": [_key(total) for total in _foremost(recent.keys(database, now))],
            "denials": [
                {"at": round(denial.at, 3), "count": denial.number, **denial.fields}
                for denial in recent.denials(database)
            ],
        }


def _foremost(totals: list[Total]) -> list[Total]:
    """Return the first of each order that a table can be put into: by time, mean, longest, number and errors."""
    orders: list[Callable[[Total], float]] = [
        lambda total: total.total_us,
        lambda total: total.total_us / max(total.number, 1.0),
        lambda total: float(total.most_us),
        lambda total: total.number,
        lambda total: total.errors + float(total.denied),
    ]
    chosen = {id(total) for order in orders for total in sorted(totals, key=order, reverse=True)[:_MOST]}
    return [total for total in totals if id(total) in chosen]


def _statement(total: Total) -> dict[str, object]:
    return {"fingerprint": total.name, "intent": total.about, "statement": total.text, **_sums(total)}


def _key(total: Total) -> dict[str, object]:
    return {"key_id": total.name, "user_id": total.about, "denied": total.denied, **_sums(total)}


def _sums(total: Total) -> dict[str, object]:
    return {
        "count": round(total.number),
        "errors": round(total.errors),
        "rows": round(total.rows),
        "bytes_out": round(total.bytes_out),
        "total_ms": round(total.total_us / 1000, 1),
        "mean_ms": round(total.total_us / 1000 / total.number, 3) if total.number else 0.0,
        "max_ms": round(total.most_us / 1000, 3),
    }


def _activity(activity: Activity) -> dict[str, object]:
    return {
        "statements": round(activity.statements, 1),
        "errors": round(activity.errors, 2),
        "p50_ms": activity.p50,
        "p95_ms": activity.p95,
        "p99_ms": activity.p99,
    }


def _history(samples: Sequence[Sample], last: int) -> dict[str, object]:
    """Return the samples by column: what is long is sent without its names again and again."""
    names = sorted({name for sample in samples for name in sample.pools})
    return {
        "interval": INTERVAL,
        "last": last,
        "at": [round(sample.at, 1) for sample in samples],
        "clients": [sample.clients for sample in samples],
        # The pool "" is all of them.
        "pools": {name: _columns(sample.pools.get(name, Activity()) for sample in samples) for name in names},
    }


def _columns(activities: Iterable[Activity]) -> dict[str, list[float | None]]:
    found = list(activities)
    return {
        "statements": [round(each.statements, 1) for each in found],
        "errors": [round(each.errors, 2) for each in found],
        "bytes_in": [round(each.bytes_in) for each in found],
        "bytes_out": [round(each.bytes_out) for each in found],
        "p50_ms": [each.p50 for each in found],
        "p95_ms": [each.p95 for each in found],
        "p99_ms": [each.p99 for each in found],
        "active": [each.active for each in found],
        "waiting": [each.waiting for each in found],
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
