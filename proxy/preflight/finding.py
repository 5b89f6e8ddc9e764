"""One shortfall: how bad it is, what it is, and the statement that mends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pglast.keywords import COL_NAME_KEYWORDS, RESERVED_KEYWORDS, TYPE_FUNC_NAME_KEYWORDS

ERROR: Final = "error"
WARNING: Final = "warning"

Row: TypeAlias = Mapping[str, Any]

_QUOTED: Final = RESERVED_KEYWORDS | COL_NAME_KEYWORDS | TYPE_FUNC_NAME_KEYWORDS


@dataclass(frozen=True)
class Finding:
    """What falls short. `mend` is SQL for a superuser's psql; where no SQL helps it is "", and `advice` says what does.

    With `bypass`, a client with arbitrary SQL could pass by row-level security, or sign for others.
    """

    severity: str
    topic: str
    what: str
    mend: str = ""
    advice: str = ""
    bypass: bool = False


def name(text: str) -> str:
    """Return `text` as an identifier in SQL, quoted where that is needed (as quote_ident does)."""
    plain = text.isascii() and text.islower() and text.replace("_", "a").isalnum() and not text[0].isdigit()
    return text if plain and text not in _QUOTED else '"' + text.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return `text` as a string in SQL, whatever standard_conforming_strings is."""
    quoted = "'" + text.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted
