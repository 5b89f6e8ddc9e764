"""`transport: cloudflare` against the edge's double, with a real PostgreSQL behind: TLS and SCRAM inside the tunnel."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from proxy.embedded import Cluster, scratch_directory
from tests.certificates import Authority, Pair
from tests.edge.answers import ANSWERS
from tests.edge.edge import LARGEST, Edge
from tests.edge.running import RunningEdge
from tests.integration.encrypted import Rig
from tests.integration.support import DATABASE, DEBIAN, Login, Proxy, wait_until
from tests.integration.test_tls_servers import Relay

TOKEN = ("0123.access", "s3cr3t-of-the-token")


@pytest.fixture(scope="module", params=list(DEBIAN)[-1:])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory = scratch_directory("pgsluice-edge-")
    try:
        with Cluster(directory, replicas=0, bin_dir=DEBIAN[request.param]) as cluster:
            made = Rig(cluster, Authority(tmp_path_factory.mktemp("tls")))
            made.present(made.authority.issue("postgres", "localhost"))
            yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Give the edge's certificate; programs that are started from here trust who signed it."""
    authority = Authority(tmp_path_factory.mktemp("edge"), "edge-ca")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(authority.file))
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        yield authority.issue("edge", "localhost")


@pytest.fixture
def edge(rig: Rig, pair: Pair) -> Iterator[RunningEdge]:
    running = RunningEdge(rig.cluster.primary.port, pair, token=TOKEN)
    yield running
    running.close()
    assert running.seen.violations == []
    assert running.seen.counts["truncated"] == running.seen.counts["texts"] == 0
    assert running.seen.largest_message <= LARGEST


def host(rig: Rig, port: int, name: str = "tunnel", **tls: Any) -> dict[str, Any]:
    return {
        "name": name,
        "host": "localhost",
        "port": port,
        "transport": "cloudflare",
        "service_token": dict(zip(("id", "secret"), TOKEN, strict=True)),
        "tls": tls or {"mode": "verify-full", "ca_file": str(rig.authority.file)},
    }


Start = Callable[..., Proxy]


