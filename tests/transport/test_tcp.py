"""Sockets: what is set on each, and listening at a path."""

from __future__ import annotations

import errno
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.transport import tcp


@pytest.fixture
def path() -> Iterator[Path]:
    """Give a path that is short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        yield Path(directory) / ".s.PGSQL.6432"


def test_a_peer_that_is_gone_is_noticed_by_keepalive() -> None:
    with socket.socket() as sock:
        tcp.tune(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle, interval, count = (sock.getsockopt(socket.IPPROTO_TCP, option) for option in options)
        assert idle + interval * count <= 60
        assert sock.gettimeout() == 0.0


def test_everybody_may_connect_to_a_unix_socket(path: Path) -> None:
    with tcp.listening_at(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_a_socket_that_nobody_listens_at_is_replaced(path: Path) -> None:
    tcp.listening_at(path).close()
    assert path.is_socket()
    with tcp.listening_at(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_that_somebody_listens_at_is_left_alone(path: Path) -> None:
    with tcp.listening_at(path), pytest.raises(OSError) as refused:
        tcp.listening_at(path)
    assert refused.value.errno == errno.EADDRINUSE
    assert path.is_socket()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(OSError):
        tcp.listening_at(path)
    assert path.read_text() == "precious"
