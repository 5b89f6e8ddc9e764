"""pgbench through the proxy: initialization by an admin's key, then its three protocols."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.integration.support import Installation, Login


@pytest.fixture(scope="module")
def initialized(admin: Login, installation: Installation) -> Iterator[str]:
    done = admin.run("pgbench", "-i", "-s", "1")
    assert done.returncode == 0, done.stderr
    installation.replicated()
    yield done.stderr
    tables = ", ".join(f"pgbench_{name}" for name in ("accounts", "branches", "history", "tellers"))
    installation.execute(f"DROP TABLE {tables}")


def test_initializes(initialized: str, reader: Login) -> None:
    assert "done in" in initialized
    with reader.connect() as connection:
        assert connection.execute("SELECT count(*) FROM pgbench_accounts").fetchone() == (100000,)


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
@pytest.mark.parametrize("script", ["tpcb-like", "simple-update", "select-only"])
def test_runs_every_script_in_every_mode(mode: str, script: str, initialized: str, writer: Login) -> None:
    done = writer.run("pgbench", "-n", "-b", script, "-M", mode, "-c", "8", "-t", "25")
    assert done.returncode == 0, done.stderr
    assert "number of transactions actually processed: 200/200" in done.stdout
    assert re.search(r"number of failed transactions: 0 ", done.stdout)


def test_connects_anew_for_each_transaction(initialized: str, reader: Login) -> None:
    done = reader.run("pgbench", "-n", "-S", "-C", "-c", "4", "-t", "10")
    assert "number of transactions actually processed: 40/40" in done.stdout, done.stderr


def test_pipelines(initialized: str, writer: Login) -> None:
    script = (
        "\\startpipeline\n"
        + "SELECT abalance FROM pgbench_accounts WHERE aid = 1;\n" * 20
        + "\\endpipeline\n"
    )
    for mode in ("extended", "prepared"):
        done = writer.run(
            "pgbench", "-n", "-M", mode, "-c", "4", "-t", "20", "-f", "/dev/stdin", script=script
        )
        assert "number of transactions actually processed: 80/80" in done.stdout, done.stderr


def test_the_books_balance_afterwards(initialized: str, writer: Login) -> None:
    done = writer.run("pgbench", "-n", "-M", "prepared", "-c", "10", "-t", "20")
    assert done.returncode == 0, done.stderr
    with writer.connect() as connection:
        row = connection.execute(
            "SELECT (SELECT sum(bbalance) FROM pgbench_branches)"
            " = (SELECT sum(tbalance) FROM pgbench_tellers)"
            " AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)"
        ).fetchone()
    assert row == (True,)
