"""What was asked in the last minutes, by whom, and what was denied: read from the access log's own rows.

    AccessLog.flush ── rows ──► Recent.add ──► five slices of a minute, for each database:
                                               totals by fingerprint, totals by key; the last denials

So it costs the path of a query nothing. All of it is bounded. Above MOST_ROWS statements a second so many of them are
read, and stand for the others; what isn't a statement is always read. Where a slice has too many fingerprints or keys,
those that took the least time are forgotten. Texts are normalized; with `statements: none` there are none.

Rows are those of proxy.observe.record. They come from this process alone: nothing is checked here.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, final

from librt.strings import read_i32_be, read_i64_be
from mypy_extensions import i64

from proxy.observe.record import COLUMNS
from proxy.observe.rows import skip
from proxy.observe.text import escape
from proxy.query.lexer import normalize

SLICES: Final = 5
SLICE_SECONDS: Final = 60.0
# Statements that are read in a second: some 0.6 µs each, 25 µs where this module is interpreted. A batch
# has between LEAST_ROWS and MOST_ROWS of them read, however early or late it comes.
MOST_ROWS: Final = 2000
LEAST_ROWS: Final = 100
# Totals that a slice keeps at least; twice as many are held until the lesser half is forgotten.
MOST_TOTALS: Final = 300
MOST_DENIALS: Final = 100
MOST_SESSIONS: Final = 4096
# Characters of a text: enough to know a statement by.
MAX_TEXT: Final = 600

# What a denial is.
_DENIALS: Final = frozenset((b"denied", b"login_failed", b"revoked"))
# From 1970 to 2000, where PostgreSQL's timestamps start, in microseconds.
_EPOCH_US: Final[i64] = 946_684_800_000_000
# Bytes before the column event: the number of fields, id and at. at itself stands at _AT.
_LEAD: Final[i64] = 34
_AT: Final[i64] = 26


@final
class Total:
    """What statements with one fingerprint, or of one key, add up to. `name` is the fingerprint or the key's id."""

    def __init__(self, name: str, about: str, text: str) -> None:
        self.name = name
        # The intent of a statement, the user of a key.
        self.about = about
        self.text = text
        # Floats, as a row that is read may stand for some that aren't.
        self.number = 0.0
        self.errors = 0.0
        self.denied: i64 = 0
        self.rows = 0.0
        self.bytes_out = 0.0
        self.total_us = 0.0
        self.most_us: i64 = 0

    def merge(self, other: Total) -> None:
        """Add what another slice has of the same."""
        self.number += other.number
        self.errors += other.errors
        self.denied += other.denied
        self.rows += other.rows
        self.bytes_out += other.bytes_out
        self.total_us += other.total_us
        if other.most_us > self.most_us:
            self.most_us = other.most_us


@final
class Denial:
    """Refusals that differ in nothing but their time: how many, and the last one's, in Unix seconds."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        self.at = 0.0
        self.number = 0


@final
class Slice:
    """A minute of one database."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.statements: dict[bytes, Total] = {}
        self.keys: dict[bytes, Total] = {}


