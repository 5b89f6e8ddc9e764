"""Texts that aren't parsed: their tokens alone tell what to refuse, what pins, and what is changed.

They are "unknown" and go to the primary whatever they say. Only the beginning of a long text is looked at;
what stands behind it is caught by the reset that the connection gets, and by PostgreSQL. Where a text might leave READ
ONLY, which would let functions write that run with their owner's rights, it needs a key that may write.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from proxy.query.facts import HOST_PARAMETERS, Facts
from proxy.query.intent import PRIMARY, UNKNOWN
from proxy.query.lexer import COMMENT, END, ERROR, OTHER, QUOTED, STRING, WORD, Lexer

MAX_LEXED: Final = 16 * 1024
"""Bytes of a text that are looked at."""

# Without one of these no text leaves READ ONLY.
_OPENING: Final = (b"write", b"read_only", b"set_config", b'u&"')
_LONGEST_WORD: Final = 16

_SET_CONFIG_NAME: Final = "the name in set_config("  # no token has blanks in it

_HEAD: Final = 8  # tokens of each statement that are kept: enough for CREATE OR REPLACE LOCAL TEMPORARY VIEW

_MAX_STATEMENTS: Final = 500  # looked at; more of them are no honest text

_WRITES: Final = frozenset(
    {"call", "delete", "insert", "lock", "merge", "notify", "refresh", "truncate", "update"}
)
_DEFINES: Final = frozenset(
    {
        "alter",
        "analyse",
        "analyze",
        "checkpoint",
        "cluster",
        "comment",
        "create",
        "drop",
        "grant",
        "import",
        "reassign",
        "reindex",
        "revoke",
        "security",
        "vacuum",
    }
)
_ROLES: Final = frozenset({("alter", "role"), ("alter", "user"), ("drop", "owned"), ("reassign", "owned")})
_MODIFYING: Final = frozenset({"delete", "insert", "merge", "update"})
_TEMPORARY: Final = frozenset({"temp", "temporary"})
_END_TRANSACTION: Final = frozenset({"abort", "commit", "end", "rollback"})


def lex(sql: bytes, reason: str) -> Facts:
    """Return what the tokens of `sql` tell; its kind is "unknown" and `reason` says why it wasn't parsed."""
    facts = Facts()
    facts.note(UNKNOWN, PRIMARY, reason)
    facts.soil("not parsed")
    facts.literal_dependent = True
    lexer = Lexer(sql[:MAX_LEXED])
    head: list[str] = []
    before = ""
    while (kind := lexer.next()) not in (END, ERROR):
        word = ""
        if kind == WORD:
            word = lexer.word()
            _word(word, before, facts)
        elif kind == OTHER:
            byte = sql[lexer.start]
            if byte == 0x3B:  # ;
                _statement(head, facts)
                if facts.statements >= _MAX_STATEMENTS:
                    facts.loosen("an unreasonable number of statements")
                    return facts
                head = []
                before = ""
                continue
            if byte == 0x28:  # (
                word = "set_config(" if before == "set_config" else "("
        elif kind == QUOTED and sql[lexer.start] != 0x22:
            facts.loosen("an identifier with escapes")
        elif kind == STRING and before == "set_config(":
            word = _SET_CONFIG_NAME
            facts.set_parameter(lexer.word().strip("'"), local=True)
        # Nothing but a plain constant tells the name.
        if (before == "set_config(" and kind not in (STRING, COMMENT)) or (
            before == _SET_CONFIG_NAME and kind != COMMENT and sql[lexer.start] != 0x2C
        ):
            facts.loosen("calls set_config for a parameter that the text doesn't tell")
        if word == _SET_CONFIG_NAME and b"'" in sql[lexer.start + 1 : lexer.end - 1]:
            facts.loosen("calls set_config for a parameter that the text doesn't tell")
        if kind != COMMENT:
            before = word
            if len(head) < _HEAD:
                head.append((word or lexer.word()).strip('"'))
    _statement(head, facts)
    facts.statements = max(facts.statements, 1)
    if len(sql) > MAX_LEXED and any(word in sql[MAX_LEXED - _LONGEST_WORD :].lower() for word in _OPENING):
        facts.loosen("may leave READ ONLY")
    return facts


