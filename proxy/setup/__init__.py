"""Bring a PostgreSQL to a working installation: database, logins, the bundled SQL, first keys, configuration.

Every step looks first at what is there, so it may run again: over an installation it changes nothing but
what had been taken away. Passwords and keys are returned, or written to a file that only its owner reads;
they are never logged, and PostgreSQL gets passwords as SCRAM verifiers.

    installing      the steps, in order
    logins          the roles that log in: passwords, groups, settings
    rights          grants and revocations that every installation has
    hardening       what `--harden` takes from PUBLIC besides
    configuring     pgsluice.yaml, and lines for pg_hba.conf
    command         what `pgsluice setup` prints
"""

from __future__ import annotations

from proxy.setup.command import run
from proxy.setup.configuring import configuration, write_private
from proxy.setup.hardening import Hardening, harden
from proxy.setup.installing import SetupResult, setup
from proxy.setup.logins import GROUPS, VARIABLES, SetupError

__all__ = [
    "GROUPS",
    "VARIABLES",
    "Hardening",
    "SetupError",
    "SetupResult",
    "configuration",
    "harden",
    "run",
    "setup",
    "write_private",
]
