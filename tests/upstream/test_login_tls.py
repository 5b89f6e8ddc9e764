"""Logging in over TLS: whose certificate is taken in each mode, and what SCRAM binds to."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from proxy.config import HostTls
from proxy.errors import ClientError, UpstreamUnavailable
from proxy.session.cancel import cancel_server
from proxy.transport.tls import ServerTls, end_point
from proxy.transport.way import Way
from proxy.upstream.login import Login, connect
from proxy.wire.scram import ServerExchange, Verifier, read_initial_response
from tests.certificates import Authority, Pair, self_signed_ed25519
from tests.session.frontend import message

PASSWORD = "secret"
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
DONE = message(b"R", b"\0\0\0\0") + message(b"K", b"\0\0\x12\x67abcd") + message(b"Z", b"I")
Mode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]


class Postgres:
    """A server with TLS that asks for SCRAM, and notes what comes."""

    def __init__(
        self, pair: Pair, says: bytes = b"S", offers: str = "SCRAM-SHA-256-PLUS SCRAM-SHA-256"
    ) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pair.cert, pair.key)
        self.says = says
        self.offers = offers.split()
        self.end_point = end_point(ssl.PEM_cert_to_DER_cert(pair.cert.read_text()))
        self.mechanism = ""
        self.client_first = b""
        self.cancels: list[tuple[bool, bytes]] = []
        self.presented: list[bytes | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (ClientError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        encrypted = False
        first = await reader.readexactly(8)
        if first == SSL_REQUEST:
            writer.write(self.says)
            if self.says[:1] != b"N":
                await writer.start_tls(self.context)
                encrypted = True
                self.presented.append(writer.get_extra_info("ssl_object").getpeercert(True))
            first = await reader.readexactly(8)
        rest = await reader.readexactly(int.from_bytes(first[:4], "big") - 8)
        if first[4:] == b"\x04\xd2\x16\x2e":
            self.cancels.append((encrypted, rest))
            return
        offers = b"".join(each.encode() + b"\0" for each in self.offers)
        writer.write(message(b"R", b"\0\0\0\x0a" + offers + b"\0"))
        self.mechanism, self.client_first = read_initial_response(await _message(reader))
        salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), b"salt of 16 bytes", 4096)
        stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        verifier = Verifier(b"salt of 16 bytes", 4096, stored, hmac.digest(salted, b"Server Key", "sha256"))
        binds = self.end_point if encrypted and "SCRAM-SHA-256-PLUS" in self.offers else b""
        exchange = ServerExchange(verifier, "nonce", self.mechanism, binds)
        writer.write(message(b"R", b"\0\0\0\x0b" + exchange.first(self.client_first).encode()))
        try:
            final = exchange.final((await _message(reader))[5:])
        except ClientError:
            writer.write(message(b"E", b"SFATAL\0C28000\0MSCRAM check failed\0\0"))
            return
        writer.write(message(b"R", b"\0\0\0\x0c" + final.encode()) + DONE)
        await reader.read(1)


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


@asynccontextmanager
async def serving(postgres: Postgres) -> AsyncIterator[int]:
    server = await asyncio.start_server(postgres.serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def enter(postgres: Postgres, tls: HostTls, host: str = "127.0.0.1") -> bool:
    """Log in, and return whether the connection is encrypted; with a cancel request behind."""
    async with serving(postgres) as port:
        login = Login(Way(host, port, ServerTls(tls)), "app", "app_rw", PASSWORD, False, 5.0)
        server = await connect(login, lambda _: None)
        await cancel_server(server)
        server.transport.abort()
        assert postgres.cancels == [(server.encrypted, b"\0\0\x12\x67abcd")]
        return server.encrypted


async def refused(postgres: Postgres, tls: HostTls) -> str:
    with pytest.raises(UpstreamUnavailable) as caught:
        await enter(postgres, tls)
    return caught.value.extra


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def pairs(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    stranger = Authority(tmp_path_factory.mktemp("stranger"), "stranger")
    return {
        "good": authority.issue("good", "127.0.0.1", "localhost"),
        "expired": authority.issue("expired", "127.0.0.1", days=(-9, -2)),
        "not yet valid": authority.issue("future", "127.0.0.1", days=(2, 9)),
        "another host's": authority.issue("elsewhere", "db.example.com", "10.0.0.1"),
        "an unknown CA's": stranger.issue("unknown", "127.0.0.1"),
        "self-signed": self_signed_ed25519(stranger.directory, "self"),
    }


HOSTNAME = "another host's"
EVERYBODY = {"good", "expired", "not yet valid", HOSTNAME, "an unknown CA's", "self-signed"}


@pytest.mark.parametrize(
    ("mode", "with_ca", "accepted"),
    [
        ("prefer", False, EVERYBODY),
        ("require", False, EVERYBODY),
        ("require", True, {"good", HOSTNAME}),
        ("verify-ca", True, {"good", HOSTNAME}),
        ("verify-full", True, {"good"}),
        ("verify-full", False, set()),
    ],
)
async def test_whose_certificate_is_taken(
    authority: Authority, pairs: dict[str, Pair], mode: Mode, with_ca: bool, accepted: set[str]
) -> None:
    tls = HostTls(mode=mode, ca_file=authority.file if with_ca else None)
    for name, pair in pairs.items():
        if name in accepted:
            assert await enter(Postgres(pair), tls), name
        else:
            assert "certificate not accepted" in await refused(Postgres(pair), tls), name


async def test_a_host_by_name(authority: Authority, pairs: dict[str, Pair]) -> None:
    tls = HostTls(mode="verify-full", ca_file=authority.file)
    assert await enter(Postgres(pairs["good"]), tls, "localhost")


async def test_tls_is_taken_where_it_is_offered_and_missed_where_it_must_be(pairs: dict[str, Pair]) -> None:
    def without() -> Postgres:
        return Postgres(pairs["good"], b"N", "SCRAM-SHA-256")

    assert not await enter(without(), HostTls(mode="prefer"))
    assert not await enter(without(), HostTls(mode="disable"))
    assert "does not support TLS" in await refused(without(), HostTls(mode="require"))


async def test_bytes_behind_the_answer_break_the_handshake(pairs: dict[str, Pair]) -> None:
    # As if they had come encrypted: an error that a client would believe (CVE-2021-23222).
    forged = b"S" + message(b"E", b"SFATAL\0C28P01\0Mforged\0\0")
    for mode in ("prefer", "require"):
        said = await refused(Postgres(pairs["good"], forged), HostTls.model_validate({"mode": mode}))
        assert "TLS failed" in said and "forged" not in said


async def test_an_error_in_clear_is_not_shown(pairs: dict[str, Pair]) -> None:
    forged = message(b"E", b"SFATAL\0C28P01\0Mforged\0\0")
    said = await refused(Postgres(pairs["good"], forged), HostTls(mode="prefer"))
    assert "something else" in said and "forged" not in said


async def test_scram_binds_to_the_certificate(pairs: dict[str, Pair]) -> None:
    postgres = Postgres(pairs["good"])
    assert await enter(postgres, HostTls(mode="require"))
    assert postgres.mechanism == "SCRAM-SHA-256-PLUS"
    assert postgres.client_first.startswith(b"p=tls-server-end-point,,")


async def test_somebody_between_with_a_certificate_of_their_own_is_found_out(pairs: dict[str, Pair]) -> None:
    postgres = Postgres(pairs["self-signed"])
    postgres.end_point = end_point(ssl.PEM_cert_to_DER_cert(pairs["good"].cert.read_text()))
    postgres.context.load_cert_chain(pairs["expired"].cert, pairs["expired"].key)
    assert "SCRAM check failed (28000)" in await refused(postgres, HostTls(mode="require"))


async def test_a_server_that_binds_nothing_is_told_that_we_could(pairs: dict[str, Pair]) -> None:
    postgres = Postgres(pairs["good"], offers="SCRAM-SHA-256")
    assert await enter(postgres, HostTls(mode="require"))
    assert (postgres.mechanism, postgres.client_first[:3]) == ("SCRAM-SHA-256", b"y,,")


async def test_a_certificate_that_nothing_can_bind_to(pairs: dict[str, Pair]) -> None:
    postgres = Postgres(pairs["self-signed"], offers="SCRAM-SHA-256")
    assert await enter(postgres, HostTls(mode="require"))
    assert (postgres.mechanism, postgres.client_first[:3]) == ("SCRAM-SHA-256", b"n,,")


async def test_our_own_certificate_is_presented(
    authority: Authority, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    postgres = Postgres(pairs["good"])
    postgres.context.load_verify_locations(authority.file)
    postgres.context.verify_mode = ssl.CERT_REQUIRED
    ours = authority.issue("app_rw")
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_bytes(ours.key.read_bytes() + ours.cert.read_bytes())
    assert await enter(postgres, HostTls(mode="require", cert_file=ours.cert, key_file=ours.key))
    assert postgres.presented == [ssl.PEM_cert_to_DER_cert(ours.cert.read_text())] * 2
    postgres.cancels.clear()
    assert await enter(postgres, HostTls(mode="require", cert_file=both))
    postgres.context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await refused(postgres, HostTls(mode="require"))
