"""From SQL to Intent, by PostgreSQL's own parser.

Only parse_sql_json() of pglast is called: parse_sql() can be made to crash the process, and scan() to take
seconds. Queries are decided by searching the JSON text instead of loading it, which is
quicker by far and indifferent to nesting. That is sound because a double quote inside a JSON string is always
escaped: `"FuncCall":` can only be a key.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

from pglast.parser import ParseError, parse_sql_json

from proxy.query.facts import CACHE_ON, HOST_PARAMETERS, NO_HINT, POOL_PARAMETER, Facts
from proxy.query.fingerprint import MAX_TEXT
from proxy.query.functions import FunctionCatalog, Verdict
from proxy.query.intent import PRIMARY, READ, READONLY, SESSION, WRITE, Intent
from proxy.query.lexer import (
    COMMENT,
    END,
    ERROR,
    FOR,
    INTO,
    MODIFYING,
    NEWER,
    Lexer,
    wears_out_parsers,
    words_in,
)
from proxy.query.statements import Node, constant, looks_inside, utility
from proxy.query.unparsed import MAX_LEXED, lex

MAX_COMMENTS: Final = 100
"""Beginnings of block comments that are parsed: PostgreSQL's lexer takes quadratic time over nested ones."""

MAX_STATEMENTS: Final = 1000
"""Statements of one text that are told apart."""

MAX_TREE: Final = 256 * 1024
"""Characters of JSON that are loaded for one text's utility statements; ten times what honest ones need."""

_TOP: Final = re.compile(r'\{"stmt":\{"(\w+)":')
# The schemas' names, then the function's own.
_FUNCTION: Final = re.compile(
    r'"FuncCall":\{"funcname":\[(?:\{"String":\{"sval":"(?:[^"\\]|\\.)*"\}\},)*'
    r'\{"String":\{"sval":"((?:[^"\\]|\\.)*)"\}\}\]'
)
_FUNCTION_KEY: Final = '"FuncCall":{'
_ARGUMENTS_KEY: Final = ',"args":'
_DECODER: Final = json.JSONDecoder()

_MODIFYING: Final = {
    "InsertStmt": "INSERT",
    "UpdateStmt": "UPDATE",
    "DeleteStmt": "DELETE",
    "MergeStmt": "MERGE",
}
_MODIFYING_KEYS: Final = tuple(f'"{kind}":{{' for kind in _MODIFYING)
_LOCKS: Final = {
    '"LCS_FORUPDATE"': "FOR UPDATE",
    '"LCS_FORNOKEYUPDATE"': "FOR NO KEY UPDATE",
    '"LCS_FORSHARE"': "FOR SHARE",
    '"LCS_FORKEYSHARE"': "FOR KEY SHARE",
}

# Names that became syntax in versions 16 to 18: to an older server they are calls of a user's functions.
_SYNTAX: Final = {
    '"JsonFuncExpr":{': ("json_exists", "json_query", "json_value"),
    '"JsonTable":{': ("json_table",),
    '"JsonParseExpr":{': ("json",),
    '"JsonScalarExpr":{': ("json_scalar",),
    '"JsonSerializeExpr":{': ("json_serialize",),
    '"JsonObjectConstructor":{': ("json_object",),
    '"JsonObjectAgg":{': ("json_objectagg",),
    '"JsonArrayConstructor":{': ("json_array",),
    '"JsonArrayQueryConstructor":{': ("json_array",),
    '"JsonArrayAgg":{': ("json_arrayagg",),
    '"MergeSupportFunc":{': ("merge_action",),
}

_UNLOCKING: Final = frozenset({"pg_advisory_unlock", "pg_advisory_unlock_all", "pg_advisory_unlock_shared"})
# They change the session alone.
_SESSION_FUNCTIONS: Final = _UNLOCKING | {"set_config", "setseed"}

_POOL_HINT: Final = re.compile(rb"(?:--|/\*)\s*sluice:[^\n]*?\bpool\s*=\s*'?(\w+)")
_CACHE_HINT: Final = re.compile(rb"(?:--|/\*)\s*sluice:[^\n]*?\bcache\s*=\s*'?([0-9A-Za-z.]+)")

