"""What `pgsluice route` prints."""

from __future__ import annotations

from typing import Final

from pglast.parser import ParseError, split

from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import SESSION, TRANSACTION, Intent
from proxy.query.lexer import COMMENT, END, OTHER, Lexer


def explain(
    sql: str,
    catalog: FunctionCatalog,
    max_parse_bytes: int,
    *,
    each: bool = False,
    unknown: str = "the database has no function of that name",
) -> list[dict[str, object]]:
    """Return one object for each unit: `sql` as one, or each of its statements as one where `each` is set.

    The keys intent, target, reason, statements and pin (None: no pin) come first and are always there; the
    rest only where there is something to say. `unknown` is the hint for functions that `catalog` doesn't know.
    """
    cache = IntentCache(catalog, max_parse_bytes)
    units = _split(sql) if each else [sql]
    return [_explained(cache.lookup(unit.encode("utf-8", "surrogateescape")), unknown) for unit in units]


_BY_REASON: Final = {
    "EXECUTE": "it goes where the statement goes that was prepared",
    "FETCH": "it goes where its cursor is",
    "CLOSE": "it goes where its cursor is",
    "SET sluice.pool": "the proxy answers; it chooses the pool of what follows",
    "RESET sluice.pool": "the proxy answers; what follows goes to the pool of its key or intent",
    "BEGIN": "say READ ONLY, and all of the transaction goes to readonly",
    "BEGIN SERIALIZABLE": "a standby can't run serializable transactions",
    "parse error": "the primary gets it as it is, and tells what is wrong",
    "longer than max_parse_bytes": "routing.max_parse_bytes says up to what size texts are parsed",
}


def _hint(intent: Intent, unknown: str) -> str:
    """Return what may be done, or what the target doesn't tell; "" where the reason says it all."""
    reason = intent.reason
    if reason.startswith("calls unknown function "):
        return unknown
    if reason.endswith(" is VOLATILE, so it may write"):
        return "if it only reads, declare it STABLE, or name it in routing.safe_functions"
    if reason.startswith("asks for "):
        return "primary and standby answer differently"
    if intent.pin:
        return "the session keeps its server connection"
    found = _BY_REASON.get(reason, "")
    if not found and intent.kind == TRANSACTION and intent.statements == 1 and not intent.begins:
        return "in a transaction it goes where the transaction is"
    if not found and intent.kind == SESSION and intent.settings and intent.target == "readonly":
        return "the session takes it along, to whichever server its next statement goes"
    return found


def _explained(intent: Intent, unknown: str) -> dict[str, object]:
    line: dict[str, object] = {
        "intent": intent.kind,
        "target": intent.target,
        "reason": intent.reason,
        "statements": intent.statements,
        "pin": intent.pin or None,
    }
    details: dict[str, object] = {
        "hint": "" if intent.refused else _hint(intent, unknown),
        "pool": intent.pool,
        "begins": intent.begins,
        "settings": list(intent.settings),
        "unclean": intent.unclean,
        "refused": intent.refused,
        "needs": "admin" if intent.needs_admin else "write" if intent.needs_write else "",
        "cacheable": intent.cacheable and intent.cache_hint != 0.0,
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
