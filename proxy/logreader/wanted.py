"""Which access records somebody wants to see: the same question to a table, as SQL, and to a line of JSON.

A record is a dict as a line of the access log has it: names are those of the columns, what is NULL is missing, `at` is
text in ISO 8601, in UTC and with milliseconds, so that records sort by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from proxy.config.units import duration
from proxy.errors import SluiceError
from proxy.observe.stats import KINDS

EVENTS: Final = ("statement", "login", "login_failed", "denied", "revoked", "cancel", "admin")

LOOKS_BACK: Final = timedelta(days=1)
"""How far back is looked where nobody says: the table holds months, and a search is not to read them all."""

_CLASS: Final = 2
"""Characters of an SQLSTATE that are its class (manual, appendix "PostgreSQL Error Codes")."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a record has to be; None where anything will do. `slower` is in seconds."""

    key: str | None = None
    user: str | None = None
    intent: str | None = None
    event: str | None = None
    code: str | None = None
    sqlstate: str | None = None
    slower: float | None = None
    since: datetime | None = None
    until: datetime | None = None

    def covers(self, record: Mapping[str, Any]) -> bool:
        """Tell whether `record` is wanted."""
        for name, value in self._equal():
            if record.get(name) != value:
                return False
        if self.sqlstate is not None and record.get("sqlstate", "")[: len(self.sqlstate)] != self.sqlstate:
            return False
        if self.slower is not None and record.get("duration_us", -1) < self.slower * 1e6:
            return False
        at = record.get("at", "")
        if self.since is not None and at < as_text(self.since):
            return False
        return self.until is None or at < as_text(self.until)

    def condition(self, since: datetime) -> tuple[str, list[object]]:
        """Return the condition in SQL and its parameters, for rows from `since` on.

        The time stands first: by it partitions are left out, and within them the index on it is used.
        """
        arguments: list[object] = [since]
        terms = ["at >= $1"]

        def also(term: str, value: object) -> None:
            arguments.append(value)
            terms.append(term.format(f"${len(arguments)}"))

        if self.until is not None:
            also("at < {}", self.until)
        for name, value in self._equal():
            also(f"{name} = {{}}", value)
        if self.sqlstate is not None:
            also(f"left(sqlstate, {len(self.sqlstate)}) = {{}}", self.sqlstate)
        if self.slower is not None:
            also("duration_us >= {}", round(self.slower * 1e6))
        return " AND ".join(terms), arguments

    def _equal(self) -> list[tuple[str, str]]:
        given = (
            ("key_id", self.key),
            ("user_id", self.user),
            ("intent", self.intent),
            ("event", self.event),
            ("code", self.code),
        )
        return [(name, value) for name, value in given if value is not None]


def wanted(
    now: datetime,
    *,
    key: str | None = None,
    user: str | None = None,
    intent: str | None = None,
    event: str | None = None,
    code: str | None = None,
    sqlstate: str | None = None,
    slower: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> Wanted:
    """Return what the command line asks for. Raises SluiceError with a sentence for what it can't be."""
    for option, value, known in (("--intent", intent, KINDS), ("--event", event, EVENTS)):
        if value is not None and value not in known:
            raise SluiceError(f"{option}: one of {', '.join(known)} is needed, not {value}")
    if sqlstate is not None and len(sqlstate) not in (_CLASS, 5):
        raise SluiceError("--sqlstate: five characters are needed, or two for a class, as in 42501 or 42")
    seconds: float | None = None
    if slower is not None:
        try:
            seconds = duration(slower)
        except ValueError as error:
            raise SluiceError(f"--slower: {error}") from None
    return Wanted(
        key=key,
        user=user,
        intent=intent,
        event=event,
        code=code.upper() if code is not None else None,
        sqlstate=sqlstate.upper() if sqlstate is not None else None,
        slower=seconds,
        since=_time("--since", since, now),
        until=_time("--until", until, now),
    )


def as_text(at: datetime) -> str:
    """Return a time as records have it: ISO 8601 in UTC, with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(option: str, text: str | None, now: datetime) -> datetime | None:
    """Return a time: so long before `now` (10m), or as it is given, in UTC where it says no zone."""
    if text is None:
        return None
    try:
        return now - timedelta(seconds=duration(text))
    except (ValueError, OverflowError):
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        message = f"{option}: how long ago (10m) or a time (2027-01-01T12:00) is needed, not {text}"
        raise SluiceError(message) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
