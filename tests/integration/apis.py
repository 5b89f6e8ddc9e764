"""The HTTP API of a proxy in front of a database with the schema taskmaster, and clients of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from psycopg.types.json import Jsonb

from tests.integration.support import DATABASE, Installation, Proxy, merged

TASKS: Final = "tasks"
WRITER: Final = ("read:tasks", "write:tasks")
# What each kind is made of, and a status that it may have next.
ITEMS: Final = {
    "tasks": {"title": "a task"},
    "executions": {"agent_type": "codegen"},
    "validations": {"validation_type": "tests"},
    "workflows": {"name": "a workflow"},
}
STATUS: Final = {
    "tasks": "in_progress",
    "executions": "running",
    "validations": "running",
    "workflows": "active",
}


@dataclass(frozen=True)
class Api:
    """The API of a proxy, and the database behind it."""

    proxy: Proxy
    dsn: str = field(repr=False)

    def key(
        self, *permissions: str, user: str = "ada@example.com", rate: int | None = None, **more: object
    ) -> str:
        """Make a key, return the whole of it."""
        named = {"rate_limit_per_minute": rate, **more}
        extra = "".join(f", {name} => %({name})s" for name, value in named.items() if value is not None)
        call = f"SELECT sluice.generate_api_key('a test''s key', %(user)s, %(permissions)s{extra})"
        values = {"user": user, "permissions": Jsonb(list(permissions or WRITER)), **named}
        made = self.execute(call, values)
        return str(made[0][0]["api_key"])

    def execute(self, statement: str, values: Any = None) -> list[Any]:
        """Run a statement as the superuser, past the proxy."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description is not None else []

    def client(self, key: str = "", address: str = "127.0.0.1", **options: Any) -> httpx.Client:
        """Return a client that sends `key`, and comes from `address`, any of 127.0.0.0/8."""
        headers = {**({"x-api-key": key} if key else {}), **options.pop("headers", {})}
        return httpx.Client(
            base_url=self.proxy.url("/api/database"),
            headers=headers,
            transport=httpx.HTTPTransport(local_address=address, verify=False),
            timeout=30.0,
            **options,
        )


class TasksProxy(Proxy):
    """A proxy in front of that database; in `changes` it is called `app`."""

    def __init__(
        self, installation: Installation, directory: Path, changes: dict[str, Any] | None = None
    ) -> None:
        super().__init__(
            installation, directory, merged({"databases": {DATABASE: {"database": TASKS}}}, changes or {})
        )
        self.config.write_text(self.config.read_text().replace(f"\n  {DATABASE}:\n", f"\n  {TASKS}:\n"))


def make(client: httpx.Client, name: str = "tasks", /, **fields: Any) -> dict[str, Any]:
    """Make one of `name`, with a task of its own where it needs one."""
    if name in ("executions", "validations") and "task_id" not in fields:
        fields["task_id"] = make(client)["id"]
    answer = client.post(f"/{name}", json={**ITEMS[name], **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def code(answer: httpx.Response) -> tuple[int, str]:
    """Return the status of an error's answer, and its code."""
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "detail"}, error
    assert all(isinstance(each, str) for each in error.values()), error
    return answer.status_code, error["code"]
