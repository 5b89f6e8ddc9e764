"""The drivers' matrix, as JSON, as a table for a terminal, and as the table in the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from tests.drivers.checks import CHECKS
from tests.drivers.registry import Driver
from tests.drivers.running import Outcome

BEGINS = "<!-- made by: make test-drivers ARGS=--readme -->"
ENDS = "<!-- end of what is made -->"

Rows = Sequence[tuple[Driver, Outcome]]


def as_data(rows: Rows) -> dict[str, Any]:
    """Return the matrix for JSON: for each driver its version and checks, `ok`, `lacks: why` or `failed: why`."""
    return {
        "checks": CHECKS,
        "drivers": {
            driver.name: {
                "version": outcome.version,
                "checks": {check: _told(driver, outcome, check) for check in CHECKS},
            }
            for driver, outcome in rows
        },
    }


def as_text(rows: Rows) -> str:
    """Return the matrix in columns: a check in each line."""
    letters = ascii_uppercase[: len(rows)]
    names = [
        f"{letter}  {driver.name} {outcome.version}"
        for letter, (driver, outcome) in zip(letters, rows, strict=True)
    ]
    width = max(map(len, CHECKS))
    lines = [*names, "", f"{'':{width}}  {' '.join(letters)}"]
    for check in CHECKS:
        marks = [_mark(driver, outcome, check) for driver, outcome in rows]
        lines.append(f"{check:{width}}  {' '.join(marks)}")
    return "\n".join([*lines, "", "+ passed, - the driver has no means for it, F failed"])


def as_markdown(rows: Rows) -> str:
    """Return the matrix as the README shows it: a driver in each line, and what it lacks or fails by name."""
    lines = ["| driver | version | checks passed | |", "|---|---|---|---|"]
    for driver, outcome in rows:
        failed = [check for check in CHECKS if _mark(driver, outcome, check) == "F"]
        lacking = [check for check in CHECKS if check in driver.lacks]
        passed = len(CHECKS) - len(failed) - len(lacking)
        told = [f"**fails: {', '.join(failed)}**"] if failed else []
        told += [f"has no {', '.join(lacking)}"] if lacking else []
        lines.append(
            f"| {driver.name} | {outcome.version} | {passed} of {len(CHECKS) - len(lacking)} | {'; '.join(told)} |"
        )
    return "\n".join(lines)


def into_readme(rows: Rows, readme: Path) -> None:
    """Put the table between its two marks in the README.

    Raises ValueError if a mark is missing.
    """
    before, begins, rest = readme.read_text().partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if not begins or not ends:
        raise ValueError(f"{readme} has no place for the table")
    readme.write_text(f"{before}{BEGINS}\n{as_markdown(rows)}\n{ENDS}{after}")


def _told(driver: Driver, outcome: Outcome, check: str) -> str:
    if check in driver.lacks:
        return f"lacks: {driver.lacks[check]}"
    failure = outcome.failure(check)
    return "ok" if failure is None else f"failed: {failure}"


def _mark(driver: Driver, outcome: Outcome, check: str) -> str:
    if check in driver.lacks:
        return "-"
    return "+" if outcome.failure(check) is None else "F"
