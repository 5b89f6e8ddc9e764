"""A user as the tests of taskmaster have one: a pool's connection that carries a signed claim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

Connection = psycopg.Connection[Any]

KEY_ID = "ctm_0123456789ab"
READER = ("read:tasks",)
WRITER = ("read:tasks", "write:tasks")


@dataclass(frozen=True)
class User:
    """A user's name, and the connection of a pool that carries their claim."""

    name: str
    connection: Connection = field(repr=False)

    def execute(self, query: str, *parameters: object) -> list[Any]:
        """Run a statement; return its rows, of one column its values."""
        cursor = self.connection.execute(query.encode(), parameters or None)
        if cursor.description is None:
            return []
        return [row[0] if len(row) == 1 else row for row in cursor.fetchall()]

    def value(self, query: str, *parameters: object) -> Any:
        """Run a statement that gives one value, and return it."""
        (row,) = self.execute(query, *parameters)
        return row

    def count(self, query: str, *parameters: object) -> int:
        """Run a statement; return how many rows it changed or gave."""
        return self.connection.execute(query.encode(), parameters or None).rowcount

    def insert(self, table: str, **values: object) -> UUID:
        """Insert a row into a table of taskmaster; return its id."""
        names = sql.SQL(", ").join(map(sql.Identifier, values))
        places = sql.SQL(", ").join(sql.Placeholder() * len(values))
        made = uuid4()
        statement = sql.SQL("INSERT INTO taskmaster.{} (id, {}) VALUES (%s, {})")
        self.connection.execute(
            statement.format(sql.Identifier(table), names, places), (made, *values.values())
        )
        return made

    def task(self, title: str = "a task", **values: object) -> UUID:
        """Make a task, return its id."""
        return self.insert("tasks", title=title, **values)


MakeUser = Callable[..., User]
