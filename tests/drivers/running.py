"""Run a driver's program and read what it found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.embedded import bundled_bin_dir
from tests.drivers.checks import CHECKS
from tests.drivers.registry import ROOT, Driver, missing
from tests.integration.support import Login

# What the slowest program needs (a Java or Go compiler first, on a busy machine of two cores), many times over.
TIMEOUT_SECONDS = 180


@dataclass
class Outcome:
    """What one driver's program found: the driver's version, and for each check None or what went wrong."""

    driver: str
    version: str = ""
    failures: dict[str, str | None] = field(default_factory=dict)
    trouble: str = ""  # what kept the program from running to its end

    def failure(self, check: str) -> str | None:
        """Return what went wrong in this check, or with the program before it came to it; None if it passed."""
        if check in self.failures:
            return self.failures[check]
        return self.trouble or "the program doesn't do this check, and no reason is given"


def run(driver: Driver, login: Login, table: str, authority: str = "") -> Outcome:
    """Run the driver's program on this login; `table` has (id integer PRIMARY KEY, note text, number integer).

    With the file of an `authority` it connects with TLS, and verifies name and certificate.
    """
    outcome = Outcome(driver.name)
    if said := missing(driver):
        outcome.trouble = said
        return outcome
    try:
        done = subprocess.run(
            driver.command,
            cwd=ROOT,
            env={**_environment(login, table), **driver.environment, **_tls(authority)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        _read(output, outcome)
        outcome.trouble = f"the program didn't end within {TIMEOUT_SECONDS} s"
        return outcome
    _read(done.stdout, outcome)
    if done.returncode != 0:
        outcome.trouble = f"the program ended with {done.returncode}: {done.stderr.strip()[-1000:]}"
    return outcome


def _read(output: str, outcome: Outcome) -> None:
    for line in output.splitlines():
        said: Mapping[str, Any] = json.loads(line)
        if "version" in said:
            outcome.version = said["version"]
        else:
            assert said["check"] in CHECKS, f"{outcome.driver}: no such check: {said['check']}"
            outcome.failures[said["check"]] = None if said["ok"] else said["detail"]


def _tls(authority: str) -> dict[str, str]:
    if not authority:
        return {}
    return {
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": authority,
        "NODE_EXTRA_CA_CERTS": authority,
        # The wheel's psql has no TLS.
        "PSQL": shutil.which("psql") or "psql",
    }


def _environment(login: Login, table: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        "PGHOST": login.host,
        "PGPORT": str(login.port),
        "PGUSER": login.user,
        "PGPASSWORD": login.password,
        "PGDATABASE": login.database,
        "DRIVER_TABLE": table,
        "DRIVER_CHECKS": " ".join(CHECKS),
        "PSQL": str(bundled_bin_dir() / "psql"),
    }
