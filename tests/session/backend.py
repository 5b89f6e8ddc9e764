"""PostgreSQL's side of a server connection, as far as sessions can tell: transactions, statements, settings, COPY.

A Backend keeps what was written to it until it is told to answer. It knows whose claim it held when a statement
ran, and refuses bytes of a user before the reset behind another was answered.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.upstream.pool import Pool
from proxy.upstream.server import Server
from tests.session.frontend import message

if TYPE_CHECKING:
    from tests.session.fakes import World


class FakeTransport(asyncio.Transport):
    """Records what is written, and whether reading is paused."""

    def __init__(
        self, written: Callable[[bytes], None] | None = None, peer: object = ("127.0.0.1", 1)
    ) -> None:
        super().__init__(extra={"peername": peer})
        self.protocol: object | None = None
        self.high: int | None = None
        self.writes: list[bytes] = []
        self.paused = False
        self.closed = False
        self.aborted = False
        self._written = written

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "written to a closed transport"
        self.writes.append(bytes(data))
        if self._written is not None:
            self._written(bytes(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    @property
    def all(self) -> bytes:
        """Return everything that was written."""
        return b"".join(self.writes)


class Ran:
    """A statement that a backend executed: as whom, and in what state of the transaction."""

    def __init__(self, owner: str, sql: str, status: str) -> None:
        self.owner = owner
        self.sql = sql
        self.status = status


_SET_CONFIG = re.compile(r"pg_catalog\.set_config\((\$\d+|'[^']*'), (\$\d+|'[^']*'), false\)")
_COLUMN = re.compile(
    r"current_setting\('([^']*)', true\)|lower\(s\.name\) OPERATOR\(pg_catalog\.=\) '([^']*)'"
    r"|(pg_listening_channels|pg_depend|pg_cursors|pg_locks|pg_prepared_statements)"
)
_KEEPS = {
    "LISTEN": "pg_listening_channels",
    "CREATE TEMP": "pg_depend",
    "DECLARE": "pg_cursors",
    "SELECT pg_advisory_lock": "pg_locks",
}
_LETS_GO = {
    "UNLISTEN *": "pg_listening_channels",
    "DROP TABLE": "pg_depend",
    "CLOSE": "pg_cursors",
    "SELECT pg_advisory_unlock": "pg_locks",
}
_SET = re.compile(r'SET (LOCAL |SESSION )?"?([\w.]+)"? (?:=|TO) \'?([^\']*)\'?\Z', re.IGNORECASE)
_WORDS = {
    *("SELECT", "INSERT", "UPDATE", "DELETE", "COPY", "SET", "RESET", "DISCARD"),
    *("LISTEN", "UNLISTEN", "CREATE", "DROP", "DO", "LOAD", "DECLARE", "CLOSE", "SAVEPOINT"),
    *("PREPARE", "EXECUTE", "DEALLOCATE"),
}
REPORTED = {"timezone": "TimeZone", "datestyle": "DateStyle", "application_name": "application_name"}
DEFAULTS = {"timezone": "UTC", "datestyle": "ISO, MDY", "application_name": "", "work_mem": "4096"}


class Failed(Exception):
    """A statement fails with this SQLSTATE."""


class Backend:
    """PostgreSQL's side of one server connection."""

    def __init__(self, world: World, pool: Pool, pid: int) -> None:
        self.world = world
        self.pool = pool
        self.pid = pid
        self.transport = FakeTransport(self._written)
        parameters = {reported.encode(): DEFAULTS[name].encode() for name, reported in REPORTED.items()}
        self.server = Server(
            self.transport, f"{pool.host}:5432", pid, b"secr", parameters, pool.name, pool.closed, world.now
        )
        self.status = "I"
        self.settings = dict(DEFAULTS)
        # What it keeps that pins a session, by the view that tells of it.
        self.kept: set[str] = set()
        self.statements: dict[str, str] = {}
        # Every text that was parsed.
        self.parsed: list[str] = []
        # Texts whose tables have changed, with their errors; and statements that were parsed since.
        self.stale: dict[str, str] = {}
        self.fresh: set[bytes] = set()
        # The TimeZone under which each statement was parsed last.
        self.parsed_under: dict[str, str] = {}
        self.portals: dict[str, tuple[str, list[str]]] = {}
        self.ran: list[Ran] = []
        self.committed: list[str] = []
        # Statements that fail once, by a part of their SQL, with their SQLSTATE.
        self.fails: dict[str, str] = {}
        # Statements that it refuses to execute, by a part of their SQL, with their SQLSTATE.
        self.refuses: dict[str, str] = {}
        self.terminated = False
        # An identity was refused: what came with it in one write ran without.
        self.refused_claim = False
        # Whose bytes came since the last DISCARD ALL that was answered.
        self.user = ""
        self._inbox = b""
        self._out: list[bytes] = []
        self._uncommitted: list[str] = []
        self._before: dict[str, str] | None = None
        self._savepoints: list[tuple[str, dict[str, str], int]] = []
        self._changed: dict[str, str] = {}
        self._skipping = False
        self._copying = ""
        self._copy_is_extended = False
        self._ended = False

    @property
    def owner(self) -> str:
        """Return whose claim it holds, "" for nobody's; one for another backend is nobody's."""
        who, _, rest = self.settings.get("sluice.identity", "").partition("~")
        return who if rest.startswith(f"{self.pid}~") else ""

    @property
    def sql(self) -> list[str]:
        """Return the statements that it ran, but for the proxy's own."""
        own = ("pg_catalog.", "DISCARD ALL", "refused by the proxy")
        return [ran.sql for ran in self.ran if not any(part in ran.sql for part in own)]

    def _written(self, data: bytes) -> None:
        self._inbox += data
        for user in self.world.users:
            if b"'" + user.encode() + b"'" in data:
                assert self.user in ("", user), f"bytes of {user} before the reset behind {self.user}"
                self.user = user

    def answer(self, limit: int = 1_000_000) -> bool:
        """Work through `limit` messages that came, and send the answers in one piece; False if there were none."""
        data, at = self._inbox, 0
        self._inbox = b""
        while limit > 0 and len(data) - at >= 5:
            end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
            if len(data) < end:
                break
            self._message(data[at : at + 1], data[at + 5 : end])
            at = end
            limit -= 1
        self._inbox = data[at:] + self._inbox
        return self.deliver() or at > 0

    def deliver(self) -> bool:
        """Send the answers that are ready, unless nobody reads them."""
        if not self._out or self.transport.paused or self.transport.closed:
            return False
        data, self._out = b"".join(self._out), []
        self.server.data_received(data)
        return True

    def answer_in_single_bytes(self) -> None:
        """Work through what came, and send the answers byte by byte."""
        data, self._inbox = self._inbox, b""
        at = 0
        while at < len(data):
            end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
            self._message(data[at : at + 1], data[at + 5 : end])
            at = end
        answers, self._out = b"".join(self._out), []
        for number in range(len(answers)):
            self.server.data_received(answers[number : number + 1])

    def die(self, severity: str = "") -> None:
        """Lose the connection, with last words of `severity`."""
        if severity:
            text = (
                f"S{severity}\0V{severity}\0C57P01\0Mterminating connection due to administrator command\0\0"
            )
            self.server.data_received(message(b"E", text.encode()))
        self.transport.closed = True
        self.server.connection_lost(None)

    # -- the protocol

    def _put(self, kind: bytes, body: bytes = b"") -> None:
        self._out.append(message(kind, body))

    def _message(self, kind: bytes, body: bytes) -> None:
        if self._ended:
            return
        if kind == b"X" and not self._copying:
            self.terminated = True
        elif self._copying:
            self._copy(kind, body)
        elif self._skipping and kind != b"S":
            return
        elif kind == b"Q":
            self._query(body[:-1].decode())
        elif kind == b"S":
            self._skipping = False
            self._end_implicit()
            self._ready()
        elif kind not in b"dcfH":
            try:
                self._extended(kind, body)
            except Failed as failure:
                self._error(failure)
                self._skipping = True

    def _ready(self) -> None:
        for name, value in self._changed.items():
            self._put(b"S", f"{name}\0{value}\0".encode())
        self._changed = {}
        self._put(b"Z", self.status.encode())

    def _error(self, failure: Failed) -> None:
        self._put(b"E", b"SERROR\0VERROR\0Mfailed\0C" + str(failure).encode() + b"\0\0")
        self._abort()
        self.status = "E" if self.status != "I" else "I"

    def _abort(self) -> None:
        self._uncommitted = []
        if self._before is not None:
            self._change(self._before)
            self._before = None

    def _end_implicit(self) -> None:
        if self.status == "I":
            self.committed += self._uncommitted
            self._uncommitted = []
            self._before = None
            self.portals = {}

    def _query(self, text: str) -> None:
        self.statements.pop("", None)
        parts = [part.strip() for part in text.split(";") if part.strip()]
        if not parts:
            self._put(b"I")
        try:
            for sql in parts:
                self._fail_on(sql)
                tag, values = self._execute(sql, [])
                if values is not None:
                    self._put(b"T", b"\0\1x\0" + b"\0" * 18)
                    self._rows(values)
                if self._copying:
                    self._copy_is_extended = False
                    return
                self._put(b"C", tag.encode() + b"\0")
        except Failed as failure:
            self._error(failure)
        self._end_implicit()
        self._ready()

    def _fail_on(self, sql: str) -> None:
        for part, sqlstate in self.world.failing.items():
            if part in sql:
                raise Failed(sqlstate)
        for part in list(self.fails):
            if part in sql:
                self.refused_claim |= part == "set_config"
                raise Failed(self.fails.pop(part))

    def _extended(self, kind: bytes, body: bytes) -> None:
        if kind == b"P":
            name, sql, _ = body.split(b"\0", 2)
            self._fail_on(sql.decode())
            self._check(sql.decode())
            if name and name.decode() in self.statements:
                raise Failed("42P05")
            self.statements[name.decode()] = sql.decode()
            self.parsed.append(sql.decode())
            self.parsed_under[sql.decode()] = self.settings["timezone"]
            if sql.decode() in self.stale:
                self.fresh.add(name)
            self._put(b"1")
        elif kind == b"B":
            portal, name, rest = body.split(b"\0", 2)
            if name.decode() not in self.statements:
                raise Failed("26000")
            sql_text = self.statements[name.decode()]
            if sql_text in self.stale and name not in self.fresh:
                raise Failed(self.stale[sql_text])
            self._check(sql_text)
            self.portals[portal.decode()] = (sql_text, _values(rest))
            self._put(b"2")
        elif kind == b"D":
            if body[:1] == b"S":
                if body[1:-1].decode() not in self.statements:
                    raise Failed("26000")
                sql_text = self.statements[body[1:-1].decode()]
                if sql_text in self.stale and body[1:-1] not in self.fresh:
                    raise Failed(self.stale[sql_text])
                self._put(b"t", b"\0\0")
            elif body[1:-1].decode() not in self.portals:
                raise Failed("34000")
            self._put(b"n")
        elif kind == b"E":
            name = body.partition(b"\0")[0]
            if name.decode() not in self.portals:
                raise Failed("34000")
            sql_text, bound = self.portals[name.decode()]
            tag, values = self._execute(sql_text, bound)
            self._rows(values or [])
            if self._copying:
                self._copy_is_extended = True
            elif not sql_text:
                self._put(b"I")
            else:
                self._put(b"C", tag.encode() + b"\0")
        elif kind == b"C":
            if body[:1] == b"S":
                self.statements.pop(body[1:-1].decode(), None)
            self._put(b"3")
        else:
            raise AssertionError(f"a message {kind!r} reached a server")

    def _copy(self, kind: bytes, body: bytes) -> None:
        if kind in b"HS":
            return
        if kind == b"d":
            if body == b"bad":
                self._copy_failed("22P04")
            else:
                self._uncommitted.append("copied " + (body.decode() if len(body) < 50 else str(len(body))))
            return
        if kind == b"c":
            self._put(b"C", b"COPY 1\0")
            self._copying = ""
            if not self._copy_is_extended:
                self._end_implicit()
                self._ready()
        elif kind == b"f":
            self._copy_failed("57014")
        else:
            # In the middle of a message it can't go on (pq_is_reading_msg).
            self._put(b"E", b"SERROR\0VERROR\0C08P01\0Munexpected message type\0\0")
            self._put(b"E", b"SFATAL\0VFATAL\0C08P01\0Mprotocol synchronization was lost\0\0")
            self._ended = True

    def _copy_failed(self, sqlstate: str) -> None:
        self._copying = ""
        self._error(Failed(sqlstate))
        if self._copy_is_extended:
            self._skipping = True
        else:
            self._end_implicit()
            self._ready()

    # -- SQL

    def _check(self, sql: str) -> None:
        if self.status == "E" and sql.split(" ")[0] not in ("COMMIT", "ROLLBACK"):
            raise Failed("25P02")

    def _execute(self, sql: str, bound: list[str]) -> tuple[str, list[str] | None]:
        self._check(sql)
        word = sql.split(" ")[0].upper()
        self.ran.append(Ran(self.owner, sql, self.status))
        for part, sqlstate in self.refuses.items():
            if part in sql:
                raise Failed(sqlstate)
        if word == "BEGIN":
            self.status = "T"
            self._before = dict(self.settings)
            return word, None
        if " SAVEPOINT " in " " + sql:
            return self._savepoint(sql)
        if word in ("COMMIT", "ROLLBACK"):
            return self._end(word), None
        if self.status == "I" and self._before is None:
            self._before = dict(self.settings)
        if "1/0" in sql:
            raise Failed("22012")
        if word not in _WORDS:
            raise Failed("42601")
        if word in ("PREPARE", "EXECUTE", "DEALLOCATE"):
            return self._named(word, sql.split(" ")[1 if word == "PREPARE" else -1], sql)
        self._uncommitted.append(sql)
        self.kept |= {view for start, view in _KEEPS.items() if sql.startswith(start)}
        self.kept -= {view for start, view in _LETS_GO.items() if sql.startswith(start)}
        if word == "SELECT":
            values = self._select(sql, bound)
            return f"SELECT {len(values)}", values
        if word == "COPY":
            self._copying = sql
            self._put(b"G", b"\0\0\0")
        elif word == "RESET" and sql != "RESET ALL":
            name = sql.removeprefix("RESET ").lower()
            self._change({**self.settings, name: DEFAULTS.get(name, "")})
        elif word in ("DISCARD", "RESET"):
            if self.status != "I" and word == "DISCARD":
                raise Failed("25001")
            self._change(dict(DEFAULTS))
            if word == "DISCARD":
                self.statements = {}
                self.kept = set()
                self.user = ""
                return "DISCARD ALL", None
        elif word == "SET" and not sql.startswith("SET TRANSACTION "):
            matched = _SET.match(sql)
            assert matched is not None, sql
            self._set(matched[2], matched[3])
        return {"INSERT": "INSERT 0 1", "UPDATE": "UPDATE 1"}.get(word, word), None

    def _named(self, word: str, name: str, sql: str) -> tuple[str, list[str] | None]:
        if word == "PREPARE":
            if name in self.statements:
                raise Failed("42P05")
            inner = sql.partition(" AS ")[2]
            self._fail_on(inner)
            self.statements[name] = inner
            self.parsed_under[inner] = self.settings["timezone"]
            return word, None
        if name not in self.statements:
            raise Failed("26000")
        if word == "EXECUTE":
            return self._execute(self.statements[name], [])
        del self.statements[name]
        return word, None

    def _savepoint(self, sql: str) -> tuple[str, None]:
        word, name = sql.split(" ")[0], sql.split(" ")[-1]
        if self.status != "T":
            raise Failed("25P01")
        if word == "SAVEPOINT":
            self._savepoints.append((name, dict(self.settings), len(self._uncommitted)))
            return word, None
        if self._savepoints[-1][0] != name:
            raise Failed("3B001")
        if word == "RELEASE":
            self._savepoints.pop()
        else:
            _, settings, kept = self._savepoints[-1]
            self._change(settings)
            self._uncommitted = self._uncommitted[:kept]
        return word, None

    def _end(self, word: str) -> str:
        if word == "ROLLBACK" or self.status == "E":
            self._abort()
            word = "ROLLBACK"
        self.status = "I"
        self._savepoints = []
        self._end_implicit()
        return word

    def _select(self, sql: str, bound: list[str]) -> list[str]:
        calls = _SET_CONFIG.findall(sql)
        if calls:
            for name, value in calls:
                self._set(_value(name, bound), _value(value, bound))
            return ["set"]
        asked = _COLUMN.findall(sql)
        if asked:
            return ["\0".join(self._column(*each) for each in asked)]
        matched = re.match(r"SELECT (\d+) TIMES '(.)'", sql)
        if matched:
            return [matched[2] * 1000] * int(matched[1])
        if sql.startswith("SELECT owner FROM "):
            return [self.owner]
        return [sql.removeprefix("SELECT ")]

    def _column(self, setting: str, origin: str, view: str) -> str:
        """Return what the answer to a look says."""
        if view:
            return "t" if view in self.kept else "f"
        if setting:
            return self.settings.get(setting, "").encode().hex()
        default = DEFAULTS.get(origin, "")
        changed = self.settings.get(origin, default) != default
        return ("session=" if changed else "default=") + default

    def _set(self, name: str, value: str) -> None:
        if value == "bogus":
            raise Failed("22023")
        self._change({**self.settings, name.lower(): value})

    def _change(self, settings: dict[str, str]) -> None:
        for name, reported in REPORTED.items():
            if settings[name] != self.settings[name]:
                self._changed[reported] = settings[name]
        self.settings = settings

    def _rows(self, values: list[str]) -> None:
        for value in values:
            columns = value.split("\0")
            body = b"".join(struct.pack("!i", len(each)) + each.encode() for each in columns)
            self._put(b"D", struct.pack("!H", len(columns)) + body)


def _value(text: str, bound: list[str]) -> str:
    return bound[int(text[1:]) - 1] if text.startswith("$") else text[1:-1]


def _values(data: bytes) -> list[str]:
    """Return the parameters of a Bind, from its parameter formats on."""
    formats = int.from_bytes(data[:2], "big")
    at = 2 + 2 * formats
    count = int.from_bytes(data[at : at + 2], "big")
    at += 2
    values = []
    for _ in range(count):
        length = int.from_bytes(data[at : at + 4], "big")
        values.append(data[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return values
