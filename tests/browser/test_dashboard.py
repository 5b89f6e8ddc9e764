"""The dashboard in Debian's Chromium, under load: drive.js looks at it, and says of each check how it went."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from proxy.embedded import Cluster, bundled_bin_dir
from proxy.setup import setup
from tests.integration.support import DATABASE, Installation, Login, Proxy

HERE = Path(__file__).parent
SLOW = """
\\sleep 400 ms
SELECT bid AS "<b>bold</b>", 'confidential' AS word, sum(abalance) FROM pgbench_accounts GROUP BY bid;
"""
# Escaped as a Python literal would be: the mark would turn around what follows it.
HOSTILE = "<img src=x onerror=window.pwned=1>\u202e@example.com"
HOSTILE_SHOWN = "<img src=x onerror=window.pwned=1>\\u202e@example.com"

CHECKS = {
    "a wrong key is refused",
    "a key without the permission is refused",
    "the right key shows the board",
    "the key is in sessionStorage alone",
    "throughput and latency are those of the load",
    "pools and hosts are shown",
    "statements are counted on",
    "no literal is shown",
    "hostile names are text",
    "a denial is shown",
    "the cursor tells an earlier value",
    *(
        f"nothing is cut off: {scheme}, {size}"
        for scheme in ("light", "dark")
        for size in ("desktop", "phone")
    ),
    "texts stand out: light",
    "texts stand out: dark",
    "dark is another paper, and the button chooses",
    "a hidden tab asks nothing",
    "an outage is told, and its end",
    "another tab has to sign in, a reload doesn't",
    "signing out forgets the key",
    "no error on the console",
    "no request elsewhere",
    "markup can't be made of text",
}


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> Installation:
    installed = Installation(cluster, setup(cluster.primary.dsn(DATABASE), DATABASE).passwords)
    installed.replicated()
    return installed


@pytest.fixture(scope="module")
def proxy(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = Proxy(installation, tmp_path_factory.mktemp("proxy"))
    running.start()
    yield running
    running.stop()


@contextmanager
def pgbench(login: Login, *arguments: str, script: str = "") -> Iterator[None]:
    """Let pgbench run for the time of a `with` block; it must not have ended by itself."""
    if script:
        arguments = (*arguments, "-f", "/dev/stdin")
    program = subprocess.Popen(
        [str(bundled_bin_dir() / "pgbench"), "-n", "-T", "900", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=login._environment(),
    )
    assert program.stdin is not None and program.stderr is not None
    program.stdin.write(script)
    program.stdin.close()
    try:
        yield
        assert program.poll() is None, program.stderr.read()
    finally:
        program.terminate()
        program.wait(10)
        program.stderr.close()


@pytest.mark.timeout(900)
def test_the_dashboard_in_a_browser_under_load(
    proxy: Proxy, installation: Installation, request: pytest.FixtureRequest
) -> None:
    admin = installation.generate_key("operator@example.com", ["admin"])
    writer = proxy.login(*installation.generate_key("shop@example.com", ["read:tasks", "write:tasks"]))
    reader = proxy.login(*installation.generate_key("reports@example.com", ["read:tasks"]))
    hostile = proxy.login(*installation.generate_key(HOSTILE, ["read:tasks"]))
    made = proxy.login(*admin).run("pgbench", "-i", "-q", "-s", "1")
    assert made.returncode == 0, made.stderr
    installation.replicated()
    with reader.connect() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM pgbench_accounts WHERE filler = 'confidential'")
    with (
        pgbench(writer, "-M", "prepared", "-c", "4", "--rate", "40"),
        pgbench(reader, "-S", "-M", "extended", "-c", "4", "--rate", "150"),
        pgbench(hostile, "-c", "1", script=SLOW),
    ):
        found = drive(
            DASHBOARD_URL=proxy.url("/"),
            GOOD_KEY=admin[1],
            POOR_KEY=reader.password,
            WRONG_KEY=admin[1][:-1] + ("x" if admin[1][-1] != "x" else "y"),
            HOSTILE=HOSTILE_SHOWN,
            LOAD_SECONDS=request.config.getoption("--load"),
            SCREENSHOTS=request.config.getoption("--screenshots") or "",
        )
    failed = {check: detail for check, (ok, detail) in found.items() if not ok}
    assert not failed
    assert found.keys() == CHECKS


def drive(**environment: str) -> dict[str, tuple[bool, str]]:
    """Run drive.js; returns how each check went, and its detail."""
    done = subprocess.run(
        ["node", str(HERE / "drive.js")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300 + float(environment["LOAD_SECONDS"]),
    )
    print(done.stdout)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    return {line["check"]: (line["ok"], line["detail"]) for line in lines}
