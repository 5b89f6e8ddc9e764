r"""The notation of the corpus: cases, each a script of frontend messages, one on a line.

    == a case's name
    differs: function-call          the proxy may differ, by this rule of rules.py
    differs: lag in replica         so it may in this one of the settings of stages.py
    known: some-bug                 the proxy differs, and shouldn't: the run stays green, and says so
    as: admin                       the login, `writer` unless said
    startup: options=-c a=b         a parameter of the startup message; may be repeated
    Query SELECT 1
    Parse s1 (23, 25) SELECT $1, $2 name (`-` for none), types if there are any, text
    Bind p1 s1 [1, "a", null, "hex:00ff"] in=1 out=0,1
    Describe S s1                   S or P and a name; Close is written the same way
    Execute p1 10                   portal, most rows (0, all, if left out)
    Sync, Flush, CopyDone, CopyFail why, CopyData 1\tone\n, FunctionCall, Terminate
    Message Q SELECT '\xff'\x00     any message: its type and its body; the length is right
    Bytes Q\x00\x00\x00\x03         what comes out as it stands
    Await A                         read until a message of this type came

A line that starts with white space belongs to the line above. Messages are written, and replies read, where a Query,
Sync, Flush, CopyDone, CopyFail or Await ends a step; `+` in front leaves the step open, so that what follows travels
in the same write. `Sync ignored` is one that the server swallows because a COPY runs. `b:` in front says that the
case's second client sends this. `{{each 1..3 "," $#}}` stands for `$1,$2,$3`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.session.frontend import message

_DIRECTIVES: Final = ("differs", "known", "as", "startup")
_ENDING: Final = (
    "Query",
    "Sync",
    "Flush",
    "CopyDone",
    "CopyFail",
    "Await",
    "Terminate",
    "Bytes",
    "FunctionCall",
)
_EACH: Final = re.compile(r'\{\{each (\d+)\.\.(\d+) "([^"]*)" (.*?)\}\}', re.DOTALL)
_TYPES: Final = re.compile(r"\((\d+(?:, *\d+)*)\) ")


class ScriptError(ValueError):
    """A line of the corpus that isn't in the notation."""


@dataclass(frozen=True)
class Line:
    """One message: `word` as written, the `data` to send, and whether the step ends here."""

    word: str
    data: bytes
    awaited: str = ""
    ends: bool = True


@dataclass
class Step:
    """What one client sends in one write, and then awaits the replies of."""

    client: str
    lines: list[Line] = field(default_factory=list)
    text: list[str] = field(default_factory=list)


@dataclass
class Case:
    """A script with a name."""

    name: str
    file: str
    login: str = "writer"
    differs: str = ""
    known: str = ""
    differs_in: dict[str, str] = field(default_factory=dict)
    startup: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def clients(self) -> list[str]:
        """Return the names of the clients that take part."""
        return sorted({step.client for step in self.steps} | {"a"})


def read(path: Path) -> list[Case]:
    """Return the cases of a file; raises ScriptError where it isn't in the notation."""
    return list(parse(path.read_text("utf-8"), path.stem))


def parse(text: str, file: str = "") -> Iterator[Case]:
    """Give the cases of `text`."""
    case: Case | None = None
    open_step: Step | None = None
    for number, line in _logical_lines(text):
        try:
            if line.startswith("== "):
                if case is not None:
                    yield case
                case, open_step = Case(line[3:].strip(), file), None
            elif case is None:
                raise ScriptError("a case starts with ==")
            elif directive := _directive(line):
                _heed(case, *directive)
            else:
                open_step = _add(case, open_step, line)
        except (ScriptError, ValueError, KeyError) as error:
            raise ScriptError(f"{file}, line {number}: {line[:80]}: {error}") from error
    if case is not None:
        yield case


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    started, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if line[:1].isspace() and line.strip() and parts:
            parts.append(line.strip())
            continue
        if parts:
            yield started, "\n".join(parts)
            parts = []
        if line.strip() and not line.startswith("#"):
            started, parts = number, [line.rstrip()]
    if parts:
        yield started, "\n".join(parts)


def _directive(line: str) -> tuple[str, str] | None:
    name, colon, value = line.partition(":")
    return (name, value.strip()) if colon and name in _DIRECTIVES else None


def _heed(case: Case, name: str, value: str) -> None:
    if name == "startup":
        parameter, _, content = value.partition("=")
        case.startup[parameter] = content
    elif name == "as":
        case.login = value
    elif name == "differs" and " in " in value:
        rule, _, setting = value.partition(" in ")
        case.differs_in[setting] = rule
    else:
        setattr(case, name, value)


