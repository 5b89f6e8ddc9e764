"""Make text from outside safe to print: one line stays one line, and a terminal obeys nothing in it."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from proxy.observe.record import mask_keys

# Longest text that `escape` lets through, in characters.
MAX_ESCAPED: Final = 4096


def escape(text: str, limit: int = MAX_ESCAPED) -> str:
    r"""Return `text` with all that doesn't print escaped as \n, \x1b, \u202e …, and a backslash doubled.

    That is what str.isprintable says: controls, line separators, bidi and zero-width marks, surrogates,
    unassigned characters, and spaces other than the plain one. Longer text is cut and ends in an ellipsis.
    """
    cut = text[:limit]
    if not cut.isprintable() or "\\" in cut:
        cut = "".join(
            char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode()
            for char in cut
        )
    return f"{cut}…" if len(text) > limit else cut


class TextFormatter(logging.Formatter):
    """Formats log records as lines of text: time, level, logger, message; a traceback stands indented below.

    Each line of a traceback is escaped by itself, so that nothing in it can pass for a record.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the first line, its message without secrets of API keys."""
        record.message = escape(mask_keys(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Return the traceback, indented."""
        lines = mask_keys(super().formatException(ei)).split("\n")
        return "\n".join(f"    {escape(line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """Formats log records as one JSON object each: at, level, logger, message; traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, all ASCII, so that every control character is escaped."""
        fields = {
            "at": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": mask_keys(record.getMessage()),
        }
        if record.exc_info:
            fields["traceback"] = mask_keys(self.formatException(record.exc_info))
        # json.dumps leaves DEL as it is.
        return json.dumps(fields).replace("\x7f", "\\u007f")
