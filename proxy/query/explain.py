"""What `pgsluice route` prints."""

from __future__ import annotations

from pglast.parser import ParseError, split

from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import Intent
from proxy.query.lexer import COMMENT, END, OTHER, Lexer


def explain(
    sql: str, catalog: FunctionCatalog, max_parse_bytes: int, *, each: bool = False
) -> list[dict[str, object]]:
    """Return one object for each unit: `sql` as one, or each of its statements as one where `each` is set.

    The keys intent, target, reason, statements and pin (None: no pin) come first and are always there; the
    rest only where there is something to say.
    """
    cache = IntentCache(catalog, max_parse_bytes)
    units = _split(sql) if each else [sql]
    return [_explained(cache.lookup(unit.encode("utf-8", "surrogateescape"))) for unit in units]


def _explained(intent: Intent) -> dict[str, object]:
    line: dict[str, object] = {
        "intent": intent.kind,
        "target": intent.target,
        "reason": intent.reason,
        "statements": intent.statements,
        "pin": intent.pin or None,
    }
    details: dict[str, object] = {
        "pool": intent.pool,
        "begins": intent.begins,
        "settings": list(intent.settings),
        "unclean": intent.unclean,
        "refused": intent.refused,
        "needs": "admin" if intent.needs_admin else "write" if intent.needs_write else "",
        "fingerprint": intent.fingerprint,
        "normalized": intent.normalized,
    }
    line.update((name, value) for name, value in details.items() if value)
    return line


def _split(sql: str) -> list[str]:
    """Return the statements in `sql` as the parser tells them apart; at semicolons where it has errors."""
    try:
        return list(split(sql))
    except (ParseError, UnicodeError):
        return _split_at_semicolons(sql.encode("utf-8", "surrogateescape"))


def _split_at_semicolons(sql: bytes) -> list[str]:
    statements: list[str] = []
    lexer = Lexer(sql)
    start = -1
    while (kind := lexer.next()) != END:
        if kind == OTHER and sql[lexer.start] == 0x3B:  # ;
            if start >= 0:
                statements.append(sql[start : lexer.start].decode("utf-8", "surrogateescape"))
            start = -1
        elif kind != COMMENT and start < 0:
            start = lexer.start
    if start >= 0:
        statements.append(sql[start:].decode("utf-8", "surrogateescape"))
    return statements
