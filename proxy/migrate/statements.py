"""A file's statements: where each starts, and which of them destroy what no rollback brings back.

Destructive are, as PostgreSQL's own parser (pglast) reads them: DROP TABLE, SCHEMA, SEQUENCE, DATABASE and
OWNED; any DROP … CASCADE; dropping a column or an attribute, or changing its type; TRUNCATE; DELETE and UPDATE
without WHERE, also in a WITH; and MERGE that deletes. What stands in strings can't be parsed, so a DO block
counts where its text holds DROP TABLE and the like, TRUNCATE or DELETE FROM; calls of functions never do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pglast import ast, enums, parse_sql, split
from pglast.parser import ParseError
from pglast.visitors import Visitor

from proxy.migrate.errors import at, line_of

_DROPPED: Final = {
    enums.ObjectType.OBJECT_TABLE: "TABLE",
    enums.ObjectType.OBJECT_SCHEMA: "SCHEMA",
    enums.ObjectType.OBJECT_SEQUENCE: "SEQUENCE",
}
_ALTERED: Final = {
    enums.AlterTableType.AT_DropColumn: "DROP COLUMN",
    enums.AlterTableType.AT_AlterColumnType: "ALTER COLUMN TYPE",
}
_ALWAYS: Final = {
    "TruncateStmt": "TRUNCATE",
    "DropOwnedStmt": "DROP OWNED",
    "DropdbStmt": "DROP DATABASE",
}
_UNBOUNDED: Final = {"DeleteStmt": "DELETE without WHERE", "UpdateStmt": "UPDATE without WHERE"}
# GRANT DELETE, TRUNCATE ON … and ON DELETE CASCADE are none.
_IN_DO: Final = re.compile(
    r"(?i)\b(drop\s+(?:table|schema|sequence|column|owned)|truncate\b(?!\s*(?:,|on\b))|delete\s+from"
    r"|drop\b[^;]*\bcascade)\b"
)
# What a transaction of its own would need; savepoints may be used.
_ENDS: Final = {
    enums.TransactionStmtKind.TRANS_STMT_BEGIN,
    enums.TransactionStmtKind.TRANS_STMT_START,
    enums.TransactionStmtKind.TRANS_STMT_COMMIT,
    enums.TransactionStmtKind.TRANS_STMT_ROLLBACK,
    enums.TransactionStmtKind.TRANS_STMT_PREPARE,
}


@dataclass(frozen=True)
class Statement:
    """One statement of a file; `start` is its first character's position, counted from 0."""

    text: str
    start: int
    line: int
    destroys: str


def statements(file: Path) -> list[Statement]:
    """Return the statements of `file`; raises MigrationError for what is no SQL, or ends the transaction."""
    text = file.read_text(encoding="utf-8")
    try:
        slices = split(text, only_slices=True)
        found: list[Statement] = []
        for part in slices:
            (raw,) = parse_sql(text[part])
            if isinstance(raw.stmt, ast.TransactionStmt) and raw.stmt.kind in _ENDS:
                raise at(file, text, part.start, "a migration is one transaction: leave this statement out")
            if isinstance(raw.stmt, ast.CopyStmt) and raw.stmt.filename is None:
                raise at(file, text, part.start, "a migration has nothing to COPY from or to: use INSERT")
            line = line_of(text, part.start)
            found.append(Statement(text[part], part.start, line, ", ".join(destroyed(raw.stmt))))
        return found
    except ParseError as problem:
        message, position = problem.args
        raise at(file, text, position, message) from problem


def destroyed(statement: Any) -> list[str]:
    """Return in what ways a parsed statement destroys data."""
    looked = _Destroyed()
    looked(statement)
    return list(dict.fromkeys(looked.found))


class _Destroyed(Visitor):
    """Walks a statement with all that stands in it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit(self, _: object, node: Any) -> None:
        self.found.extend(_ways(type(node).__name__, node))


def _ways(kind: str, node: Any) -> Iterator[str]:
    if kind in _ALWAYS:
        yield _ALWAYS[kind]
    elif kind in _UNBOUNDED:
        if node.whereClause is None:
            yield _UNBOUNDED[kind]
    elif kind == "DropStmt":
        if node.removeType in _DROPPED:
            yield f"DROP {_DROPPED[node.removeType]}"
        elif node.behavior == enums.DropBehavior.DROP_CASCADE:
            yield "DROP … CASCADE"
    elif kind == "AlterTableCmd":
        if node.subtype in _ALTERED:
            yield _ALTERED[node.subtype]
    elif kind == "MergeWhenClause":
        if node.commandType == enums.CmdType.CMD_DELETE:
            yield "MERGE … DELETE"
    elif kind == "DoStmt":
        body = " ".join(each.arg.sval for each in node.args if each.defname == "as")
        if found := _IN_DO.search(body):
            yield f"{' '.join(found[0].upper().split())} in a DO block"