def _add(case: Case, open_step: Step | None, line: str) -> Step | None:
    """Add a line to the step that is open, or to a new one; return the step if it stays open."""
    stays_open = line.startswith("+")
    content = line.removeprefix("+").strip()
    client, content = ("b", content[2:].strip()) if content.startswith("b:") else ("a", content)
    if open_step is not None and open_step.client != client:
        raise ScriptError("another client inside a step")
    if open_step is None:
        open_step = Step(client)
        case.steps.append(open_step)
    built = build(content)
    open_step.lines.append(built)
    open_step.text.append(content)
    return open_step if stays_open or not built.ends else None


def build(content: str) -> Line:
    """Return the message that a line stands for."""
    word, _, rest = _expanded(content).partition(" ")
    rest = rest.strip(" ") if word != "CopyData" else rest
    if word not in _BUILDERS:
        raise ScriptError(f"no message is called {word}")
    data = _BUILDERS[word](rest)
    awaited = rest if word == "Await" else ("ignored" if rest == "ignored" else "")
    return Line(word, data, awaited, word in _ENDING and awaited != "ignored")


def _expanded(text: str) -> str:
    def each(match: re.Match[str]) -> str:
        first, last, between, piece = match.groups()
        return between.join(piece.replace("#", str(at)) for at in range(int(first), int(last) + 1))

    return _EACH.sub(each, text)


def _cstring(text: str) -> bytes:
    return (b"" if text == "-" else text.encode()) + b"\0"


def _escaped(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


def _query(rest: str) -> bytes:
    return message(b"Q", rest.encode() + b"\0")


def _parse(rest: str) -> bytes:
    name, _, text = rest.partition(" ")
    types: list[int] = []
    if match := _TYPES.match(text):
        types = [int(each) for each in match[1].split(",")]
        text = text[match.end() :]
    body = _cstring(name) + text.encode() + b"\0" + struct.pack("!H", len(types))
    return message(b"P", body + b"".join(struct.pack("!I", each) for each in types))


def _bind(rest: str) -> bytes:
    portal, statement, *more = rest.split(" ", 2)
    values_text, formats = more[0] if more else "[]", dict[str, list[int]]()
    while match := re.search(r" (in|out)=([\d,]+)$", values_text):
        formats[match[1]] = [int(each) for each in match[2].split(",")]
        values_text = values_text[: match.start()]
    values = [_value(each) for each in json.loads(values_text)]
    body = _cstring(portal) + _cstring(statement) + _shorts(formats.get("in", []))
    body += struct.pack("!H", len(values))
    body += b"".join(b"\xff" * 4 if each is None else struct.pack("!i", len(each)) + each for each in values)
    return message(b"B", body + _shorts(formats.get("out", [])))


def _shorts(numbers: list[int]) -> bytes:
    return struct.pack(f"!{len(numbers) + 1}H", len(numbers), *numbers)


def _value(value: object) -> bytes | None:
    if value is None:
        return None
    text = str(value)
    return bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()


def _named(kind: bytes) -> Callable[[str], bytes]:
    def build_named(rest: str) -> bytes:
        what, _, name = rest.partition(" ")
        return message(kind, what.encode() + _cstring(name))

    return build_named


def _execute(rest: str) -> bytes:
    portal, _, most = rest.partition(" ")
    return message(b"E", _cstring(portal) + struct.pack("!i", int(most or 0)))


def _any(rest: str) -> bytes:
    kind, _, body = rest.partition(" ")
    return message(kind.encode(), _escaped(body))


_BUILDERS: Final[dict[str, Callable[[str], bytes]]] = {
    "Query": _query,
    "Parse": _parse,
    "Bind": _bind,
    "Describe": _named(b"D"),
    "Close": _named(b"C"),
    "Execute": _execute,
    "Sync": lambda rest: message(b"S"),
    "Flush": lambda rest: message(b"H"),
    "CopyData": lambda rest: message(b"d", _escaped(rest)),
    "CopyDone": lambda rest: message(b"c"),
    "CopyFail": lambda rest: message(b"f", rest.encode() + b"\0"),
    "FunctionCall": lambda rest: message(b"F", struct.pack("!IHHH", 1397, 0, 0, 0)),
    "Terminate": lambda rest: message(b"X"),
    "Message": _any,
    "Bytes": _escaped,
    "Await": lambda rest: b"",
}
