"""How `pgsluice keys` prints keys: for people, or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

_LISTED = ("id", "name", "user_id", "permissions", "default_pool", "state", "use_count", "last_used_at")


def print_json(value: object) -> None:
    """Print JSON on one line; times are in ISO 8601."""
    print(
        json.dumps(value, default=lambda each: each.isoformat() if isinstance(each, datetime) else str(each))
    )


def print_new(made: Mapping[str, object], as_json: bool) -> None:
    """Print a new key: alone on standard output, what else is to be said on standard error."""
    if as_json:
        print_json(made)
        return
    print(made["api_key"], flush=True)
    permissions = made["permissions"]
    assert isinstance(permissions, list | tuple)
    rights = ", ".join(map(str, permissions)) or "no permissions"
    print(f"shown this once; key {made['id']} of {made['user_id']}: {rights}", file=sys.stderr)
    if made.get("rotated_from"):
        print(f"{made['rotated_from']} stays valid until {made['old_key_expires_at']}", file=sys.stderr)


def print_list(found: Sequence[Mapping[str, object]]) -> None:
    """Print a table, a line for each key."""
    table = Table(*_LISTED, box=None, pad_edge=False)
    for key in found:
        table.add_row(*(Text(_cell(column, key)) for column in _LISTED))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def print_one(key: Mapping[str, object]) -> None:
    """Print all that is known of a key, a line for each."""
    width = max(map(len, key))
    for column in key:
        print(f"{column:{width}}  {_cell(column, key)}".rstrip())


def _cell(column: str, key: Mapping[str, object]) -> str:
    value = key.get(column)
    if column == "state" and value == "rotating":
        return f"rotating until {_cell('expires_at', key)}"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
