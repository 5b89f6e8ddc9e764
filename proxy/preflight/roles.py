"""Attributes, memberships and possessions of the roles: a login may be no more than its group makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from proxy.preflight.facts import Facts
from proxy.preflight.finding import ERROR, WARNING, Finding, Row, name
from proxy.preflight.wanted import (
    ADMIN,
    CONTROL,
    DEFINER,
    EVERYONE,
    GROUPS,
    OWNER,
    ROLES,
    STATISTICS,
    TRUSTED,
    Logins,
)

TOPIC: Final = "roles"

# Column of pg_roles, how SQL calls it, and whether it lets its holder pass by row-level security: a replication
# slot shows every row that is written, and CREATEROLE grants any other role (before PostgreSQL 16).
_ATTRIBUTES: Final = (
    ("rolsuper", "SUPERUSER", True),
    ("rolbypassrls", "BYPASSRLS", True),
    ("rolcreaterole", "CREATEROLE", True),
    ("rolreplication", "REPLICATION", True),
    ("rolcreatedb", "CREATEDB", False),
)
_OWN_LOGIN: Final = (
    "give the pools a login of their own; where variables alone configure it, PGSLUICE_CONTROL_PASSWORD is that of"
    " sluice_control"
)
_GRANTED_BY: Final = 160000
# Predefined roles that read or write any table or file, and so the signing keys.
_MIGHTY: Final = frozenset(
    (
        "pg_read_all_data",
        "pg_write_all_data",
        "pg_read_server_files",
        "pg_write_server_files",
        "pg_execute_server_program",
        "pg_database_owner",
    )
)


def check(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield what is wrong with the roles themselves."""
    roles = {row["role"]: row for row in facts.roles}
    yield from _present(roles, logins)
    for login in sorted({OWNER, DEFINER, CONTROL, logins.control} & logins.pools.keys()):
        what = f"a pool logs in as {login}, which can sign for any user"
        yield Finding(ERROR, TOPIC, what, advice=_OWN_LOGIN, bypass=True)
    yield from _attributes(roles, logins)
    yield from _groups(facts, roles, logins)
    yield from _memberships(facts, roles, logins)
    yield from _trusted(facts, logins)
    yield from _possessions(facts, logins)


def pool_roles(logins: Logins, login: str) -> set[str]:
    """Return the roles that `login` may be: itself, its group, and what all groups share."""
    return {login, logins.pools[login], EVERYONE}


def _present(roles: dict[str, Row], logins: Logins) -> Iterator[Finding]:
    for login, group in {logins.control: "", **logins.pools}.items():
        if not login:
            continue
        if login not in roles:
            grant = f" IN ROLE {name(group)}" if group in roles else ""
            mend = f"CREATE ROLE {name(login)} LOGIN{grant};\n\\password {name(login)}"
            yield Finding(ERROR, TOPIC, f"there is no role {login}", mend)
        elif not roles[login]["rolcanlogin"]:
            yield Finding(ERROR, TOPIC, f"{login} may not log in", f"ALTER ROLE {name(login)} LOGIN;")
        elif roles[login]["expired"]:
            mend = f"ALTER ROLE {name(login)} VALID UNTIL 'infinity';"
            yield Finding(ERROR, TOPIC, f"the password of {login} is no longer valid", mend)


def _attributes(roles: dict[str, Row], logins: Logins) -> Iterator[Finding]:
    reachable = {role for login in logins.pools for role in pool_roles(logins, login)}
    for role in sorted({*logins.pools, logins.control, *ROLES} & roles.keys()):
        for column, attribute, mighty in _ATTRIBUTES:
            if roles[role][column]:
                mend = f"ALTER ROLE {name(role)} NO{attribute};"
                bypass = mighty and role in reachable
                yield Finding(ERROR, TOPIC, f"{role} has {attribute}", mend, bypass=bypass)
        own = {*logins.pools, logins.control, CONTROL}
        if role not in own and roles[role]["rolcanlogin"]:
            yield Finding(ERROR, TOPIC, f"{role} may log in", f"ALTER ROLE {name(role)} NOLOGIN;")


def _groups(facts: Facts, roles: dict[str, Row], logins: Logins) -> Iterator[Finding]:
    """Yield the logins that lack what their group gives."""
    edges = {(row["member"], row["role"]): row for row in facts.memberships}
    for login, group in logins.pools.items():
        if login not in roles or group not in roles:
            continue
        yield from _lacking(facts, edges, login, group)
    for group in GROUPS:
        if group in roles and EVERYONE in roles:
            yield from _lacking(facts, edges, group, EVERYONE)
    if logins.control in roles and not {(logins.control, STATISTICS), (CONTROL, STATISTICS)} & edges.keys():
        what = (
            f"{logins.control} is no member of {STATISTICS}: after a failover it can't see for a while that replicas"
            " follow the new primary, which then serves all reads"
        )
        yield Finding(WARNING, TOPIC, what, f"GRANT {STATISTICS} TO {name(logins.control)};")


