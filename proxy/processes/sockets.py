"""The one place that listening sockets come from: opened as configured, or inherited.

With several workers each has a TCP socket of its own at the same address (SO_REUSEPORT), so that the kernel shares
connections out; who opened them keeps them open, so that what a worker that dies hadn't accepted is there for the next.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from proxy.errors import SluiceError, reason
from proxy.transport import tcp

POSTGRES: Final = "postgres"
HTTP: Final = "http"

Named = tuple[str, socket.socket]


class Sockets:
    """All listening sockets of a process. `fixed` ones are used whatever the configuration says: systemd chose them."""

    def __init__(self, inherited: Iterable[Named] = (), fixed: bool = False) -> None:
        self.fixed = fixed
        self._inherited = list(inherited)
        self._used: list[Named] = []
        self._made: list[Path] = []

    def inherited(self, name: str) -> list[socket.socket]:
        """Return the inherited sockets of that name, and use them."""
        return self._use(name, [sock for each, sock in self._inherited if each == name])

    def use(self, name: str, sockets: Iterable[socket.socket]) -> None:
        """Count sockets that somebody else has opened among those in use."""
        self._use(name, list(sockets))

    async def postgres(
        self, host: str, port: int, directory: Path | None = None, workers: int = 1
    ) -> list[socket.socket]:
        """Return the sockets for clients, bound; raises SluiceError.

        Where a new process inherits some at the addresses that its configuration names, it takes those.
        """
        if self.fixed:
            return self.inherited(POSTGRES)
        known = [sock for name, sock in self._inherited if name == POSTGRES]
        try:
            sockets = await tcp.bound(host, port, [sock for sock in known if _is_tcp(sock)], workers)
        except OSError as error:
            raise SluiceError(f"cannot listen on {host}:{port}: {reason(error)}") from None
        if directory is not None:
            sockets.append(self._at(directory / f".s.PGSQL.{sockets[0].getsockname()[1]}", known))
        return self._use(POSTGRES, sockets)

    async def http(self, host: str, port: int) -> list[socket.socket]:
        """Return the inherited sockets for HTTP at this host and port; none where it has to be opened."""
        if self.fixed:
            return self.inherited(HTTP)
        known = [sock for name, sock in self._inherited if name == HTTP and _is_tcp(sock)]
        try:
            addresses = await tcp.addresses(host, port) if known else []
        except OSError:
            return []
        return self._use(HTTP, [sock for sock in known if _listens_at(sock, addresses)])

    def close_others(self) -> None:
        """Close what was inherited and isn't wanted any more."""
        used = {sock.fileno() for _, sock in self._used}
        for _, sock in self._inherited:
            if sock.fileno() not in used:
                sock.close()
        self._inherited = []

    @property
    def named(self) -> list[Named]:
        """Return those in use, for a process that is to inherit them."""
        return list(self._used)

    def keep(self) -> None:
        """Leave the files of Unix sockets alone when this process ends: another one listens there."""
        self._made = []

    def close(self) -> None:
        """Close those for clients, and remove the files of Unix sockets."""
        for name, sock in self._used:
            if name == POSTGRES:
                sock.close()
        while self._made:
            self._made.pop().unlink(missing_ok=True)

    def _at(self, path: Path, known: Sequence[socket.socket]) -> socket.socket:
        self._made.append(path)
        for sock in known:
            if sock.family == socket.AF_UNIX and sock.getsockname() == str(path):
                return sock
        try:
            return tcp.listening_at(path)
        except OSError as error:
            self._made.remove(path)
            raise SluiceError(f"cannot listen at {path}: {reason(error)}") from None

    def _use(self, name: str, sockets: list[socket.socket]) -> list[socket.socket]:
        used = {sock.fileno() for _, sock in self._used}
        self._used += [(name, sock) for sock in sockets if sock.fileno() not in used]
        return sockets


def deal(sockets: Iterable[socket.socket], workers: int) -> list[list[socket.socket]]:
    """Return each worker's share: at each address at least one, which several have where there aren't enough."""
    shares: list[list[socket.socket]] = [[] for _ in range(workers)]
    groups: dict[tuple[int, object], list[socket.socket]] = {}
    for sock in sockets:
        groups.setdefault((sock.family, sock.getsockname()), []).append(sock)
    for group in groups.values():
        for index in range(max(workers, len(group))):
            shares[index % workers].append(group[index % len(group)])
    return shares


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _listens_at(sock: socket.socket, addresses: Iterable[tuple[int, str, int]]) -> bool:
    host, port = sock.getsockname()[:2]
    return any((sock.family, host) == each[:2] and each[2] in (0, port) for each in addresses)
