"""TLS between the proxy and PostgreSQL: that every byte of it is encrypted, and certificates of both sides."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy.embedded import Cluster, scratch_directory
from tests.certificates import Authority, Pair
from tests.integration.encrypted import HBA, Rig
from tests.integration.support import DATABASE, DEBIAN, Login, Proxy, wait_until

SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
# Connections that the pools keep without being asked, see support.configuration.
MINIMUM = 5


@pytest.fixture(scope="module", params=DEBIAN)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = scratch_directory("pgsluice-tls-")
    try:
        with Cluster(directory, replicas=0, bin_dir=DEBIAN[request.param]) as cluster:
            yield Rig(cluster, Authority(tmp_path_factory.mktemp("tls")))
    finally:
        shutil.rmtree(directory)


class Relay:
    """Stands between the proxy and a server, and notes how each connection begins.

    With a `certificate` it is somebody who ends the TLS of both sides and reads along.
    """

    def __init__(self, port: int, certificate: Pair | None = None) -> None:
        self.begun: list[bytes] = []
        self._target = port
        self._context: ssl.SSLContext | None = None
        if certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate.cert, certificate.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # A thread that accepts keeps the socket open unless it is shut down first.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            try:
                first = client.recv(8, socket.MSG_WAITALL)
                server.sendall(first)
                answer = server.recv(1)
                client.sendall(answer)
                second = client.recv(1, socket.MSG_PEEK)
                self.begun.append(first + answer + second)
                if self._context is None:
                    self._pump(client, server)
                    return
                blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
                with (
                    self._context.wrap_socket(client, server_side=True) as ours,
                    blind.wrap_socket(server) as theirs,
                ):
                    self._pump(ours, theirs)
            except OSError:
                pass

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        back = threading.Thread(target=_copy, args=(other, one), daemon=True)
        back.start()
        _copy(one, other)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except (OSError, ValueError):
        pass
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


Start = Callable[..., Proxy]


@pytest.fixture
def start(rig: Rig, tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts a proxy in front of the rig's server, with these TLS settings of its host."""
    started: list[Proxy] = []

    def begin(port: int = 0, **tls: Any) -> Proxy:
        directory = tmp_path / f"proxy{len(started)}"
        directory.mkdir()
        host = {"name": "main", "host": "127.0.0.1", "port": port or rig.cluster.primary.port, "tls": tls}
        proxy = Proxy(rig.installation, directory, {"databases": {DATABASE: {"hosts": [host]}}})
        started.append(proxy)
        proxy.start()
        return proxy

    yield begin
    for proxy in started:
        if proxy.process.poll() is None:
            proxy.stop()


@pytest.fixture
def verified(rig: Rig) -> dict[str, str]:
    return {"mode": "verify-full", "ca_file": str(rig.authority.file)}


def login(rig: Rig, proxy: Proxy) -> Login:
    return proxy.login(*rig.installation.generate_key("ada@example.com", ["read:tasks", "write:tasks"]))


def backends(rig: Rig) -> list[tuple[str, bool, str | None]]:
    """Return user, whether encrypted, and the client's certificate of all the server's connections from outside."""
    with rig.installation.superuser().connect() as connection:
        return connection.execute(
            "SELECT usename::text, ssl, client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE client_port IS NOT NULL AND pid <> pg_backend_pid() AND usename LIKE ANY ('{app%,sluice%}')"
        ).fetchall()


