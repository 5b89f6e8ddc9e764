"""Contexts from files, channel bindings, and asking a server for TLS."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import ssl
from pathlib import Path
from typing import Literal

import pytest
from cryptography.hazmat.primitives import hashes

from proxy.config import HostTls, ListenTls
from proxy.transport.asking import ask_for_tls
from proxy.transport.tls import ListenerTls, ServerTls, TlsError, end_point
from tests.certificates import Authority, Hash, Pair, self_signed_ed25519

Mode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server", "localhost")


def listener(cert: Path, key: Path) -> ListenerTls:
    return ListenerTls(ListenTls(mode="prefer", cert_file=cert, key_file=key))


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.cert.read_text())


# -- files


def test_what_is_wrong_with_a_file_is_said(authority: Authority, pair: Pair) -> None:
    other = authority.issue("other")
    hidden = authority.issue("hidden", passphrase="secret")
    empty = authority.directory / "empty"
    empty.touch()
    nowhere = authority.directory / "nowhere"
    for cert, key, message in [
        (pair.cert, other.key, "other.key: not the key of the certificate in .*server.crt"),
        (nowhere, pair.key, "nowhere: No such file"),
        (pair.cert, nowhere, "nowhere: No such file"),
        (pair.cert, authority.directory, "Is a directory"),
        (pair.cert, empty, "empty: holds no private key"),
        (empty, pair.key, "empty: holds no certificate"),
        (pair.key, pair.key, "server.key: holds no certificate"),
        (hidden.cert, hidden.key, "hidden.key: the private key has a passphrase"),
    ]:
        with pytest.raises(TlsError, match=message):
            listener(cert, key)


def test_a_ca_file_that_holds_none(pair: Pair) -> None:
    with pytest.raises(TlsError, match=r"server\.key: holds no certificates"):
        ServerTls(HostTls(mode="require", ca_file=pair.key))
    with pytest.raises(TlsError, match="No such file"):
        ServerTls(HostTls(mode="require", ca_file=pair.key.parent / "none"))


@pytest.mark.parametrize(
    ("days", "warning"),
    [((-9, -2), "expired at"), ((2, 9), "not valid before"), ((-1, 1), "")],
)
def test_a_certificate_out_of_its_time_is_warned_of(
    authority: Authority, caplog: pytest.LogCaptureFixture, days: tuple[int, int], warning: str
) -> None:
    pair = authority.issue("server", days=days)
    caplog.set_level(logging.WARNING)
    listener(pair.cert, pair.key)
    assert (warning in caplog.text) if warning else not caplog.records


def test_a_key_that_everybody_may_read_is_warned_of(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    pair.key.chmod(0o644)
    caplog.set_level(logging.WARNING)
    listener(pair.cert, pair.key)
    assert "open to every user" in caplog.text


def test_files_are_read_again_without_touching_the_context(authority: Authority, pair: Pair) -> None:
    tls = ServerTls(HostTls(mode="verify-ca", ca_file=authority.file, cert_file=pair.cert, key_file=pair.key))
    before = tls.context
    assert tls.read() is not before
    pair.cert.write_text("nothing")
    with pytest.raises(TlsError):
        tls.read()
    assert tls.context is before


@pytest.mark.parametrize(
    ("mode", "with_ca", "verified", "hostname"),
    [
        ("prefer", False, False, False),
        ("require", False, False, False),
        ("require", True, True, False),
        ("verify-ca", True, True, False),
        ("verify-full", True, True, True),
        ("verify-full", False, True, True),
    ],
)
def test_what_each_mode_verifies(
    authority: Authority, mode: Mode, with_ca: bool, verified: bool, hostname: bool
) -> None:
    context = ServerTls(HostTls(mode=mode, ca_file=authority.file if with_ca else None)).context
    assert context is not None
    assert (context.verify_mode == ssl.CERT_REQUIRED, context.check_hostname) == (verified, hostname)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


# -- channel binding (RFC 5929, section 4.1)


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(hashes.SHA256(), "sha256"), (hashes.SHA384(), "sha384"), (hashes.SHA512(), "sha512")],
)
def test_the_binding_is_hashed_as_the_certificate_is_signed(
    authority: Authority, algorithm: Hash, name: str
) -> None:
    certificate = der(authority.issue("server", algorithm=algorithm))
    assert end_point(certificate) == hashlib.new(name, certificate).digest()


@pytest.mark.parametrize("weak", ["2a8648ce3d0401", "2a864886f70d010105", "2a864886f70d010104"])
def test_sha_1_and_md5_become_sha_256(pair: Pair, weak: str) -> None:
    # Nobody signs so any more: the algorithm's name is put into a certificate, ecdsa-with-SHA256's place.
    oid = bytes.fromhex(weak)
    certificate = der(pair)
    named = b"\x30" + bytes([len(oid) + 2]) + b"\x06" + bytes([len(oid)]) + oid
    body = certificate[4:].replace(bytes.fromhex("300a06082a8648ce3d040302"), named)
    inner = len(named) - 12
    tbs = int.from_bytes(body[2:4], "big") + inner
    body = body[:2] + tbs.to_bytes(2, "big") + body[4:]
    changed = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    assert end_point(changed) == hashlib.sha256(changed).digest()


def test_no_binding_where_none_is_defined(tmp_path: Path) -> None:
    assert end_point(der(self_signed_ed25519(tmp_path, "ed25519"))) == b""
    assert end_point(b"no certificate") == b""


# -- asking a server


async def ask(answer: bytes, mode: Mode, encrypted: bool = False) -> tuple[bool, bytes]:
    """Return whether there is to be TLS, and what the socket holds then."""
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as sock, server.accept()[0] as peer:
        sock.setblocking(False)
        peer.sendall(answer)
        peer.shutdown(socket.SHUT_WR)
        context = await ask_for_tls(sock, ServerTls(HostTls(mode=mode)), encrypted)
        return context is not None, await asyncio.get_running_loop().sock_recv(sock, 100)


async def test_yes_is_yes_and_leaves_what_stands_behind() -> None:
    assert await ask(b"Sbehind", "prefer") == (True, b"behind")


async def test_no_is_an_answer_to_prefer_alone() -> None:
    assert await ask(b"N", "prefer") == (False, b"")
    modes: list[Mode] = ["require", "verify-full"]
    for mode in modes:
        with pytest.raises(ConnectionError, match=f"does not support TLS, which mode {mode} needs"):
            await ask(b"N", mode)
    with pytest.raises(ConnectionError, match="does not support TLS"):
        await ask(b"N", "prefer", encrypted=True)


@pytest.mark.parametrize("answer", [b"E\0\0\0\x20SFATAL\0", b"R", b""])
async def test_anything_else_ends_the_connection(answer: bytes) -> None:
    with pytest.raises(ConnectionError):
        await ask(answer, "prefer")


async def test_nothing_is_asked_where_tls_is_off() -> None:
    assert await ask(b"S", "disable") == (False, b"S")
