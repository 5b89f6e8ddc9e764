"""A server that lies: a listening socket that passes everything on to a real PostgreSQL until it is told to lie.

A statement with the comment `/*lie:NAME*/` is never passed on; what is answered is the lie of that name. While
`at_login` is set, connections of the pools are answered with it in place of a login.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from contextlib import suppress

from tests.session.frontend import message

READY = message(b"Z", b"I")
NOTICE = message(b"N", b"SNOTICE\0C00000\0Mhello\0\0")
ROW = message(b"D", struct.pack("!Hi", 1, 3) + b"lie")
FLOOD = 2_000_000

# What is said, and whether the connection is closed then.
LIES: dict[str, tuple[bytes, bool]] = {
    "notices": (NOTICE * (FLOOD // len(NOTICE)) + message(b"I") + READY, False),
    "no_sqlstate": (message(b"E", b"Mno code\0\0") + READY, False),
    "big_parameter": (message(b"S", b"TimeZone\0" + b"x" * 1_000_000 + b"\0"), False),
    "many_parameters": (b"".join(message(b"S", b"p%d\0x\0" % number) for number in range(1000)), False),
    "ready_twice": (message(b"I") + READY + READY, False),
    "rows_behind": (message(b"I") + READY + ROW * 100, False),
    "half_a_header_behind": (message(b"I") + READY + b"D\0\0", False),
    "negative_length": (b"D\xff\xff\xff\xff", False),
    "huge_length": (b"T\x3f\xff\xff\xf0" + b"x" * 100_000, False),
    "copy_both": (message(b"W", b"\0\0\0") + message(b"E", b"SERROR\0C0A000\0Mno\0\0") + READY, False),
    "another_version": (message(b"v", b"\0\3\0\0\0\0\0\0"), False),
    "asks_again": (message(b"R", b"\0\0\0\3"), False),
    "unknown_status": (message(b"I") + message(b"Z", b"?"), False),
    "end_in_a_row": (message(b"T", b"\0\0") + ROW[:9], True),
    "end": (b"", True),
}

_MARK = re.compile(rb"/\*lie:(\w+)\*/")
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class HostileServer:
    """Listens on `port` of this machine, in front of the PostgreSQL on `real`."""

    def __init__(self, real: int) -> None:
        self._real = real
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.at_login: bytes | None = None
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and end all connections."""
        for each in [self._listener, *self._open]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    @property
    def connections(self) -> int:
        """Return how many connections were taken since the last cut."""
        return len(self._open) // 2

    def cut(self) -> None:
        """Cut all connections, as a network that fails does; new ones are taken."""
        cut, self._open = self._open, []
        for each in cut:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                proxy, _ = self._listener.accept()
                self._open.append(proxy)
                threading.Thread(target=self._serve, args=(proxy,), daemon=True).start()

    def _serve(self, proxy: socket.socket) -> None:
        with suppress(OSError), proxy:
            startup = proxy.recv(65_536)
            if startup == _SSL_REQUEST:
                proxy.sendall(b"N")
                startup = proxy.recv(65_536)
            if self.at_login is not None and b"\0app_" in startup:
                proxy.sendall(self.at_login)
                while proxy.recv(65_536):
                    pass
                return
            with socket.create_connection(("127.0.0.1", self._real)) as real:
                self._open.append(real)
                real.sendall(startup)
                threading.Thread(target=_pass_on, args=(real, proxy), daemon=True).start()
                while data := proxy.recv(262_144):
                    marked = _MARK.search(data)
                    if marked is None:
                        real.sendall(data)
                        continue
                    said, closes = LIES[marked[1].decode()]
                    proxy.sendall(said)
                    if closes:
                        break
                with suppress(OSError):
                    real.shutdown(socket.SHUT_RDWR)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(262_144):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