def _lacking(facts: Facts, edges: dict[tuple[str, str], Row], member: str, group: str) -> Iterator[Finding]:
    grant = f"GRANT {name(group)} TO {name(member)}"
    edge = edges.get((member, group))
    if edge is None:
        yield Finding(ERROR, TOPIC, f"{member} is no member of {group}", f"{grant};")
    elif not edge["inherits"]:
        inherit = facts.host["version"] >= _GRANTED_BY
        mend = f"{grant} WITH INHERIT TRUE;" if inherit else f"ALTER ROLE {name(member)} INHERIT;"
        yield Finding(ERROR, TOPIC, f"{member} doesn't inherit the rights of {group}", mend)
    if edge is not None and edge["admin"]:
        mend = f"REVOKE ADMIN OPTION FOR {name(group)} FROM {name(member)}{_grantor(facts, edge)};"
        yield Finding(ERROR, TOPIC, f"{member} may grant {group} to others", mend)


def _memberships(facts: Facts, roles: dict[str, Row], logins: Logins) -> Iterator[Finding]:
    """Yield each membership that leads out of what a login may be, where it leads out."""
    members: dict[str, list[Row]] = {}
    for row in facts.memberships:
        members.setdefault(row["member"], []).append(row)
    told: set[tuple[str, str]] = set()
    for login in {logins.control: "", **logins.pools}:
        allowed = pool_roles(logins, login) if login in logins.pools else {login, CONTROL, STATISTICS}
        for member in sorted(allowed & members.keys()):
            for edge in members[member]:
                if edge["role"] in allowed or (member, edge["role"]) in told:
                    continue
                told.add((member, edge["role"]))
                yield _too_much(facts, roles, members, logins, edge, login in logins.pools)


def _too_much(
    facts: Facts, roles: dict[str, Row], members: dict[str, list[Row]], logins: Logins, edge: Row, pool: bool
) -> Finding:
    reached = _closure(edge["role"], members)
    mighty = sorted(each for each in reached if _is_mighty(roles, each))
    through = f" (and so of {', '.join(mighty)})" if mighty and mighty != [edge["role"]] else ""
    what = f"{edge['member']} is a member of {edge['role']}{through}"
    mend = f"REVOKE {name(edge['role'])} FROM {name(edge['member'])}{_grantor(facts, edge)};"
    administrator = ADMIN in reached and edge["member"] not in logins.administrators
    forbidden = mighty or administrator or any(roles[each]["builtin"] for each in reached if each in roles)
    severity = ERROR if forbidden else WARNING
    return Finding(severity, TOPIC, what, mend, bypass=pool and bool(mighty or administrator))


def _is_mighty(roles: dict[str, Row], role: str) -> bool:
    row = roles.get(role)
    attributes = row is not None and any(row[column] for column, _, mighty in _ATTRIBUTES if mighty)
    return attributes or role in TRUSTED or role in _MIGHTY


def _closure(role: str, members: dict[str, list[Row]]) -> set[str]:
    found, waiting = {role}, [role]
    while waiting:
        for edge in members.get(waiting.pop(), ()):
            if edge["role"] not in found:
                found.add(edge["role"])
                waiting.append(edge["role"])
    return found


def _trusted(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield who else may read the signing keys: somebody who migrates without being superuser, or an accident."""
    own = {*logins.pools, logins.control, *ROLES}
    for edge in facts.memberships:
        if edge["role"] in TRUSTED and edge["member"] not in own and not edge["member_is_superuser"]:
            mend = f"REVOKE {name(edge['role'])} FROM {name(edge['member'])}{_grantor(facts, edge)};"
            what = f"{edge['member']} is a member of {edge['role']}, which can sign for any user"
            yield Finding(WARNING, TOPIC, what, mend)


def _possessions(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield what pools' logins own: an owner may switch row-level security off. Administrators may own."""
    for row in facts.owned:
        role = row["role"]
        owners = {each for login in logins.pools for each in pool_roles(logins, login)}
        if role in (OWNER, DEFINER) or role in (*logins.administrators, ADMIN):
            continue
        if role not in owners and role not in (logins.control, CONTROL):
            continue
        what = f"{role} owns the {row['type']} {row['identity']}"
        kind = row["type"].upper()
        invoker = f"ALTER {kind} {row['identity']} SECURITY INVOKER;\n" if row["definer"] else ""
        mend = f"{invoker}ALTER {kind} {row['identity']} OWNER TO {OWNER};"
        ours = row["identity"] == "sluice" or row["identity"].startswith("sluice.")
        yield Finding(ERROR, TOPIC, what, mend, bypass=role in owners and (row["protected"] or ours))


def _grantor(facts: Facts, edge: Row) -> str:
    """Return what names the grantor of a membership; since PostgreSQL 16 each grantor's grant stands for itself."""
    if edge["by_superuser"] or edge["grantor"] is None or facts.host["version"] < _GRANTED_BY:
        return ""
    return f" GRANTED BY {name(edge['grantor'])}"
