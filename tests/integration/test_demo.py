"""The demo's own tour is a test of the whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import psutil
import psycopg
import pytest

from proxy.embedded import scratch_directory
from tests.integration.support import own_port, wait_until

PLAIN = ("-m", "proxy")
# A shell ignores SIGINT for what it runs in the background, as these tests may be, and children inherit that.
INTERRUPTIBLE = (
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import proxy.cli; proxy.cli.main()",
)


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a directory for the demo; afterwards nothing may run that was started on it."""
    directory = scratch_directory("pgsluice-demo-test-")
    yield directory
    try:
        wait_until(lambda: not _running_on(directory), message="all of it ends")
    finally:
        shutil.rmtree(directory)


@pytest.mark.long
def test_the_tour_passes(place: Path) -> None:
    done = subprocess.run([*command(place), "--once", "--json"], capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stderr
    assert done.stderr.count("✓") > 20
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert len(told["checks"]) > 20 and all(each["ok"] for each in told["checks"])


@pytest.mark.long
def test_the_printed_line_works_until_the_demo_is_interrupted(place: Path) -> None:
    with subprocess.Popen(command(place, INTERRUPTIBLE), stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            printed = list(takewhile(lambda line: "Ctrl-C" not in line, demo.stdout))
            pasted = next(line for line in printed if "psql" in line and "dbname=" in line)
            psql = subprocess.run(
                ["/bin/sh", "-c", f"{pasted.strip()} -At -c 'SELECT pg_is_in_recovery()'"],
                capture_output=True,
                text=True,
                env={**os.environ, "LC_ALL": "C"},
                timeout=30,
            )
            assert psql.stdout == "t\n", psql.stderr
            assert len(_running_on(place)) > 3
            demo.send_signal(signal.SIGINT)
            assert demo.wait(30) == 0
        finally:
            _end(demo)


@pytest.mark.long
def test_a_script_is_told_how_to_connect(place: Path) -> None:
    with subprocess.Popen([*command(place), "--json"], stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            told = json.loads("".join(takewhile(lambda line: line != "}\n", demo.stdout)) + "}")
            key = told["keys"]["bob"]
            with psycopg.connect(
                host=told["host"],
                port=told["port"],
                dbname=told["dbname"],
                user=key["id"],
                password=key["api_key"],
            ) as connection:
                assert connection.execute("SELECT sluice.current_user_id()").fetchone() == (key["user_id"],)
            demo.terminate()
            assert demo.wait(30) == 0
        finally:
            _end(demo)


def test_a_directory_with_something_in_it_is_left_alone(place: Path) -> None:
    (place / "precious").touch()
    done = subprocess.run([*command(place), "--once"], capture_output=True, text=True, timeout=55)
    assert done.returncode == 1
    assert "is not empty" in done.stdout
    assert [path.name for path in place.iterdir()] == ["precious"]


def command(place: Path, program: Sequence[str] = PLAIN) -> list[str]:
    """Return how the demo is started in `place`, on ports that no other demo takes."""
    ports = (f"--port={own_port()}", f"--http-port={own_port()}")
    return [sys.executable, *program, "demo", f"--directory={place}", *ports]


def _end(demo: subprocess.Popen[str]) -> None:
    """End what a failed test leaves; the demo takes its servers with it."""
    demo.terminate()
    try:
        demo.wait(20)
    except subprocess.TimeoutExpired:
        demo.kill()
        raise


def _running_on(directory: Path) -> list[int]:
    """Return the processes that name something in `directory` in their command."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(str(directory) in argument for argument in process.info["cmdline"] or [])
    ]