_SECONDS: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_RELATION_KEY: Final = '"relname":"'
_NAME: Final = re.compile(r'(?:[^"\\]|\\.)*')
MAX_RELATIONS: Final = 100
"""Relations of one text that are told apart; one with more counts as if it named none."""

# What stands there changes by itself, or is another thing to each connection.
_SYSTEM_SCHEMAS: Final = tuple(
    f'"schemaname":"{name}",' for name in ("pg_catalog", "information_schema", "pg_temp", "sluice")
)
# Statements that change no relation but those that they name.
_TELLING: Final = frozenset(
    {
        "SelectStmt",
        *_MODIFYING,
        "ClosePortalStmt",
        "ConstraintsSetStmt",
        "CopyStmt",
        "DeallocateStmt",
        "DeclareCursorStmt",
        "DiscardStmt",
        "ExecuteStmt",
        "ExplainStmt",
        "FetchStmt",
        "ListenStmt",
        "LoadStmt",
        "LockStmt",
        "NotifyStmt",
        "PrepareStmt",
        "RefreshMatViewStmt",
        "TransactionStmt",
        "TruncateStmt",
        "UnlistenStmt",
        "VariableSetStmt",
        "VariableShowStmt",
    }
)


def classify(sql: bytes, catalog: FunctionCatalog, normalized: bytes = b"") -> Intent:
    """Return the intent of `sql`, which is no longer than max_parse_bytes; what can't be parsed is "unknown".

    `normalized` is normalize(sql); b"" where there is none.
    """
    if sql.count(b"/*") > MAX_COMMENTS or wears_out_parsers(sql):
        return not_parsed(sql, len(sql), "made to be slow to parse")
    facts = Facts()
    try:
        tree = parse_sql_json(sql.decode("utf-8"))
        _Reader(tree, sql, catalog, facts).read()
    except UnicodeDecodeError:
        return not_parsed(sql, len(sql), "not UTF-8")
    except ParseError:
        return not_parsed(sql, len(sql), "parse error")
    except OverflowError:
        return not_parsed(sql, len(sql), "made to be slow to parse")
    except (RecursionError, AttributeError, LookupError, TypeError, ValueError):
        # A tree too deep or too large to be read, or of another form than this program knows.
        return not_parsed(sql, len(sql), "not understood")
    if facts.statements != 1:
        facts.sets_pool = False
        if facts.ends and facts.unclean:
            # A function may have changed settings, and with them whether the next transaction can write.
            facts.loosen("ends a transaction behind what may change settings")
    facts.pool = pool_hint(sql) or facts.pool
    facts.cache_hint = cache_hint(cache_asked(sql))
    shown = normalized.decode("utf-8", "replace") if normalized else _unread(sql, len(sql))
    return facts.intent(shown, source=sql if len(sql) <= MAX_TEXT else b"")


def not_parsed(sql: bytes, size: int, reason: str) -> Intent:
    """Return the intent of a text of `size` bytes that isn't parsed; `sql` is all or the beginning of it."""
    facts = lex(sql, reason)
    if size > len(sql):
        facts.loosen("can't be looked at")
    beginning = sql[:MAX_LEXED]
    facts.pool = pool_hint(beginning)
    return facts.intent(_unread(beginning, size), parsed=False)


def pool_hint(sql: bytes) -> str:
    """Return the pool that the first comment with `sluice: pool=NAME` asks for, "" where there is none."""
    return _hint(sql, _POOL_HINT)


def cache_asked(sql: bytes) -> str:
    """Return what the first comment with `sluice: cache=` asks for, "" where there is none."""
    return _hint(sql, _CACHE_HINT)


def cache_hint(asked: str) -> float:
    """Return for how many seconds such a comment wants an answer kept: CACHE_ON for as long as usual, 0.0 for never.

    What is neither `on` nor `off` nor a duration as in the configuration (30s, 1.5m) asks for nothing.
    """
    asked = asked.lower()
    if asked == "on":
        return CACHE_ON
    if asked == "off":
        return 0.0
    found = _SECONDS.fullmatch(asked)
    return float(found[1]) * _UNITS[found[2]] if found is not None else NO_HINT


