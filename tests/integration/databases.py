"""Databases of a test's own: making them, asking them, comparing their catalogues; and migrations to try there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from proxy.embedded import Cluster

ALL = [f"core_{number:04d}" for number in (1, 2, 3, 4, 5, 6)]
_ROLES = """
SELECT rolname || ' ' || rolcanlogin || ' ' || coalesce(shobj_description(r.oid, 'pg_authid'), '') || ' '
       || ARRAY(SELECT pg_get_userbyid(m.roleid) FROM pg_auth_members m WHERE m.member = r.oid ORDER BY 1)::text
FROM pg_roles r WHERE r.oid >= 16384 ORDER BY 1
"""
_POLICY_ROLES = re.compile(r"(?<=^CREATE POLICY )(.*? TO )([a-z_]+(?:, [a-z_]+)*)")


def quiet(_: str) -> None:
    pass


def values(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [row[0] for row in connection.execute(query.encode())]


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def database(cluster: Cluster, name: str) -> str:
    execute(cluster.primary.dsn(), f"CREATE DATABASE {name}")
    return cluster.primary.dsn(name)


@cache
def _restricted(pg_dump: Path) -> Sequence[str]:
    """Return the option that fixes what pg_dump makes anew each time, since the versions of August 2025."""
    told = subprocess.run([pg_dump, "--help"], capture_output=True, text=True, check=True).stdout
    return ["--restrict-key=same"] if "--restrict-key" in told else []


def dump(cluster: Cluster, name: str) -> list[str]:
    """Return the schema as pg_dump writes it, and the roles with their memberships and comments."""
    options = ("--schema-only", *_restricted(cluster.bin_dir / "pg_dump"))
    text = cluster.run("pg_dump", *options, cluster.primary.dsn(name))
    # A policy's roles come in the order in which pg_authid has them, which is another one once they were dropped.
    lines = [_POLICY_ROLES.sub(_sorted, line) for line in text.splitlines()]
    return [*lines, *values(cluster.primary.dsn(name), _ROLES)]


def _sorted(found: re.Match[str]) -> str:
    return f"{found[1]}{', '.join(sorted(found[2].split(', ')))}"


def psql(cluster: Cluster, dsn: str, script: str) -> subprocess.CompletedProcess[str]:
    """Give psql a script on its standard input."""
    command = [str(cluster.bin_dir / "psql"), "-X", "-q", "-d", dsn]
    return subprocess.run(command, input=script, capture_output=True, text=True)


def write_migration(directory: Path, name: str, up: str, down: str = "SELECT 1;") -> None:
    path = directory / f"{name}.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(up)
    path.with_suffix(".rollback.sql").write_text(down)