def _word(word: str, before: str, facts: Facts) -> None:
    """Add what a word anywhere in a statement tells; `before` is the word or parenthesis before it."""
    if before == "(" and word in _MODIFYING:
        facts.needs_write = True
    elif before == "read" and word == "write":
        facts.loosen("READ WRITE")
    elif before == "into" and word in _TEMPORARY:
        facts.keep("temporary table")
    elif word.startswith(("pg_advisory_lock", "pg_try_advisory_lock")):
        facts.keep("advisory lock")
    elif word == "set_config":
        facts.set_unseen()
    elif word == "setseed" or word.startswith("dblink_connect"):
        facts.keep(word.partition("_")[0], lasting=True)


def _statement(head: Sequence[str], facts: Facts) -> None:
    """Add what the first words of a statement tell."""
    if not head:
        return
    facts.statements += 1
    first = head[0]
    second = head[1] if len(head) > 1 else ""
    if first == "set":
        _set(head, facts)
    elif first == "reset":
        if second == "all":
            facts.reset_all()
        else:
            facts.set_parameter(_name(head[1:]), local=False, reset=True)
    elif first in ("begin", "start"):
        facts.begins = "read write"
    elif first in _END_TRANSACTION or (first == "prepare" and second == "transaction"):
        facts.begins = ""
        facts.ends = True
    elif first in _WRITES or (first == "copy" and second != "(" and "from" in head):
        facts.needs_write = True
    elif first == "do":
        facts.needs_write = facts.needs_admin = True
    elif first == "create" and not _TEMPORARY.isdisjoint(head[1:5]):
        facts.needs_write = True
        facts.keep("temporary table")
    elif first in _DEFINES:
        facts.needs_admin = True
        if (first, second) in _ROLES:
            facts.refuse(f"{first} {second}".upper() + " needs an API key with the permission admin")
    else:
        _pins(head, facts)


def _pins(head: Sequence[str], facts: Facts) -> None:
    first = head[0]
    if first == "listen":
        facts.keep("listen")
    elif first == "load":
        facts.keep("load", lasting=True)
    elif first == "prepare":
        facts.keep("prepare")
    elif first == "declare" and any(pair == ("with", "hold") for pair in pairwise(head)):
        facts.keep("hold cursor")
    elif first == "discard" and head[1:2] == ["all"]:
        facts.reset_all()
        facts.unpins["all"] = None


def _set(head: Sequence[str], facts: Facts) -> None:
    """Add SET name, also as SET LOCAL and SET SESSION; modes of transactions aren't told apart."""
    rest = list(head[1:])
    local = rest[:1] == ["local"]
    if local or (rest[:1] == ["session"] and rest[1:2] not in (["authorization"], ["characteristics"])):
        rest = rest[1:]
    if rest[:2] == ["session", "authorization"]:
        name, value = "session_authorization", rest[2:3]
    elif rest[:2] == ["time", "zone"]:
        name, value = "timezone", rest[2:3]
    elif rest[:1] in (["transaction"], ["constraints"], ["session"]):
        return
    else:
        name = _name(rest)
        value = rest[1:2] if name == "role" else rest[2:3] if name in HOST_PARAMETERS else []
    reset = value == ["default"]
    facts.set_parameter(name, local=local, value=value[0].strip("'") if value else None, reset=reset)


def _name(tokens: Sequence[str]) -> str:
    """Return a dotted name from its tokens."""
    name = tokens[0] if tokens else ""
    for dot, part in zip(tokens[1::2], tokens[2::2], strict=False):
        if dot != ".":
            break
        name += "." + part
    return name