@final
class Past:
    """The last minutes of one database, the newest slice last, and its denials, the newest last."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self.denials: dict[bytes, Denial] = {}

    def current(self, now: float) -> Slice:
        """Return the slice of this minute; what is older than the last five goes."""
        if self.slices:
            newest = self.slices[-1]
            if 0.0 <= now - newest.started < SLICE_SECONDS:
                return newest
        self.forget(now)
        self.slices.append(Slice(now))
        return self.slices[-1]

    def forget(self, now: float) -> None:
        """Drop slices that have left the window, and those of a clock that was set back since."""
        oldest = now - SLICES * SLICE_SECONDS
        self.slices = [each for each in self.slices if oldest < each.started <= now]


@final
class _Session:
    """What rows of one session share."""

    def __init__(self, past: Past, key_id: bytes, user: str) -> None:
        self.past = past
        self.key_id = key_id
        self.user = user


@final
class Recent:
    """The last minutes of each of `databases`; what names another, as a login may, counts for the first of them.

    `statements` is what the rows' texts are: `normalized`, `full` or `none`. Times are Unix seconds.
    """

    def __init__(self, databases: list[str], statements: str) -> None:
        self._pasts: dict[str, Past] = {name: Past() for name in databases}
        self._first: Past = self._pasts[databases[0]]
        self._full = statements == "full"
        self._with_text = statements != "none"
        self._sessions: dict[bytes, _Session] = {}
        self._added_at = 0.0
        # How many statements each one that was read stood for in the last batch.
        self.weight = 1.0

    def serve(self, databases: list[str]) -> None:
        """Go on with these databases; what is known of those that were there before stays."""
        pasts = self._pasts
        self._pasts = {name: pasts[name] if name in pasts else Past() for name in databases}
        self._first = self._pasts[databases[0]]
        self._sessions = {}

    def add(self, rows: bytes, number: i64, events: list[int], now: float) -> None:
        """Take in a batch of `number` rows; at the offsets `events` are those that aren't statements."""
        for event_at in events:
            self._event(rows, event_at, now)
        most: i64 = int(max(0.0, min(now - self._added_at, 1.0)) * MOST_ROWS)
        most = max(most, LEAST_ROWS)
        self._added_at = now
        statements = number - len(events)
        self.weight = 1.0 if statements <= most else float(statements) / float(most)
        end: i64 = len(rows)
        at: i64 = 0
        while at < end and most > 0:
            following = self._row(rows, at, now)
            if following == 0:
                at = skip(rows, at + 2, COLUMNS)
            else:
                most -= 1
                at = following

    def statements(self, database: str, now: float) -> list[Total]:
        """Return the totals by fingerprint, those that took the most time in all first."""
        past = self._pasts[database]
        past.forget(now)
        return _merged([each.statements for each in past.slices])

    def keys(self, database: str, now: float) -> list[Total]:
        """Return the totals by key, those that took the most time in all first."""
        past = self._pasts[database]
        past.forget(now)
        return _merged([each.keys for each in past.slices])

    def denials(self, database: str) -> list[Denial]:
        """Return what was denied, the newest first."""
        found = list(self._pasts[database].denials.values())
        found.reverse()
        return found

    def since(self, database: str, now: float) -> float:
        """Return when the oldest slice began."""
        past = self._pasts[database]
        past.forget(now)
        return past.slices[0].started if past.slices else now

    def _row(self, rows: bytes, start: i64, now: float) -> i64:
        """Count the statement whose row is at `start`; returns where the next begins, 0 for what is none."""
        event_at = start + _LEAD
        if _body(rows, event_at) != b"statement":
            return 0
        session_at = skip(rows, event_at, 1)
        pool_at = skip(rows, session_at, 5)
        intent_at = skip(rows, pool_at, 4)
        statement_at = skip(rows, intent_at, 2)
        rows_at = skip(rows, statement_at, 1)
        out_at = skip(rows, rows_at, 2)
        duration_at = skip(rows, out_at, 3)
        sqlstate_at = skip(rows, duration_at, 3)
        session = self._session(rows[session_at:pool_at])
        slice = session.past.current(now)
        duration_us = _number(rows, duration_at)
        weight = self.weight
        for total in (self._statement(slice, rows, intent_at, statement_at), self._key(slice, session)):
            total.number += weight
            total.rows += float(_number(rows, rows_at)) * weight
            total.bytes_out += float(_number(rows, out_at)) * weight
            total.total_us += float(duration_us) * weight
            if duration_us > total.most_us:
                total.most_us = duration_us
            if read_i32_be(rows, sqlstate_at) > 0:
                total.errors += weight
        return skip(rows, sqlstate_at, 3)

    def _event(self, rows: bytes, start: i64, now: float) -> None:
        """Keep the denial whose row is at `start`; other events are nothing to us."""
        event_at = start + _LEAD
        event = _body(rows, event_at)
        if event not in _DENIALS:
            return
        session_at = skip(rows, event_at, 1)
        pool_at = skip(rows, session_at, 5)
        reason_at = skip(rows, pool_at, 3)
        intent_at = skip(rows, reason_at, 1)
        statement_at = skip(rows, intent_at, 2)
        sqlstate_at = skip(rows, statement_at, 9)
        session = self._session(rows[session_at:pool_at])
        if event == b"denied":
            self._key(session.past.current(now), session).denied += 1
        mark = (
            rows[event_at:pool_at]
            + rows[reason_at:statement_at]
            + rows[sqlstate_at : skip(rows, sqlstate_at, 2)]
        )
        denials = session.past.denials
        denial = denials.pop(mark, None)
        if denial is None:
            text = self._text(rows, statement_at)
            denial = Denial(_told(rows, event_at, session_at, reason_at, intent_at, sqlstate_at, text))
            if len(denials) >= MOST_DENIALS:
                del denials[next(iter(denials))]
        denials[mark] = denial
        denial.number += 1
        denial.at = float(read_i64_be(rows, start + _AT) + _EPOCH_US) / 1e6

    def _session(self, run: bytes) -> _Session:
        session = self._sessions.get(run)
        return self._meet(run) if session is None else session

    def _meet(self, run: bytes) -> _Session:
        """Read what a session's rows share, once for each session."""
        key_id = _body(run, 0)
        database = _string(run, skip(run, 0, 4))
        past = self._pasts.get(database)
        session = _Session(self._first if past is None else past, key_id, _string(run, skip(run, 0, 1)))
        if len(self._sessions) >= MOST_SESSIONS:
            self._sessions.clear()
        self._sessions[run] = session
        return session

    def _statement(self, slice: Slice, rows: bytes, intent_at: i64, statement_at: i64) -> Total:
        mark = rows[intent_at:statement_at]
        total = slice.statements.get(mark)
        if total is None:
            fingerprint = _string(rows, skip(rows, intent_at, 1))
            text = self._text(rows, statement_at) if fingerprint else "(not parsed)"
            total = Total(fingerprint, _string(rows, intent_at), text)
            _enter(slice.statements, mark, total)
        return total

    def _key(self, slice: Slice, session: _Session) -> Total:
        total = slice.keys.get(session.key_id)
        if total is None:
            total = Total(escape(session.key_id.decode()), escape(session.user), "")
            _enter(slice.keys, session.key_id, total)
        return total

    def _text(self, rows: bytes, at: i64) -> str:
        """Return a statement without literals, safe to show, on one line; "" where there is to be none."""
        if not self._with_text:
            return ""
        body = _body(rows, at)
        if self._full:
            body = normalize(body)
        return escape(" ".join(body.decode("utf-8", "replace").split()), MAX_TEXT)


