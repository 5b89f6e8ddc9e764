"""A client's connection up to its login: startup packets, the API key, session parameters.

Nothing of a client is trusted before this is done: sizes are those of PostgreSQL's own limits, one deadline
covers the whole login, and the identity is frozen with the one StartupMessage.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from typing import cast

from proxy.auth.identity import subject
from proxy.auth.key import Key, parse_key
from proxy.auth.keystore import KeyStore
from proxy.errors import (
    AddressNotAllowed,
    ClientError,
    DatabaseDisabled,
    InvalidApiKey,
    InvalidParameter,
    MissingApiKey,
    PoolExhausted,
    ProtocolViolation,
    TlsRequired,
    UnknownDatabase,
)
from proxy.observe.record import session_part
from proxy.query.facts import POOL_PARAMETER
from proxy.query.parameters import from_startup
from proxy.query.route import pool_problem
from proxy.session.database import Database
from proxy.session.gate import CONSOLES, Entrant, Gate
from proxy.session.replication import check_replication
from proxy.session.session import Session
from proxy.session.sessions import Visitor
from proxy.session.trial import try_on_server
from proxy.tasks import spawn
from proxy.transport.greeting import Greeting
from proxy.transport.tls import ALPN
from proxy.upstream.server import HIGH_WATER
from proxy.wire.codes import (
    CANCEL_REQUEST,
    FE_PASSWORD,
    GSSENC_REQUEST,
    HEADER,
    MAX_LOGIN_MESSAGE,
    SSL_REQUEST,
)
from proxy.wire.messages import (
    AUTH_CLEARTEXT_PASSWORD,
    AUTH_OK,
    AUTH_SASL_SCRAM,
    AUTH_SASL_SCRAM_PLUS,
    READY_IDLE,
    backend_key_data,
    cstring_end,
    error_response,
    parameter_status,
    sasl_continue,
    sasl_final,
)
from proxy.wire.scram import ServerExchange, mock_verifier, parse_verifier, read_initial_response
from proxy.wire.startup import StartupPacket, negotiate_version, parse_options, read_startup

log = logging.getLogger(__name__)

_KEY_USER = "ctm_"
_PLAIN = Greeting()

_HIDDEN_REPORTS = {
    b"in_hot_standby": b"off",
    b"default_transaction_read_only": b"off",
    b"is_superuser": b"off",
}


class ClientLogin(asyncio.Protocol):
    """One connection before its session: collects bytes for a task that reads as the login goes."""

    def __init__(self, gate: Gate, sock: socket.socket | None = None, greeting: Greeting = _PLAIN) -> None:
        self._gate = gate
        self._sock = sock
        self._greeting = greeting
        self._transport: asyncio.Transport | None = None
        self._buffer = greeting.first
        self._more: asyncio.Future[None] | None = None
        self._closed = False
        self._address = ""
        self._local = False

    # -- protocol methods

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the login."""
        # uvloop's transports have the methods of asyncio.Transport, but do not derive from it.
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else ""
        self._local = not self._address or self._address in ("127.0.0.1", "::1")
        self._gate.stats.connections += 1
        if self._greeting.direct and _protocol_agreed(transport) != ALPN:
            # Somebody may have led another protocol's client here (manual, "SSL Session Encryption").
            self._closed = True
            self._transport.abort()
            return
        self._gate.logins.add(self)
        spawn(self._run(), "login")
        if (oldest := self._gate.unproven.add(self, self._address, self._local)) is not None:
            self._gate.stats.connections_refused += 1
            oldest.end(PoolExhausted("too many connections that have not logged in"))

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        self._buffer += data
        if self._transport is not None and len(self._buffer) > MAX_LOGIN_MESSAGE:
            # Enough for the largest message of a login; the rest waits in the socket.
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Let the transport close."""
        return False

    def connection_lost(self, failure: Exception | None) -> None:
        """End the login of a client that is gone."""
        self._closed = True
        self._wake()

    def end(self, error: ClientError) -> None:
        """Tell the client why there will be no session."""
        if self._transport is not None and not self._closed:
            self._transport.write(error_response(error, True))
            self._transport.close()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    # -- the login

    async def _run(self) -> None:
        startup: StartupPacket | None = None
        key_id = ""
        try:
            async with asyncio.timeout_at(self._deadline()):
                startup = await self._startup()
                if startup is None:
                    return
                self._gate.check_room()
                key = await self._authenticate(startup)
                self._gate.unproven.discard(self)
                key_id = key.id
                if self._asks_for_console(startup):
                    await self._look_again(startup, key_id)
                    self._visit(startup, key)
                    return
                database = self._database(startup)
                session, reports = await self._open(startup, key, database)
                await self._look_again(startup, key_id)
            self._start(session, reports, database, startup.spoken)
        except ClientError as error:
            self._refused(startup, key_id, error)
        except (TimeoutError, ConnectionError):
            if self._transport is not None:
                self._transport.abort()
        except Exception:
            log.exception("login of %s failed", self._address)
            if self._transport is not None:
                self._transport.abort()
        finally:
            self._gate.logins.discard(self)
            self._gate.unproven.discard(self)

    def _deadline(self) -> float | None:
        """Return when the login has to be done, on the loop's clock; None for never."""
        if self._greeting.deadline:
            return self._greeting.deadline
        timeout = self._gate.auth_timeout
        return asyncio.get_running_loop().time() + timeout if timeout else None

    async def _startup(self) -> StartupPacket | None:
        """Return the StartupMessage; None for a cancel request, which is served and closed."""
        assert self._transport is not None
        seen = set(self._greeting.asked)
        while True:
            packet = read_startup(self._buffer)
            if packet is None:
                await self._wait()
                continue
            rest = self._buffer[packet.size :]
            if packet.code in (SSL_REQUEST, GSSENC_REQUEST):
                if self._greeting.encrypted:
                    raise ProtocolViolation("encryption request on an encrypted connection")
                if packet.code in seen or rest:
                    # Bytes behind the request would pass as if they had come encrypted (CVE-2021-23214).
                    raise ProtocolViolation("received data after an encryption request")
                seen.add(packet.code)
                self._buffer = b""
                self._transport.write(b"N")
                continue
            self._buffer = rest
            if packet.code == CANCEL_REQUEST and self._greeting.refused:
                # Its secret was on the network already; PostgreSQL never answers a cancel request.
                self._transport.close()
                return None
            if packet.code == CANCEL_REQUEST:
                await self._gate.cancel(packet.cancel_pid, packet.cancel_secret)
                self._transport.close()
                return None
            if self._greeting.refused:
                raise TlsRequired()
            return packet

    async def _look_again(self, startup: StartupPacket, key_id: str) -> None:
        again = await self._keys(startup).get(key_id)
        if again is None or not again.valid(time.time()):
            # Revoked while it logged in: nobody could close a session that was not there yet.
            raise InvalidApiKey(_why_not(again))

    def _asks_for_console(self, startup: StartupPacket) -> bool:
        """Tell whether the admin console is meant; a database that has its name comes first."""
        name = _database_name(startup)
        return self._gate.console is not None and name in CONSOLES and name not in self._gate.databases

    def _keys(self, startup: StartupPacket) -> KeyStore:
        """Return where the keys of the database that is asked for are; of the first where it does not exist.

        So an unknown database is told only to those who have a key. The console's keys are those of the first, too.
        """
        keys = self._gate.keys
        if self._asks_for_console(startup):
            return next(iter(keys.values()))
        known = keys.get(_database_name(startup)) or keys.get("*")
        return known if known is not None else next(iter(keys.values()))

    async def _authenticate(self, startup: StartupPacket) -> Key:
        user = startup.parameters.get("user", "")
        if not user:
            raise MissingApiKey()
        unknown = [name for name in startup.parameters if name.startswith("_pq_.")]
        if unknown or startup.minor > startup.spoken:
            self._write(negotiate_version(startup.spoken, unknown))
        scram_allowed = "scram-sha-256" in self._gate.methods
        password_allowed = "password" in self._gate.methods and (self._local or self._greeting.encrypted)
        if user.startswith(_KEY_USER) and scram_allowed:
            key = await self._scram(user, self._keys(startup))
        elif password_allowed:
            key = await self._password(self._keys(startup))
        elif scram_allowed:
            key = await self._scram(user, self._keys(startup))
        else:
            raise InvalidApiKey()
        if not key.allows(self._address):
            raise AddressNotAllowed()
        return key

    async def _scram(self, user: str, keys: KeyStore) -> Key:
        """Run SCRAM-SHA-256, with channel binding over TLS if the client has it.

        An unknown or expired key gets the same exchange, which then fails.
        """
        key = await keys.get(user)
        usable = key is not None and key.valid(time.time())
        verifier = (
            parse_verifier(key.scram)
            if key is not None and usable
            else mock_verifier(self._gate.mock_secret, user)
        )
        end_point = self._greeting.end_point
        self._write(AUTH_SASL_SCRAM_PLUS if end_point else AUTH_SASL_SCRAM)
        mechanism, client_first = read_initial_response(await self._message())
        exchange = ServerExchange(verifier, secrets.token_urlsafe(18), mechanism, end_point)
        self._write(sasl_continue(exchange.first(client_first)))
        try:
            final = exchange.final((await self._message())[HEADER:])
        except InvalidApiKey:
            raise InvalidApiKey(_why_not(key)) from None
        if key is None or not usable:
            raise InvalidApiKey(_why_not(key))
        self._write(sasl_final(final))
        return key

    async def _password(self, keys: KeyStore) -> Key:
        """Ask for the whole key as a password."""
        self._write(AUTH_CLEARTEXT_PASSWORD)
        data = await self._message()
        end = cstring_end(data, HEADER, len(data))
        whole = data[HEADER:end].decode("utf-8", "replace")
        if not whole:
            raise MissingApiKey()
        parsed = parse_key(whole)
        key = await keys.get(parsed[0]) if parsed is not None else None
        if key is None or not key.verify_secret(whole) or not key.valid(time.time()):
            raise InvalidApiKey(_why_not(key))
        return key

    def _database(self, startup: StartupPacket) -> Database:
        # Physical replication names no database of ours.
        check_replication(startup.parameters.get("replication", "false"))
        name = _database_name(startup)
        databases = self._gate.databases
        database = databases.get(name) or databases.get("*")
        if database is None:
            raise UnknownDatabase(
                f'database "{name}" does not exist', hint="Known: " + ", ".join(sorted(databases))
            )
        if database.name in self._gate.disabled:
            raise DatabaseDisabled(f'database "{database.name}" takes no new connections: it was disabled')
        return database

    async def _open(
        self, startup: StartupPacket, key: Key, database: Database
    ) -> tuple[Session, dict[bytes, bytes]]:
        """Make the session; its parameters are tried on a server first, so that a wrong one fails here."""
        parameters = startup.parameters
        values, pool = from_startup(parameters, parse_options(parameters.get("options", "")))
        if problem := pool_problem(pool, key.is_admin):
            raise InvalidParameter(problem)
        application_name = _printable(values.pop("application_name", ""))
        tried = database.profiles.of(values)
        reports = dict(database.reports.get(tried) or await try_on_server(database, tried))
        if application_name:
            values["application_name"] = application_name
        if pool:
            values[POOL_PARAMETER] = pool
        reports.update(_HIDDEN_REPORTS)
        reports[b"application_name"] = application_name.encode()
        reports[b"session_authorization"] = parameters["user"].encode()
        assert self._transport is not None
        session = Session(
            database,
            self._transport,
            key,
            subject(key.user_id, key.id, key.permissions_sorted),
            database.profiles.of(values),
            pool,
            session_part(key.id, key.user_id, self._address, application_name, database.name),
            self._gate.bucket(key),
            self._sock,
        )
        session.start_reports = database.reports.get(tried, {})
        return session, reports

    def _visit(self, startup: StartupPacket, key: Key) -> None:
        """Hand the connection over to the admin console; session parameters are taken, and mean nothing there."""
        gate = self._gate
        if self._closed or self._transport is None or gate.console is None:
            return
        self._gate.check_room()
        parameters = startup.parameters
        check_replication(parameters.get("replication", "false"))
        values, _ = from_startup(parameters, parse_options(parameters.get("options", "")))
        name, application_name = _database_name(startup), _printable(values.get("application_name", ""))
        log_part = session_part(key.id, key.user_id, self._address, application_name, name)
        visitor = gate.console(Entrant(self._transport, key, name, application_name, log_part))
        gate.sessions.admit(visitor, startup.spoken)
        reports = {**visitor.reports, b"session_authorization": parameters["user"].encode()}
        database = next(iter(gate.databases.values()))
        database.usage.add(key.id, 0, time.time())
        self._welcome(visitor, reports, database, log_part)

    def _start(self, session: Session, reports: dict[bytes, bytes], database: Database, minor: int) -> None:
        """Hand the connection over to the session."""
        if self._closed or self._transport is None:
            return
        self._gate.check_room()
        self._gate.sessions.add(session, minor)
        session.reported = reports
        database.usage.add(session.key.id, 0, time.time())
        self._welcome(session, reports, database, session.log_part)

    def _welcome(
        self, client: Session | Visitor, reports: dict[bytes, bytes], database: Database, log_part: bytes
    ) -> None:
        """Tell the client that it is in; from here on `client` takes what it sends."""
        assert self._transport is not None
        greeting = [AUTH_OK]
        greeting += [parameter_status(name, value) for name, value in reports.items()]
        greeting += [backend_key_data(client.pid, client.secret), READY_IDLE]
        database.stats.logins += 1
        database.access.event("login", time.time(), log_part)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        self._transport.set_protocol(client)  # type: ignore[arg-type]
        self._transport.write(b"".join(greeting))
        self._transport.resume_reading()
        if self._buffer:
            client.data_received(self._buffer)

    def _refused(self, startup: StartupPacket | None, key_id: str, error: ClientError) -> None:
        user = startup.parameters.get("user", "") if startup is not None else ""
        name = startup.parameters.get("database", "") if startup is not None else ""
        database = self._gate.databases.get(name) or next(iter(self._gate.databases.values()))
        why = error.why if isinstance(error, InvalidApiKey) else error.code.lower()
        self._gate.stats.logins_refused.add(why)
        log.info("login of %r from %s refused: %s", user[:64], self._address or "local socket", why)
        known = key_id or (user if user.startswith(_KEY_USER) else "")
        database.access.event(
            "login_failed",
            time.time(),
            session_part(known[:16], "", self._address, "", name[:64]),
            reason=why,
            sqlstate=error.sqlstate,
            code=error.code,
        )
        self.end(error)

    # -- bytes

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def _message(self) -> bytes:
        """Return the next whole message, which has to be a password or SASL message."""
        while True:
            buffer = self._buffer
            if buffer and buffer[0] != FE_PASSWORD:
                raise ProtocolViolation("expected a password or SASL message")
            if len(buffer) >= HEADER:
                length = int.from_bytes(buffer[1:HEADER], "big", signed=True)
                if length < 4 or length > MAX_LOGIN_MESSAGE:
                    raise ProtocolViolation("invalid length of a password message")
                if len(buffer) > length:
                    self._buffer = buffer[length + 1 :]
                    assert self._transport is not None
                    self._transport.resume_reading()
                    return buffer[: length + 1]
            await self._wait()

    async def _wait(self) -> None:
        if self._closed:
            raise ConnectionError("closed by the client")
        self._more = asyncio.get_running_loop().create_future()
        await self._more
        if self._closed:
            raise ConnectionError("closed by the client")


def _why_not(key: Key | None) -> str:
    """Return why a login with `key` failed, for the log alone; the client is told one thing for all."""
    if key is None:
        return "unknown"
    if key.revoked_at != 0.0 and key.revoked_at <= time.time():
        return "revoked"
    return "wrong" if key.valid(time.time()) else "expired"


def _protocol_agreed(transport: asyncio.BaseTransport) -> str | None:
    """Return the protocol that ALPN chose; None without it."""
    channel = transport.get_extra_info("ssl_object")
    chosen: str | None = channel.selected_alpn_protocol() if channel is not None else None
    return chosen


def _database_name(startup: StartupPacket) -> str:
    """Return the database that is asked for; it defaults to the user's name (manual, "StartupMessage")."""
    return startup.parameters.get("database", "") or startup.parameters.get("user", "")


def _printable(name: str) -> str:
    """Return `name` as PostgreSQL keeps an application_name: ASCII, at most 63 bytes."""
    return "".join(c if " " <= c <= "~" else "?" for c in name)[:63]
