"""TLS between clients and the proxy: how they ask for it, what is refused, certificates that change."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import asyncpg
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from psycopg.pq import ExecStatus

from proxy.transport.tls import ALPN
from tests.certificates import Authority, Pair, self_signed_ed25519
from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Login, Proxy, wait_until

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
GSSENC_REQUEST = struct.pack("!ii", 8, 80877104)
CANCEL = struct.pack("!iiii", 16, 80877102, 1, 1)

StartTls = Callable[..., Proxy]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Pair:
    return authority.issue("proxy", "127.0.0.1", "localhost")


@pytest.fixture
def start_tls(start_proxy: Callable[..., Proxy], certificate: Pair) -> StartTls:
    """Give a function that starts a proxy with TLS to clients."""

    def start(mode: str = "prefer", pair: Pair = certificate, **listen: Any) -> Proxy:
        return start_proxy({"listen": {"tls": {"mode": mode, **pair.settings}, **listen}})

    return start


@pytest.fixture(scope="module")
def tls_proxies(
    installation: Installation, certificate: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Proxy]]:
    """Give a function that returns a proxy with this mode, started once, to tests that leave it as it is."""
    started: dict[str, Proxy] = {}

    def running(mode: str) -> Proxy:
        if mode not in started:
            listen = {"tls": {"mode": mode, **certificate.settings}}
            proxy = Proxy(installation, tmp_path_factory.mktemp(mode), {"listen": listen})
            proxy.start()
            started[mode] = proxy
        return started[mode]

    yield running
    for proxy in started.values():
        proxy.stop()


@pytest.fixture
def preferring(tls_proxies: Callable[[str], Proxy]) -> Proxy:
    """Give a proxy that takes TLS, and clients without."""
    return tls_proxies("prefer")


@pytest.fixture
def requiring(tls_proxies: Callable[[str], Proxy]) -> Proxy:
    """Give a proxy that takes TLS only."""
    return tls_proxies("require")


@pytest.fixture
def verified(authority: Authority) -> dict[str, str]:
    return {"sslmode": "verify-full", "sslrootcert": str(authority.file), "gssencmode": "disable"}


def startup(user: str = "ctm_nobody000000") -> bytes:
    body = struct.pack("!i", 196608) + f"user\0{user}\0database\0app\0\0".encode()
    return struct.pack("!i", len(body) + 4) + body


def client_context(authority: Authority, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


@contextmanager
def connected(proxy: Proxy) -> Any:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        yield client


def rest(client: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    data = b""
    try:
        while more := client.recv(4096):
            data += more
    except ConnectionResetError:
        pass
    return data


# -- clients


def test_clients_of_every_kind(
    requiring: Proxy, make_key: MakeKey, verified: dict[str, str], authority: Authority
) -> None:
    login = requiring.login(*make_key())
    options: list[dict[str, str]] = [
        {"sslmode": "require"},
        {"sslmode": "prefer"},
        verified,
        {**verified, "sslnegotiation": "direct"},
        {**verified, "channel_binding": "require"},
        {**verified, "channel_binding": "disable"},
        {**verified, "ssl_max_protocol_version": "TLSv1.2", "channel_binding": "require"},
    ]
    for each in options:
        with login.connect(**each) as connection:
            assert connection.pgconn.ssl_in_use, each
            assert connection.execute("SELECT 1").fetchone() == (1,)
            data = "x" * 3_000_000
            row = connection.execute("SELECT %s", (data,)).fetchone()
            assert row == (data,)
    asyncio.run(_asyncpg(login, authority))


async def _asyncpg(login: Login, authority: Authority) -> None:
    async with login.asyncpg(ssl=client_context(authority)) as connection:
        assert await connection.fetchval("SELECT sum(n) FROM generate_series(1, 100000) n") == 5000050000
        rows = [(n, "x" * 100) for n in range(20_000)]
        async with connection.transaction():
            await connection.execute("SELECT 1")
        result = await connection.fetch("SELECT n, repeat('x', 100) FROM generate_series(0, 19999) n")
        assert [tuple(row) for row in result] == rows
    async with login.asyncpg(ssl=client_context(authority, ALPN), direct_tls=True) as connection:
        assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.long
def test_channel_binding_has_the_hash_of_the_certificate(
    start_tls: StartTls, make_key: MakeKey, authority: Authority, verified: dict[str, str]
) -> None:
    for algorithm in (hashes.SHA384(), hashes.SHA512()):
        proxy = start_tls(
            "prefer", authority.issue(f"proxy-{algorithm.name}", "127.0.0.1", algorithm=algorithm)
        )
        with proxy.login(*make_key()).connect(**verified, channel_binding="require") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_certificate_that_nothing_can_bind_to_offers_no_binding(
    start_tls: StartTls, make_key: MakeKey, tmp_path: Path
) -> None:
    login = start_tls("require", self_signed_ed25519(tmp_path, "ed25519")).login(*make_key())
    with login.connect(sslmode="require") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="channel binding"):
        login.connect(sslmode="require", channel_binding="require")


def test_without_tls_where_it_is_required(requiring: Proxy, make_key: MakeKey) -> None:
    with pytest.raises(psycopg.OperationalError, match="takes encrypted connections only"):
        requiring.login(*make_key()).connect(sslmode="disable")
    with connected(requiring) as client:
        client.sendall(startup())
        said = rest(client)
    assert b"C28000\0" in said and b"DTLS_REQUIRED\0" in said
    with connected(requiring) as client:
        client.sendall(CANCEL)
        assert rest(client) == b""


def test_without_tls_where_it_is_preferred(preferring: Proxy, make_key: MakeKey) -> None:
    with preferring.login(*make_key()).connect(sslmode="disable") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.long
def test_a_unix_socket_needs_no_tls(
    start_proxy: Callable[..., Proxy],
    certificate: Pair,
    make_key: MakeKey,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("s")
    proxy = start_proxy(
        {"listen": {"tls": {"mode": "require", **certificate.settings}, "unix_socket_dir": str(directory)}}
    )
    key_id, key = make_key()
    with Login(str(directory), proxy.port, key_id, key).connect(sslmode="prefer") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.long
def test_a_cancel_request_over_tls(requiring: Proxy, make_key: MakeKey, verified: dict[str, str]) -> None:
    with requiring.login(*make_key()).connect(**verified) as connection:
        timer = Timer(0.5, connection.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(30)")
        timer.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.long
def test_a_client_that_reads_late_costs_little_memory(
    start_tls: StartTls, make_key: MakeKey, verified: dict[str, str], installation: Installation
) -> None:
    proxy = start_tls("require")
    stands = "SELECT pid FROM pg_stat_activity WHERE usename = 'app_rw' AND wait_event = 'ClientWrite'"
    with proxy.login(*make_key()).connect(**verified) as connection:
        before = proxy.resident_bytes()
        connection.pgconn.send_query(b"BEGIN; SELECT repeat('x', 1000000) FROM generate_series(1, 200)")
        with installation.superuser().connect() as superuser:
            wait_until(lambda: superuser.execute(stands).fetchone(), message="the server has to wait")
        assert proxy.resident_bytes() - before < 50_000_000
        while (result := connection.pgconn.get_result()) is not None:
            assert result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
            rows = result.ntuples
        assert rows == 200
        assert proxy.resident_bytes() - before < 50_000_000


# -- bytes


@pytest.mark.parametrize(
    "request_", [SSL_REQUEST, GSSENC_REQUEST + SSL_REQUEST], ids=["ssl", "gss, then ssl"]
)
def test_requests_byte_by_byte(requiring: Proxy, authority: Authority, request_: bytes) -> None:
    with connected(requiring) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = b""
        for at in range(len(request_)):
            client.sendall(request_[at : at + 1])
            if at % 8 == 7:
                said += client.recv(1)
        assert said == b"NS"[-len(said) :]
        with client_context(authority).wrap_socket(client, server_hostname="127.0.0.1") as channel:
            packet = startup()
            for at in range(len(packet)):
                channel.sendall(packet[at : at + 1])
            assert channel.recv(1) == b"R"


@pytest.mark.parametrize(
    "data",
    [SSL_REQUEST + startup(), SSL_REQUEST + b"\x16\x03\x01", GSSENC_REQUEST + SSL_REQUEST, SSL_REQUEST * 2],
)
def test_bytes_behind_a_request_close_the_connection_unanswered(preferring: Proxy, data: bytes) -> None:
    def told() -> int:
        return preferring.errors.read_text().count("received data after an encryption request")

    before = told()
    with connected(preferring) as client:
        client.sendall(data)
        assert rest(client) == b""
    wait_until(lambda: told() > before)


@pytest.mark.parametrize("request_", [SSL_REQUEST, GSSENC_REQUEST])
def test_no_second_request_inside_tls(preferring: Proxy, authority: Authority, request_: bytes) -> None:
    with connected(preferring) as client:
        client.sendall(SSL_REQUEST)
        assert client.recv(1) == b"S"
        with client_context(authority).wrap_socket(client, server_hostname="127.0.0.1") as channel:
            channel.sendall(request_)
            assert b"C08P01\0" in rest(channel)


@pytest.mark.parametrize(("direct", "protocols"), [(True, []), (True, ["http/1.1"]), (False, ["http/1.1"])])
def test_a_client_of_another_protocol_gets_an_alert(
    preferring: Proxy, authority: Authority, direct: bool, protocols: list[str]
) -> None:
    context = client_context(authority, *protocols)
    with connected(preferring) as client:
        if not direct:
            client.sendall(SSL_REQUEST)
            assert client.recv(1) == b"S"
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            context.wrap_socket(client, server_hostname="127.0.0.1")


def test_a_client_hello_byte_by_byte(preferring: Proxy, authority: Authority) -> None:
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    channel = client_context(authority, ALPN).wrap_bio(received, sent, server_hostname="127.0.0.1")
    with connected(preferring) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while channel.version() is None or channel.selected_alpn_protocol() is None:
            try:
                channel.do_handshake()
                break
            except ssl.SSLWantReadError:
                for byte in sent.read():
                    client.sendall(bytes([byte]))
                received.write(client.recv(65536))
        client.sendall(sent.read())
        assert channel.selected_alpn_protocol() == ALPN


def test_who_leaves_in_the_middle_of_a_hello_costs_nothing(preferring: Proxy) -> None:
    for data in (b"\x16", b"\x16\x03\x01\x40", b"\x16\x03\x01\x40\0" + b"x" * 100, b"\x16\xff\xff\xff\xff"):
        with connected(preferring) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert rest(client) == b"", data


@pytest.mark.long
def test_who_stalls_is_closed_at_the_deadline(start_tls: StartTls, authority: Authority) -> None:
    proxy = start_tls("require", auth_timeout="1s")
    hello = ssl.MemoryBIO()
    channel = client_context(authority, ALPN).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        channel.do_handshake()
    half = hello.read()[:100]
    for said, answer in [
        (b"", b""),
        (SSL_REQUEST[:5], b""),
        (SSL_REQUEST, b"S"),
        (GSSENC_REQUEST, b"N"),
        (half, b""),
        (startup()[:8], b""),
    ]:
        with connected(proxy) as client:
            client.sendall(said)
            assert rest(client) == answer, said
    with connected(proxy) as client:
        client.sendall(SSL_REQUEST)
        assert client.recv(1) == b"S"
        with client_context(authority).wrap_socket(
            client, server_hostname="127.0.0.1", suppress_ragged_eofs=True
        ) as encrypted:
            assert rest(encrypted) == b""


def test_old_versions_of_tls_are_refused(start_proxy: Callable[..., Proxy], certificate: Pair) -> None:
    proxy = start_proxy({"listen": {"tls": {"mode": "prefer", "min_version": "1.3", **certificate.settings}}})
    login = proxy.login("ctm_nobody000000", "x")
    with pytest.raises(psycopg.OperationalError, match="SSL error"):
        login.connect(sslmode="require", ssl_max_protocol_version="TLSv1.2")
    with pytest.raises(psycopg.OperationalError, match="API key rejected"):
        login.connect(sslmode="require")


# -- certificates


@pytest.mark.long
def test_sighup_takes_a_new_certificate_for_new_clients(
    start_tls: StartTls, make_key: MakeKey, authority: Authority, tmp_path: Path, verified: dict[str, str]
) -> None:
    mine = Pair(tmp_path / "mine.crt", tmp_path / "mine.key")
    first, second = authority.issue("first", "127.0.0.1"), authority.issue("second", "127.0.0.1")

    def install(pair: Pair) -> None:
        mine.cert.write_bytes(pair.cert.read_bytes())
        mine.key.write_bytes(pair.key.read_bytes())

    install(first)
    proxy = start_tls("require", mine)

    def served() -> int:
        with connected(proxy) as client:
            context = client_context(authority, ALPN)
            with context.wrap_socket(client, server_hostname="127.0.0.1") as channel:
                der = channel.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number

    login = proxy.login(*make_key())
    with login.connect(**verified) as old:
        assert served() == first.serial
        install(second)
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: served() == second.serial, message="the new certificate is served")
        assert old.execute("SELECT 1").fetchone() == (1,)
        with login.connect(**verified, channel_binding="require") as new:
            assert new.execute("SELECT 1").fetchone() == (1,)
        mine.key.write_bytes(first.key.read_bytes())
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: proxy.said("reload refused, the old configuration stays"))
        assert proxy.said("mine.key: not the key of the certificate in")
        assert served() == second.serial
        assert old.execute("SELECT 1").fetchone() == (1,)


def test_draining_ends_encrypted_sessions(
    start_tls: StartTls, make_key: MakeKey, verified: dict[str, str]
) -> None:
    proxy = start_tls("require")
    with proxy.login(*make_key()).connect(**verified) as connection:
        connection.execute("SELECT 1")
        proxy.stop()
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")


async def test_the_password_method_over_tls(
    requiring: Proxy, make_key: MakeKey, authority: Authority
) -> None:
    _, key = make_key(user="someone@example.com")
    async with requiring.login("whoever", key).asyncpg(ssl=client_context(authority)) as connection:
        assert await connection.fetchval("SELECT sluice.current_user_id()") == "someone@example.com"
    with pytest.raises(asyncpg.InvalidPasswordError):
        async with requiring.login("whoever", key + "x").asyncpg(ssl=client_context(authority)):
            raise AssertionError("let in")