@pytest.fixture
def start(rig: Rig, tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts a proxy whose hosts are these."""
    started: list[Proxy] = []

    def begin(*hosts: dict[str, Any], **changes: Any) -> Proxy:
        directory = tmp_path / f"proxy{len(started)}"
        directory.mkdir()
        database = {"hosts": list(hosts), **changes.pop("database", {})}
        changes.setdefault("logging", {"level": "debug"})
        proxy = Proxy(rig.installation, directory, {"databases": {DATABASE: database}, **changes})
        started.append(proxy)
        proxy.start()
        return proxy

    yield begin
    for proxy in started:
        if proxy.process.poll() is None:
            proxy.stop()
        for file in (proxy.errors, proxy.output):
            told = file.read_text(errors="replace")
            assert TOKEN[0] not in told and TOKEN[1] not in told


def login(rig: Rig, proxy: Proxy, *permissions: str) -> Login:
    wanted = list(permissions) or ["read:tasks", "write:tasks"]
    return proxy.login(*rig.installation.generate_key("ada@example.com", wanted))


def health(proxy: Proxy) -> dict[str, Any]:
    with httpx.Client(trust_env=False) as client:
        found: dict[str, Any] = client.get(proxy.url("/health")).json()
    return found


def errors(proxy: Proxy) -> dict[str, str]:
    return {each["host"]: each["error"] for each in health(proxy)["hosts"]}


def test_everything_goes_through_the_tunnel_and_is_encrypted_in_it(
    rig: Rig, edge: RunningEdge, start: Start
) -> None:
    proxy = start(host(rig, edge.port))
    key_id, key = rig.installation.generate_key("ada@example.com", ["read:tasks", "write:tasks"])
    with proxy.login(key_id, key).connect() as client:
        assert client.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (
            True,
        )
        assert client.execute("SELECT sluice.current_user_id()").fetchone() == ("ada@example.com",)
        data = "x" * 2_000_000
        assert client.execute("SELECT %s", (data,)).fetchone() == (data,)
        before = edge.seen.counts["upgrades"]
        timer = threading.Timer(0.5, client.cancel_safe)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            client.execute("SELECT pg_sleep(30)")
        timer.join()
        assert edge.seen.counts["upgrades"] > before, "the cancel request has a WebSocket of its own"
        with rig.installation.superuser().connect() as superuser:
            users = superuser.execute(
                "SELECT DISTINCT usename::text, ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                " WHERE client_port IS NOT NULL AND usename LIKE ANY ('{app%,sluice%}')"
            ).fetchall()
            assert {("app_rw", True), ("app_ro", True), ("sluice_control", True)} == set(users)
            logged = "SELECT count(*) FROM sluice.api_access_logs WHERE key_id = %s AND event = 'statement'"
            wait_until(
                lambda: _number(superuser, logged, key_id) >= 4,
                message="the access log is COPYed through the tunnel too",
            )
            # Told by NOTIFY, long before the cache of 30 s forgets.
            superuser.execute("SELECT sluice.revoke_api_key(%s)", (key_id,))
        began = time.monotonic()
        wait_until(lambda: _ended(client), 5.0, "the revoked key's session ends")
        assert time.monotonic() - began < 5.0
    told = health(proxy)
    assert told["status"] == "ready"
    assert told["tunnel"] == {"hosts": ["tunnel"], "connected": True, "error": ""}


def _number(connection: psycopg.Connection[Any], statement: str, *arguments: object) -> int:
    row = connection.execute(statement, arguments).fetchone()
    assert row is not None
    return int(row[0])


def _ended(client: psycopg.Connection[Any]) -> bool:
    try:
        client.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def test_the_logins_bind_to_the_certificate_inside(
    rig: Rig, edge: RunningEdge, start: Start, tmp_path: Path
) -> None:
    between = Relay(rig.cluster.primary.port, Authority(tmp_path).issue("between", "localhost"))
    edge.leads_to(between.port)
    start(host(rig, edge.port, mode="require"))
    wait_until(lambda: "SCRAM channel binding check failed" in rig.cluster.primary.log_tail())
    between.close()


@pytest.mark.long
def test_a_certificate_for_another_name_inside_is_not_accepted(
    rig: Rig, edge: RunningEdge, start: Start
) -> None:
    rig.present(rig.authority.issue("postgres", "db.example.org"))
    try:
        proxy = start(host(rig, edge.port))
        wait_until(lambda: "certificate not accepted" in errors(proxy)["tunnel"])
    finally:
        rig.present(rig.authority.issue("postgres", "localhost"))


@pytest.mark.long
def test_what_a_reset_tells_whom(rig: Rig, edge: RunningEdge, start: Start) -> None:
    proxy = start(host(rig, edge.port))
    one = login(rig, proxy)
    rig.installation.execute("CREATE TABLE IF NOT EXISTS public.held (id integer)")
    rig.installation.execute("GRANT SELECT, INSERT ON public.held TO sluice_readwrite, sluice_readonly")
    with ExitStack() as stack:
        idle, writer, reader = (stack.enter_context(closing(one.connect())) for _ in range(3))
        for each in (idle, writer, reader):
            each.execute("SELECT 1")
        locker = stack.enter_context(rig.installation.superuser().connect(autocommit=False))
        locker.execute("LOCK TABLE public.held")
        writer.pgconn.send_query(b"INSERT INTO public.held VALUES (1)")
        reader.pgconn.send_query(b"SELECT 7 FROM (SELECT count(*) FROM public.held) held")
        wait_until(lambda: _waiting(rig) == 2, message="both wait for the lock")
        edge.do(Edge.reset)
        locker.rollback()
        told = _result(writer)
        assert told is not None and told.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"08006"
        again = _result(reader)
        assert again is not None
        assert again.get_value(0, 0) == b"7", again.error_message
        assert _result(reader) is None
        assert idle.execute("SELECT 2").fetchone() == (2,)
        assert reader.execute("SELECT 3").fetchone() == (3,)


def _result(connection: psycopg.Connection[Any]) -> psycopg.pq.abc.PGresult | None:
    """Return the next result. libpq alone would wait for it with Python's lock in its hands, and the edge with it."""
    while connection.pgconn.is_busy():
        select.select([connection.fileno()], [], [], 15.0)
        connection.pgconn.consume_input()
    return connection.pgconn.get_result()


def _waiting(rig: Rig) -> int:
    with rig.installation.superuser().connect() as connection:
        waiting = "wait_event_type = 'Lock' AND usename LIKE ANY ('{app%%}')"
        return _number(connection, f"SELECT count(*) FROM pg_stat_activity WHERE {waiting}")


@pytest.mark.long
def test_resets_at_random_under_work(rig: Rig, pair: Pair, start: Start) -> None:
    edge = RunningEdge(rig.cluster.primary.port, pair, token=TOKEN, reset_within=2.0)
    proxy = start(host(rig, edge.port))
    one = login(rig, proxy)
    answered = failed = 0
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        try:
            with one.connect() as client:
                while time.monotonic() < end:
                    row = client.execute(
                        "SELECT sluice.current_user_id(), sum(i) FROM generate_series(1, 100) i"
                    )
                    assert row.fetchone() == ("ada@example.com", 5050)
                    answered += 1
        except psycopg.OperationalError as error:
            assert getattr(error, "sqlstate", None) in ("08006", "57P03", None), error
            failed += 1
    proxy.stop()
    edge.close()
    assert answered > 50, (answered, failed)
    assert edge.seen.violations == []


@pytest.mark.long
def test_silence_is_found_out_and_the_way_back_too(rig: Rig, edge: RunningEdge, start: Start) -> None:
    proxy = start(host(rig, edge.port), database={"health": {"failover_wait": "500ms"}})
    with login(rig, proxy).connect() as client:
        client.execute("SELECT 1")
        edge.do(Edge.silence)
        wait_until(lambda: health(proxy)["status"] == "unavailable", message="the host is down")
        assert "no answer for" in errors(proxy)["tunnel"]
        with pytest.raises(psycopg.OperationalError):
            client.execute("INSERT INTO public.held VALUES (1)")
        edge.do(Edge.heal)
        wait_until(lambda: health(proxy)["status"] == "ready", message="the host is back")
    with login(rig, proxy).connect() as client:
        assert client.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.long
def test_a_token_is_exchanged_by_a_reload(rig: Rig, edge: RunningEdge, start: Start) -> None:
    proxy = start(host(rig, edge.port))
    with login(rig, proxy).connect() as client:
        client.execute("SELECT 1")
        edge.do(lambda each: setattr(each, "token", ("4567.access", "the-next-one")))
        edge.do(Edge.reset)
        wait_until(lambda: "the service token was not accepted (403)" in errors(proxy)["tunnel"])
        written = proxy.config.read_text().replace(TOKEN[0], "4567.access").replace(TOKEN[1], "the-next-one")
        proxy.config.write_text(written)
        proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: health(proxy)["status"] == "ready")
        assert client.execute("SELECT 2").fetchone() == (2,)
    assert "the-next-one" not in proxy.errors.read_text()