def _enter(totals: dict[bytes, Total], mark: bytes, total: Total) -> None:
    """Add a total; where there are too many, keep those that took the most time."""
    if len(totals) >= 2 * MOST_TOTALS:
        kept = sorted(totals.items(), key=_item_weight)[-MOST_TOTALS:]
        totals.clear()
        totals.update(kept)
    totals[mark] = total


def _merged(slices: list[dict[bytes, Total]]) -> list[Total]:
    together: dict[bytes, Total] = {}
    for slice in slices:
        for mark, total in slice.items():
            known = together.get(mark)
            if known is None:
                known = Total(total.name, total.about, total.text)
                together[mark] = known
            known.merge(total)
    return sorted(together.values(), key=_weight, reverse=True)


def _weight(total: Total) -> int:
    return int(total.total_us)


def _item_weight(item: tuple[bytes, Total]) -> int:
    return int(item[1].total_us)


def _told(
    rows: bytes, event_at: i64, session_at: i64, reason_at: i64, intent_at: i64, sqlstate_at: i64, text: str
) -> dict[str, str]:
    """Return what is shown of a denial; a client's own words are escaped."""
    address_at = skip(rows, session_at, 2)
    return {
        "event": _string(rows, event_at),
        "key_id": escape(_string(rows, session_at)),
        "user_id": escape(_string(rows, skip(rows, session_at, 1))),
        "client_addr": _address(_body(rows, address_at)),
        "application_name": escape(_string(rows, skip(rows, address_at, 1))),
        "reason": escape(_string(rows, reason_at)),
        "intent": _string(rows, intent_at),
        "statement": text,
        "sqlstate": _string(rows, sqlstate_at),
        "code": _string(rows, skip(rows, sqlstate_at, 1)),
    }


def _number(rows: bytes, at: i64) -> i64:
    """Return the number in a field; NULL counts as none."""
    return read_i64_be(rows, at + 4) if read_i32_be(rows, at) == 8 else 0


def _body(rows: bytes, at: i64) -> bytes:
    size = i64(read_i32_be(rows, at))
    return rows[at + 4 : at + 4 + size] if size > 0 else b""


def _string(rows: bytes, at: i64) -> str:
    return _body(rows, at).decode("utf-8", "replace")


def _address(inet: bytes) -> str:
    """Return an address from the form in which PostgreSQL sends inet: four bytes, then the address."""
    return str(ip_address(inet[4:])) if len(inet) > 4 else ""
