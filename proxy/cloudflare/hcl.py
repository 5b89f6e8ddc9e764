"""Terraform's language, as far as it is written here, in the layout of `terraform fmt`.

Source: "HCL Native Syntax Specification", and hclwrite's formatter for the layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy.errors import SluiceError


class Expression(str):
    """Text of an expression, written as it stands: only ever one of our own, never an answer of somebody's."""

    __slots__ = ()


Value: TypeAlias = "str | bool | int | Sequence[Value] | Mapping[str, Value]"


@dataclass(frozen=True)
class Block:
    """A block: its type, its labels, and attributes and further blocks in order. A comment stands above it."""

    kind: str
    labels: tuple[str, ...]
    body: tuple[tuple[str, Value] | Block, ...]
    comment: str = ""


_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPECIAL: Final = re.compile(r'[\\"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|[$%](?=\{)')
_TOKEN: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|[][{}()]|[^][{}()"#]+|(.)', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(u[0-9a-f]{4}|.)|\$\$\{|%%\{")
_UNESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}
_CLOSES: Final = {")": "(", "]": "[", "}": "{"}


def quoted(text: str) -> str:
    """Return `text` as a string literal, in which nothing is a template."""
    return f'"{_SPECIAL.sub(lambda found: _escape(found.group()), text)}"'


def _escape(character: str) -> str:
    if character in "$%":
        return character * 2
    return _ESCAPES.get(character) or f"\\u{ord(character):04x}"


def document(blocks: Sequence[Block]) -> str:
    """Return the text of a file that holds `blocks`; raises SluiceError if it doesn't read back as what was meant."""
    text = "\n".join("".join(f"{line}\n" for line in _block(block)) for block in blocks)
    meant = [literal for block in blocks for literal in _literals(block)]
    if strings(text) != meant:
        raise SluiceError("the Terraform file doesn't read back as it was written")
    return text


def strings(text: str) -> list[str]:
    """Return the string literals of `text` in order, unescaped.

    Raises SluiceError where a string or a bracket isn't closed. Our own templates (`"${…}"`) come as they stand.
    """
    found: list[str] = []
    open_brackets: list[str] = []
    for token in _TOKEN.finditer(text):
        word = token.group()
        if token.group(1) is not None:
            raise SluiceError("the Terraform file has a string that doesn't end")
        if word.startswith('"'):
            found.append(_ESCAPED.sub(_unescape, word[1:-1]))
        elif word in ("(", "[", "{"):
            open_brackets.append(word)
        elif word in _CLOSES and (not open_brackets or open_brackets.pop() != _CLOSES[word]):
            raise SluiceError("the Terraform file has a bracket too many")
    if open_brackets:
        raise SluiceError("the Terraform file has a bracket that isn't closed")
    return found


def _unescape(found: re.Match[str]) -> str:
    code = found.group(1)
    if code is None:
        return found.group()[1:]
    return chr(int(code[1:], 16)) if len(code) > 1 else _UNESCAPED[code]


def _literals(part: Block | Value) -> Iterator[str]:
    if isinstance(part, Block):
        yield from part.labels
        for entry in part.body:
            yield from _literals(entry if isinstance(entry, Block) else entry[1])
    elif isinstance(part, Expression):
        yield from strings(part)
    elif isinstance(part, str):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _literals(value)
    elif not isinstance(part, int):
        for value in part:
            yield from _literals(value)


def _block(block: Block) -> list[str]:
    head = " ".join((_named(block.kind), *(quoted(label) for label in block.labels), "{"))
    lines = [f"# {line}" for line in block.comment.splitlines()]
    if not block.body:
        return [*lines, f"{head}}}"]
    return [*lines, head, *(_indented(_body(block.body))), "}"]


def _body(entries: Sequence[tuple[str, Value] | Block]) -> list[str]:
    """Attributes that stand together, each on one line, have their signs in one column."""
    lines: list[str] = []
    together: list[tuple[str, str]] = []

    def close() -> None:
        width = max((len(name) for name, _ in together), default=0)
        lines.extend(f"{name:{width}} = {value}" for name, value in together)
        together.clear()

    for entry in entries:
        if isinstance(entry, Block):
            close()
            lines += [*([""] if lines else []), *_block(entry)]
            continue
        name, value = _named(entry[0]), _value(entry[1])
        if len(value) == 1:
            together.append((name, value[0]))
        else:
            close()
            lines += [f"{name} = {value[0]}", *value[1:]]
    close()
    return lines


def _value(value: Value) -> list[str]:
    if isinstance(value, Expression):
        return value.splitlines()
    if isinstance(value, str):
        return [quoted(value)]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, int):
        return [str(value)]
    if isinstance(value, Mapping):
        return ["{", *_indented(_body(tuple(value.items()))), "}"] if value else ["{}"]
    items = [_value(item) for item in value]
    if all(len(item) == 1 for item in items):
        return [f"[{', '.join(item[0] for item in items)}]"]
    lines = ["["]
    for item in items:
        lines += _indented([*item[:-1], f"{item[-1]},"])
    return [*lines, "]"]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _named(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise SluiceError(f"{name!r} is no name in Terraform")
    return name