@pytest.fixture
def edges(rig: Rig, pair: Pair) -> Iterator[dict[str, RunningEdge]]:
    """Give an edge for each answer; as yet all of them let everybody through."""
    running = {name: RunningEdge(rig.cluster.primary.port, pair, token=TOKEN) for name in ANSWERS}
    yield running
    for edge in running.values():
        edge.close()


SMALL = {
    "pools": {
        name: {"min": 0, "max": 1} for name in ("primary", "readonly", "priority", "background", "admin")
    }
}


def told_of_each(told: dict[str, str]) -> None:
    for name, answer in ANSWERS.items():
        assert str(answer.status) in told[name] and ": " in told[name], told[name]


@pytest.mark.long
def test_each_answer_is_told_at_the_start(rig: Rig, edges: dict[str, RunningEdge], start: Start) -> None:
    for name, edge in edges.items():
        edge.answers(name)
    proxy = start(*(host(rig, edge.port, name) for name, edge in edges.items()), database=SMALL)
    wait_until(lambda: "not probed yet" not in errors(proxy).values())
    told_of_each(errors(proxy))
    command = [sys.executable, "-m", "proxy", "check", "--json", "-c", str(proxy.config)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 1, checked.stderr
    findings = json.loads(checked.stdout)["findings"]
    told_of_each({each["hosts"][0]: each["what"] for each in findings if each["topic"] == "host"})
    assert TOKEN[1] not in checked.stdout + checked.stderr


@pytest.mark.long
def test_each_answer_is_told_later(rig: Rig, edges: dict[str, RunningEdge], start: Start) -> None:
    proxy = start(*(host(rig, edge.port, name) for name, edge in edges.items()), database=SMALL)
    wait_until(lambda: set(errors(proxy).values()) == {""}, message="all hosts are up")
    for name, edge in edges.items():
        edge.answers(name)
        edge.do(Edge.reset)
    wait_until(lambda: all(not each["connected"] for each in health(proxy)["hosts"]))
    told_of_each(errors(proxy))
    log = proxy.errors.read_text()
    for name in ANSWERS:
        assert f"host {name} is down: " in log


@pytest.mark.long
def test_clients_are_told_too(rig: Rig, edge: RunningEdge, start: Start) -> None:
    proxy = start(host(rig, edge.port), database={"health": {"failover_wait": "300ms"}})
    with login(rig, proxy).connect() as client:
        client.execute("SELECT 1")
        edge.answers("no-cloudflared")
        edge.do(Edge.reset)
        wait_until(lambda: health(proxy)["status"] == "unavailable")
        with pytest.raises(psycopg.OperationalError) as caught:
            client.execute("SELECT 1")
        detail = caught.value.diag.message_detail or ""
        assert "UPSTREAM_UNAVAILABLE" in detail and "no cloudflared is connected" in detail
        edge.answers("")
        wait_until(lambda: health(proxy)["status"] == "ready")


def checked(proxy: Proxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxy", "cloudflare", "check", "-c", str(proxy.config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_way_is_checked_step_by_step(rig: Rig, edge: RunningEdge, tmp_path: Path) -> None:
    hosts = {"databases": {DATABASE: {"hosts": [host(rig, edge.port)]}}}
    proxy = Proxy(rig.installation, tmp_path, hosts)
    found = checked(proxy, "--json")
    assert found.returncode == 0, found.stdout + found.stderr
    (only,) = json.loads(found.stdout)["hosts"]
    assert [(step["step"], step["status"]) for step in only["steps"]] == [
        (name, "ok") for name in ("DNS", "TLS", "token", "upgrade", "PostgreSQL", "round trip")
    ]
    told = {step["step"]: step["what"] for step in only["steps"]}
    assert told["PostgreSQL"] == "answers TLSv1.3 inside the tunnel"
    assert "localhost" in told["TLS"] and told["round trip"].endswith(" ms")
    assert TOKEN[1] not in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("answer", "ended"),
    [("forbidden", "token"), ("login", "token"), ("no-cloudflared", "upgrade"), ("no-postgres", "upgrade")],
)
@pytest.mark.long
def test_the_step_that_fails_is_told_with_its_remedy(
    rig: Rig, edge: RunningEdge, tmp_path: Path, answer: str, ended: str
) -> None:
    hosts = {"databases": {DATABASE: {"hosts": [host(rig, edge.port)]}}}
    edge.answers(answer)
    found = checked(Proxy(rig.installation, tmp_path, hosts))
    assert found.returncode == 1, found.stdout + found.stderr
    head, *lines = found.stdout.splitlines()
    assert head == f"host tunnel, localhost:{edge.port}, of database app"
    at = next(number for number, line in enumerate(lines) if " failed " in line)
    assert lines[at].split()[0] == ended and lines[at + 1].startswith(" " * 20)
    assert all(" ok " in line for line in lines[:at]) and all("not tried" in line for line in lines[at + 2 :])
    assert TOKEN[1] not in found.stdout + found.stderr


def test_a_database_without_tunnels_and_a_wrong_configuration(rig: Rig, tmp_path: Path) -> None:
    proxy = Proxy(rig.installation, tmp_path)
    assert checked(proxy).stdout == "no host has transport: cloudflare\n"
    proxy.config.write_text("databases: {app: {hosts: [{transport: pigeon}]}}")
    wrong = checked(proxy, "--json")
    assert wrong.returncode == 3
    assert "transport" in json.loads(wrong.stdout)["problems"][0]["path"]


@pytest.mark.parametrize("rows", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_rows_arrive_as_they_are(rig: Rig, edge: RunningEdge, start: Start, rows: int) -> None:
    proxy = start(host(rig, edge.port))
    statement = f"SELECT i, md5(i::text) FROM generate_series(1, {rows}) i"
    with login(rig, proxy).connect() as client, rig.installation.superuser().connect() as direct:
        assert _digest(client, f"COPY ({statement}) TO STDOUT") == _digest(
            direct, f"COPY ({statement}) TO STDOUT"
        )


def _digest(connection: psycopg.Connection[Any], copy: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with connection.cursor().copy(copy) as rows:
        for part in rows:
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_gigabyte_of_copy_arrives_as_it_is(rig: Rig, edge: RunningEdge, start: Start) -> None:
    proxy = start(host(rig, edge.port))
    rig.installation.execute("DROP TABLE IF EXISTS public.big", "CREATE UNLOGGED TABLE public.big (t text)")
    rig.installation.execute("GRANT SELECT, INSERT ON public.big TO sluice_readwrite")
    # Lines that all differ, of a size that fits no buffer.
    block = b"".join(os.urandom(500).hex().encode() + b"\n" for _ in range(1000))
    size, sent = 0, hashlib.sha256()
    began = time.monotonic()
    try:
        with login(rig, proxy).connect() as client:
            with client.cursor().copy("COPY public.big FROM STDIN") as copy:
                while size < 2**30:
                    copy.write(block)
                    sent.update(block)
                    size += len(block)
            with client.transaction():
                # Within a transaction the rows come back in the order of the heap.
                assert _digest(client, "COPY public.big TO STDOUT") == (size, sent.hexdigest())
        assert time.monotonic() - began < 300.0
        assert proxy.resident_bytes() < 250 * 2**20
        assert edge.seen.largest_message == LARGEST
    finally:
        rig.installation.execute("DROP TABLE public.big")
