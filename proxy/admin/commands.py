"""What a client of the console asks for: its text, as commands.

Keywords in any case, names as they stand or in quotes of either kind, a semicolon between commands. Beside the
console's own there is what drivers and tools say to any server when they connect: `SET client_encoding = …`,
`SHOW transaction_read_only`, `SELECT 1`, `BEGIN`. It is answered, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy.errors import FeatureNotSupported, InvalidParameter, UnknownCommand
from proxy.query.lexer import COMMENT, END, ERROR, NUMBER, OTHER, QUOTED, STRING, WORD, Lexer
from proxy.query.parameters import ALLOWED

SHOW: Final = "show"
ROUTE: Final = "route"
VALUE: Final = "value"  # one row with one value, which tools ask any server for
NOTHING: Final = "nothing"  # what is taken without an effect

SUBJECTS: Final = (
    "help",
    "version",
    "config",
    "databases",
    "pools",
    "stats",
    "stats_totals",
    "stats_averages",
    "totals",
    "clients",
    "servers",
    "sockets",
    "active_sockets",
    "lists",
    "users",
    "state",
    "peers",
    "peer_pools",
    "mem",
    "dns_hosts",
    "dns_zones",
    "hosts",
    "keys",
    "cache",
    "pins",
)
"""What SHOW shows; and ROUTE, which takes a text."""

FLUSH_CACHE: Final = "flush_cache"

ON_DATABASES: Final = ("pause", "resume", "reconnect", "wait_close", "kill", FLUSH_CACHE)
"""Commands on one database, or on all where none is named."""

ON_ONE_DATABASE: Final = ("enable", "disable")

ADMINISTRATIVE: Final = frozenset((*ON_DATABASES, *ON_ONE_DATABASE, "kill_client", "reload", "shutdown"))
"""Commands that change something: for keys with `admin`."""

SHUTDOWNS: Final = ("", "wait_for_servers", "wait_for_clients")

PARAMETERS: Final = {
    "application_name": "",
    "client_encoding": "UTF8",
    "datestyle": "ISO",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "extra_float_digits": "1",
    "in_hot_standby": "off",
    "integer_datetimes": "on",
    "intervalstyle": "postgres",
    "max_identifier_length": "63",
    "search_path": "",
    "server_encoding": "UTF8",
    "server_version": "",
    "server_version_num": "",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "timezone": "GMT",
    "transaction_isolation": "read committed",
    "transaction_read_only": "off",
}
"""Parameters of any server that SHOW answers; the console fills in those that are empty here."""

FUNCTIONS: Final = frozenset(
    {
        "version()",
        "current_database()",
        "current_schema()",
        "current_user",
        "session_user",
        "user",
        "pg_backend_pid()",
        "pg_is_in_recovery()",
        "pg_advisory_unlock_all()",
    }
)
"""What SELECT answers beside a number."""

# SHOW TIME ZONE and the like (manual, "SHOW").
_SPELLED_OUT: Final = {"time zone": "timezone", "transaction isolation level": "transaction_isolation"}
_TRANSACTION: Final = {
    "begin": "BEGIN",
    "start": "START TRANSACTION",
    "commit": "COMMIT",
    "end": "COMMIT",
    "rollback": "ROLLBACK",
    "abort": "ROLLBACK",
}
# What pools of drivers clean a connection with.
_CLEANING: Final = {
    "reset": "RESET",
    "discard": "DISCARD ALL",
    "deallocate": "DEALLOCATE ALL",
    "close": "CLOSE CURSOR ALL",
    "unlisten": "UNLISTEN",
}
_SETTABLE: Final = ALLOWED | PARAMETERS.keys() | {"row_security", "idle_session_timeout", "time", "names"}
_SHOWN: Final = 60

COMMANDS: Final = (
    f"SHOW {', '.join(subject.upper() for subject in SUBJECTS)}, ROUTE '<sql>'; "
    "PAUSE, RESUME, RECONNECT, WAIT_CLOSE, KILL, FLUSH CACHE [<database>]; ENABLE, DISABLE <database>; "
    "KILL_CLIENT <id>; RELOAD; SHUTDOWN [WAIT_FOR_CLIENTS]"
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command. What `subject` and `argument` hold depends on the verb.

    show: what is shown. route: the database, "" for the first, and the SQL. value: its name and, where the text
    itself says it, the value. nothing: the tag that answers it. Else the argument is a database or an id.
    """

    verb: str
    subject: str = ""
    argument: str = ""

    @property
    def needs_admin(self) -> bool:
        """Tell whether it changes something."""
        return self.verb in ADMINISTRATIVE

    @property
    def is_free(self) -> bool:
        """Tell whether any key may have it: it tells nothing about the proxy."""
        return self.verb in (VALUE, NOTHING)

    @property
    def summary(self) -> str:
        """Return it in its plainest form, without any SQL that it holds: for the access log."""
        words = [self.verb.upper(), self.subject.upper()]
        return " ".join(word for word in [*words, "" if self.verb == ROUTE else self.argument] if word)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: int
    text: str

    @property
    def keyword(self) -> str:
        return self.text.lower() if self.kind == WORD else ""

    @property
    def name(self) -> str | None:
        """Return the name that a word or a quoted text is, None for anything else."""
        if self.kind == QUOTED and self.text.startswith('"'):
            return self.text[1:-1].replace('""', '"')
        return _unquoted(self.text) if self.kind == STRING else self.text if self.kind == WORD else None


