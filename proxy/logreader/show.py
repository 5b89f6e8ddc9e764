"""How `pgsluice logs` prints records: as lines of JSON, or as a table for people."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.cells import cell_len, set_cell_size

from proxy.observe.text import MAX_ESCAPED, escape

# Name and width of each column but the last; while a log is followed, each batch has to stand below the one before.
_COLUMNS: Final = (
    ("at (UTC)", 23),
    ("event", 12),
    ("key", 16),
    ("user", 20),
    ("intent", 11),
    ("target", 10),
    ("ms", 9),
    ("rows", 7),
    ("state", 5),
)
_NUMBERS: Final = ("ms", "rows")
_FIRST_TO_GO: Final = ("key", "rows", "target", "intent", "state", "user", "ms", "event")
_LEAST: Final = 30
"""Places that a statement gets, however narrow the terminal."""


class JsonPrinter:
    """Prints a line for each record, as the access log on standard output has it."""

    def show(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Print `records`; all ASCII, so that every control character is escaped."""
        for record in records:
            # json.dumps leaves DEL as it is.
            print(json.dumps(record).replace("\x7f", "\\u007f"), flush=True)


class TablePrinter:
    """Prints a row for each record; a statement is cut to the terminal's width unless it may be `wide`.

    Columns are as wide as what they hold, or, where more rows are to `follow`, as wide as what they mostly hold. A
    narrow terminal gets fewer of them.
    """

    def __init__(self, *, wide: bool, follow: bool) -> None:
        self._wide = wide
        self._fixed = follow
        self._titled = False

    def show(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Print `records`, under titles the first time."""
        if not records:
            return
        rows = [cells(record) for record in records]
        if not self._titled:
            rows.insert(0, [*(name for name, _ in _COLUMNS), "statement"])
            self._titled = True
        # A pipe has no width: nothing is cut there.
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        widths = [
            width if self._fixed else min(max(cell_len(row[index]) for row in rows), 2 * width)
            for index, (_, width) in enumerate(_COLUMNS)
        ]
        if room:
            _leave_out(widths, room - _LEAST)
        for row in rows:
            print(self._line(row, widths, room))
        sys.stdout.flush()

    def _line(self, row: list[str], widths: list[int], room: int) -> str:
        parts: list[str] = []
        for (name, _), width, cell in zip(_COLUMNS, widths, row, strict=False):
            if width:
                cut = _cut(cell, width)
                blank = " " * (width - cell_len(cut))
                parts.append(blank + cut if name in _NUMBERS else cut + blank)
        before = "  ".join([*parts, ""])
        last = row[-1]
        if room and not self._wide:
            last = _cut(last, max(room - len(before), _LEAST))
        return (before + last).rstrip()


def _leave_out(widths: list[int], room: int) -> None:
    """Make columns 0 wide, the least telling first, until all fit into `room`."""
    names = [name for name, _ in _COLUMNS]
    for name in _FIRST_TO_GO:
        if sum(width + 2 for width in widths if width) <= room:
            return
        widths[names.index(name)] = 0


def _cut(text: str, width: int) -> str:
    """Return as much of `text` as takes `width` places of a terminal, with an ellipsis where that isn't all."""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def cells(record: Mapping[str, Any]) -> list[str]:
    """Return what the columns show of a record; nothing in it moves a terminal's cursor."""
    time = _text(record, "at").replace("T", " ").removesuffix("Z")
    taken = record.get("duration_us")
    rows = record.get("rows")
    return [
        time,
        _text(record, "event"),
        _text(record, "key_id"),
        _text(record, "user_id"),
        _text(record, "intent"),
        _text(record, "target"),
        f"{taken / 1000:.1f}" if isinstance(taken, int) else "",
        str(rows) if isinstance(rows, int) else "",
        _text(record, "sqlstate"),
        _said(record),
    ]


def _said(record: Mapping[str, Any]) -> str:
    """Return the statement; for what isn't one its reason, for one that was denied both."""
    statement, reason = _text(record, "statement"), _text(record, "reason")
    if record.get("event") == "statement":
        return statement
    return f"{reason}: {statement}" if reason and statement else reason or statement


def _text(record: Mapping[str, Any], name: str) -> str:
    """Return a text on one line, its blanks made single, controls escaped."""
    value = record.get(name)
    return escape(" ".join(str(value).split()), MAX_ESCAPED) if value is not None else ""
