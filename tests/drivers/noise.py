"""Clients that interfere: they change settings and prepare statements while a driver's program runs.

They use the same small pools. One has the driver's own key, so that it gets the very connections that the driver
just had without a reset between; the other is another user.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql

from tests.integration.support import Login

# The names that drivers give to the statements they prepare: each of them means something else here.
NAMES = (
    "S_1",
    "S_2",
    "_pg3_0",
    "_pg3_1",
    "__asyncpg_stmt_1__",
    "__asyncpg_stmt_2__",
    "pdo_stmt_00000001",
    "lrupsc_1_0",
    "s",
    "plus",
)

SETTINGS = (
    "SET work_mem = '9MB'",
    "SET timezone = 'Asia/Kathmandu'",
    "SET datestyle = 'German, DMY'",
    "SET intervalstyle = 'sql_standard'",
    "SET extra_float_digits = -3",
    "SET bytea_output = 'escape'",
    "SET statement_timeout = '29s'",
    "SET search_path = pg_catalog",
    "SET application_name = 'noise'",
    "RESET ALL",
)


class Noise:
    """Interfering clients on each of `logins`, from `with` to its end, in threads."""

    def __init__(self, *logins: Login) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(login,)) for login in logins]
        self.units = 0
        self.trouble: list[str] = []

    def __enter__(self) -> Noise:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _client(self, login: Login) -> None:
        while not self._stop.is_set():
            try:
                with login.connect() as connection:
                    self._disturb(connection)
            except psycopg.Error as error:
                self.trouble.append(f"{type(error).__name__}: {error}")
                self._stop.wait(0.2)

    def _disturb(self, connection: psycopg.Connection[Any]) -> None:
        for name in NAMES:
            connection.pgconn.prepare(name.encode(), b"SELECT 'of the noise'::pg_catalog.text")
        for name, setting in zip(NAMES, SETTINGS, strict=True):
            connection.execute(setting.encode())
            answer = connection.pgconn.exec_prepared(name.encode(), None)
            if answer.get_value(0, 0) != b"of the noise":
                self.trouble.append(
                    f"{name} gave {answer.get_value(0, 0)!r}: {answer.error_message.decode()}"
                )
            self.units += 2
            if self._stop.wait(0.01):
                return
        connection.execute(sql.SQL("BEGIN READ ONLY; SET LOCAL work_mem = '11MB'; SELECT 1; COMMIT"))
