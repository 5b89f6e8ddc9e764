"""The throw-away PostgreSQL: it starts, streams, survives a crash, is promoted, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from proxy.embedded import Cluster, EmbeddedError, bundled_bin_dir, scratch_directory
from tests.integration.support import wait_until


@pytest.fixture
def place() -> Iterator[Path]:
    directory = scratch_directory("pgsluice-embedded-")
    yield directory
    shutil.rmtree(directory)


def test_a_replica_takes_over_what_was_committed(place: Path) -> None:
    with Cluster(place) as cluster:
        with psycopg.connect(cluster.primary.dsn(), autocommit=True) as primary:
            primary.execute("CREATE TABLE kept AS SELECT 1 AS id")
            primary.execute("SELECT pg_switch_wal()")
        replica = cluster.replicas[0]
        with psycopg.connect(replica.dsn(), autocommit=True) as connection:
            wait_until(lambda: connection.execute("SELECT to_regclass('kept')").fetchone() != (None,))
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("INSERT INTO kept VALUES (2)")
        cluster.primary.kill()
        replica.promote()
        with psycopg.connect(replica.dsn(), autocommit=True) as connection:
            connection.execute("INSERT INTO kept VALUES (2)")
            assert connection.execute("SELECT sum(id) FROM kept").fetchone() == (3,)


def test_a_killed_primary_starts_again_on_its_port(place: Path) -> None:
    with Cluster(place, replicas=0) as cluster:
        port = cluster.primary.port
        with psycopg.connect(cluster.primary.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
        cluster.primary.kill()
        assert not cluster.primary.running
        cluster.primary.start()
        assert cluster.primary.port == port
        with psycopg.connect(cluster.primary.dsn()) as connection:
            assert connection.execute("SELECT id FROM kept").fetchone() == (1,)


def test_a_stopped_cluster_starts_again_with_its_data_and_password(place: Path) -> None:
    with Cluster(place, replicas=0) as cluster:
        password = cluster.password
    with Cluster(place, replicas=0) as cluster, psycopg.connect(cluster.primary.dsn()) as connection:
        assert cluster.password == password
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_every_way_in_asks_for_the_password(place: Path) -> None:
    with Cluster(place, replicas=0, settings={"work_mem": "5MB"}) as cluster:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(cluster.primary.dsn(password="wrong"))
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(host=str(cluster.socket_directory), port=cluster.primary.port, user="postgres")
        with psycopg.connect(cluster.primary.dsn()) as connection:
            assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)


def test_a_long_path_moves_the_sockets_to_a_short_one(place: Path) -> None:
    with Cluster(place / ("long" * 20) / ("longer" * 10), replicas=0) as cluster:
        sockets = cluster.socket_directory
        assert len(str(sockets)) < 80
        where = {"host": str(sockets), "port": cluster.primary.port, "user": "postgres"}
        psycopg.connect(password=cluster.password, **where).close()  # type: ignore[arg-type]  # no keyword is a row factory
    assert not sockets.exists()


def test_a_failed_start_shows_the_log_and_leaves_no_process(place: Path) -> None:
    with pytest.raises(EmbeddedError, match='invalid value for parameter "shared_buffers"'):
        Cluster(place, settings={"shared_buffers": "many"}).start()
    assert not _running_below(place)


@pytest.mark.long
def test_programs_that_the_servers_user_can_t_reach_are_copied(place: Path) -> None:
    hidden = place / "hidden"
    root = bundled_bin_dir().parent
    shutil.copytree(root, hidden / root.parent.name / root.name)
    shutil.copytree(root.parent.with_name(f"{root.parent.name}.libs"), hidden / f"{root.parent.name}.libs")
    hidden.chmod(0o700)
    with Cluster(
        place / "data", replicas=0, bin_dir=hidden / root.parent.name / root.name / "bin"
    ) as cluster:
        # Only root runs PostgreSQL as somebody else, who can't look into the hidden directory.
        expected = place / "data" if os.geteuid() == 0 else hidden
        assert cluster.program("postgres").startswith(str(expected))
        psycopg.connect(cluster.primary.dsn()).close()


@pytest.mark.long
def test_servers_end_when_the_program_that_started_them_is_killed(place: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from proxy.embedded import Cluster;"
        "Cluster(Path(sys.argv[1])).start(); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(place)], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        assert len(_running_below(place)) == 2
        starter.send_signal(signal.SIGKILL)
    wait_until(lambda: not _running_below(place), message="the servers end")


def _running_below(directory: Path) -> list[int]:
    """Return the postmasters whose data directory is below `directory`."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        command = process.info["cmdline"] or []
        if process.info["name"] == "postgres" and any(part.startswith(str(directory)) for part in command):
            found.append(process.pid)
    return found
