"""What `pgsluice keys` does: finds the table or file that holds the keys, acts, and prints.

A new key is printed alone on standard output, so that a script can take it; what else is to be said goes to
standard error. Each function returns the exit code.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import asyncpg
from psycopg.conninfo import conninfo_to_dict

from proxy import keychecks, keys
from proxy.auth.key import Key
from proxy.auth.keyfile import append_key, read_keys
from proxy.config import Config, Database
from proxy.config.units import duration
from proxy.errors import SluiceError
from proxy.keyprint import print_json, print_list, print_new, print_one
from proxy.tunnel import way_to
from proxy.upstream.control import connect as connect_over

Result = TypeVar("Result")
Connection: TypeAlias = "asyncpg.Connection[Any]"
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
    """Make a key and print it; `expires` is a duration from now, or a time.

    Raises SluiceError with all that is wrong with the key.
    """
    ends = _time(expires) if expires else None
    permissions = list(dict.fromkeys(permissions))
    wrong = keychecks.problems(name, user, permissions, pool, addresses, rate_limit, ends, datetime.now(UTC))
    if wrong:
        raise SluiceError("; ".join(wrong))
    limits: dict[str, Any] = {
        "default_pool": pool,
        "allowed_addresses": list(addresses),
        "rate_limit_per_minute": rate_limit,
        "expires_at": ends,
    }
    if place.file is None:
        made = _on_table(place, lambda each: keys.create(each, name, user, permissions, **limits))
        print_new(asdict(made), as_json)
        return 0
    try:
        entry = append_key(place.file, name=name, user_id=user, permissions=permissions, **limits)
    except ValueError as error:
        raise SluiceError(str(error)) from None
    print_new(entry, as_json)
    return 0


def show_all(place: Place, user: str | None, as_json: bool) -> int:
    """Print the keys, or those of `user`."""
    found = _found(place, user)
    if as_json:
        print_json(found)
    else:
        print_list(found)
    return 0


def show(place: Place, key_id: str, as_json: bool) -> int:
    """Print all that is known of a key but its secret; the code is 1 if there is none of that id."""
    for key in _found(place, None, key_id):
        if as_json:
            print_json(key)
        else:
            print_one(key)
        return 0
    print(f"pgsluice: there is no key {key_id}", file=sys.stderr)
    return 1


def _found(place: Place, user: str | None, key_id: str | None = None) -> list[dict[str, Any]]:
    """Return the keys, of `user` or with that id where one is given, with their state."""
    found: list[dict[str, Any]]
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
            if user in (None, key.user_id) and key_id in (None, key.id)
        ]
    else:
        found = [asdict(key) for key in _on_table(place, lambda each: keys.list_keys(each, user, key_id))]
    now = datetime.now(UTC)
    for key in found:
        key["state"] = keychecks.state(key["expires_at"], key["revoked_at"], key.get("replaced_by"), now)
    return found


def revoke(place: Place, key_id: str, as_json: bool) -> int:
    """End a key and its sessions at once; the code is 1 if there is no such valid key."""
    _refuse_file(place)
    done = _on_table(place, lambda connection: keys.revoke(connection, key_id))
    if as_json:
        print_json({"id": key_id, "revoked": done})
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
    print_new(asdict(made), as_json)
    return 0


def rotate_signing(place: Place, at_once: bool, as_json: bool) -> int:
    """Have the proxies sign identities with a new key, without a gap; or `at_once`, with one."""
    if place.file is not None:
        raise SluiceError("signing keys are in a database with the bundled SQL; these keys are in a file")
    kid = _on_table(place, lambda connection: keys.rotate_signing(connection, at_once))
    if as_json:
        print_json({"kid": kid, "at_once": at_once})
    elif at_once:
        print(f"signing key {kid} signs; all others are gone, and every claim by them")
    else:
        print(f"signing key {kid} will sign when every host has it and older transactions have ended;")
        print("the others go when no claim by them can be good any more")
    return 0


def _on_table(place: Place, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    return asyncio.run(_with_connection(place, work))


async def _with_connection(place: Place, work: Callable[[Connection], Awaitable[Result]]) -> Result:
    connection = await connect(place)
    try:
        return await work(connection)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
        raise SluiceError("this database holds no sluice.api_keys; `pgsluice setup` makes it") from None
    finally:
        await connection.close()


async def connect(place: Place, *, or_replica: bool = False) -> Connection:
    """Return a connection to the primary, or else to a replica where one will do.

    Raises SluiceError with what each host said.
    """
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
    replica: Connection | None = None
    for host in database.hosts:
        where = f"{host.host}:{host.port}"
        try:
            connection = await connect_over(
                way_to(host),
                user=login.user,
                password=login.password.get_secret_value(),
                database=database.database or None,
                timeout=_TIMEOUT,
            )
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            said.append(f"{where}: {error or type(error).__name__}")
            continue
        if not await connection.fetchval("SELECT pg_is_in_recovery()"):
            if replica is not None:
                await replica.close()
            return connection
        said.append(f"{where}: a replica")
        if or_replica and replica is None:
            replica = connection
        else:
            await connection.close()
    if replica is not None:
        return replica
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
