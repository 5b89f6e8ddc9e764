"""What `pgsluice setup` does: everything, once more if need be, and what it prints."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from proxy.setup.configuring import configuration, hba_lines, write_private
from proxy.setup.hardening import harden
from proxy.setup.installing import setup
from proxy.setup.logins import VARIABLES


def run(
    dsn: str,
    database: str,
    *,
    schemas: Sequence[str] = ("core",),
    config: Path | None = Path("pgsluice.yaml"),
    inline: bool = True,
    environ: Mapping[str, str] | None = None,
    hardened: bool = False,
    as_json: bool = False,
) -> int:
    """Do what `pgsluice setup` asks for, print it, and return the exit code.

    Passwords come from the variables of `environ` where they are set, and go into the file `config`, which is
    made; a file that is there is left alone, and then no login may be missing. With `hardened` PUBLIC loses what
    `hardening` lists. Raises SetupError.
    """
    variables = os.environ if environ is None else environ
    given = {login: variables[name] for login, name in VARIABLES.items() if variables.get(name)}
    fresh = config is not None and not config.exists()
    # With variables alone nothing would be left of a password that was made here.
    new_logins = (fresh and inline) or given.keys() == VARIABLES.keys()
    result = setup(
        dsn, database, schemas, given, new_logins=new_logins, say=(lambda _: None) if as_json else print
    )
    if config is not None and fresh:
        write_private(config, configuration(result, inline=inline))
    hardening = harden(dsn, database) if hardened else []
    if as_json:
        facts = {
            "database": result.database,
            "admin_key": result.admin_key,
            "migrations": list(result.migrations),
            "warnings": list(result.warnings),
            "config": str(config) if fresh else None,
            "pg_hba": hba_lines(result),
            "hardening": [asdict(each) for each in hardening],
        }
        print(json.dumps(facts))
        return 0
    for each in hardening:
        print(f"{each.what}: {each.state}")
    if fresh:
        print(f"configuration written to {config}")
        unknown = [name for login, name in VARIABLES.items() if not inline or login not in result.passwords]
        if unknown:
            print(f"it reads these environment variables: {', '.join(unknown)}")
    if result.admin_key is not None:
        print(f"first admin key, shown this once: {result.admin_key}")
    print("advised for pg_hba.conf, above all other lines (ours is the address that the server saw):")
    print(*(f"  {line}" for line in hba_lines(result)), sep="\n")
    print(f"database {database} is ready")
    if config is not None:
        # The file that both read by themselves, unless variables stand in its place.
        known = config == Path("pgsluice.yaml") and not variables.get("DB_NAME")
        option = "" if known else f" -c {shlex.quote(str(config))}"
        print(f"next: pgsluice check{option}\n      pgsluice serve{option}")
    return 0
