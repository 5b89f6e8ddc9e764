"""The admin console: its login, its rows, and work that goes on beside a command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from psycopg.rows import dict_row

from tests.integration.support import Login


def console(login: Login, name: str = "pgsluice") -> Login:
    """Return the login at the console, under either of its names."""
    return replace(login, database=name)


def show(login: Login, subject: str) -> list[dict[str, Any]]:
    """Return the rows of SHOW `subject`."""
    with console(login).connect(row_factory=dict_row) as connection:
        return connection.execute(f"SHOW {subject}").fetchall()


def of_app(login: Login, subject: str) -> dict[str, Any]:
    """Return the row of database `app` in SHOW `subject`."""
    rows = show(login, subject)
    return next(row for row in rows if "app" in (row.get("database"), row.get("name")))


def pools_of(login: Login, column: str) -> int:
    """Return the sum of a column of SHOW POOLS."""
    return sum(int(row[column]) for row in show(login, "POOLS"))


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run `work` beside; its exception fails the test at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    yield thread
    thread.join(30.0)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
