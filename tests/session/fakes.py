"""A world without a network: clients and servers joined in memory, driven step by step.

A Client is a session behind a transport that records. A Backend plays PostgreSQL for one server connection: it
keeps what was written to it until World.settle() has it answered. It knows transactions, prepared statements,
settings and COPY as far as sessions can tell, and what each statement ran as.
"""

from __future__ import annotations

import asyncio
import re
import struct
import time
from collections.abc import Callable

from proxy.auth.key import Key
from proxy.auth.ratelimit import TokenBucket
from proxy.errors import ClientError
from proxy.observe.record import AccessBuffer, pool_part, session_part
from proxy.observe.stats import ProxyStats
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.session.database import Database
from proxy.session.session import Session
from proxy.upstream.cluster import ROUND_ROBIN, Cluster, Host
from proxy.upstream.pool import Pool, PoolLimits
from proxy.upstream.server import Server

SECRET_SHA256 = b"\0" * 32

# -- messages


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def query(sql: str) -> bytes:
    return message(b"Q", sql.encode() + b"\0")


def parse(name: str, sql: str) -> bytes:
    return message(b"P", name.encode() + b"\0" + sql.encode() + b"\0\0\0")


def bind(name: str = "", portal: str = "", values: tuple[bytes, ...] = ()) -> bytes:
    body = portal.encode() + b"\0" + name.encode() + b"\0\0\0" + struct.pack("!H", len(values))
    for value in values:
        body += struct.pack("!i", len(value)) + value
    return message(b"B", body + b"\0\0")


def describe(name: str = "", kind: bytes = b"S") -> bytes:
    return message(b"D", kind + name.encode() + b"\0")


def execute(portal: str = "") -> bytes:
    return message(b"E", portal.encode() + b"\0" + struct.pack("!i", 0))


def close(name: str = "", kind: bytes = b"S") -> bytes:
    return message(b"C", kind + name.encode() + b"\0")


SYNC = message(b"S")
FLUSH = message(b"H")
TERMINATE = message(b"X")
COPY_DONE = message(b"c")
COPY_FAIL = message(b"f", b"no\0")


def copy_data(data: bytes) -> bytes:
    return message(b"d", data)


def run(sql: str) -> bytes:
    """Return the extended protocol's way to run one statement without a name."""
    return parse("", sql) + bind() + execute() + SYNC


def split(data: bytes) -> list[bytes]:
    """Return the whole messages in `data`."""
    messages = []
    at = 0
    while at < len(data):
        end = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
        assert len(data) >= end, "a message is cut off"
        messages.append(data[at:end])
        at = end
    return messages


