"""Logging in to a PostgreSQL server as one of the pools' roles (manual, "Start-up").

The login speaks until the first ReadyForQuery and then hands the transport to a Server.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from proxy.errors import ClientError, HostUnavailable, ProtocolViolation, UpstreamUnavailable
from proxy.transport.tls import explain, peer_end_point
from proxy.transport.way import Way
from proxy.upstream.server import HIGH_WATER, Server
from proxy.wire.codes import (
    AUTH_CLEARTEXT,
    AUTH_MD5,
    AUTH_OK,
    AUTH_SASL,
    AUTH_SASL_CONTINUE,
    AUTH_SASL_FINAL,
    BE_AUTHENTICATION,
    BE_BACKEND_KEY_DATA,
    BE_ERROR,
    BE_NOTICE,
    BE_PARAMETER_STATUS,
    BE_READY,
    HEADER,
    MAX_HELD,
    PROTOCOL_3_0,
)
from proxy.wire.messages import error_fields, message, parameters_of
from proxy.wire.replies import MAX_PARAMETERS
from proxy.wire.scram import ClientExchange

# A role may change its own defaults through a DO block, and startup options win over those; so whatever the
# policies' safety rests on is fixed here (manual, "Setting Parameters": options of the connection).
_FIXED_OPTIONS = {
    "search_path": '"$user", public',
    "row_security": "on",
    "role": "none",
    "local_preload_libraries": "",
}

# Classes of SQLSTATE with which a server refuses logins for a while: no connection left, starting up or shutting
# down, an error of its system (manual, appendix "PostgreSQL Error Codes"). A wrong password doesn't pass.
_MAY_PASS = ("53", "57", "58", "XX")

_MOST_REQUESTS = 4
"""Authentication requests of one login: SCRAM takes SASL, SASLContinue, SASLFinal and Ok. Each may cost us work."""


def is_passing(sqlstate: str) -> bool:
    """Tell whether a server that refuses with `sqlstate` may take the same login in a while."""
    return sqlstate[:2] in _MAY_PASS


@dataclass(frozen=True)
class Login:
    """Where to log in and as whom; `read_only` opens connections that cannot write."""

    way: Way
    database: str
    user: str
    password: str
    read_only: bool
    connect_timeout: float

    @property
    def address(self) -> str:
        """Return host and port as people write them."""
        return self.way.address


async def connect(login: Login, closed: Callable[[Server], None]) -> Server:
    """Open a connection and log in; `closed` is called once when the connection ends.

    Raises UpstreamUnavailable, whose extra says what the server or the network answered, within
    connect_timeout.
    """
    try:
        async with asyncio.timeout(login.connect_timeout or None):
            protocol = await login.way.open(lambda sock: _LoginProtocol(login, sock))
            try:
                return await protocol.finish(closed)
            except BaseException:
                protocol.abort()
                raise
    except TimeoutError:
        raise _unavailable(login, f"no answer within {login.connect_timeout:g} s") from None
    except OSError as error:
        raise _unavailable(login, explain(error)) from None


def _unavailable(login: Login, reason: str, may_pass: bool = True) -> UpstreamUnavailable:
    """Return the error of a login that failed; `may_pass` tells that it may go well later, or on another host."""
    kind = HostUnavailable if may_pass else UpstreamUnavailable
    return kind(f"cannot connect to {login.address}", extra=f"host={login.address}: {reason}")


class _LoginProtocol(asyncio.Protocol):
    """Collects whole messages and answers the server's authentication requests."""

    def __init__(self, login: Login, sock: socket.socket | None) -> None:
        self._login = login
        self._sock = sock
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._scram: ClientExchange | None = None
        self._scram_verified = False
        self._requests = 0
        self._parameters: dict[bytes, bytes] = {}
        self._pid = 0
        self._secret = b""

    async def finish(self, closed: Callable[[Server], None]) -> Server:
        """Wait for the first ReadyForQuery and return the connection."""
        await self._done
        assert self._transport is not None
        server = Server(
            self._transport,
            self._login.address,
            self._pid,
            self._secret,
            self._parameters,
            self._login.user,
            closed,
            time.monotonic(),
            self._sock,
            self._login.way,
        )
        # From here on the bytes are the server's; no await stands between ReadyForQuery and this line but the
        # one above, during which PostgreSQL sends nothing unasked but notices.
        self._transport.set_write_buffer_limits(HIGH_WATER)
        self._transport.set_protocol(server)  # type: ignore[arg-type]
        if self._buffer:
            server.data_received(self._buffer)
        return server

    def abort(self) -> None:
        """Close the connection without ceremony."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport, but do not derive from it.
        self._transport = writable = cast(asyncio.Transport, transport)
        options = dict(_FIXED_OPTIONS)
        options["default_transaction_read_only"] = "on" if self._login.read_only else "off"
        words = [f"-c {name}={_escape(value)}" for name, value in options.items()]
        parameters = {
            "user": self._login.user,
            "database": self._login.database,
            "client_encoding": "UTF8",
            "options": " ".join(words),
        }
        body = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items()) + b"\0"
        writable.write((len(body) + 8).to_bytes(4, "big") + PROTOCOL_3_0.to_bytes(4, "big") + body)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        try:
            while not self._done.done() and (whole := self._message(at)):
                at += len(whole)
                self._handle(whole[0], whole)
        except ClientError as error:
            if not self._done.done():
                may_pass = isinstance(error, HostUnavailable)
                self._done.set_exception(_unavailable(self._login, error.extra or error.message, may_pass))
        # Once, and not for each message: a read may bring 50,000 of them.
        self._buffer = self._buffer[at:]

    def connection_lost(self, failure: Exception | None) -> None:
        if not self._done.done():
            reason = str(failure) if failure else "connection closed during login"
            self._done.set_exception(_unavailable(self._login, reason))

    def _message(self, at: int) -> bytes:
        """Return the whole message at `at`, b"" while it is incomplete."""
        buffer = self._buffer
        if len(buffer) < at + HEADER:
            return b""
        length = int.from_bytes(buffer[at + 1 : at + HEADER], "big", signed=True)
        if length < 4 or length > MAX_HELD:
            raise ProtocolViolation("a server sent a login message of impossible length")
        end = at + 1 + length
        return buffer[at:end] if len(buffer) >= end else b""

    def _handle(self, kind: int, whole: bytes) -> None:
        if kind == BE_AUTHENTICATION:
            self._authenticate(whole)
        elif kind == BE_PARAMETER_STATUS:
            name, value = parameters_of(whole, 0, len(whole))
            self._parameters[name] = value
            if len(self._parameters) > MAX_PARAMETERS:
                raise ProtocolViolation("a server reports more parameters than there are")
        elif kind == BE_BACKEND_KEY_DATA:
            if len(whole) < HEADER + 8:
                raise ProtocolViolation("a server sent a malformed BackendKeyData")
            self._pid = int.from_bytes(whole[5:9], "big")
            self._secret = whole[9:]
        elif kind == BE_ERROR:
            fields = error_fields(whole, 0, len(whole))
            state = fields.get("C", "")
            raise (HostUnavailable if is_passing(state) else UpstreamUnavailable)(
                "the server refused the login", extra=f"{fields.get('M')} ({fields.get('C')})"
            )
        elif kind == BE_READY:
            self._done.set_result(None)
        elif kind != BE_NOTICE:
            raise ProtocolViolation("a server sent an unexpected message during login")

    def _authenticate(self, whole: bytes) -> None:
        assert self._transport is not None
        request = int.from_bytes(whole[5:9], "big")
        if len(whole) < 9:
            raise ProtocolViolation("a server sent a malformed authentication request")
        self._requests += 1
        if self._requests > _MOST_REQUESTS:
            raise UpstreamUnavailable("the server does not stop asking for authentication")
        if request == AUTH_OK:
            if self._scram is not None and not self._scram_verified:
                raise UpstreamUnavailable("the server ended SCRAM without a proof of its own")
        elif request == AUTH_CLEARTEXT:
            self._transport.write(message(0x70, self._login.password.encode() + b"\0"))
        elif request == AUTH_MD5:
            inner = hashlib.md5(
                (self._login.password + self._login.user).encode(), usedforsecurity=False
            ).hexdigest()
            outer = hashlib.md5(inner.encode() + whole[9:13], usedforsecurity=False).hexdigest()
            self._transport.write(message(0x70, b"md5" + outer.encode() + b"\0"))
        elif request == AUTH_SASL:
            self._scram = ClientExchange(
                self._login.user,
                self._login.password,
                secrets.token_urlsafe(18),
                whole[9:].split(b"\0"),
                peer_end_point(self._transport),
            )
            self._transport.write(self._scram.first())
        elif request == AUTH_SASL_CONTINUE and self._scram is not None:
            self._transport.write(self._scram.final(whole[9:]))
        elif request == AUTH_SASL_FINAL and self._scram is not None:
            self._scram.verify(whole[9:])
            self._scram_verified = True
        else:
            raise UpstreamUnavailable(
                f"the server asks for an authentication that we do not know ({request})"
            )


def _escape(value: str) -> str:
    """Return `value` for use in the options parameter, where a backslash quotes blanks and itself."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
