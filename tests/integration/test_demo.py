"""The demo's own tour is a test of the whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.integration.support import wait_until

COMMAND = [sys.executable, "-m", "proxy", "demo"]


def test_the_tour_passes_and_leaves_no_process() -> None:
    before = _servers()
    done = subprocess.run([*COMMAND, "--once"], capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗" not in done.stdout
    assert done.stdout.count("✓") > 20
    wait_until(lambda: not _servers() - before)


def test_the_printed_line_works_until_the_demo_is_interrupted(tmp_path: Path) -> None:
    before = _servers()
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stdout is not None
        printed = []
        for line in demo.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        pasted = next(line for line in printed if "psql" in line and "dbname=" in line)
        psql = subprocess.run(
            ["/bin/sh", "-c", f"{pasted.strip()} -At -c 'SELECT pg_is_in_recovery()'"],
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            timeout=30,
        )
        assert psql.stdout == "t\n", psql.stderr
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 0
    wait_until(lambda: not _servers() - before)


def _servers() -> set[int]:
    """Return the process ids of postmasters and proxies."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        command = process.info["cmdline"] or []
        if (process.info["name"] == "postgres" and "-D" in command) or command[1:4] == [
            "-m",
            "proxy",
            "serve",
        ]:
            found.add(process.pid)
    return found
