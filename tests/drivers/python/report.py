"""What the programs in Python share: how they are told where to connect, and how they tell what they found."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.drivers.checks import CHECKS

TABLE: Final = os.environ["DRIVER_TABLE"]
HOST: Final = os.environ["PGHOST"]
PORT: Final = int(os.environ["PGPORT"])
USER: Final = os.environ["PGUSER"]
PASSWORD: Final = os.environ["PGPASSWORD"]
DATABASE: Final = os.environ["PGDATABASE"]
# The file of who has signed the server's certificate; "" where there is no TLS. libpq and asyncpg read it themselves.
AUTHORITY: Final = os.environ.get("PGSSLROOTCERT", "")

UNICODE: Final = "Grüße, 世界 🐘"
NUMERIC: Final = "12345678901234567890.0987654321"
BIG: Final = "0123456789abcdef" * (4 * 1024 * 1024 // 16)


def run(version: str, program: Mapping[str, Any]) -> None:
    """Print the driver's version, do the checks that `program` has, and print what came of each: JSON lines."""
    print(json.dumps({"version": version}), flush=True)
    for name in CHECKS:
        if (check := program.get(name)) is None:
            continue
        result: dict[str, Any] = {"check": name, "ok": True, "detail": ""}
        try:
            if inspect.iscoroutinefunction(check):
                asyncio.run(asyncio.wait_for(check(), 30))
            else:
                check()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            result |= {
                "ok": False,
                "detail": f"{type(error).__name__}: {error} ({where.name}:{where.lineno})",
            }
        print(json.dumps(result), flush=True)


def equal(got: object, expected: object) -> None:
    """Raise AssertionError, which shows both, unless they are equal."""
    assert got == expected, f"got {got!r:.200}, expected {expected!r:.200}"


def until(question: Callable[[], bool], seconds: float = 10.0) -> None:
    """Ask again and again until the answer is yes; raise AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        time.sleep(0.05)
