"""The bundled SQL: its version, its signing keys, the partitions to come, and the extensions beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from proxy.preflight.facts import Facts
from proxy.preflight.finding import ERROR, WARNING, Finding, name

TOPIC: Final = "schema"


def check(facts: Facts, migrations: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is missing; `migrations` has the SHA-256 of each bundled file by its revision."""
    yield from _versions(facts, migrations)
    if facts.signing_keys is not None and not facts.signing_keys:
        mend = "SELECT sluice.create_signing_key();"
        yield Finding(ERROR, TOPIC, "there is no signing key: nobody's identity can be told", mend)
    # Rows of tomorrow are near; those of the day after are time enough for a warning.
    for row in facts.partitions:
        severity = ERROR if row["ahead"] < 2 else WARNING
        what = f"{row['relation']} has no partition for {row['day']}"
        yield Finding(severity, TOPIC, what, "SELECT sluice.ensure_partitions();")
    for row in facts.extensions:
        if row["newest"] not in (None, row["version"]):
            mend = f"ALTER EXTENSION {name(row['extension'])} UPDATE;"
            what = f"extension {row['extension']} is {row['version']}, {row['newest']} is installed"
            yield Finding(WARNING, TOPIC, what, mend)


def _versions(facts: Facts, migrations: Mapping[str, str]) -> Iterator[Finding]:
    if facts.checksums is None:
        return
    applied = {row["revision"]: row["sha256"] for row in facts.checksums}
    # Core is needed; another branch is looked after once something of it is there.
    branches = {"core", *(_branch(revision) for revision in applied)}
    for revision, sha256 in migrations.items():
        if revision not in applied:
            if _branch(revision) in branches:
                advice = f"pgsluice migrate up --schema {_branch(revision)}"
                yield Finding(ERROR, TOPIC, f"migration {revision} is pending", advice=advice)
        elif applied[revision] != sha256:
            advice = "install the version of pgsluice that it was applied by, or add a migration for the difference"
            what = f"migration {revision} was changed since it was applied"
            yield Finding(ERROR, TOPIC, what, advice=advice)
    # A branch that isn't bundled is an application's own.
    bundled = {_branch(revision) for revision in migrations}
    for revision in sorted(each for each in applied.keys() - migrations.keys() if _branch(each) in bundled):
        advice = "install the version of pgsluice that brought it"
        what = f"migration {revision} was applied, and this version doesn't know it"
        yield Finding(ERROR, TOPIC, what, advice=advice)


def _branch(revision: str) -> str:
    return revision.rpartition("_")[0]
