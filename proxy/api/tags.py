"""Entity tags (RFC 9110, section 8.8.3): strong ones, made of what is shown."""

from __future__ import annotations

import hashlib
import re
from typing import Final

_TAGS: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e]*)"\s*(?:,|$)')
_MOST: Final = 100


def tag_of(text: str) -> str:
    """Return the tag of a row that is shown as `text`, without quotes."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def quoted(tag: str) -> str:
    """Return `tag` as the header ETag has it."""
    return f'"{tag}"'


def wanted(header: str | None) -> list[str] | None:
    """Return the strong tags of an If-Match that ours could be; None where any will do.

    What isn't written like a tag matches nothing, and neither does a weak one.
    """
    if header is None or header.strip() == "*":
        return None
    return [
        tag for weak, tag in _TAGS.findall(header)[:_MOST] if not weak and re.fullmatch("[0-9a-f]{32}", tag)
    ]


def unchanged(header: str | None, tag: str) -> bool:
    """Tell whether an If-None-Match says that the client has `tag`; weak tags compare like strong ones here."""
    if header is None:
        return False
    return header.strip() == "*" or any(each == tag for _, each in _TAGS.findall(header)[:_MOST])
