"""What `pgsluice keys` does: finds the table or file that holds the keys, acts, and prints.

A new key is printed alone on standard output, so that a script can take it; what else is to be said goes to
standard error. Each function returns the exit code.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import asyncpg
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy import keys
from proxy.auth.key import Key
from proxy.auth.keyfile import append_key, read_keys
from proxy.config import Config, Database
from proxy.config.units import duration
from proxy.errors import SluiceError
from proxy.transport.tls import ServerTls
from proxy.upstream.control import for_asyncpg

Result = TypeVar("Result")
Connection: TypeAlias = "asyncpg.Connection[Any]"
_COLUMNS = (
    "id",
    "name",
    "user_id",
    "permissions",
    "default_pool",
    "expires_at",
    "revoked_at",
    "last_used_at",
)
# libpq's names for what asyncpg calls otherwise, and those that both call the same.
_ARGUMENTS = {"host": "host", "port": "port", "user": "user", "password": "password", "dbname": "database"}
_TIMEOUT = 10.0


@dataclass(frozen=True)
class Place:
    """Where keys are: the database behind `dsn`, or what the configuration says of its database `name`."""

    dsn: str = ""
    config: Config | None = None
    name: str | None = None

    @property
    def file(self) -> Path | None:
        """Return the file of keys, None where they are in a table."""
        config = self.config
        return config.auth.keys_file if config is not None and config.auth.keys == "file" else None

    def database(self) -> Database:
        """Return the configured database; raises SluiceError where there is none of that name."""
        known = self.config.databases if self.config is not None else {}
        name = self.name if self.name is not None else next(iter(known), "")
        if name not in known:
            raise SluiceError(f"the configuration has no database {name}; it has {', '.join(known)}")
        return known[name]


def create(
    place: Place,
    name: str,
    user: str,
    permissions: Sequence[str],
    *,
    pool: str | None,
    addresses: Sequence[str],
    rate_limit: int | None,
    expires: str | None,
    as_json: bool,
) -> int:
    """Make a key and print it; `expires` is a duration from now, or a time."""
    ends = _time(expires) if expires else None
    limits: dict[str, Any] = {
        "default_pool": pool,
        "allowed_addresses": list(addresses),
        "rate_limit_per_minute": rate_limit,
        "expires_at": ends,
    }
    if place.file is None:
        made = _on_table(place, lambda each: keys.create(each, name, user, permissions, **limits))
        return _print_new(asdict(made), as_json)
    try:
        entry = append_key(place.file, name=name, user_id=user, permissions=list(permissions), **limits)
    except ValueError as error:
        raise SluiceError(str(error)) from None
    return _print_new(entry, as_json)


def show(place: Place, user: str | None, as_json: bool) -> int:
    """Print the keys, or those of `user`."""
    if place.file is not None:
        found = [
            {
                "id": key.id,
                "name": key.name,
                "user_id": key.user_id,
                "permissions": key.permissions_sorted,
                "default_pool": key.default_pool or None,
                "allowed_addresses": list(map(str, key.allowed_addresses)),
                "rate_limit_per_minute": key.rate_limit_per_minute or None,
                "expires_at": _at(key.expires_at),
                "revoked_at": _at(key.revoked_at),
            }
            for key in _file_keys(place.file)
            if user is None or key.user_id == user
        ]
    else:
        found = [asdict(key) for key in _on_table(place, lambda each: keys.list_keys(each, user))]
    if as_json:
        print(_json(found))
    else:
        _print_table(found)
    return 0


def revoke(place: Place, key_id: str, as_json: bool) -> int:
    """End a key and its sessions at once; the code is 1 if there is no such valid key."""
    _refuse_file(place)
    done = _on_table(place, lambda connection: keys.revoke(connection, key_id))
    if as_json:
        print(_json({"id": key_id, "revoked": done}))
    elif done:
        print(f"{key_id} is revoked")
    else:
        print(f"pgsluice: there is no key {key_id}, or it was revoked before", file=sys.stderr)
    return 0 if done else 1


def rotate(place: Place, key_id: str, grace: str, as_json: bool) -> int:
    """Make a key like another, which stays valid for `grace`, and print it."""
    _refuse_file(place)
    try:
        period = timedelta(seconds=duration(grace))
    except ValueError as error:
        raise SluiceError(f"--grace: {error}") from None
    made = _on_table(place, lambda connection: keys.rotate(connection, key_id, period))
    return _print_new(asdict(made), as_json)


def _on_table(place: Place, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    return asyncio.run(_with_connection(place, work))


async def _with_connection(place: Place, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    connection = await _connect(place)
    try:
        return await work(connection)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
        raise SluiceError("this database holds no sluice.api_keys; `pgsluice setup` makes it") from None
    finally:
        await connection.close()


async def _connect(place: Place) -> Connection:
    """Return a connection to the primary; raises SluiceError with what each host said."""
    if place.config is None:
        given = conninfo_to_dict(place.dsn)
        known: dict[str, Any] = {_ARGUMENTS[name]: given[name] for name in given if name in _ARGUMENTS}
        direct: Connection = await asyncpg.connect(timeout=_TIMEOUT, **known)
        return direct
    database = place.database()
    login = database.control
    if login is None:
        raise SluiceError("the configuration has no control login for this database; give --dsn")
    said: list[str] = []
    for host in database.hosts:
        where = f"{host.host}:{host.port}"
        try:
            connection = await asyncpg.connect(
                host=host.host,
                port=host.port,
                user=login.user,
                password=login.password.get_secret_value(),
                database=database.database or None,
                timeout=_TIMEOUT,
                ssl=for_asyncpg(ServerTls(host.tls)),
            )
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            said.append(f"{where}: {error or type(error).__name__}")
            continue
        if not await connection.fetchval("SELECT pg_is_in_recovery()"):
            return connection
        said.append(f"{where}: a replica")
        await connection.close()
    raise SluiceError(f"no primary answers; {'; '.join(said)}")


def _refuse_file(place: Place) -> None:
    if place.file is not None:
        raise SluiceError(f"the keys are in {place.file}: set revoked_at or expires_at there")


def _file_keys(path: Path) -> list[Key]:
    try:
        return list(read_keys(path.read_text(encoding="utf-8")).values())
    except ValueError as error:
        raise SluiceError(f"cannot use the keys in {path}: {error}") from None


def _time(text: str) -> datetime:
    """Return when a key expires: after a duration (30d), or at a time (2027-01-01, in UTC without a zone)."""
    try:
        return datetime.now(UTC) + timedelta(seconds=duration(text))
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise SluiceError(
            f"--expires: a duration (30d) or a time (2027-01-01) is needed, not {text}"
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _at(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


def _print_new(made: Mapping[str, object], as_json: bool) -> int:
    if as_json:
        print(_json(made))
        return 0
    print(made["api_key"], flush=True)
    permissions = made["permissions"]
    assert isinstance(permissions, list | tuple)
    rights = ", ".join(map(str, permissions)) or "no permissions"
    print(f"shown this once; key {made['id']} of {made['user_id']}: {rights}", file=sys.stderr)
    if made.get("rotated_from"):
        print(f"{made['rotated_from']} stays valid until {made['old_key_expires_at']}", file=sys.stderr)
    return 0


def _print_table(found: Sequence[Mapping[str, object]]) -> None:
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for key in found:
        table.add_row(*(Text(_cell(key.get(column))) for column in _COLUMNS))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _json(value: object) -> str:
    return json.dumps(
        value, default=lambda each: each.isoformat() if isinstance(each, datetime) else str(each)
    )
