"""The one error of migrations, and the place in a file that it may name."""

from __future__ import annotations

from pathlib import Path

from proxy.errors import SluiceError


class MigrationError(SluiceError):
    """A migration that failed or can't be run; `file` and `line` say where, if it is a file's fault."""

    def __init__(self, message: str, *, file: Path | None = None, line: int = 0) -> None:
        super().__init__(message)
        self.file = file
        self.line = line


def at(file: Path, text: str, position: int, message: str) -> MigrationError:
    """Return the error `message` at the character `position`, counted from 0, of `file`'s `text`."""
    line = line_of(text, position)
    return MigrationError(f"{file.parent.name}/{file.name}:{line}: {message}", file=file, line=line)


def line_of(text: str, position: int) -> int:
    """Return the line, counted from 1, of a character's position."""
    return text.count("\n", 0, position) + 1
