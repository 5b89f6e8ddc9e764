"""A client made of one socket: it sends whatever a test wants, and reads only when told to."""

from __future__ import annotations

import select
import socket
import struct
from types import TracebackType

from tests.session.frontend import message, split


class Raw:
    """One TCP connection to a proxy; closed at the end of a `with` block."""

    def __init__(self, port: int, source: str = "127.0.0.1", timeout: float = 30.0) -> None:
        self.socket = socket.create_connection(
            ("127.0.0.1", port), timeout=timeout, source_address=(source, 0)
        )
        self.held = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.socket.sendall(data)

    def log_in(self, key: tuple[str, str], **parameters: str) -> Raw:
        """Log in by the password method; returns itself, behind ReadyForQuery."""
        pairs = {"user": "anyone", "database": "app", **parameters}
        body = b"".join(f"{name}\0{value}\0".encode() for name, value in pairs.items()) + b"\0"
        self.send(struct.pack("!ii", len(body) + 8, 196608) + body)
        self.send(message(b"p", key[1].encode() + b"\0"))
        came = self.until_ready()
        assert came[-6:] == b"Z\0\0\0\5I", came
        return self

    def until_ready(self, times: int = 1) -> bytes:
        """Return everything up to the ReadyForQuery that comes as the `times`-th, or up to the end."""
        came = b""
        while times > 0:
            one = self.message()
            if not one:
                break
            came += one
            times -= one[:1] == b"Z"
        return came

    def message(self) -> bytes:
        """Return the next message, b"" at the end."""
        while True:
            held = self.held
            if len(held) >= 5:
                end = 1 + int.from_bytes(held[1:5], "big")
                if len(held) >= end:
                    self.held = held[end:]
                    return held[:end]
            more = self.socket.recv(262_144)
            if not more:
                return b""
            self.held += more

    def rest(self) -> bytes:
        """Return everything up to the end of the connection; a reset ends it as well."""
        came, self.held = self.held, b""
        try:
            while more := self.socket.recv(262_144):
                came += more
        except ConnectionResetError:
            pass
        return came

    def send_while_taken(self, data: bytes, patience: float = 0.5) -> int:
        """Send as much of `data` as is taken without reading anything; returns how many bytes that were.

        It is taken for stuck once nothing more went out for `patience` seconds.
        """
        sent = 0
        self.socket.setblocking(False)
        try:
            while sent < len(data):
                if not select.select([], [self.socket], [], patience)[1]:
                    break
                sent += self.socket.send(data[sent : sent + 262_144])
        finally:
            self.socket.settimeout(30.0)
        return sent

    def ask(self, data: bytes) -> list[bytes]:
        """Send `data` and return the messages up to the next ReadyForQuery."""
        self.send(data)
        return split(self.until_ready())
