"""The first bytes of a client, read from its socket before any event loop's transport: TLS or not.

Nothing is read that isn't asked for, so no plaintext is left in a buffer that would pass as if it had come
encrypted (CVE-2021-23214, CVE-2021-3935): a ClientHello is only looked at, of an SSLRequest its 8 bytes are taken.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Final

from proxy.errors import ProtocolViolation
from proxy.transport.tls import ALPN
from proxy.wire.codes import GSSENC_REQUEST, SSL_REQUEST
from proxy.wire.hello import MAX_RECORD, NO_APPLICATION_PROTOCOL, RECORD_HEADER, protocols, record_size

_CLIENT_HELLO: Final = b"\x16"
_REQUEST: Final = 8
"""Bytes of SSLRequest and GSSENCRequest, and of what any other first packet begins with."""

_NO: Final = b"N"
_YES: Final = b"S"


@dataclass(frozen=True)
class Greeting:
    """How far a client has come: encrypted or not, what was read of it, what it may not ask for again.

    `direct` is TLS without an SSLRequest, which needs ALPN. `refused` is a connection without TLS where that is
    required. `end_point` is what SCRAM can bind to. `deadline` is
    the end of its time to log in on the loop's clock, 0 where that begins with the login.
    """

    encrypted: bool = False
    direct: bool = False
    refused: bool = False
    first: bytes = b""
    asked: frozenset[int] = field(default_factory=frozenset)
    end_point: bytes = b""
    deadline: float = 0.0


async def greet(sock: socket.socket, end_point: bytes, deadline: float) -> Greeting:
    """Answer what a client asks before its startup packet, up to a handshake or the packet's first bytes.

    Raises ConnectionError if it is gone, and ProtocolViolation where it sent more than its request.
    """
    if await _receive(sock, 1, socket.MSG_PEEK) == _CLIENT_HELLO:
        await _check_protocol(sock, direct=True)
        return Greeting(encrypted=True, direct=True, end_point=end_point, deadline=deadline)
    asked: set[int] = set()
    while True:
        head = b""
        while len(head) < _REQUEST:
            head += await _receive(sock, _REQUEST - len(head))
        length, code = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
        if length != _REQUEST or code not in (SSL_REQUEST, GSSENC_REQUEST):
            return Greeting(first=head, asked=frozenset(asked), deadline=deadline)
        if code in asked or _has_more(sock):
            raise ProtocolViolation("received data after an encryption request")
        asked.add(code)
        # The socket's buffer is empty: one byte fits.
        if code == SSL_REQUEST:
            sock.send(_YES)
            await _check_protocol(sock, direct=False)
            return Greeting(encrypted=True, asked=frozenset(asked), end_point=end_point, deadline=deadline)
        sock.send(_NO)


async def _check_protocol(sock: socket.socket, direct: bool) -> None:
    """Refuse a ClientHello that names other protocols than ours, or none where that is needed.

    So that a client of another protocol can't be led here (manual, "SSL Session Encryption"). Python's ssl would
    go on without a protocol, and can't send this alert.
    """
    offered = protocols(await _first_record(sock))
    if offered is None or ALPN.encode() in offered or (not offered and not direct):
        return
    # With bytes unread the kernel would send a reset, which may overtake the alert.
    sock.recv(RECORD_HEADER + MAX_RECORD)
    sock.send(NO_APPLICATION_PROTOCOL)
    raise ProtocolViolation("the client does not offer the protocol postgresql in TLS (ALPN)")


async def _first_record(sock: socket.socket) -> bytes:
    """Return the first record of TLS, or what there is of it if the client ends; all of it stays in the socket."""
    most = RECORD_HEADER + MAX_RECORD
    data = await _receive(sock, most, socket.MSG_PEEK)
    wanted = RECORD_HEADER
    try:
        while len(data) < (wanted := max(wanted, record_size(data))):
            # Else the socket would count as readable for what is in it already.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            await _readable(sock)
            before, data = data, await _receive(sock, most, socket.MSG_PEEK)
            if len(data) < wanted and len(data) == len(before):
                break
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    return data


async def _receive(sock: socket.socket, count: int, flags: int = 0) -> bytes:
    """Return at least one byte of `sock` and at most `count`."""
    while True:
        try:
            data = sock.recv(count, flags)
        except BlockingIOError:
            await _readable(sock)
            continue
        if not data:
            raise ConnectionError("closed by the client")
        return data


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _has_more(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