def _hint(sql: bytes, pattern: re.Pattern[bytes]) -> str:
    if b"sluice:" not in sql:
        return ""
    lexer = Lexer(sql)
    while (kind := lexer.next()) not in (END, ERROR):
        if kind == COMMENT and (found := pattern.match(sql, lexer.start, lexer.end)):
            return found[1].decode("utf-8", "replace")
    return ""


def _unread(sql: bytes, size: int) -> str:
    return f"<not parsed: {size} bytes, sha256 {hashlib.sha256(sql).hexdigest()[:16]}>" if sql.strip() else ""


class _Reader:
    """Reads the statements of one parse tree into facts.

    A keyword can only be written with its letters, so what a text has no word for needn't be searched in its tree,
    which is ten times as long. That doesn't hold for names: they can have escapes.
    """

    def __init__(self, tree: str, sql: bytes, catalog: FunctionCatalog, facts: Facts) -> None:
        self._tree = tree
        self._several = b";" in sql
        self._words = words_in(sql)
        self._catalog = catalog
        self._facts = facts
        self._segment = ""

    def read(self) -> None:
        """Add the facts of each statement.

        Raises OverflowError for too many of them, and LookupError, TypeError, ValueError and RecursionError.
        """
        single = None if self._several else _TOP.search(self._tree)
        tops = [single] if single is not None else list(_TOP.finditer(self._tree))
        spans = list(zip(tops, [top.start() for top in tops[1:]] + [len(self._tree)], strict=False))
        self._facts.statements = len(spans)
        if len(spans) > MAX_STATEMENTS:
            raise OverflowError("an unreasonable number of statements")
        if sum(end - top.end() for top, end in spans if looks_inside(top[1])) > MAX_TREE:
            raise ValueError("a parse tree of unreasonable size")
        for top, end in spans:
            self._segment = self._tree[top.start() : end]
            kind = top[1]
            self._relations(kind)
            if kind == "SelectStmt" or kind in _MODIFYING:
                self._query(kind)
            else:
                # Their literals may decide: the name of a role or pool, ON or OFF.
                self._facts.literal_dependent |= kind != "TransactionStmt"
                node = _DECODER.raw_decode(self._tree, top.end())[0] if looks_inside(kind) else {}
                utility(kind, node, self._facts, self._nested)

    def _relations(self, kind: str) -> None:
        """Add the relations that a statement names, those of its CTEs too, and whether they are all that counts."""
        segment, facts = self._segment, self._facts
        if kind != "SelectStmt" or '"RangeTableSample":{' in segment:
            facts.steady = False
        if kind not in _TELLING or (kind == "TruncateStmt" and '"behavior":"DROP_CASCADE"' in segment):
            facts.unseen = True
        at = segment.find(_RELATION_KEY)
        while at >= 0:
            begins = at + len(_RELATION_KEY)
            found = _NAME.match(segment, begins)
            name = found[0] if found is not None else ""
            if "\\" in name:
                name = str(json.loads(f'"{name}"'))
            if name.startswith("pg_") or segment.endswith(_SYSTEM_SCHEMAS, 0, at):
                facts.steady = False
            facts.relations[name] = None
            at = segment.find(_RELATION_KEY, begins)
        if len(facts.relations) > MAX_RELATIONS:
            facts.relations.clear()
            facts.steady = False
            facts.unseen = True

    def _nested(self, kind: str, node: Node) -> None:
        if kind == "SelectStmt" or kind in _MODIFYING:
            self._query(kind)
        else:
            utility(kind, node, self._facts, self._nested)

    def _query(self, kind: str) -> None:
        """Add the facts of a query; whatever stands anywhere inside it counts."""
        segment, words, facts = self._segment, self._words, self._facts
        if kind in _MODIFYING:
            facts.writes(_MODIFYING[kind])
        else:
            facts.note(READ, READONLY, "plain SELECT")
            if words & MODIFYING and any(key in segment for key in _MODIFYING_KEYS):
                facts.writes("modifying CTE")
            if words & INTO and '"intoClause":{' in segment:
                facts.writes("SELECT INTO")
                if '"relpersistence":"t"' in segment or '"schemaname":"pg_temp"' in segment:
                    facts.keep("temporary table")
            if words & FOR and '"lockingClause":[' in segment:
                facts.writes(next((words for key, words in _LOCKS.items() if key in segment), "FOR UPDATE"))
        if words & MODIFYING and '"pg_settings"' in segment and '"UpdateStmt":{' in segment:
            facts.set_unseen()
        self._functions()
        if words & NEWER:
            for key, names in _SYNTAX.items():
                if key in segment:
                    for name in names:
                        if self._catalog.knows(name):
                            self._function(name)

    def _functions(self) -> None:
        segment = self._segment
        names = set()
        at = segment.find(_FUNCTION_KEY)
        while at >= 0:
            # Found by its key, as a search by the whole pattern takes three times as long.
            call = _FUNCTION.match(segment, at)
            if call is None:
                raise ValueError("a function call of unknown form")
            name = call[1] if "\\" not in call[1] else str(json.loads(f'"{call[1]}"'))
            if name == "set_config":
                self._set_config(self._arguments(call.end()))
            elif name == "current_setting":
                self._current_setting(self._arguments(call.end()))
            names.add(name)
            at = segment.find(_FUNCTION_KEY, call.end())
        for name in sorted(names):
            self._function(name)

    def _arguments(self, position: int) -> list[Any]:
        if not self._segment.startswith(_ARGUMENTS_KEY, position):
            return []
        arguments, _ = _DECODER.raw_decode(self._segment, position + len(_ARGUMENTS_KEY))
        return list(arguments)

    def _set_config(self, arguments: list[Any]) -> None:
        facts = self._facts
        facts.literal_dependent = True
        facts.note(SESSION, PRIMARY, "calls set_config")
        name = constant(arguments[0]) if arguments else None
        local = len(arguments) == 3 and _is_true(arguments[2])
        if name is not None:
            value = constant(arguments[1]) if len(arguments) > 1 else None
            facts.set_parameter(name, local=local, value=value)
            if value is None:
                # NULL gives it back its value of the start, and a parameter may be NULL.
                facts.change(name.lower(), local=local, reset=True)
        elif not local:
            facts.set_unseen()
            facts.loosen("calls set_config for a parameter that the text doesn't tell")

    def _current_setting(self, arguments: list[Any]) -> None:
        self._facts.literal_dependent = True
        name = constant(arguments[0]) if arguments else None
        if name is not None and name.lower() == POOL_PARAMETER:
            self._facts.shows_pool = True
        if name is None or name.lower() in HOST_PARAMETERS:
            self._facts.note(READ, PRIMARY, f"asks for {name.lower() if name else 'a parameter'}")

    def _function(self, name: str) -> None:
        facts = self._facts
        verdict = self._catalog.judge(name)
        if facts.steady and not self._catalog.steady(name):
            facts.steady = False
        if verdict is Verdict.UNKNOWN:
            facts.unseen = True
            facts.note(WRITE, PRIMARY, self._doubt(name))
            facts.soil(f"unknown function {name}")
        elif verdict is Verdict.WRITES:
            facts.writes(f"calls {name}")
        elif name in _SESSION_FUNCTIONS:
            facts.note(SESSION, PRIMARY, f"calls {name}")
        elif verdict is Verdict.MAY_WRITE:
            facts.note(WRITE, PRIMARY, f"calls {name}, which is not known to only read")
        # What PostgreSQL's own function of that name leaves in the session.
        if name in _UNLOCKING:
            facts.unpins["advisory lock"] = None
        elif re.match(r"pg_(?:try_)?advisory_lock", name):
            facts.keep("advisory lock")
        elif name in ("currval", "lastval"):
            facts.keep("currval")
        elif name == "setseed":
            facts.keep("setseed", lasting=True)
        elif name.startswith("dblink_connect"):
            facts.keep("dblink", lasting=True)

    def _doubt(self, name: str) -> str:
        """Return why a function isn't taken for one that only reads."""
        if volatile := self._catalog.volatile(name):
            return f"calls {name}: {volatile} is VOLATILE, so it may write"
        if self._catalog.runs_text(name):
            return f"calls {name}, which runs SQL that it is given"
        return f"calls unknown function {name}"


def _is_true(node: Any) -> bool:
    """Tell whether `node` is the constant TRUE."""
    value = node.get("A_Const", {}).get("boolval", {}) if isinstance(node, dict) else {}
    return bool(value.get("boolval", False))
