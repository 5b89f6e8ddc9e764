"""Row-level security on everything that the pools' logins can reach.

A table that holds nobody's rows says so in its comment: `pgsluice: public`, anywhere in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from proxy.preflight.facts import Facts
from proxy.preflight.finding import ERROR, WARNING, Finding, Row, name
from proxy.preflight.grants import CLOSED
from proxy.preflight.wanted import Logins

TOPIC: Final = "row security"
PUBLIC_MARK: Final = "pgsluice: public"

_VIEW: Final = "v"
_MATERIALIZED: Final = "m"
_FOREIGN: Final = "f"


def check(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield what shows rows without asking a policy."""
    for row in facts.relations:
        kind = row["kind"]
        if kind == _VIEW:
            yield from _view(row, logins)
        elif kind in (_MATERIALIZED, _FOREIGN):
            yield from _unprotectable(row, logins)
        elif row["partition"]:
            yield from _partition(row)
        else:
            yield from _table(row)
    for row in facts.open_policies:
        what = f"policy {row['policy']} shows all rows of {row['relation']} to {row['role']}"
        mend = f"DROP POLICY {row['policy']} ON {row['relation']};"
        yield Finding(WARNING, TOPIC, what, mend, f"or put '{PUBLIC_MARK}' into the table's comment")


def _table(row: Row) -> Iterator[Finding]:
    if not row["open_to"] or row["public"] or row["relation"] in CLOSED:
        return
    readers = ", ".join(row["open_to"])
    advice = f"give it policies; or, where it holds nobody's rows, put '{PUBLIC_MARK}' into its comment"
    for missing, word in _missing(row):
        what = f"{row['relation']} is open to {readers} without {word}"
        yield Finding(ERROR, TOPIC, what, f"ALTER TABLE {row['relation']} {missing};", advice)


def _partition(row: Row) -> Iterator[Finding]:
    """Yield what is wrong with a partition: through its parent the parent's policies decide, alone nothing may show."""
    if not (row["root_protected"] or (row["open_to"] and not row["public"])):
        return
    for missing, word in _missing(row):
        what = f"the partition {row['relation']} is without {word}"
        yield Finding(ERROR, TOPIC, what, f"ALTER TABLE {row['relation']} {missing};")


def _missing(row: Row) -> Iterator[tuple[str, str]]:
    if not row["enabled"]:
        yield "ENABLE ROW LEVEL SECURITY", "row-level security"
    if not row["forced"]:
        yield "FORCE ROW LEVEL SECURITY", "FORCE, which binds its owner too"


def _view(row: Row, logins: Logins) -> Iterator[Finding]:
    """Yield a view that reads with the rights of an owner whom no policy holds back."""
    readers = [login for login in row["open_to"] if login not in logins.administrators]
    if row["invoker"] or row["public"] or not (row["owner_unbound"] or row["owner_is_admin"]):
        return
    if readers:
        what = f"the view {row['relation']} shows {', '.join(readers)} what its owner {row['owner']} may see"
        mend = f"ALTER VIEW {row['relation']} SET (security_invoker = true);"
        yield Finding(ERROR, TOPIC, what, mend)


def _unprotectable(row: Row, logins: Logins) -> Iterator[Finding]:
    """Yield what can have no policies: a materialized view or foreign table is for administrators alone."""
    readers = [login for login in row["open_to"] if login not in logins.administrators]
    if readers and not row["public"]:
        kind = "materialized view" if row["kind"] == _MATERIALIZED else "foreign table"
        roles = ", ".join(
            ["PUBLIC", "authenticated_users", *sorted({*map(name, readers), *_groups(logins, readers)})]
        )
        what = f"the {kind} {row['relation']} can have no policies and is open to {', '.join(readers)}"
        yield Finding(ERROR, TOPIC, what, f"REVOKE ALL ON {row['relation']} FROM {roles};")


def _groups(logins: Logins, readers: list[str]) -> set[str]:
    return {logins.pools[login] for login in readers}