@pytest.mark.parametrize(
    "mode",
    [
        "prefer",
        pytest.param("require", marks=pytest.mark.long),
        pytest.param("verify-ca", marks=pytest.mark.long),
        "verify-full",
    ],
)
def test_every_connection_is_encrypted(rig: Rig, start: Start, verified: dict[str, str], mode: str) -> None:
    relay = Relay(rig.cluster.primary.port)
    proxy = start(relay.port, **({**verified, "mode": mode} if mode != "prefer" else {}))
    with login(rig, proxy).connect() as client:
        assert client.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (
            True,
        )
        data = "x" * 2_000_000
        assert client.execute("SELECT %s", (data,)).fetchone() == (data,)
        before = len(relay.begun)
        timer = threading.Timer(0.5, client.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            client.execute("SELECT pg_sleep(30)")
        timer.join()
        assert len(relay.begun) > before, "the cancel request came this way"
        users = {(user, encrypted) for user, encrypted, _ in backends(rig)}
        assert {("app_rw", True), ("sluice_control", True)} <= users
        assert all(encrypted for _, encrypted in users)
    assert set(relay.begun) == {SSL_REQUEST + b"S" + b"\x16"}
    proxy.stop()
    relay.close()


def test_without_tls_such_a_server_lets_nobody_in(rig: Rig, start: Start) -> None:
    proxy = start(mode="disable")
    wait_until(lambda: proxy.said("no pg_hba.conf entry"))


def test_a_certificate_that_is_not_accepted_keeps_the_host_down(
    rig: Rig, start: Start, tmp_path: Path
) -> None:
    proxy = start(mode="verify-full", ca_file=str(Authority(tmp_path, "stranger").file))
    wait_until(lambda: proxy.said("certificate not accepted"))
    wait_until(lambda: not backends(rig), message="those of earlier tests are gone, and no new ones came")


def test_somebody_between_is_found_out_by_channel_binding(rig: Rig, start: Start, tmp_path: Path) -> None:
    # Nothing is verified in this mode; the password's proof itself holds on the server's certificate alone.
    relay = Relay(rig.cluster.primary.port, Authority(tmp_path).issue("between", "127.0.0.1"))
    proxy = start(relay.port, mode="require")
    wait_until(lambda: "SCRAM channel binding check failed" in rig.cluster.primary.log_tail())
    wait_until(lambda: not processes(rig), message="those of earlier tests are gone, and no new ones came")
    proxy.stop()
    relay.close()


@pytest.mark.long
def test_a_client_certificate(rig: Rig, start: Start, verified: dict[str, str]) -> None:
    rig.hba(
        "hostssl all app_rw 127.0.0.1/32 scram-sha-256 clientcert=verify-full",
        "hostssl all postgres 127.0.0.1/32 scram-sha-256",
        "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca",
    )
    try:
        proxy = start(**verified, **rig.authority.issue("app_rw").settings)
        with login(rig, proxy).connect() as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
            names = {(user, name) for user, _, name in backends(rig)}
        assert ("app_rw", "/CN=app_rw") in names and ("sluice_control", "/CN=app_rw") in names
        proxy.stop()
        without = start(**verified)
        wait_until(lambda: without.said("requires a valid client certificate"))
    finally:
        rig.hba(HBA)


def test_sighup_reads_the_files_again(rig: Rig, start: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "next")
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(rig.authority.file.read_bytes())
    proxy = start(mode="verify-full", ca_file=str(trusted))
    wait_until(lambda: len(processes(rig)) >= MINIMUM, message="the pools have what they keep")
    before = processes(rig)
    rig.present(authority.issue("next-server", "127.0.0.1"))
    try:
        trusted.write_bytes(rig.authority.file.read_bytes() + authority.file.read_bytes())
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: proxy.said("configuration read again"))
        with rig.installation.superuser().connect() as superuser:
            superuser.execute("SELECT pg_terminate_backend(pid, 10000) FROM unnest(%s) pid", (list(before),))
        wait_until(lambda: processes(rig) - before, message="the pools connect again")
        with login(rig, proxy).connect() as client:
            assert client.execute("SELECT 1").fetchone() == (1,)
    finally:
        rig.present(rig.authority.issue("postgres", "127.0.0.1"))


def processes(rig: Rig) -> set[int]:
    """Return the server's processes that serve the pools."""
    with rig.installation.superuser().connect() as connection:
        rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE usename LIKE 'app%'").fetchall()
    return {row[0] for row in rows}
