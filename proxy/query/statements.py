"""Utility statements: what each of PostgreSQL's raw parse nodes means to the proxy.

A handler gets the node as the parser's JSON gives it (fields that hold zero, false or nothing are missing),
and adds to the facts. Nodes that aren't in the table are DDL: what isn't known goes to the primary, and needs
an admin key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from proxy.query.facts import HOST_PARAMETERS, POOL_PARAMETER, Facts
from proxy.query.intent import PRIMARY, READ, READONLY, SESSION, TRANSACTION

Node = Mapping[str, Any]
Nested = Callable[[str, Node], None]
"""Adds the facts of a statement inside another: its node type and its node."""

_CURSOR_OPT_HOLD: Final = 0x20  # src/include/nodes/parsenodes.h


def looks_inside(kind: str) -> bool:
    """Tell whether the node matters; where it doesn't, utility() takes an empty one."""
    return kind in _HANDLERS


def utility(kind: str, node: Node, facts: Facts, nested: Nested) -> None:
    """Add the facts of one utility statement; `kind` is its node type."""
    if kind in _WRITES:
        facts.writes(_WRITES[kind])
    elif handler := _HANDLERS.get(kind):
        handler(node, facts, nested)
    else:
        facts.defines(_REASONS.get(kind) or _words(kind))


def constant(node: Any) -> str | None:
    """Return the string or word in an A_Const, also behind a cast; None for anything else."""
    while isinstance(node, dict) and "TypeCast" in node:
        node = node["TypeCast"].get("arg")
    value = node.get("A_Const", {}) if isinstance(node, dict) else {}
    return str(value["sval"].get("sval", "")) if "sval" in value else None


def _number(node: Any) -> str | None:
    """Return the integer in an A_Const as text; None for anything else."""
    value = node.get("A_Const", {}) if isinstance(node, dict) else {}
    return str(value["ival"].get("ival", 0)) if "ival" in value else None


