"""What is written for the proxy, pgsluice.yaml, and advised for the server, lines of pg_hba.conf."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path

from proxy.preflight.wanted import CONTROL
from proxy.setup.installing import SetupResult
from proxy.setup.logins import VARIABLES


def configuration(result: SetupResult, *, inline: bool = True) -> str:
    """Return a pgsluice.yaml for what was set up; with `inline` it holds the passwords that are known."""

    def password(login: str) -> str:
        if inline and login in result.passwords:
            return json.dumps(result.passwords[login].replace("${", "$${"))
        return f'"${{{VARIABLES[login]}}}"'

    def pool(name: str, login: str, least: int, most: int) -> str:
        limits = f"min: {least}, max: {most}"
        return f"      {name + ':':12}{{user: {login}, password: {password(login)}, {limits}}}\n"

    # A server that was reached over its Unix socket is reached by the proxy over TCP.
    host = "127.0.0.1" if not result.host or result.host.startswith("/") else result.host
    return (
        "databases:\n"
        f"  {json.dumps(result.database)}:\n"
        f"    database: {json.dumps(result.database)}\n"
        f"    control: {{user: {CONTROL}, password: {password(CONTROL)}}}\n"
        "    hosts:\n"
        f"      - {{name: main, host: {json.dumps(host)}, port: {result.port}, role: auto}}\n"
        "    pools:\n"
        + pool("primary", "app_rw", 2, 10)
        + pool("readonly", "app_ro", 1, 5)
        + pool("priority", "app_rw", 1, 3)
        + pool("background", "app_rw", 1, 2)
        + pool("admin", "app_admin", 0, 2)
    )


def write_private(path: Path, text: str) -> None:
    """Write a new file that its owner alone may read (mode 600); raises FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def hba_lines(result: SetupResult) -> list[str]:
    """Return lines of pg_hba.conf that let the logins in from here alone; the first that fits counts there."""
    logins = ",".join(VARIABLES)
    kind = "host"
    if result.client is None:
        addresses = ["127.0.0.1/32", "::1/128"]
    else:
        here = ipaddress.ip_address(result.client)
        addresses = [f"{here}/{here.max_prefixlen}"]
        if result.tls and not here.is_loopback:
            kind = "hostssl"
    plain = result.database.replace("_", "a").isalnum() and result.database not in ("all", "replication")
    database = result.database if plain else json.dumps(result.database)
    lines = [f"{kind:7} {database}  {logins}  {address}  scram-sha-256" for address in addresses]
    return [*lines, f"host    all  {logins}  all  reject", f"local   all  {logins}  reject"]