def fields(data: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse."""
    return {part[:1].decode(): part[1:].decode() for part in data[5:].split(b"\0") if part}


def kinds(data: bytes) -> str:
    """Return what came, in brief: "T D C ZI", "E:42501 ZE", "FATAL:08006", "S:TimeZone=UTC"."""
    return " ".join(_kind(each) for each in split(data))


def _kind(each: bytes) -> str:
    kind = each[:1].decode()
    if kind == "Z":
        return "Z" + each[5:].decode()
    if kind == "S":
        name, value, _ = each[5:].split(b"\0")
        return f"S:{name.decode()}={value.decode()}"
    if kind == "E":
        told = fields(each)
        return ("FATAL:" if told["S"] == "FATAL" else "E:") + told["C"]
    return kind


def rows(data: bytes) -> list[str]:
    """Return the first column of each DataRow."""
    return [each[11:].decode() for each in split(data) if each[:1] == b"D"]


def tags(data: bytes) -> list[str]:
    """Return the tag of each CommandComplete."""
    return [each[5:-1].decode() for each in split(data) if each[:1] == b"C" and len(each) > 5]


def error(data: bytes) -> dict[str, str]:
    """Return the fields of the only ErrorResponse in `data`."""
    (told,) = [fields(each) for each in split(data) if each[:1] == b"E"]
    return told


# -- transports


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


# -- servers


class Ran:
    """A statement that a backend executed: as whom, and in what state of the transaction."""

    def __init__(self, owner: str, sql: str, status: str) -> None:
        self.owner = owner
        self.sql = sql
        self.status = status


_SET_CONFIG = re.compile(r"pg_catalog\.set_config\((\$\d+|'[^']*'), (\$\d+|'[^']*'), false\)")
_CURRENT = re.compile(r"pg_catalog\.current_setting\('([^']*)', true\)")
_SET = re.compile(r'SET (LOCAL |SESSION )?"?([\w.]+)"? (?:=|TO) \'?([^\']*)\'?\Z', re.IGNORECASE)
_WORDS = {
    *("SELECT", "INSERT", "UPDATE", "DELETE", "COPY", "SET", "RESET", "DISCARD"),
    *("LISTEN", "UNLISTEN", "CREATE", "DROP", "DO", "LOAD"),
}
_REPORTED = {"timezone": "TimeZone", "datestyle": "DateStyle", "application_name": "application_name"}
_DEFAULTS = {"timezone": "UTC", "datestyle": "ISO, MDY", "application_name": ""}


class Failed(Exception):
    """A statement fails with this SQLSTATE."""


class Backend:
    """PostgreSQL's side of one server connection."""

    def __init__(self, world: World, pool: Pool, pid: int) -> None:
        self.world = world
        self.pool = pool
        self.pid = pid
        self.transport = FakeTransport(self._written)
        parameters = {_REPORTED[name].encode(): value.encode() for name, value in _DEFAULTS.items()}
        self.server = Server(
            self.transport, f"{pool.host}:5432", pid, b"secr", parameters, pool.name, pool.closed, world.now
        )
        self.status = "I"
        self.settings = dict(_DEFAULTS)
        self.statements: dict[str, str] = {}
        self.portals: dict[str, tuple[str, list[str]]] = {}
        self.ran: list[Ran] = []
        self.committed: list[str] = []
        # Statements that fail once, by a part of their SQL, with their SQLSTATE.
        self.fails: dict[str, str] = {}
        self.terminated = False
        # An identity was refused: what came with it in one write ran without.
        self.refused_claim = False
        # Whose bytes came since the last DISCARD ALL that was answered.
        self.user = ""
        self._inbox = b""
        self._out: list[bytes] = []
        self._uncommitted: list[str] = []
        self._before: dict[str, str] | None = None
        self._changed: dict[str, str] = {}
        self._skipping = False
        self._copying = ""
        self._copy_is_extended = False

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

    def die(self) -> None:
        """Lose the connection."""
        self.transport.closed = True
        self.server.connection_lost(None)

    # -- the protocol

    def _put(self, kind: bytes, body: bytes = b"") -> None:
        self._out.append(message(kind, body))

    def _message(self, kind: bytes, body: bytes) -> None:
        if kind == b"X":
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
        self._put(b"E", b"SERROR\0VERROR\0C" + str(failure).encode() + b"\0Mfailed\0\0")
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
            self._put(b"1")
        elif kind == b"B":
            portal, name, rest = body.split(b"\0", 2)
            if name.decode() not in self.statements:
                raise Failed("26000")
            sql_text = self.statements[name.decode()]
            self._check(sql_text)
            self.portals[portal.decode()] = (sql_text, _values(rest))
            self._put(b"2")
        elif kind == b"D":
            if body[:1] == b"S":
                if body[1:-1].decode() not in self.statements:
                    raise Failed("26000")
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
        else:
            self._copy_failed("57014" if kind == b"f" else "08P01")

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
        if word == "BEGIN":
            self.status = "T"
            self._before = dict(self.settings)
            return word, None
        if word in ("COMMIT", "ROLLBACK"):
            return self._end(word), None
        if self.status == "I" and self._before is None:
            self._before = dict(self.settings)
        if "1/0" in sql:
            raise Failed("22012")
        if word not in _WORDS:
            raise Failed("42601")
        self._uncommitted.append(sql)
        if word == "SELECT":
            values = self._select(sql, bound)
            return f"SELECT {len(values)}", values
        if word == "COPY":
            self._copying = sql
            self._put(b"G", b"\0\0\0")
        elif word in ("DISCARD", "RESET"):
            if self.status != "I" and word == "DISCARD":
                raise Failed("25001")
            self._change(dict(_DEFAULTS))
            if word == "DISCARD":
                self.statements = {}
                self.user = ""
                return "DISCARD ALL", None
        elif word == "SET":
            matched = _SET.match(sql)
            assert matched is not None, sql
            self._set(matched[2], matched[3])
        return {"INSERT": "INSERT 0 1", "UPDATE": "UPDATE 1"}.get(word, word), None

    def _end(self, word: str) -> str:
        if word == "ROLLBACK" or self.status == "E":
            self._abort()
            word = "ROLLBACK"
        self.status = "I"
        self._end_implicit()
        return word

    def _select(self, sql: str, bound: list[str]) -> list[str]:
        calls = _SET_CONFIG.findall(sql)
        if calls:
            for name, value in calls:
                self._set(_value(name, bound), _value(value, bound))
            return ["set"]
        asked = _CURRENT.findall(sql)
        if asked:
            return ["\0".join(self.settings.get(name, "") for name in asked)]
        matched = re.match(r"SELECT (\d+) TIMES '(.)'", sql)
        if matched:
            return [matched[2] * 1000] * int(matched[1])
        return [sql.removeprefix("SELECT ")]

    def _set(self, name: str, value: str) -> None:
        if value == "bogus":
            raise Failed("22023")
        self._change({**self.settings, name.lower(): value})

    def _change(self, settings: dict[str, str]) -> None:
        for name, reported in _REPORTED.items():
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


# -- clients


class Client:
    """A session and what its client got."""

    def __init__(self, world: World, session: Session, transport: FakeTransport) -> None:
        self.world = world
        self.session = session
        self.transport = transport
        self._taken = 0

    def send(self, *messages: bytes) -> None:
        """Have `messages` arrive in one piece; nothing is answered yet."""
        self.session.data_received(b"".join(messages))

    def take(self) -> bytes:
        """Return what has come since the last time."""
        data = self.transport.all
        new, self._taken = data[self._taken :], len(data)
        return new

    def ask(self, *messages: bytes) -> bytes:
        """Send `messages`, let every server answer, and return what came."""
        self.send(*messages)
        self.world.settle()
        return self.take()

    def server(self) -> Server | None:
        """Return the server connection that the session holds."""
        return self.session.server

    def paused(self) -> bool:
        """Tell whether the proxy reads nothing from the client."""
        return self.transport.paused

    def closed(self) -> bool:
        """Tell whether the proxy has closed the connection."""
        return self.transport.closed

    def vanish(self) -> None:
        """Lose the connection."""
        self.transport.closed = True
        self.session.connection_lost(None)


class FakeSigner:
    """Makes claims that a Backend reads."""

    def sign(self, who: str, backend_pid: int, session_user: str, expires: int) -> str:
        return f"{who}~{backend_pid}~{session_user}~{expires}"


def limits(
    maximum: int = 2,
    minimum: int = 0,
    acquire_timeout: float = 30.0,
    idle_timeout: float = 0.0,
    max_lifetime: float = 0.0,
    max_uses: int = 0,
    strict: bool = False,
) -> PoolLimits:
    return PoolLimits(minimum, maximum, acquire_timeout, idle_timeout, max_lifetime, max_uses, strict)


class World:
    """One database: a primary, perhaps a replica, their pools, and the clock."""

    def __init__(
        self,
        maximum: int = 2,
        replica: bool = False,
        strict: bool = False,
        now: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        self._clock = now
        self.users: set[str] = set()
        self.backends: list[Backend] = []
        self.abandoned: list[Server] = []
        # Statements that fail on every server, by a part of their SQL, with their SQLSTATE.
        self.failing: dict[str, str] = {}
        self._wanted: list[Pool] = []
        hosts = [Host("one", "one", 5432, "primary")]
        if replica:
            hosts.append(Host("two", "two", 5432, "replica"))
        for host in hosts:
            host.up = True
            host.fresh_as_of = 1e9
            for name in ("primary", "readonly", "priority", "background", "admin"):
                pool = Pool(name, host.name, limits(maximum, strict=strict), pool_part(name, host.name))
                pool.open = self._wanted.append
                host.pools[name] = pool
        self.cluster = Cluster("app", hosts, ROUND_ROBIN, 10.0)
        self.cluster.roles_changed()
        self.stats = ProxyStats()
        self.access = AccessBuffer(b"\0" * 10)
        intents = IntentCache(FunctionCatalog.builtin(), 16384)
        unfinished = IntentCache(FunctionCatalog.builtin(), 1).lookup(b"-- unfinished")
        self.database = Database("app", self.cluster, intents, unfinished, self.access, self.stats)
        self.database.signer = FakeSigner()

    @property
    def now(self) -> float:
        return self._clock()

    def pool(self, name: str, host: str = "one") -> Pool:
        return next(each for each in self.cluster.hosts if each.name == host).pools[name]

    def of(self, pool: str, host: str = "one") -> list[Backend]:
        """Return the backends of a pool."""
        return [each for each in self.backends if each.pool is self.pool(pool, host)]

    def client(
        self,
        user: str = "alice",
        permissions: tuple[str, ...] = ("write:tasks",),
        pool: str = "",
        rate: int = 0,
        settings: dict[str, str] | None = None,
    ) -> Client:
        """Return a client that has logged in."""
        self.users.add(user)
        key = Key("ctm_" + user.ljust(12, "0"), user, user, permissions, SECRET_SHA256, "")
        key.rate_limit_per_minute = rate
        transport = FakeTransport()
        session = Session(
            self.database,
            transport,
            key,
            user,
            self.database.profiles.of(settings or {}),
            pool,
            session_part(key.id, user, "127.0.0.1", "", "app"),
            TokenBucket(rate, self.now) if rate else None,
        )
        session.reported = {_REPORTED[name].encode(): value.encode() for name, value in _DEFAULTS.items()}
        for name, value in (settings or {}).items():
            session.reported[_REPORTED.get(name, name).encode()] = value.encode()
        session.on_abandon = self.abandoned.append
        return Client(self, session, transport)

    def open(self) -> bool:
        """Open the server connections that pools asked for; False if there were none."""
        wanted, self._wanted[:] = list(self._wanted), []
        for pool in wanted:
            backend = Backend(self, pool, 100 + len(self.backends))
            self.backends.append(backend)
            pool.opened(backend.server, self.now)
        return bool(wanted)

    def fail_to_open(self, reason: ClientError) -> None:
        """Let the connections that pools asked for fail."""
        wanted, self._wanted[:] = list(self._wanted), []
        for pool in wanted:
            pool.open_failed(reason)

    def settle(self) -> None:
        """Open and answer until nothing is left to do."""
        busy = True
        while busy:
            busy = self.open()
            for backend in self.backends:
                busy = backend.answer() or busy

    def check(self) -> None:
        """Check what must be true whenever nothing is under way."""
        for host in self.cluster.hosts:
            for pool in host.pools.values():
                shelved = [server for shelf in pool.idle.values() for server in shelf]
                assert len(shelved) == pool.idle_count
                assert len(set(map(id, shelved))) == len(shelved)
                assert pool.size <= pool.limits.maximum
                for label, shelf in pool.idle.items():
                    for server in shelf:
                        assert server.label == label
                        assert server.replies.empty and server.borrower is None
                        assert chr(server.replies.status) == "I"