def _words(kind: str) -> str:
    """Return "ALTER TABLE" for AlterTableStmt."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.removesuffix("Stmt")).upper()


def _explain(node: Node, facts: Facts, nested: Nested) -> None:
    # Also without ANALYZE: the server asks for the privileges of what is explained.
    _inside(node, nested)


def _inside(node: Node, nested: Nested) -> None:
    for kind, inner in node["query"].items():
        nested(kind, inner)


def _copy(node: Node, facts: Facts, nested: Nested) -> None:
    if node.get("is_from"):
        facts.writes("COPY FROM")
    elif node.get("filename"):
        facts.writes("COPY TO a file or program")
    elif "query" in node:
        _inside(node, nested)
    else:
        facts.note(READ, READONLY, "COPY TO STDOUT")


def _call(node: Node, facts: Facts, nested: Nested) -> None:
    facts.writes("CALL")
    facts.soil("CALL")


def _do(node: Node, facts: Facts, nested: Nested) -> None:
    facts.writes("DO")
    facts.soil("DO")
    facts.needs_admin = True


def _create_table_as(node: Node, facts: Facts, nested: Nested) -> None:
    if node.get("objtype") == "OBJECT_MATVIEW":
        facts.defines("CREATE MATERIALIZED VIEW")
        return
    _inside(node, nested)
    facts.writes("CREATE TABLE AS")
    if _temporary(node["into"]["rel"]):
        facts.keep("temporary table")


def _create_relation(node: Node, facts: Facts, nested: Nested) -> None:
    field = next(name for name in ("relation", "view", "sequence") if name in node)
    word = {"relation": "TABLE", "view": "VIEW", "sequence": "SEQUENCE"}[field]
    if _temporary(node[field]):
        facts.writes(f"CREATE TEMPORARY {word}")
        facts.keep("temporary table")
    else:
        facts.defines(f"CREATE {word}")


def _temporary(relation: Node) -> bool:
    return relation.get("relpersistence") == "t" or relation.get("schemaname") == "pg_temp"


def _vacuum(node: Node, facts: Facts, nested: Nested) -> None:
    facts.defines("VACUUM" if node.get("is_vacuumcmd") else "ANALYZE")


def _role(node: Node, facts: Facts, nested: Nested) -> None:
    facts.defines("ALTER ROLE")
    facts.refuse("ALTER ROLE needs an API key with the permission admin")


def _rename(node: Node, facts: Facts, nested: Nested) -> None:
    if node.get("renameType") == "OBJECT_ROLE":
        _role(node, facts, nested)
    else:
        facts.defines("ALTER ... RENAME")


def _drop(node: Node, facts: Facts, nested: Nested) -> None:
    facts.defines("DROP")
    facts.unpins["temporary table"] = None


def _drop_owned(node: Node, facts: Facts, nested: Nested) -> None:
    facts.defines("DROP OWNED")
    facts.refuse("DROP OWNED needs an API key with the permission admin")


def _reassign_owned(node: Node, facts: Facts, nested: Nested) -> None:
    facts.defines("REASSIGN OWNED")
    facts.refuse("REASSIGN OWNED needs an API key with the permission admin")


def _transaction(node: Node, facts: Facts, nested: Nested) -> None:
    kind = node["kind"].removeprefix("TRANS_STMT_")
    words = kind.replace("_", " ")
    if kind in ("BEGIN", "START"):
        read_only, serializable = _modes(node.get("options", ()))
        facts.begins = "read only" if read_only else "read write"
        if serializable:
            facts.note(TRANSACTION, PRIMARY, "BEGIN SERIALIZABLE")
        elif read_only:
            facts.note(TRANSACTION, READONLY, "BEGIN READ ONLY")
        elif read_only is False:
            facts.loosen("BEGIN READ WRITE")
        else:
            facts.note(TRANSACTION, PRIMARY, "BEGIN")
        facts.needs_write |= read_only is False
        return
    if kind in ("COMMIT", "ROLLBACK", "PREPARE"):
        facts.begins = ""
        facts.ends = True
    if kind == "PREPARE":
        facts.writes("PREPARE TRANSACTION")
    elif kind in ("COMMIT_PREPARED", "ROLLBACK_PREPARED"):
        facts.writes(words)
        facts.unseen = True
    else:
        facts.note(TRANSACTION, "", words)


def _modes(options: Any) -> tuple[bool | None, bool]:
    """Return whether transaction modes say READ ONLY (None: nothing), and SERIALIZABLE; the last one wins."""
    read_only = None
    serializable = False
    for option in options:
        mode = option["DefElem"]
        if mode["defname"] == "transaction_read_only":
            read_only = bool(mode["arg"]["A_Const"]["ival"].get("ival", 0))
        elif mode["defname"] == "transaction_isolation":
            serializable = constant(mode["arg"]) == "serializable"
    return read_only, serializable


def _set(node: Node, facts: Facts, nested: Nested) -> None:
    kind = node["kind"]
    name = str(node.get("name", "")).lower()
    local = bool(node.get("is_local"))
    if kind == "VAR_RESET_ALL":
        facts.note(SESSION, READONLY, "RESET ALL")
        facts.reset_all()
        facts.soil("RESET ALL")
        facts.unpins["unseen settings"] = None
    elif kind == "VAR_SET_MULTI":
        _set_modes(name, node.get("args", ()), facts)
    else:
        reset = kind in ("VAR_RESET", "VAR_SET_DEFAULT")
        arguments = node.get("args") or [None]
        value = constant(arguments[0])
        facts.note(SESSION, READONLY, f"{'RESET' if kind == 'VAR_RESET' else 'SET'} {name}")
        facts.set_parameter(name, local=local, value=value or _number(arguments[0]), reset=reset)
        if name == POOL_PARAMETER and not local:
            facts.pool = value or ""
            facts.sets_pool = True


def _set_modes(name: str, arguments: Any, facts: Facts) -> None:
    """Add SET TRANSACTION or SET SESSION CHARACTERISTICS."""
    if name == "transaction snapshot":
        facts.note(TRANSACTION, PRIMARY, "SET TRANSACTION SNAPSHOT")
        return
    if name == "session characteristics":
        facts.note(SESSION, READONLY, "SET SESSION CHARACTERISTICS")
        read_only, _ = _modes(arguments)
        for argument in arguments:
            name = f"default_{argument['DefElem']['defname']}"
            facts.set_parameter(name, local=False, value="on" if read_only else None)
        return
    read_only, serializable = _modes(arguments)
    if serializable:
        facts.note(TRANSACTION, PRIMARY, "SET TRANSACTION SERIALIZABLE")
    elif read_only is None:
        facts.note(TRANSACTION, "", "SET TRANSACTION")
    elif read_only:
        facts.note(TRANSACTION, READONLY, "SET TRANSACTION READ ONLY")
    else:
        facts.loosen("SET TRANSACTION READ WRITE")
    facts.needs_write |= read_only is False


def _show(node: Node, facts: Facts, nested: Nested) -> None:
    name = str(node["name"]).lower()
    if name in HOST_PARAMETERS:
        facts.note(READ, PRIMARY, f"asks for {name}")
    else:
        facts.note(READ, READONLY, "SHOW")
        facts.shows_pool = facts.shows_pool or name == POOL_PARAMETER


def _constraints(node: Node, facts: Facts, nested: Nested) -> None:
    facts.note(SESSION, PRIMARY, "SET CONSTRAINTS")


def _listen(node: Node, facts: Facts, nested: Nested) -> None:
    facts.note(SESSION, PRIMARY, "LISTEN")
    facts.keep("listen")


def _unlisten(node: Node, facts: Facts, nested: Nested) -> None:
    facts.note(SESSION, PRIMARY, "UNLISTEN")
    facts.unpins["listen"] = None


def _load(node: Node, facts: Facts, nested: Nested) -> None:
    facts.note(SESSION, PRIMARY, "LOAD")
    facts.keep("load", lasting=True)


def _discard(node: Node, facts: Facts, nested: Nested) -> None:
    target = node["target"].removeprefix("DISCARD_")
    facts.note(SESSION, READONLY, f"DISCARD {target}")
    if target == "ALL":
        facts.reset_all()
        facts.soil("DISCARD ALL")
        facts.unpins["all"] = None
    elif target == "TEMP":
        facts.unpins["temporary table"] = None
    elif target == "SEQUENCES":
        facts.unpins["currval"] = None


def _prepare(node: Node, facts: Facts, nested: Nested) -> None:
    _inside(node, nested)
    facts.prepares = str(node["name"])


def _execute(node: Node, facts: Facts, nested: Nested) -> None:
    facts.executes = str(node["name"])
    if node.get("params"):
        # Arguments are expressions.
        nested("SelectStmt", node)
    # What it executes decides where it goes.
    facts.note(READ, READONLY, "EXECUTE")


def _deallocate(node: Node, facts: Facts, nested: Nested) -> None:
    facts.note(SESSION, READONLY, "DEALLOCATE")
    facts.deallocates = "all" if node.get("isall") else str(node.get("name", ""))
    if node.get("isall"):
        facts.unpins["prepare"] = None


def _declare(node: Node, facts: Facts, nested: Nested) -> None:
    _inside(node, nested)
    if node.get("options", 0) & _CURSOR_OPT_HOLD:
        facts.note(READ, PRIMARY, "cursor WITH HOLD")
        facts.keep("hold cursor")


def _fetch(node: Node, facts: Facts, nested: Nested) -> None:
    facts.note(READ, READONLY, "FETCH")


def _close(node: Node, facts: Facts, nested: Nested) -> None:
    facts.note(READ, READONLY, "CLOSE")
    facts.unpins["hold cursor"] = None


_WRITES: Final = {
    "LockStmt": "LOCK",
    "NotifyStmt": "NOTIFY",
    "RefreshMatViewStmt": "REFRESH MATERIALIZED VIEW",
    "TruncateStmt": "TRUNCATE",
}

_REASONS: Final = {
    "CheckPointStmt": "CHECKPOINT",
    "CreatedbStmt": "CREATE DATABASE",
    "DefineStmt": "CREATE",
    "DropdbStmt": "DROP DATABASE",
    "GrantRoleStmt": "GRANT",
    "IndexStmt": "CREATE INDEX",
    "RuleStmt": "CREATE RULE",
    "SecLabelStmt": "SECURITY LABEL",
}

_HANDLERS: Final[Mapping[str, Callable[[Node, Facts, Nested], None]]] = {
    "AlterRoleSetStmt": _role,
    "AlterRoleStmt": _role,
    "CallStmt": _call,
    "ClosePortalStmt": _close,
    "ConstraintsSetStmt": _constraints,
    "CopyStmt": _copy,
    "CreateSeqStmt": _create_relation,
    "CreateStmt": _create_relation,
    "CreateTableAsStmt": _create_table_as,
    "DeallocateStmt": _deallocate,
    "DeclareCursorStmt": _declare,
    "DiscardStmt": _discard,
    "DoStmt": _do,
    "DropOwnedStmt": _drop_owned,
    "DropStmt": _drop,
    "ExecuteStmt": _execute,
    "ExplainStmt": _explain,
    "FetchStmt": _fetch,
    "ListenStmt": _listen,
    "LoadStmt": _load,
    "PrepareStmt": _prepare,
    "ReassignOwnedStmt": _reassign_owned,
    "RenameStmt": _rename,
    "TransactionStmt": _transaction,
    "UnlistenStmt": _unlisten,
    "VacuumStmt": _vacuum,
    "VariableSetStmt": _set,
    "VariableShowStmt": _show,
    "ViewStmt": _create_relation,
}
