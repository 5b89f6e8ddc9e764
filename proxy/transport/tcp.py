"""Plain sockets: connecting to a host, and accepting clients (TCP and Unix sockets)."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
"""Connections that wait to be accepted; Linux cuts it to net.core.somaxconn."""

_AT_ONCE: Final = 64
"""Connections accepted in one go, before the sessions there are get their turn."""

_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""Seconds of silence, seconds between probes, and how many: a peer that is gone is noticed within a minute."""

_OPEN_TO_ALL: Final = 0o777
"""As PostgreSQL's unix_socket_permissions: everybody may connect, and has to show a key."""

_PAUSE: Final = 0.2
"""Seconds until accepting is tried again where there was no descriptor or memory for a connection."""


async def connect(host: str, port: int) -> socket.socket:
    """Return a connected socket; of a name's addresses the first that answers is taken.

    A `host` that starts with a slash is the directory of a Unix socket, as in libpq. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    if host.startswith("/"):
        return await _connected(socket.AF_UNIX, f"{host}/.s.PGSQL.{port}")
    failure: OSError = OSError(errno.EADDRNOTAVAIL, f"{host} has no address")
    for family, _, _, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return await _connected(family, address)
        except OSError as error:
            failure = error
    raise failure


async def _connected(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)  # type: ignore[arg-type]
        tune(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """Set what every connection of the proxy's has: no delay for small messages, keepalive.

    TCP_USER_TIMEOUT is left alone: Linux also counts the time in which a peer that is well takes nothing (a pager,
    a COPY that waits for a lock), and would cut it off.
    """
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)


def keep_alive(sock: socket.socket) -> None:
    """Have the system ask a silent peer whether it is still there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str, int]]:
    """Return family, address and port of each address of `host`, of all of them for "" and "*"; raises OSError."""
    return [(family, address[0], address[1]) for family, address in await _to_listen_at(host, port)]


async def bound(
    host: str, port: int, known: Sequence[socket.socket] = (), count: int = 1
) -> list[socket.socket]:
    """Return sockets at every address of `host`, all of them for "" and "*"; raises OSError.

    Port 0 takes a free one, for all addresses alike. One for each address listens already; of several, which share an
    address (SO_REUSEPORT), each takes connections once `listen` is called. Those of `known` that are at these addresses
    are taken as they are, however many there are.
    """
    sockets: list[socket.socket] = []
    opened: list[socket.socket] = []
    try:
        for family, address in await _to_listen_at(host, port):
            if port == 0 and sockets:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            there = [sock for sock in known if _is_at(sock, family, address)]
            if not there:
                if count > 1:
                    # SO_REUSEPORT would let us in beside another proxy of this user's, and take half its connections.
                    _bound(family, address, False).close()
                there = [_bound(family, address, count > 1)]
                opened += there
            more = count - len(there) if all(map(_is_shared, there)) else 0
            for _ in range(more):
                there.append(_bound(family, there[0].getsockname(), True))
                opened.append(there[-1])
            sockets += there
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return sockets


def listen(sock: socket.socket) -> None:
    """Have the kernel take connections, where it doesn't yet: who opened the socket may have chosen how many wait."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.listen(_BACKLOG)


async def _to_listen_at(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    wanted = None if host in ("", "*") else host
    infos = await asyncio.get_running_loop().getaddrinfo(
        wanted, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((family, address) for family, _, _, _, address in infos))


def _bound(family: socket.AddressFamily, address: tuple[Any, ...], shared: bool) -> socket.socket:
    """Return a socket at `address`; one that is not shared listens. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # The other family has a socket of its own.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        if not shared:
            sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_at(sock: socket.socket, family: socket.AddressFamily, address: tuple[Any, ...]) -> bool:
    if sock.family != family:
        return False
    name = sock.getsockname()
    return name[0] == address[0] and address[1] in (0, name[1])


def _is_shared(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def listening_at(path: Path) -> socket.socket:
    """Return a Unix socket that listens at `path`, in the place of one that nobody listens at; raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        sock.bind(str(path))
        path.chmod(_OPEN_TO_ALL)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


class Acceptor:
    """Accepts connections at a listening socket and hands each, tuned, to `serve`."""

    def __init__(self, sock: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._accept)

    @property
    def address(self) -> str:
        """Return host and port, or the path of a Unix socket."""
        name = self._sock.getsockname()
        if not isinstance(name, tuple):
            return str(name)
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    def close(self) -> None:
        """Accept no more, and close the socket."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptor or no memory: the client stays in the backlog meanwhile.
                log.error("cannot accept a connection, next try in %g s: %s", _PAUSE, error.strerror)
                self._loop.remove_reader(self._sock)
                self._retry = self._loop.call_later(_PAUSE, self._resume)
                return
            try:
                tune(sock)
            except OSError:
                # Reset before it was accepted.
                sock.close()
                continue
            self._serve(sock)

    def _resume(self) -> None:
        self._loop.add_reader(self._sock, self._accept)