def parse(text: str) -> list[Command]:
    """Return the commands in `text`; none for an empty one.

    Raises UnknownCommand where one of them is none of the console's, FeatureNotSupported for what PgBouncer has
    and this console has not, InvalidParameter for an id that is no number.
    """
    return [_command(tokens, text) for tokens in _statements(text)]


def _statements(text: str) -> list[list[_Token]]:
    """Return the tokens of each statement that isn't empty."""
    data = text.encode("utf-8", "surrogateescape")
    lexer = Lexer(data)
    statements: list[list[_Token]] = [[]]
    while (kind := int(lexer.next())) != END:
        token = _Token(kind, data[lexer.start : lexer.end].decode("utf-8", "replace"))
        if kind == ERROR:
            raise _unknown(text)
        if kind == OTHER and token.text == ";":
            statements.append([])
        elif kind != COMMENT:
            statements[-1].append(token)
    return [tokens for tokens in statements if tokens]


def _command(tokens: list[_Token], text: str) -> Command:
    verb, rest = tokens[0].keyword, tokens[1:]
    if verb == "flush" and rest and rest[0].keyword == "cache":
        verb, rest = FLUSH_CACHE, rest[1:]
    if verb == SHOW:
        return _show(rest, text)
    if verb == "select":
        return _select(rest, text)
    if verb == "set":
        return _set(rest)
    if verb == ROUTE:
        return _route(rest, text)
    if verb in _TRANSACTION or verb in _CLEANING:
        return Command(NOTHING, (_TRANSACTION | _CLEANING)[verb])
    if verb in ("suspend", "fds"):
        raise FeatureNotSupported(
            f"{verb.upper()} belongs to PgBouncer's online restart; here that is SIGUSR2"
        )
    names = [token.name for token in rest]
    if verb in ON_DATABASES and len(rest) <= 1 and None not in names:
        return Command(verb, argument=names[0] or "" if names else "")
    if verb in ON_ONE_DATABASE and len(rest) == 1 and names[0]:
        return Command(verb, argument=names[0])
    if verb == "kill_client" and len(rest) == 1:
        digits = rest[0].text if rest[0].kind == NUMBER else names[0] or ""
        if not (digits.isascii() and digits.isdigit()):
            raise InvalidParameter("KILL_CLIENT takes the id of a client, as SHOW CLIENTS shows it")
        return Command(verb, argument=digits)
    if verb == "reload" and not rest:
        return Command(verb)
    if verb == "shutdown" and len(rest) <= 1:
        how = rest[0].keyword if rest else ""
        if how in SHUTDOWNS and bool(how) == bool(rest):
            return Command(verb, argument=how)
    raise _unknown(text)


def _show(rest: list[_Token], text: str) -> Command:
    subject = rest[0].keyword if rest else ""
    if subject == ROUTE:
        return _route(rest[1:], text)
    if subject == "fds":
        raise FeatureNotSupported("SHOW FDS belongs to PgBouncer's online restart; here that is SIGUSR2")
    words = " ".join(token.keyword for token in rest)
    parameter = _SPELLED_OUT.get(words, words)
    if parameter in PARAMETERS:
        return Command(VALUE, parameter, PARAMETERS[parameter])
    if len(rest) != 1 or subject not in SUBJECTS:
        raise _unknown(text)
    return Command(SHOW, subject)


def _select(rest: list[_Token], text: str) -> Command:
    """Take what tools ask to see whether anybody is there; PgBouncer takes SELECT for SHOW."""
    if len(rest) == 1 and rest[0].kind == NUMBER and rest[0].text.isdigit() and len(rest[0].text) < 10:
        return Command(VALUE, "?column?", rest[0].text)
    asked = "".join(token.text for token in rest).lower().removeprefix("pg_catalog.")
    if asked in FUNCTIONS:
        return Command(VALUE, asked)
    return _show(rest, text)


def _set(rest: list[_Token]) -> Command:
    words = [token.keyword for token in rest]
    while words and words[0] in ("session", "local"):
        words = words[1:]
    name = words[0] if words else ""
    if name in _SETTABLE or name in ("characteristics", "transaction"):
        return Command(NOTHING, "SET")
    raise FeatureNotSupported(
        f'"{name}" is not set here', hint="Change pgsluice.yaml, and take it over with RELOAD."
    )


def _route(rest: list[_Token], text: str) -> Command:
    database = rest[0].name if len(rest) == 2 else ""
    if not 1 <= len(rest) <= 2 or rest[-1].kind != STRING or database is None:
        raise UnknownCommand("ROUTE takes SQL as one quoted text", hint="SHOW ROUTE [<database>] '<sql>'")
    return Command(ROUTE, database, _unquoted(rest[-1].text))


def _unquoted(constant: str) -> str:
    """Return what a string constant stands for, '…' or $tag$…$tag$."""
    if constant.startswith("$"):
        tag = constant[: constant.index("$", 1) + 1]
        return constant[len(tag) : -len(tag)]
    if constant.startswith("'") and "\n" not in constant:
        return constant[1:-1].replace("''", "'")
    if not constant.startswith("'"):
        raise UnknownCommand("only '…' and $$…$$ quote a text here")
    # 'one' and 'two' on the next line are one constant to PostgreSQL; nobody types that here.
    return constant[1:-1].replace("''", "'")


def _unknown(text: str) -> UnknownCommand:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
    return UnknownCommand(f'invalid command "{shown}": SHOW HELP says what there is', hint=COMMANDS)
