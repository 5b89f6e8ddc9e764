"""Protocol 3.2 and its long cancel keys, 3.0 as before; psql over a Unix socket."""

from __future__ import annotations

import select
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Login, Proxy, wait_until
from tests.integration.test_cancel import sleepers


@pytest.mark.parametrize("version", ["3.0", "3.2", "latest"])
def test_psql_speaks_each_version(writer: Login, version: str) -> None:
    conninfo = f"min_protocol_version={version} max_protocol_version={version}"
    done = writer.psql("\\conninfo\nSELECT 'spoken';\n", "-At", conninfo)
    assert done.returncode == 0, done.stderr
    assert "spoken" in done.stdout
    assert ("3.2" if version == "latest" else version) in done.stdout


@pytest.mark.parametrize("version", ["3.0", "3.2"])
def test_psql_cancels_in_each_version(writer: Login, installation: Installation, version: str) -> None:
    with writer.psql_start("-At", f"min_protocol_version={version} max_protocol_version={version}") as psql:
        try:
            assert psql.stdin is not None
            psql.stdin.write("SELECT pg_sleep(30);\nSELECT 'goes on';\n\\q\n")
            psql.stdin.flush()
            wait_until(lambda: sleepers(installation) == 1, message="the statement runs")
            psql.send_signal(signal.SIGINT)
            _, errors = psql.communicate(timeout=15)
        finally:
            psql.kill()
    assert "canceling statement due to user request" in errors


def test_clients_come_by_a_unix_socket(start_proxy: Callable[..., Proxy], make_key: MakeKey) -> None:
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        running = start_proxy({"listen": {"unix_socket_dir": directory}})
        login = replace(running.login(*make_key()), host=directory)
        done = login.psql("SELECT 'by socket';\n", "-At")
        assert done.stdout == "by socket\n", done.stderr
        with login.connect(user="anyone") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.long
def test_a_client_that_asks_nothing_is_ended(start_proxy: Callable[..., Proxy], make_key: MakeKey) -> None:
    running = start_proxy({"databases": {"app": {"timeouts": {"client_idle": "300ms"}}}})
    login = running.login(*make_key())
    with login.connect() as connection:
        connection.execute("SELECT pg_sleep(0.6)")
        line = connection.pgconn.socket
        assert select.select([line], [], [], 15.0)[0], "the proxy speaks first"
        with pytest.raises(psycopg.OperationalError) as told:
            connection.execute("SELECT 1")
        assert told.value.sqlstate == "57P05"
